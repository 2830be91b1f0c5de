//! The archive's marker in a bucket.

use super::bucket::{Bucket, Condition, Headers, Kind, Written};
use super::records::{TRIES, pause};
use crate::base::archive::ArchiveId;
use crate::store::{MARKER, MAX_MARKER_BYTES, StoreError, archive_of};

const HEADERS: Headers = Headers { content_type: "text/plain", cache_control: "private, no-cache" };

pub(super) async fn read(bucket: &Bucket) -> Result<Option<ArchiveId>, StoreError> {
    bucket
        .get(Kind::Metadata, MARKER, MAX_MARKER_BYTES)
        .await?
        .map(|marker| archive_of(&marker.bytes))
        .transpose()
}

pub(super) async fn mark(bucket: &Bucket, archive: ArchiveId) -> Result<ArchiveId, StoreError> {
    for tried in 0..TRIES {
        if bucket.put(Kind::Metadata, MARKER, archive.to_marker().into(), HEADERS, Condition::Absent).await?
            == Written::Done
        {
            return Ok(archive);
        }
        if let Some(standing) = read(bucket).await? {
            return Ok(standing);
        }
        pause(tried).await;
    }
    Err(StoreError::Unavailable(format!("cannot write {MARKER}: others wrote it {TRIES} times meanwhile")))
}
