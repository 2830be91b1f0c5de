//! The seam to where results rest for ever: trait [`Store`], and what is kept there.
//!
//! Two kinds of things: *objects*, one result's bytes under a name made of their digest, and
//! *records*, the answer kept under a key. The object is written first and the record last, so a
//! record is the commit mark of its object. Nothing is ever overwritten: an object never, a record
//! only by a higher generation. Nothing is removed either but the record of a key that is purged.
//!
//! Implementations: [`local`], files, and [`s3`], a bucket. This module knows no ledger and no HTTP.

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

/// Keeps objects and records durably: what a call has returned for survives a crash.
#[async_trait]
pub trait Store: Send + Sync {
    /// Keeps `bytes` under `name`, which must be their own name. An object that is there already
    /// is success, since equal names are equal bytes. Returns once it is durable; may be repeated.
    ///
    /// # Errors
    /// [`StoreError`]: nothing is acknowledged, though the object may exist.
    async fn put_object(&self, name: ObjectName, bytes: Bytes) -> Result<(), StoreError>;

    /// The whole object, checked against its digest; `None` when there is none.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when the bytes are not those that were kept.
    async fn object(&self, name: ObjectName) -> Result<Option<Bytes>, StoreError>;

    /// Is there an object of this name? Tells presence only; [`object`](Self::object) checks bytes.
    ///
    /// # Errors
    /// [`StoreError`]: it cannot be said.
    async fn has_object(&self, name: ObjectName) -> Result<bool, StoreError>;

    /// Keeps `record`, unless one of the same or a higher generation is there already; returns the
    /// one that now stands. Returns once it is durable; may be repeated.
    ///
    /// # Errors
    /// [`StoreError`]: nothing is acknowledged, though the record may exist.
    async fn put_record(&self, record: &Record) -> Result<Record, StoreError>;

    /// The record under a key; `None` when there is none.
    ///
    /// # Errors
    /// [`StoreError`]: whether there is one cannot be said, so nothing may be bought on it.
    async fn record(&self, namespace: &str, key: CacheKey) -> Result<Option<Record>, StoreError>;

    /// Lists records in an order of the store's own, behind the position that an earlier page names;
    /// with `None` from the beginning. A record that is there all the time is on exactly one page.
    ///
    /// # Errors
    /// [`StoreError`]: the page may be asked for again.
    async fn list_records(&self, after: Option<&str>, limit: usize) -> Result<RecordPage, StoreError>;

    /// Removes the record under a key, unless its generation is higher than `up_to`; says whether
    /// there was one to remove. Objects stay. Returns once it is durable; may be repeated.
    ///
    /// # Errors
    /// [`StoreError`]: it may still be there. [`StoreError::Corrupt`]: what is there cannot be read,
    /// and stays.
    async fn forget_record(&self, namespace: &str, key: CacheKey, up_to: u64) -> Result<bool, StoreError>;

    /// Proves that a new result could be kept now; asked before paying.
    ///
    /// # Errors
    /// [`StoreError`]: why not.
    async fn check_room(&self) -> Result<(), StoreError>;

    /// Proves by a trial beside results and records that the store does all that is relied upon:
    /// what is created can be read back, and a second creation is refused. Leaves nothing behind
    /// that matters; may be repeated, also by several processes at once.
    ///
    /// # Errors
    /// [`StoreError::Unfit`], in a sentence, for what it cannot do; any other when it cannot be
    /// asked at the moment.
    async fn prove(&self) -> Result<(), StoreError>;

    /// The archive this store is; `None` only when it is known to carry no marker.
    ///
    /// # Errors
    /// [`StoreError`]: it cannot be said; [`StoreError::Corrupt`] for a marker that cannot be read.
    async fn archive(&self) -> Result<Option<ArchiveId>, StoreError>;

    /// Marks the store as `archive`, unless it is marked; returns the id that stands. Durable once
    /// it returns; may be repeated, also by several processes at once.
    ///
    /// # Errors
    /// [`StoreError`]: as far as is known, nothing stands.
    async fn mark_archive(&self, archive: ArchiveId) -> Result<ArchiveId, StoreError>;
}

/// The longest record; they have a few kilobytes.
const MAX_RECORD_BYTES: u64 = 4 << 20;

/// The name of the marker in every store.
pub(crate) const MARKER: &str = "archive";
const MAX_MARKER_BYTES: u64 = 1024;

/// Reads what is under [`MARKER`].
pub(crate) fn archive_of(marker: &[u8]) -> Result<ArchiveId, StoreError> {
    ArchiveId::from_marker(marker)
        .map_err(|error| StoreError::Corrupt(format!("the marker {MARKER}: {error}")))
}

/// Returns true for a picture of the name's format with the name's digest.
pub(crate) fn is_object(name: ObjectName, bytes: &[u8]) -> bool {
    ObjectName::of(bytes) == Some(name)
}

/// Refuses what could not be read again under `name`.
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

/// A page of [`Store::list_records`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordPage {
    /// Namespaces and keys. Names that are no record's are left out.
    pub records: Vec<(String, CacheKey)>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<String>,
}

impl RecordPage {
    /// Of names in order; `is_last` says that the store has no more.
    pub(crate) fn of(names: &[String], is_last: bool) -> Self {
        let records = names.iter().filter_map(|name| Record::parse_path(name)).collect();
        Self { records, next: names.last().filter(|_| !is_last).cloned() }
    }
}

/// Why the store could not do what it was asked. The texts name what failed and are safe to log.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be asked at the moment.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// This process asks it for so much that the question had no turn in time. That says nothing of the
    /// store: nothing is absent, and nothing may be bought on it.
    #[error("the store is busy: {0}")]
    Busy(String),
    /// There is no room for a new result.
    #[error("the store has no room: {0}")]
    Full(String),
    /// What was read is not what was kept.
    #[error("the store returned damaged data: {0}")]
    Corrupt(String),
    /// It lacks something without which nothing may be kept in it.
    #[error("the store is not fit for results: {0}")]
    Unfit(String),
}

impl From<InvalidRecord> for StoreError {
    fn from(error: InvalidRecord) -> Self {
        Self::Corrupt(error.to_string())
    }
}
