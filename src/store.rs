//! The seam to where results rest for ever: trait [`Store`], and what is kept there.
//!
//! Two kinds of things: *objects*, one result's bytes under a name made of their digest, and
//! *records*, the answer kept under a key. The object is written first and the record last, so a
//! record is the commit mark of its object. Nothing is ever overwritten: an object never, a record
//! only by a higher generation. Nothing is removed either but the record of a key that is purged.
//!
//! Implementations: [`local`], files, and [`s3`], a bucket. This module knows no ledger and no HTTP.

mod budget;
#[cfg(test)]
pub(crate) mod contract;
pub mod local;
#[cfg(test)]
pub(crate) mod memory;
pub mod s3;

use std::ops::RangeInclusive;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

pub use self::budget::StoreBudget;
use crate::base::archive::ArchiveId;
use crate::base::key::{CacheKey, Digest};
use crate::base::picture::ObjectName;
use crate::upstream::envelope::Answer;

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

/// The longest object kept or read: twice the default limit of a result download. One that has
/// grown beyond it is damaged, and must not cost its length in memory to find out.
pub const MAX_OBJECT_BYTES: u64 = 64 << 20;

/// The most that one call can cost, as far as the configuration allows.
pub(crate) const MAX_CREDITS: u64 = 1_000_000;

/// Far more refreshes and purges than a key can see, and few enough for every ledger to count on.
const MAX_GENERATION: u64 = u32::MAX as u64;

/// When a record may have been stored; the first program is younger.
const SANE_YEARS: RangeInclusive<i16> = 2020..=2199;

/// The longest record; they have a few kilobytes.
const MAX_RECORD_BYTES: u64 = 4 << 20;

/// What the names of all records begin with.
const RECORDS: &str = "records";
/// The name of the marker in every store.
const MARKER: &str = "archive";
/// The longest marker.
const MAX_MARKER_BYTES: u64 = 1024;

/// Reads what is under [`MARKER`].
fn archive_of(marker: &[u8]) -> Result<ArchiveId, StoreError> {
    ArchiveId::from_marker(marker)
        .map_err(|error| StoreError::Corrupt(format!("the marker {MARKER}: {error}")))
}

/// Returns true for a picture of the name's format with the name's digest.
pub(crate) fn is_object(name: ObjectName, bytes: &[u8]) -> bool {
    ObjectName::of(bytes) == Some(name)
}

/// Refuses what could not be read again under `name`.
fn check_object(name: ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
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
    fn of(names: &[String], is_last: bool) -> Self {
        let records = names.iter().filter_map(|name| Record::parse_path(name)).collect();
        Self { records, next: names.last().filter(|_| !is_last).cloned() }
    }
}

/// The answer kept under a key: self-describing, and free of host, bucket and prefix, so that an
/// archive can be moved by copying it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The layout of this file: 1.
    pub version: u32,
    /// Which upstream and operation, e.g. `ailab-v1`.
    pub namespace: String,
    /// The request.
    pub key: CacheKey,
    /// 0, and one more for each refresh or purge.
    pub generation: u64,
    /// The upstream's answer, verbatim but for the result's URL, where the object's path stands.
    pub answer: String,
    /// BLAKE3 of the result's bytes.
    pub digest: Digest,
    /// Its file name extension.
    pub extension: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// Who paid.
    pub team: String,
    /// What it cost.
    pub credits: u64,
    /// When it was kept; RFC 3339.
    pub stored_at: jiff::Timestamp,
    /// The upstream's `request_id`.
    pub upstream_request_id: String,
    /// The upstream's `log_id`.
    pub upstream_log_id: String,
    /// BLAKE3 of the uploaded picture.
    pub image: Digest,
    /// Target width in pixels.
    pub width: u32,
    /// Target height in pixels.
    pub height: u32,
}

impl Record {
    /// The layout this program writes, and the only one it reads.
    pub const VERSION: u32 = 1;

    /// The object this record is about; `None` when the extension is not one of ours.
    pub fn object(&self) -> Option<ObjectName> {
        let format = crate::base::picture::ImageFormat::from_extension(&self.extension)?;
        Some(ObjectName { digest: self.digest, format })
    }

    /// The name of a record in every store: `records/{namespace}/{kk}/{key}.json`.
    pub fn path(namespace: &str, key: CacheKey) -> String {
        let key = key.to_string();
        format!("{RECORDS}/{namespace}/{}/{key}.json", &key[..2])
    }

    /// The namespace and the key in a record's name.
    fn parse_path(path: &str) -> Option<(String, CacheKey)> {
        let (namespace, rest) = path.strip_prefix(RECORDS)?.strip_prefix('/')?.split_once('/')?;
        let key = rest.split_once('/')?.1.strip_suffix(".json")?.parse().ok()?;
        (Self::checked_path(namespace, key).ok()? == path).then(|| (namespace.to_owned(), key))
    }

    /// As [`path`](Self::path), for a namespace that may be anything: one that is more than a plain
    /// word could lead elsewhere.
    fn checked_path(namespace: &str, key: CacheKey) -> Result<String, StoreError> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if !(1..=64).contains(&namespace.len()) || !namespace.bytes().all(plain) {
            return Err(StoreError::Unavailable(format!(
                "namespace {namespace:?} is not 1 to 64 lower-case letters, digits and hyphens"
            )));
        }
        Ok(Self::path(namespace, key))
    }

    /// What is kept at `path`. What could not be read again is refused now.
    fn to_json(&self, path: &str) -> Result<Bytes, StoreError> {
        let bytes = serde_json::to_vec(self)
            .map_err(|error| StoreError::Unavailable(format!("cannot write {path} as JSON: {error}")))?;
        Self::from_json(path, &bytes, &self.namespace, self.key)?;
        Ok(bytes.into())
    }

    /// Reads what is kept at `path`, which must be about its own name and what a purchase leaves.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`], without the text itself, which may be anything.
    pub fn from_json(path: &str, bytes: &[u8], namespace: &str, key: CacheKey) -> Result<Self, StoreError> {
        let record: Self = serde_json::from_slice(bytes).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            StoreError::Corrupt(format!(
                "{path} is no record of layout {} (line {line}, column {column})",
                Self::VERSION
            ))
        })?;
        if record.version != Self::VERSION {
            return Err(StoreError::Corrupt(format!("{path} has layout {}", record.version)));
        }
        if record.namespace != namespace || record.key != key || record.object().is_none() {
            return Err(StoreError::Corrupt(format!("{path} is not about its own name")));
        }
        if !record.is_plausible() {
            return Err(StoreError::Corrupt(format!("{path} is not what a purchase leaves")));
        }
        Ok(record)
    }

    /// Returns false for what no purchase leaves: whoever can write to a bucket must not be able to answer
    /// a key with anything else, nor to book numbers that no ledger can add up.
    fn is_plausible(&self) -> bool {
        let side = 1..=u32::from(u16::MAX);
        let answer = Answer::read(&self.answer);
        let names_object =
            |object: ObjectName| answer.as_ref().is_ok_and(|answer| answer.url().expose() == object.path());
        self.object().is_some_and(names_object)
            && (1..=MAX_OBJECT_BYTES).contains(&self.bytes)
            && self.credits <= MAX_CREDITS
            && self.generation <= MAX_GENERATION
            && side.contains(&self.width)
            && side.contains(&self.height)
            && SANE_YEARS.contains(&self.stored_at.to_zoned(TimeZone::UTC).year())
            && self.team.len() <= 64
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
