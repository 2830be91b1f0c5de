//! The durable store as plain files: the default, and all an embedded Granary needs.
//!
//! ```text
//! results/{digest}.{ext}                objects; a plain static file server on the folder serves every URL
//! records/{namespace}/{kk}/{key}.json   records; {kk} is the key's first two digits
//! archive                               the marker that says which archive this is
//! tmp/                                  what is being written; swept when the store is opened
//! ```
//!
//! A name appears only when its bytes are whole and synced: each file is written below `tmp/`, synced,
//! and then linked or renamed into place, and the call returns once the folder is synced too. So a
//! crash leaves a whole file or none. Objects are read whole and checked against their digest before
//! the first byte leaves.
//!
//! One process writes records; others (`granary check`, a static server) may share the folder meanwhile.
//! Nothing is ever deleted here but the records of purged keys. Only an import lists records, folder by
//! folder.

mod disk;
mod files;
mod locks;
mod marker;
mod objects;
mod records;
mod room;
#[cfg(test)]
mod tests;

#[cfg(test)]
#[cfg(feature = "crash-points")]
mod crash_tests;

use std::path::PathBuf;
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

/// Where and how files are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalStoreConfig {
    /// The folder; made when it is missing. All of it must be on one filesystem.
    pub path: PathBuf,
    /// Free bytes below which [`Store::check_room`] says there is no room, so that nothing is bought
    /// that could not be kept. Default 1 GiB; at least 33 MiB for each paid call that may be under
    /// way at once.
    pub min_free_bytes: u64,
    /// How many files are read at once; each may take
    /// [`MAX_OBJECT_BYTES`](crate::base::record::MAX_OBJECT_BYTES) of memory. Default 4.
    pub concurrent_reads: usize,
}

impl LocalStoreConfig {
    /// The defaults, at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), min_free_bytes: 1 << 30, concurrent_reads: 4 }
    }
}

/// A [`Store`] in a folder.
///
/// A caller that stops waiting stops nothing: what has begun is finished on its own thread.
#[derive(Debug)]
pub struct LocalStore {
    files: Arc<Files>,
    room: Arc<Room>,
    reads: Arc<Semaphore>,
}

impl LocalStore {
    /// Opens the store at `path` with the defaults.
    ///
    /// # Errors
    /// As [`open_with`](Self::open_with).
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        Self::open_with(LocalStoreConfig::new(path))
    }

    /// Opens the store: lays out the folder and sweeps what earlier processes left half written.
    /// Blocks on the disk. A folder that can only be read is no error, since hits can be served
    /// from it; [`Store::check_room`] then refuses.
    ///
    /// # Errors
    /// [`StoreError`] when the folder cannot be made or read, or spans filesystems.
    pub fn open_with(config: LocalStoreConfig) -> Result<Self, StoreError> {
        let files = Files::open(&config.path)?;
        Ok(Self {
            files: Arc::new(files),
            room: Arc::new(Room::new(config.min_free_bytes)),
            reads: Arc::new(Semaphore::new(config.concurrent_reads.clamp(1, Semaphore::MAX_PERMITS))),
        })
    }

    /// Does `work` where it may block on the disk.
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

    /// As [`blocking`](Self::blocking), for what takes a file's length of memory.
    async fn reading<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Files) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permit = Arc::clone(&self.reads).acquire_owned().await.expect("this semaphore is never closed");
        self.blocking(move |files| {
            // Held by the work and not by the caller, who may be gone while the memory is still taken.
            let _permit = permit;
            work(files)
        })
        .await
    }
}

#[async_trait]
impl Store for LocalStore {
    async fn put_object(&self, name: ObjectName, bytes: Bytes) -> Result<(), StoreError> {
        self.blocking(move |files| files.put_object(name, &bytes)).await
    }

    async fn object(&self, name: ObjectName) -> Result<Option<Bytes>, StoreError> {
        self.reading(move |files| files.object(name)).await
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
        // Of a few kilobytes, so lookups do not wait for those who read results.
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
