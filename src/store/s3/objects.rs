//! Objects and the archive's marker in a bucket.

use bytes::Bytes;

use super::bucket::{Bucket, Condition, Headers, Kind, Written};
use super::records::{TRIES, pause};
use crate::base::archive::ArchiveId;
use crate::base::crash::crash_point;
use crate::base::picture::ObjectName;
use crate::base::record::MAX_OBJECT_BYTES;
use crate::store::{MARKER, MAX_MARKER_BYTES, StoreError, archive_of, check_object, is_object};

/// As our own routes, for a static server on the bucket.
const CACHE_CONTROL: &str = "public, max-age=31536000, immutable";

const MARKER_HEADERS: Headers = Headers { content_type: "text/plain", cache_control: "private, no-cache" };

pub(super) async fn put(bucket: &Bucket, name: ObjectName, bytes: Bytes) -> Result<(), StoreError> {
    check_object(name, &bytes)?;
    let path = name.path();
    let headers = Headers { content_type: name.format.content_type(), cache_control: CACHE_CONTROL };
    for tried in 0..TRIES {
        crash_point("CP23");
        match bucket.put(Kind::Object, &path, bytes.clone(), headers, Condition::Absent).await? {
            Written::Done => return Ok(()),
            // Another copy, or our own whose answer was lost. If it is gone by now, it is written again.
            Written::Refused => match bucket.get(Kind::Object, &path, MAX_OBJECT_BYTES).await {
                Ok(Some(found)) if is_object(name, &found.bytes) => return Ok(()),
                Ok(None) => {}
                Ok(Some(_)) | Err(StoreError::Corrupt(_) | StoreError::TooLong(_)) => {
                    return Err(damaged(&path));
                }
                Err(error) => return Err(error),
            },
            Written::Conflict => {}
        }
        pause(tried).await;
    }
    Err(StoreError::Unavailable(format!("cannot write {path}: the bucket called it busy {TRIES} times")))
}

pub(super) async fn read(bucket: &Bucket, name: ObjectName, max: u64) -> Result<Option<Bytes>, StoreError> {
    let path = name.path();
    let found = match bucket.get(Kind::Object, &path, max.min(MAX_OBJECT_BYTES)).await {
        Ok(Some(found)) => found,
        Err(StoreError::TooLong(length)) if length > MAX_OBJECT_BYTES => return Err(damaged(&path)),
        Ok(None) => return Ok(None),
        Err(error) => return Err(error),
    };
    if !is_object(name, &found.bytes) {
        return Err(StoreError::Corrupt(format!("{path} is not the picture that its name says")));
    }
    Ok(Some(found.bytes))
}

/// Not replaced: a bucket in which objects change must be noticed.
fn damaged(path: &str) -> StoreError {
    StoreError::Corrupt(format!(
        "{path} is not the picture that its name says, and objects are never replaced; find out who wrote \
         it, restore or delete it, and the good copy is written by itself"
    ))
}

pub(super) async fn marker(bucket: &Bucket) -> Result<Option<ArchiveId>, StoreError> {
    let found = bucket.get(Kind::Metadata, MARKER, MAX_MARKER_BYTES).await?;
    found.map(|marker| archive_of(&marker.bytes)).transpose()
}

pub(super) async fn mark(bucket: &Bucket, archive: ArchiveId) -> Result<ArchiveId, StoreError> {
    for tried in 0..TRIES {
        if bucket
            .put(Kind::Metadata, MARKER, archive.to_marker().into(), MARKER_HEADERS, Condition::Absent)
            .await?
            == Written::Done
        {
            return Ok(archive);
        }
        if let Some(standing) = marker(bucket).await? {
            return Ok(standing);
        }
        pause(tried).await;
    }
    Err(StoreError::Unavailable(format!("cannot write {MARKER}: others wrote it {TRIES} times meanwhile")))
}
