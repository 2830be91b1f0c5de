//! The folder: its layout, reads, and the sweep. Blocks on the disk.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use parking_lot::{Mutex, MutexGuard};

use crate::base::disk;
use crate::base::key::CacheKey;
use crate::base::record::RECORDS;
use crate::store::StoreError;

pub(super) const RESULTS: &str = "results";
const TMP: &str = "tmp";

#[derive(Debug)]
pub(super) struct Files {
    root: PathBuf,
    tmp: PathBuf,
    /// One writer of a record at a time in this process, by the first byte of its key.
    turns: [Mutex<()>; 64],
    /// Synced folders of records; at most 257 for each namespace.
    pub(super) durable: Mutex<HashSet<PathBuf>>,
    /// Prevents sweeps by other processes, and unmounting.
    _in_use: File,
}

impl Files {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let root = std::path::absolute(path).map_err(failed("find", &path.display().to_string()))?;
        disk::create_folders(&root).map_err(failed("make the folder", &root.display().to_string()))?;
        let mut devices = HashSet::new();
        for folder in [RESULTS, RECORDS, TMP] {
            let path = root.join(folder);
            disk::create_folder(&path).map_err(failed("make the folder", folder))?;
            devices.insert(fs::metadata(&path).map_err(failed("look at", folder))?.dev());
        }
        if devices.len() > 1 {
            return Err(StoreError::Unavailable(
                "results, records and tmp must be on one filesystem, or files cannot be put in place".into(),
            ));
        }
        let tmp = root.join(TMP);
        let in_use = disk::open_own_folder(&tmp).map_err(failed("use", &tmp.display().to_string()))?;
        sweep(&in_use);
        let (turns, durable) = ([const { Mutex::new(()) }; 64], Mutex::default());
        Ok(Self { root, tmp, turns, durable, _in_use: in_use })
    }

    pub(super) fn turn(&self, key: CacheKey) -> MutexGuard<'_, ()> {
        self.turns[usize::from(key.as_bytes()[0]) % self.turns.len()].lock()
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn tmp(&self) -> &Path {
        &self.tmp
    }

    pub(super) fn layout(&self) -> [PathBuf; 3] {
        [RESULTS, RECORDS, TMP].map(|folder| self.root.join(folder))
    }

    /// As in [`read`](Self::read), a missing layout is no absence.
    pub(super) fn has(&self, path: &str) -> Result<bool, StoreError> {
        match self.root.join(path).try_exists() {
            Ok(false) if !self.root.join(RESULTS).is_dir() => Err(StoreError::Unavailable(format!(
                "cannot look for {path}: the folder {RESULTS} is missing"
            ))),
            found => found.map_err(failed("look for", path)),
        }
    }

    /// `None` only when the `folder` exists: in a volume that is not mounted, everything looks absent.
    pub(super) fn read(&self, folder: &str, path: &str, max: u64) -> Result<Option<Vec<u8>>, StoreError> {
        match disk::read(&self.root.join(path), max) {
            Ok(None) if !self.root.join(folder).is_dir() => {
                Err(StoreError::Unavailable(format!("cannot read {path}: the folder {folder} is missing")))
            }
            Err(error) if error.kind() == ErrorKind::FileTooLarge => {
                Err(StoreError::Corrupt(format!("{path} is longer than {max} bytes")))
            }
            read => read.map_err(failed("read", path)),
        }
    }
}

/// Converts a disk error: `map_err(failed("write", path))`.
pub(super) fn failed(doing: &'static str, what: &str) -> impl Fn(io::Error) -> StoreError {
    move |error| {
        let text = format!("cannot {doing} {what}: {error}");
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StoreError::Full(text),
            _ => StoreError::Unavailable(text),
        }
    }
}

/// Removes files of dead processes, unless another process has the folder open.
fn sweep(in_use: &File) {
    if in_use.try_lock().is_ok() {
        match disk::sweep(in_use) {
            Ok(0) => {}
            Ok(files) => tracing::info!(files, "removed files that were left half written"),
            Err(error) => tracing::warn!(%error, "cannot read tmp, where files may be left half written"),
        }
    }
    if let Err(error) = in_use.lock_shared() {
        tracing::warn!(%error, "cannot lock tmp: no other process may open this store meanwhile");
    }
}
