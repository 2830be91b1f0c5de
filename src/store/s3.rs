//! The store in a bucket of any S3 service that honours conditional writes.
//!
//! ```text
//! {prefix}results/{digest}.{ext}                objects; a plain static server on the bucket serves all URLs
//! {prefix}records/{namespace}/{kk}/{key}.json   records; {kk} is the key's first two digits
//! {prefix}archive                               the marker
//! {prefix}trial                                 the trial of `prove`
//! ```
//!
//! Objects are created and never replaced (`If-None-Match: *`); a record is replaced only in the state in
//! which it was read (`If-Match`), so that several processes may write. A repeated write whose first answer
//! was lost is refused, and then the existing value is read. Objects are checked against their digest.
//!
//! A name is absent only when the bucket says `NoSuchKey`. Every call ends within a limit of [`S3Limits`],
//! and the first that times out opens the breaker. A read that waits too long behind our own reads is
//! [`StoreError::Busy`]. Only an import lists records.

mod bucket;
mod client;
mod failure;
mod objects;
mod proof;
mod records;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Mutex, MutexGuard};

use self::bucket::{Bucket, Kind};
use self::proof::Room;
use crate::base::archive::ArchiveId;
use crate::base::key::CacheKey;
use crate::base::picture::ObjectName;
use crate::base::record::Record;
use crate::store::{RecordPage, Store, StoreError};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct S3StoreConfig {
    /// It must exist.
    pub bucket: String,
    /// Such as `granary/prod`; slashes at its ends make no difference.
    pub prefix: String,
    /// By default from AWS's variables, profile or metadata.
    pub region: Option<String>,
    /// `http://` or `https://`, host and perhaps port and path; AWS by default.
    pub endpoint: Option<String>,
    /// The bucket is in the path, not in the host.
    pub path_style: bool,
    /// A credentials file of AWS's tools, of which `[default]` is used. By default AWS's own chain.
    pub credentials_file: Option<PathBuf>,
    pub limits: S3Limits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct S3Limits {
    /// For a connection.
    pub connect: Duration,
    /// For a call about a record, a marker or the presence of an object, with its attempts; and for its turn.
    pub metadata: Duration,
    /// The same for the bytes of an object.
    pub object: Duration,
    pub attempts: u32,
    /// The longest pause before the second attempt; the next is twice as long.
    pub backoff: Duration,
}

impl Default for S3Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            metadata: Duration::from_secs(2),
            object: Duration::from_secs(5),
            attempts: 3,
            backoff: Duration::from_millis(200),
        }
    }
}

impl S3Limits {
    fn of(&self, kind: Kind) -> Duration {
        match kind {
            Kind::Metadata => self.metadata,
            Kind::Object => self.object,
        }
    }
}

/// A dropped future stops nothing: its call ends within its limit.
#[derive(Debug)]
pub struct S3Store {
    bucket: Bucket,
    room: Room,
    /// One writer of a key in this process; several would only make each other read again.
    turns: [Mutex<()>; 64],
}

impl S3Store {
    /// Does not ask the bucket anything: see [`Store::prove`].
    pub async fn open(config: S3StoreConfig) -> Self {
        let client = client::connect(&config).await;
        let (bucket, turns) = (Bucket::new(client, &config), [const { Mutex::const_new(()) }; 64]);
        Self { bucket, room: Room::default(), turns }
    }

    async fn turn(&self, key: CacheKey) -> MutexGuard<'_, ()> {
        self.turns[usize::from(key.as_bytes()[0]) % self.turns.len()].lock().await
    }
}

#[async_trait]
impl Store for S3Store {
    async fn put_object(&self, name: ObjectName, bytes: Bytes) -> Result<(), StoreError> {
        let put = objects::put(&self.bucket, name, bytes).await;
        self.room.learn(&put);
        put
    }

    async fn object(&self, name: ObjectName, max: u64) -> Result<Option<Bytes>, StoreError> {
        objects::read(&self.bucket, name, max).await
    }

    async fn has_object(&self, name: ObjectName) -> Result<bool, StoreError> {
        self.bucket.has(&name.path()).await
    }

    async fn put_record(&self, record: &Record) -> Result<Record, StoreError> {
        let _turn = self.turn(record.key).await;
        records::put(&self.bucket, record).await
    }

    async fn record(&self, namespace: &str, key: CacheKey) -> Result<Option<Record>, StoreError> {
        Ok(records::read(&self.bucket, namespace, key).await?.map(|(record, _)| record))
    }

    async fn list_records(&self, after: Option<&str>, limit: usize) -> Result<RecordPage, StoreError> {
        records::list(&self.bucket, after, limit).await
    }

    async fn forget_record(&self, namespace: &str, key: CacheKey, up_to: u64) -> Result<bool, StoreError> {
        let _turn = self.turn(key).await;
        records::forget(&self.bucket, namespace, key, up_to).await
    }

    async fn check_room(&self) -> Result<(), StoreError> {
        self.room.check(&self.bucket).await
    }

    async fn prove(&self) -> Result<(), StoreError> {
        self.room.prove(&self.bucket).await
    }

    async fn archive(&self) -> Result<Option<ArchiveId>, StoreError> {
        objects::marker(&self.bucket).await
    }

    async fn mark_archive(&self, archive: ArchiveId) -> Result<ArchiveId, StoreError> {
        objects::mark(&self.bucket, archive).await
    }
}
