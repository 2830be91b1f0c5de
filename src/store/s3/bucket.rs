//! Calls to a bucket by names and bytes, each limited in time, under one breaker.

use std::future::Future;
use std::sync::Arc;

use aws_sdk_s3::Client;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::failure::Failure;
use super::{S3Limits, S3StoreConfig};
use crate::base::breaker::{Breaker, CallError};
use crate::store::StoreError;

/// Of a body that breaks off.
const READS: u32 = 2;
/// At once; each has a few kilobytes.
const METADATA_READS: usize = 64;
/// At once; each may take `MAX_OBJECT_BYTES` of memory.
const OBJECT_READS: usize = 8;
/// A name that never exists, for the probe and the proof.
pub(super) const ABSENT: &str = "trial-absent";

#[derive(Debug)]
pub(super) struct Bucket {
    place: Place,
    limits: S3Limits,
    breaker: Breaker,
    metadata_reads: Arc<Semaphore>,
    object_reads: Arc<Semaphore>,
}

#[derive(Clone, Debug)]
struct Place {
    client: Client,
    bucket: String,
    /// Empty, or with a slash at its end.
    prefix: String,
}

/// Chooses time limit and queue: many lookups must not wait for a few large results.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Metadata,
    Object,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Condition<'e> {
    Absent,
    /// The value has this tag.
    Matches(&'e str),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Written {
    Done,
    /// The condition does not hold; perhaps because of this very call, whose first answer was lost.
    Refused,
    /// Another write of this name is under way.
    Conflict,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Deleted {
    Done,
    /// It has another tag by now.
    Refused,
    Forbidden,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Headers {
    pub(super) content_type: &'static str,
    pub(super) cache_control: &'static str,
}

#[derive(Debug)]
pub(super) struct Got {
    pub(super) bytes: Bytes,
    pub(super) tag: String,
}

impl Bucket {
    pub(super) fn new(client: Client, config: &S3StoreConfig) -> Self {
        let prefix = match config.prefix.trim_matches('/') {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        let place = Place { client, bucket: config.bucket.clone(), prefix };
        let probed = place.clone();
        let breaker = Breaker::new("bucket", move || {
            let probed = probed.clone();
            async move { !probed.has(ABSENT).await.is_err_and(|failure| failure.is_outage()) }
        });
        Self {
            place,
            limits: config.limits,
            breaker,
            metadata_reads: Arc::new(Semaphore::new(METADATA_READS)),
            object_reads: Arc::new(Semaphore::new(OBJECT_READS)),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.breaker.is_open()
    }

    pub(super) async fn put(
        &self,
        kind: Kind,
        name: &str,
        bytes: Bytes,
        headers: Headers,
        condition: Condition<'_>,
    ) -> Result<Written, StoreError> {
        let length = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        let Place { client, bucket, .. } = &self.place;
        let request = client
            .put_object()
            .bucket(bucket)
            .key(self.place.key(name))
            .content_type(headers.content_type)
            .cache_control(headers.cache_control)
            .content_length(length)
            // Set here, because the SDK computes none when it is told to do only what is required.
            .checksum_crc32(BASE64_STANDARD.encode(crc32fast::hash(&bytes).to_be_bytes()))
            .body(ByteStream::from(bytes));
        let request = match condition {
            Condition::Absent => request.if_none_match("*"),
            Condition::Matches(tag) => request.if_match(tag),
        };
        self.call(kind, "write", name, async move {
            match request.send().await {
                Ok(_) => Ok(Written::Done),
                Err(error) => match Failure::new(&error) {
                    failure if failure.status == Some(412) || failure.is_absence() => Ok(Written::Refused),
                    failure if failure.status == Some(409) => Ok(Written::Conflict),
                    failure => Err(failure),
                },
            }
        })
        .await
    }

    pub(super) async fn get(&self, kind: Kind, name: &str, max: u64) -> Result<Option<Got>, StoreError> {
        let turn = self.turn(kind, name).await?;
        let (place, asked) = (self.place.clone(), name.to_owned());
        let read = self.call(kind, "read", name, async move {
            // Held as long as the memory, which outlives a dropped caller.
            let _turn = turn;
            for left in (0..READS).rev() {
                let Some(found) = place.open(&asked, None).await? else { return Ok(None) };
                match whole(found, max).await {
                    Err(_) if left > 0 => {}
                    read => return read.map(Some),
                }
            }
            Err(Failure::cut_off())
        });
        match read.await? {
            Some(Err(length)) => Err(StoreError::TooLong(length)),
            Some(Ok(whole)) => Ok(Some(whole)),
            None => Ok(None),
        }
    }

    pub(super) async fn has(&self, name: &str) -> Result<bool, StoreError> {
        let (place, asked) = (self.place.clone(), name.to_owned());
        self.call(Kind::Metadata, "look for", name, async move { place.has(&asked).await }).await
    }

    /// At most `limit` names that begin with `start`, behind `after`, and whether they are the last.
    pub(super) async fn list(
        &self,
        start: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<String>, bool), StoreError> {
        let Place { client, bucket, prefix } = self.place.clone();
        let request = client
            .list_objects_v2()
            .bucket(bucket)
            .prefix(self.place.key(start))
            .set_start_after(after.map(|after| self.place.key(after)))
            .max_keys(i32::try_from(limit).unwrap_or(i32::MAX));
        self.call(Kind::Object, "list", start, async move {
            let listed = request.send().await.map_err(|error| Failure::new(&error))?;
            let keys = listed.contents().iter().filter_map(|object| object.key());
            let names = keys.filter_map(|key| key.strip_prefix(&prefix)).map(str::to_owned);
            Ok((names.collect(), listed.is_truncated() != Some(true)))
        })
        .await
    }

    /// With a tag, only in that state.
    pub(super) async fn delete(&self, name: &str, tag: Option<&str>) -> Result<Deleted, StoreError> {
        match self.delete_in_state(name, tag).await? {
            Some(deleted) => Ok(deleted),
            None => Ok(self.delete_in_state(name, None).await?.unwrap_or(Deleted::Forbidden)),
        }
    }

    /// `None` when the service does not know conditional deletes.
    async fn delete_in_state(&self, name: &str, tag: Option<&str>) -> Result<Option<Deleted>, StoreError> {
        let Place { client, bucket, .. } = &self.place;
        let request = client.delete_object().bucket(bucket).key(self.place.key(name));
        let request = request.set_if_match(tag.map(str::to_owned));
        let has_tag = tag.is_some();
        self.call(Kind::Metadata, "delete", name, async move {
            match request.send().await {
                Ok(_) => Ok(Some(Deleted::Done)),
                Err(error) => match Failure::new(&error) {
                    failure if failure.is_absence() => Ok(Some(Deleted::Done)),
                    failure if failure.status == Some(403) && failure.code == "AccessDenied" => {
                        Ok(Some(Deleted::Forbidden))
                    }
                    failure if has_tag && matches!(failure.status, Some(409 | 412)) => {
                        Ok(Some(Deleted::Refused))
                    }
                    failure if has_tag && failure.code == "NotImplemented" => Ok(None),
                    failure => Err(failure),
                },
            }
        })
        .await
    }

    #[cfg(test)]
    pub(super) async fn turns(&self, kind: Kind, turns: u32) -> OwnedSemaphorePermit {
        self.reads(kind).acquire_many_owned(turns).await.unwrap()
    }

    /// A turn to read a body into memory.
    async fn turn(&self, kind: Kind, name: &str) -> Result<OwnedSemaphorePermit, StoreError> {
        if self.breaker.is_open() {
            return Err(breaker_open("read", name));
        }
        match timeout(self.limits.of(kind), self.reads(kind).acquire_owned()).await {
            Ok(Ok(turn)) => Ok(turn),
            _ => Err(StoreError::Busy(format!("too many reads are under way to read {name}"))),
        }
    }

    fn reads(&self, kind: Kind) -> Arc<Semaphore> {
        Arc::clone(match kind {
            Kind::Metadata => &self.metadata_reads,
            Kind::Object => &self.object_reads,
        })
    }

    /// Runs `work` in its own task, so that the breaker learns the result even when the caller is dropped.
    async fn call<T: Send + 'static>(
        &self,
        kind: Kind,
        doing: &str,
        name: &str,
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (breaker, limit) = (self.breaker.clone(), self.limits.of(kind));
        let called = tokio::spawn(async move { breaker.call(limit, work, Failure::is_outage).await });
        let unavailable =
            |why: &str| StoreError::Unavailable(format!("cannot {doing} {name} in the bucket: {why}"));
        match called.await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(CallError::Open)) => Err(breaker_open(doing, name)),
            Ok(Err(CallError::TimedOut)) => Err(unavailable(&format!("it did not answer within {limit:?}"))),
            Ok(Err(CallError::Failed(failure))) => Err(failure.of(doing, name)),
            Err(_) => Err(unavailable("the call broke off")),
        }
    }
}

fn breaker_open(doing: &str, name: &str) -> StoreError {
    StoreError::Unavailable(format!(
        "cannot {doing} {name}: the bucket does not answer; it is probed every second"
    ))
}

impl Place {
    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Reads a byte: an answer to `HEAD` has no code, so a missing bucket would look like a missing name.
    async fn has(&self, name: &str) -> Result<bool, Failure> {
        match self.open(name, Some("bytes=0-0")).await {
            Ok(found) => Ok(found.is_some()),
            // It exists, and is empty.
            Err(failure) if failure.status == Some(416) => Ok(true),
            Err(failure) => Err(failure),
        }
    }

    async fn open(&self, name: &str, range: Option<&str>) -> Result<Option<GetObjectOutput>, Failure> {
        let request = self.client.get_object().bucket(&self.bucket).key(self.key(name));
        match request.set_range(range.map(str::to_owned)).send().await {
            Ok(found) => Ok(Some(found)),
            Err(error) => match Failure::new(&error) {
                failure if failure.is_absence() => Ok(None),
                failure => Err(failure),
            },
        }
    }
}

/// The length of a body of more than `max` bytes, or of as much as was read of it.
async fn whole(found: GetObjectOutput, max: u64) -> Result<Result<Got, u64>, Failure> {
    let declared = found.content_length().and_then(|length| u64::try_from(length).ok());
    if let Some(length) = declared.filter(|length| *length > max) {
        return Ok(Err(length));
    }
    let tag = found.e_tag().unwrap_or_default().to_owned();
    let mut body = found.body;
    let mut bytes = BytesMut::with_capacity(usize::try_from(declared.unwrap_or(0)).unwrap_or(0));
    while let Some(piece) = body.next().await {
        bytes.extend_from_slice(&piece.map_err(|_| Failure::cut_off())?);
        if bytes.len() as u64 > max {
            return Ok(Err(bytes.len() as u64));
        }
    }
    if declared.is_some_and(|length| length != bytes.len() as u64) {
        return Err(Failure::cut_off());
    }
    Ok(Ok(Got { bytes: bytes.freeze(), tag }))
}
