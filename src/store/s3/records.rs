//! Records in a bucket. Several processes may write at once; they agree on one record.

use std::time::Duration;

use super::bucket::{Bucket, Condition, Deleted, Headers, Kind, Written};
use crate::base::crash::crash_point;
use crate::base::key::CacheKey;
use crate::base::random;
use crate::base::record::{RECORDS, Record};
use crate::store::{MAX_RECORD_BYTES, RecordPage, StoreError};

/// Of a write that meets others.
pub(super) const TRIES: u32 = 5;

/// Records name teams, and change with the generation.
const HEADERS: Headers = Headers { content_type: "application/json", cache_control: "private, no-cache" };

pub(super) async fn put(bucket: &Bucket, record: &Record) -> Result<Record, StoreError> {
    let path = Record::checked_path(&record.namespace, record.key)?;
    let bytes = record.to_json(&path)?;
    crash_point("CP25");
    // Most records are the first under their key, so it is created before it is read.
    let mut tag = None;
    for tried in 0..TRIES {
        let condition = tag.as_deref().map_or(Condition::Absent, Condition::Matches);
        match bucket.put(Kind::Metadata, &path, bytes.clone(), HEADERS, condition).await? {
            Written::Done => {
                crash_point("CP26");
                return Ok(record.clone());
            }
            Written::Refused | Written::Conflict => {}
        }
        tag = match read(bucket, &record.namespace, record.key).await? {
            Some((standing, _)) if standing.generation >= record.generation => return Ok(standing),
            Some((_, tag)) => Some(tag),
            None => None,
        };
        // The first refusal is ordinary: it is how a refresh finds what it replaces.
        if tried > 0 {
            pause(tried).await;
        }
    }
    Err(StoreError::Unavailable(format!("cannot write {path}: others changed it {TRIES} times meanwhile")))
}

/// The record under a key, and its tag.
pub(super) async fn read(
    bucket: &Bucket,
    namespace: &str,
    key: CacheKey,
) -> Result<Option<(Record, String)>, StoreError> {
    let path = Record::checked_path(namespace, key)?;
    let Some(found) = bucket.get(Kind::Metadata, &path, MAX_RECORD_BYTES).await? else { return Ok(None) };
    let record = Record::from_json(&path, &found.bytes, namespace, key)?;
    Ok(Some((record, found.tag)))
}

pub(super) async fn list(
    bucket: &Bucket,
    after: Option<&str>,
    limit: usize,
) -> Result<RecordPage, StoreError> {
    let (names, is_last) = bucket.list(&format!("{RECORDS}/"), after, limit).await?;
    Ok(RecordPage::of(&names, is_last))
}

/// Removes the record in the state in which it was read. A bucket without conditional deletes might lose a
/// record that another process wrote in between; its row in the ledger and its object stay.
pub(super) async fn forget(
    bucket: &Bucket,
    namespace: &str,
    key: CacheKey,
    up_to: u64,
) -> Result<bool, StoreError> {
    let path = Record::checked_path(namespace, key)?;
    for tried in 0..TRIES {
        let Some((standing, tag)) = read(bucket, namespace, key).await? else { return Ok(false) };
        if standing.generation > up_to {
            return Ok(false);
        }
        match bucket.delete(&path, Some(&tag)).await? {
            Deleted::Done => return Ok(true),
            Deleted::Forbidden => {
                return Err(StoreError::Unfit(format!(
                    "{path} may not be deleted; allow s3:DeleteObject below the prefix"
                )));
            }
            Deleted::Refused => pause(tried).await,
        }
    }
    Err(StoreError::Unavailable(format!("cannot delete {path}: others changed it {TRIES} times meanwhile")))
}

/// A random time up to 50 ms at first, and up to twice as long each time.
pub(super) async fn pause(tried: u32) {
    let most = Duration::from_millis(50 << tried.min(6));
    tokio::time::sleep(most.mul_f64(random::fraction())).await;
}
