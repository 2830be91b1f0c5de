//! The store as plain files.
//!
//! ```text
//! results/{digest}.{ext}                objects; a plain static file server on the folder serves every URL
//! records/{namespace}/{kk}/{key}.json   records; {kk} is the key's first two digits
//! archive                               the marker
//! tmp/                                  unfinished files; swept when the store is opened
//! ```
//!
//! Each file is written below `tmp/`, synced, and linked or renamed into place, and the folder is synced
//! before the call returns: a crash leaves a whole file or none. Objects are checked against their digest.
//! One process writes records; others (`granary check`, a static server) may share the folder.

mod files;
mod objects;
mod records;
mod room;
#[cfg(test)]
mod tests;

#[cfg(test)]
#[cfg(feature = "crash-points")]
mod crash_tests;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Semaphore;

use self::files::Files;
use self::room::Room;
use crate::base::archive::ArchiveId;
use crate::base::key::CacheKey;
use crate::base::picture::ObjectName;
use crate::base::record::Record;
use crate::store::{RecordPage, Store, StoreError};

/// For [`Store::check_room`]: more than 33 MiB for each concurrent paid call.
const MIN_FREE_BYTES: u64 = 1 << 30;
/// At once; each may take [`MAX_OBJECT_BYTES`](crate::base::record::MAX_OBJECT_BYTES) of memory.
const OBJECT_READS: usize = 4;

/// A dropped future stops nothing: its work ends on its own thread.
#[derive(Debug)]
pub struct LocalStore {
    files: Arc<Files>,
    room: Arc<Room>,
    reads: Arc<Semaphore>,
}

impl LocalStore {
    /// Creates a missing folder, and sweeps unfinished files. Blocks on the disk. A read-only folder is no error,
    /// since it can serve hits; [`Store::check_room`] then fails. A folder that spans filesystems is refused.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_with(path, MIN_FREE_BYTES, OBJECT_READS)
    }

    fn open_with(path: impl AsRef<Path>, min_free_bytes: u64, reads: usize) -> Result<Self, StoreError> {
        Ok(Self {
            files: Arc::new(Files::open(path.as_ref())?),
            room: Arc::new(Room::new(min_free_bytes)),
            reads: Arc::new(Semaphore::new(reads)),
        })
    }

    /// On a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Files) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let files = Arc::clone(&self.files);
        match tokio::task::spawn_blocking(move || work(&files)).await {
            Ok(result) => result,
            Err(error) => Err(StoreError::Unavailable(format!("work on the disk was broken off: {error}"))),
        }
    }
}

#[async_trait]
impl Store for LocalStore {
    async fn put_object(&self, name: ObjectName, bytes: Bytes) -> Result<(), StoreError> {
        self.blocking(move |files| files.put_object(name, &bytes)).await
    }

    async fn object(&self, name: ObjectName, max: u64) -> Result<Option<Bytes>, StoreError> {
        let turn = Arc::clone(&self.reads).acquire_owned().await.expect("this semaphore is never closed");
        self.blocking(move |files| {
            // Held by the work: the caller may be gone while the memory is still in use.
            let _turn = turn;
            files.object(name, max)
        })
        .await
    }

    async fn has_object(&self, name: ObjectName) -> Result<bool, StoreError> {
        self.blocking(move |files| files.has(&name.path())).await
    }

    async fn put_record(&self, record: &Record) -> Result<Record, StoreError> {
        let record = record.clone();
        self.blocking(move |files| files.put_record(record)).await
    }

    async fn record(&self, namespace: &str, key: CacheKey) -> Result<Option<Record>, StoreError> {
        let namespace = namespace.to_owned();
        // A few kilobytes: lookups do not wait for reads of objects.
        self.blocking(move |files| files.record(&namespace, key)).await
    }

    async fn list_records(&self, after: Option<&str>, limit: usize) -> Result<RecordPage, StoreError> {
        let after = after.map(str::to_owned);
        self.blocking(move |files| files.list_records(after.as_deref(), limit)).await
    }

    async fn forget_record(&self, namespace: &str, key: CacheKey, up_to: u64) -> Result<bool, StoreError> {
        let namespace = namespace.to_owned();
        self.blocking(move |files| files.forget_record(&namespace, key, up_to)).await
    }

    async fn check_room(&self) -> Result<(), StoreError> {
        let room = Arc::clone(&self.room);
        self.blocking(move |files| room.check(files)).await
    }

    async fn prove(&self) -> Result<(), StoreError> {
        self.blocking(room::prove).await
    }

    async fn archive(&self) -> Result<Option<ArchiveId>, StoreError> {
        self.blocking(Files::archive).await
    }

    async fn mark_archive(&self, archive: ArchiveId) -> Result<ArchiveId, StoreError> {
        self.blocking(move |files| files.mark_archive(archive)).await
    }
}
