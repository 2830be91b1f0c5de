//! The state directory, which one process locks.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::base::disk;

/// Holds the lock until it is dropped or the process dies.
pub struct StateDir {
    path: PathBuf,
    lock: File,
}

#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    #[error("{0} is in use by another granary: stop that one, or set state.path to a directory of its own")]
    InUse(PathBuf),
    #[error("the state directory {path} cannot be used: {error}")]
    Io {
        path: PathBuf,
        /// Not a `source`, because it is in the text.
        error: io::Error,
    },
}

impl StateDir {
    /// Creates the directory for our user only. Refuses one that other users can change.
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        let failed = |error| StateDirError::Io { path: path.to_owned(), error };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        // The path may be a link of an operator; its target is checked.
        disk::check_owner(&File::open(path).map_err(failed)?).map_err(failed)?;
        disk::create_private(&path.join("lock")).map_err(failed)?;
        let lock = OpenOptions::new().write(true).open(path.join("lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), lock }),
            Err(TryLockError::WouldBlock) => Err(StateDirError::InUse(path.to_owned())),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    pub fn ledger_file(&self) -> PathBuf {
        self.path.join("ledger.sqlite")
    }

    /// The folder for uploads that memory has no room for.
    pub fn upload_folder(&self) -> PathBuf {
        self.path.join("uploads")
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        // Closing is not enough: a child that is being started has a copy of the file for a moment.
        let _ = self.lock.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_owner_at_a_time() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("state");
        let first = StateDir::open(&path).expect("nobody has it");
        assert!(matches!(StateDir::open(&path), Err(StateDirError::InUse(_))));
        drop(first);
        assert!(StateDir::open(&path).is_ok());
    }
}
