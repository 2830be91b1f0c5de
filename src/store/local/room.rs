//! Whether a new result could be kept, before paying. Each check looks at space, inodes, permissions and the layout.
//! Every few seconds it also writes a file, which shows a failing disk, a quota, or missing hard links.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::Access;

use super::files::{Files, failed};
use crate::base::disk::{self, TempFile};
use crate::store::StoreError;

/// After one written file: less than a miss takes.
const PROOF_HOLDS: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Room {
    min_free_bytes: u64,
    proof_holds: Duration,
    /// The last successful write. Failures are not remembered, so that it recovers at once.
    proved: Mutex<Option<Instant>>,
}

impl Room {
    pub(super) fn new(min_free_bytes: u64) -> Self {
        Self { min_free_bytes, proof_holds: PROOF_HOLDS, proved: Mutex::new(None) }
    }

    pub(super) fn check(&self, files: &Files) -> Result<(), StoreError> {
        disk::check_space(files.root(), self.min_free_bytes).map_err(failed("write to", "the folder"))?;
        for folder in files.layout() {
            let name = folder.file_name().unwrap_or_default().to_string_lossy();
            rustix::fs::access(&folder, Access::WRITE_OK | Access::EXEC_OK)
                .map_err(|errno| failed("write to the folder", &name)(errno.into()))?;
        }
        // Held during the write: concurrent callers share it.
        let mut proved = self.proved.lock();
        if proved.is_none_or(|when| when.elapsed() > self.proof_holds) {
            *proved = None;
            prove(files)?;
            *proved = Some(Instant::now());
        }
        Ok(())
    }
}

/// Writes and reads back a file below `tmp/`. Its names are random, because processes may share the folder.
pub(super) fn prove(files: &Files) -> Result<(), StoreError> {
    const TRIAL: &[u8] = b"room?";
    let link = files.tmp().join(format!("link-{}", uuid::Uuid::new_v4().simple()));
    let keep = || {
        let mut file = TempFile::create(files.tmp(), 0o600)?;
        file.write(TRIAL)?;
        file.sync()?;
        file.link(&link)?;
        let is_refused = file.link(&link).is_err_and(|error| error.kind() == ErrorKind::AlreadyExists);
        let is_read_back = disk::read(&link, TRIAL.len() as u64)?.is_some_and(|bytes| bytes == TRIAL);
        std::fs::remove_file(&link)?;
        disk::sync_folder(files.tmp())?;
        Ok((is_read_back, is_refused))
    };
    match keep().map_err(failed("write", "a file for a trial"))? {
        (true, true) => Ok(()),
        (false, _) => Err(StoreError::Unfit("a file was not read back as it was written".into())),
        (_, false) => {
            Err(StoreError::Unfit("a name could be given twice, and a result be overwritten".into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_written_file_proves_room_for_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::open(folder.path()).unwrap();
        let mut room = Room { proof_holds: Duration::MAX, ..Room::new(0) };
        let folder = std::fs::File::open(files.tmp()).unwrap();
        let writes = |room: &Room| {
            let long_ago = std::time::UNIX_EPOCH;
            folder.set_modified(long_ago).unwrap();
            room.check(&files).unwrap();
            folder.metadata().unwrap().modified().unwrap() != long_ago
        };
        assert!(writes(&room));
        assert!(!writes(&room));
        room.proof_holds = Duration::ZERO;
        assert!(writes(&room));
    }
}
