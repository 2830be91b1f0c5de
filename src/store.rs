//! The seam to the permanent store: trait [`Store`]. *Objects* are the bytes of results under names made of their
//! digests; *records* are the answers under keys. The object is written before its record, which is its commit mark.
//! Objects are never overwritten, records only by a higher generation. Only the record of a purged key is removed.

mod budget;
pub mod local;
pub(crate) mod s3;

use async_trait::async_trait;
use bytes::Bytes;

pub use self::budget::StoreBudget;
use crate::base::archive::ArchiveId;
use crate::base::key::CacheKey;
use crate::base::picture::ObjectName;
use crate::base::record::{InvalidRecord, MAX_OBJECT_BYTES, Record};

/// A write that has returned `Ok` survives a crash; after an error it may have. Writes may be repeated.
#[async_trait]
pub trait Store: Send + Sync {
    /// Writes an object, unless it exists: equal names are equal bytes. `name` must be that of `bytes`.
    async fn put_object(&self, name: ObjectName, bytes: Bytes) -> Result<(), StoreError>;

    /// The object, checked against its digest ([`StoreError::Corrupt`]) and `max` bytes ([`StoreError::TooLong`]).
    async fn object(&self, name: ObjectName, max: u64) -> Result<Option<Bytes>, StoreError>;

    /// Returns true when the object exists, without a check of its bytes.
    async fn has_object(&self, name: ObjectName) -> Result<bool, StoreError>;

    /// Unless one of the same or a higher generation exists; returns the one that stands.
    async fn put_record(&self, record: &Record) -> Result<Record, StoreError>;

    /// After an error it is not known whether there is one, so nothing may be bought.
    async fn record(&self, namespace: &str, key: CacheKey) -> Result<Option<Record>, StoreError>;

    /// Records behind a position, in the store's own order. A record that exists all the time is on exactly one page.
    async fn list_records(&self, after: Option<&str>, limit: usize) -> Result<RecordPage, StoreError>;

    /// Unless its generation is higher than `up_to`; false when there was none. Damaged records stay.
    async fn forget_record(&self, namespace: &str, key: CacheKey, up_to: u64) -> Result<bool, StoreError>;

    /// Checks before paying that a new result could be kept.
    async fn check_room(&self) -> Result<(), StoreError>;

    /// Proves, with a trial beside results and records, that a write can be read back and that a second creation is
    /// refused; [`StoreError::Unfit`] says what the store cannot do. Several processes may do so at once.
    async fn prove(&self) -> Result<(), StoreError>;

    /// The id in the marker; `None` only when the store is known to have no marker.
    async fn archive(&self) -> Result<Option<ArchiveId>, StoreError>;

    /// Unless there is one; returns the id that stands. Several processes may do so at once.
    async fn mark_archive(&self, archive: ArchiveId) -> Result<ArchiveId, StoreError>;
}

/// Usual records have a few kilobytes.
const MAX_RECORD_BYTES: u64 = 4 << 20;

pub(crate) const MARKER: &str = "archive";
const MAX_MARKER_BYTES: u64 = 1024;

pub(crate) fn archive_of(marker: &[u8]) -> Result<ArchiveId, StoreError> {
    ArchiveId::from_marker(marker)
        .map_err(|error| StoreError::Corrupt(format!("the marker {MARKER}: {error}")))
}

/// Returns true when the bytes have the digest and the format of the name.
pub(crate) fn is_object(name: ObjectName, bytes: &[u8]) -> bool {
    ObjectName::of(bytes) == Some(name)
}

/// Refuses bytes that could not be read again under `name`.
pub(crate) fn check_object(name: ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
    let path = name.path();
    if bytes.len() as u64 > MAX_OBJECT_BYTES {
        return Err(StoreError::Full(format!("{path} is longer than {MAX_OBJECT_BYTES} bytes")));
    }
    if !is_object(name, bytes) {
        return Err(StoreError::Corrupt(format!(
            "what was to be kept as {path} is not the picture that its name says"
        )));
    }
    Ok(())
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordPage {
    /// Namespaces and keys.
    pub records: Vec<(String, CacheKey)>,
    /// The position of the next page; `None` after the last.
    pub next: Option<String>,
}

impl RecordPage {
    /// From names in order; leaves out those that are not of records.
    pub(crate) fn of(names: &[String], is_last: bool) -> Self {
        let records = names.iter().filter_map(|name| Record::parse_path(name)).collect();
        Self { records, next: names.last().filter(|_| !is_last).cloned() }
    }
}

/// An error of the store; safe to log.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// Overload of this process: says nothing about the store or absence.
    #[error("the store is busy: {0}")]
    Busy(String),
    #[error("the store has no room: {0}")]
    Full(String),
    #[error("the store returned damaged data: {0}")]
    Corrupt(String),
    /// Its bytes; nothing was read.
    #[error("the object has {0} bytes, more than were asked for")]
    TooLong(u64),
    /// It lacks a required ability.
    #[error("the store is not fit for results: {0}")]
    Unfit(String),
}

impl From<InvalidRecord> for StoreError {
    fn from(error: InvalidRecord) -> Self {
        Self::Corrupt(error.to_string())
    }
}
