//! The disk, with its errors as the store's.

use std::io::{self, ErrorKind};

pub(super) use crate::base::disk::{
    TempFile, check_space, create_folder, create_folders, open_own_folder, read, sweep, sync_folder,
};
use crate::store::StoreError;

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
