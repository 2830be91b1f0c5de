//! What the local store does to a disk, in the order that makes it durable.
//!
//! This module knows paths and bytes, not objects and records.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::store::StoreError;

/// A file nobody can see yet. Dropped, it is gone.
#[derive(Debug)]
pub(super) struct TempFile {
    path: PathBuf,
    file: File,
    renamed: bool,
}

impl TempFile {
    /// Makes an empty one below `folder`, with the permission bits `mode`.
    pub(super) fn create(folder: &Path, mode: u32) -> io::Result<Self> {
        let path = folder.join(uuid::Uuid::new_v4().simple().to_string());
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?;
        Ok(Self { path, file, renamed: false })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// Makes the bytes durable. After an error they must be written anew, to another file: the
    /// kernel may have dropped them, and a second sync of this one would not say so.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Publishes under `target` unless that name is taken: [`ErrorKind::AlreadyExists`].
    pub(super) fn link(&self, target: &Path) -> io::Result<()> {
        fs::hard_link(&self.path, target)
    }

    /// Publishes under `target`, in place of what is there.
    pub(super) fn replace(mut self, target: &Path) -> io::Result<()> {
        fs::rename(&self.path, target)?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.renamed {
            // What cannot be removed now is swept at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes the names in a folder durable.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Makes one folder durably; one that is there already may be the work of a process that died before
/// it could sync, and is synced all the same.
pub(super) fn create_folder(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && folder.is_dir() => {}
        other => other?,
    }
    match folder.parent() {
        Some(parent) => sync_folder(parent),
        None => Ok(()),
    }
}

/// Makes a folder and the missing ones above it durably.
pub(super) fn create_folders(folder: &Path) -> io::Result<()> {
    if let Some(parent) = folder.parent().filter(|parent| !parent.is_dir()) {
        create_folders(parent)?;
    }
    match create_folder(folder) {
        // We may own a folder below one that we may pass through but not read; it was there before us.
        Err(error) if error.kind() == ErrorKind::PermissionDenied && folder.is_dir() => Ok(()),
        other => other,
    }
}

/// The whole file, or `None` when there is none. A file longer than `max` bytes is not one of ours,
/// and is not read into memory: [`ErrorKind::FileTooLarge`].
pub(super) fn read(path: &Path, max: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    let mut bytes = Vec::with_capacity(usize::try_from(length.min(max)).unwrap_or(0));
    file.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max { Err(ErrorKind::FileTooLarge.into()) } else { Ok(Some(bytes)) }
}

/// Turns an error of the disk into the store's: `map_err(failed("write", path))`.
pub(super) fn failed(doing: &'static str, what: &str) -> impl Fn(io::Error) -> StoreError {
    move |error| {
        let text = format!("cannot {doing} {what}: {error}");
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StoreError::Full(text),
            _ => StoreError::Unavailable(text),
        }
    }
}
