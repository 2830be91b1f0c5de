//! The answer under a key, as one JSON file in the store.

use std::ops::RangeInclusive;

use bytes::Bytes;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::base::envelope::Answer;
use crate::base::identity::Identity;
use crate::base::key::{CacheKey, Digest};
use crate::base::operation::Operation;
use crate::base::picture::ObjectName;

/// Twice the default limit of a result download. A longer object is damaged and is not read into memory.
pub const MAX_OBJECT_BYTES: u64 = 64 << 20;

/// The configuration's limit for one call.
pub(crate) const MAX_CREDITS: u64 = 1_000_000;

/// More refreshes and purges than a key can see.
pub(crate) const MAX_GENERATION: u64 = u32::MAX as u64;

const SANE_YEARS: RangeInclusive<i16> = 2020..=2199;

/// The folder of all records.
pub const RECORDS: &str = "records";

/// Without host, bucket and prefix, so that an archive can be moved by copying it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The layout of this file: 1.
    pub version: u32,
    /// Such as `ailab-v1`.
    pub namespace: String,
    pub key: CacheKey,
    /// 0, and one more for each refresh or purge.
    pub generation: u64,
    /// Verbatim, except that the object's path replaces the result's URL.
    pub answer: String,
    pub digest: Digest,
    pub extension: String,
    pub bytes: u64,
    pub team: String,
    pub credits: u64,
    pub stored_at: jiff::Timestamp,
    pub upstream_request_id: String,
    pub upstream_log_id: String,
    /// Of the uploaded picture.
    pub image: Digest,
    pub width: u32,
    pub height: u32,
}

impl Record {
    /// The only layout that is written and read.
    pub const VERSION: u32 = 1;

    pub fn identity(&self) -> Identity {
        Identity::new(&self.namespace, self.key)
    }

    /// `None` for an unknown extension.
    pub fn object(&self) -> Option<ObjectName> {
        Some(ObjectName { digest: self.digest, format: self.extension.parse().ok()? })
    }

    /// `records/{namespace}/{kk}/{key}.json`, in every store.
    pub fn path(namespace: &str, key: CacheKey) -> String {
        let key = key.to_string();
        format!("{RECORDS}/{namespace}/{}/{key}.json", &key[..2])
    }

    /// The inverse of [`path`](Self::path).
    pub fn parse_path(path: &str) -> Option<(String, CacheKey)> {
        let (namespace, rest) = path.strip_prefix(RECORDS)?.strip_prefix('/')?.split_once('/')?;
        let key = rest.split_once('/')?.1.strip_suffix(".json")?.parse().ok()?;
        (Self::checked_path(namespace, key).ok()? == path).then(|| (namespace.to_owned(), key))
    }

    /// Refuses a namespace that could lead elsewhere.
    pub fn checked_path(namespace: &str, key: CacheKey) -> Result<String, InvalidRecord> {
        let is_plain = |part: &str| {
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            !part.is_empty() && part.bytes().all(plain)
        };
        if namespace.len() > 64 || !namespace.split('.').all(is_plain) {
            return Err(InvalidRecord(format!(
                "namespace {namespace:?} is not 1 to 64 lower-case letters, digits and hyphens, with dots between them"
            )));
        }
        Ok(Self::path(namespace, key))
    }

    /// Refuses a record that could not be read again.
    pub fn to_json(&self, path: &str) -> Result<Bytes, InvalidRecord> {
        let bytes = serde_json::to_vec(self)
            .map_err(|error| InvalidRecord(format!("cannot write {path} as JSON: {error}")))?;
        Self::from_json(path, &bytes, &self.namespace, self.key)?;
        Ok(bytes.into())
    }

    /// Reads the file at `path`, which must match its name and be plausible. Errors do not quote it.
    pub fn from_json(
        path: &str,
        bytes: &[u8],
        namespace: &str,
        key: CacheKey,
    ) -> Result<Self, InvalidRecord> {
        let record: Self = serde_json::from_slice(bytes).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            InvalidRecord(format!(
                "{path} is no record of layout {} (line {line}, column {column})",
                Self::VERSION
            ))
        })?;
        if record.version != Self::VERSION {
            return Err(InvalidRecord(format!("{path} has layout {}", record.version)));
        }
        if record.namespace != namespace || record.key != key || record.object().is_none() {
            return Err(InvalidRecord(format!("{path} is not about its own name")));
        }
        if !record.is_plausible() {
            return Err(InvalidRecord(format!("{path} is not what a purchase leaves")));
        }
        Ok(record)
    }

    /// Returns false for a record that no purchase makes: a writer to the bucket must not answer a key with
    /// other objects, or book numbers that no ledger can add up.
    fn is_plausible(&self) -> bool {
        let side = 1..=u32::from(u16::MAX);
        let answer = Operation::of_namespace(&self.namespace)
            .and_then(|operation| Answer::read(&self.answer, operation).ok());
        let names_object =
            |object: ObjectName| answer.as_ref().is_some_and(|answer| answer.url().expose() == object.path());
        self.object().is_some_and(names_object)
            && (1..=MAX_OBJECT_BYTES).contains(&self.bytes)
            && self.credits <= MAX_CREDITS
            && self.generation <= MAX_GENERATION
            && side.contains(&self.width)
            && side.contains(&self.height)
            && SANE_YEARS.contains(&self.stored_at.to_zoned_datetime(TimeZone::UTC).year())
            && self.team.len() <= 64
    }
}

/// Safe to log.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct InvalidRecord(String);
