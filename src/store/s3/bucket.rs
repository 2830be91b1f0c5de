//! What is asked of a bucket: names and bytes, each call limited in time, counted by one breaker.
//!
//! This module knows names, conditions and answers, not objects and records.

use std::future::Future;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::S3StoreConfig;
use super::failure::Failure;
use crate::breaker::{Breaker, BreakerConfig};
use crate::store::StoreError;

/// Three calls in vain, each with its own attempts, or one that was never answered. A trial is one call, so even a bucket that is gone
/// for hours costs little; and what waits in the spool begins to flow soon after it is back.
const BREAKER: BreakerConfig = BreakerConfig {
    failures: 3,
    shortest_wait: Duration::from_secs(1),
    longest_wait: Duration::from_secs(10),
};

/// How often a body that breaks off is asked for.
const READS: u32 = 2;

/// A bucket, and the part of it that is ours.
#[derive(Debug)]
pub(super) struct Bucket {
    client: Client,
    name: String,
    /// Empty, or with a slash at its end.
    prefix: String,
    attempt: Duration,
    whole: Duration,
    breaker: Breaker,
    bodies: Semaphore,
}

/// What must hold for a write to happen.
#[derive(Clone, Copy, Debug)]
pub(super) enum Condition<'e> {
    /// Nothing is there.
    Absent,
    /// What is there has this tag.
    Matches(&'e str),
}

/// What became of a write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Written {
    Done,
    /// The condition does not hold. Perhaps by this very call, whose first answer was lost.
    Refused,
    /// Another write of this name is under way: ask again.
    Conflict,
}

/// What became of a removal.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Deleted {
    Done,
    /// It is in another state by now: look again.
    Refused,
    /// We may not.
    Forbidden,
}

/// What is written besides the bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Headers {
    pub(super) content_type: &'static str,
    pub(super) cache_control: &'static str,
}

/// What was read.
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
        Self {
            client,
            name: config.bucket.clone(),
            prefix,
            attempt: config.limits.attempt,
            whole: config.limits.whole,
            breaker: Breaker::new(BREAKER),
            bodies: Semaphore::new(config.concurrent_reads.clamp(1, Semaphore::MAX_PERMITS)),
        }
    }

    /// While the bucket is known to be dead: how long it is left alone.
    pub(super) fn left_alone_for(&self) -> Option<Duration> {
        self.breaker.open_for()
    }

    /// Writes `bytes` under `name` when `condition` holds.
    pub(super) async fn put(
        &self,
        name: &str,
        bytes: Bytes,
        headers: Headers,
        condition: Condition<'_>,
    ) -> Result<Written, StoreError> {
        let length = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        let request = self
            .client
            .put_object()
            .bucket(&self.name)
            .key(self.key(name))
            .content_type(headers.content_type)
            .cache_control(headers.cache_control)
            .content_length(length)
            // The store compares, and keeps it. Ours, because the SDK makes none when only asked for the
            // algorithm and told to do what is required.
            .checksum_crc32(BASE64_STANDARD.encode(crc32fast::hash(&bytes).to_be_bytes()))
            .body(ByteStream::from(bytes));
        let request = match condition {
            Condition::Absent => request.if_none_match("*"),
            Condition::Matches(tag) => request.if_match(tag),
        };
        self.call("write", name, async {
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

    /// Reads what is under `name`; at most `max` bytes of it go into memory.
    pub(super) async fn get(&self, name: &str, max: u64) -> Result<Option<Got>, StoreError> {
        // Outside the call: waiting for another reader says nothing of the bucket.
        let Ok(turn) = timeout(self.whole, self.bodies.acquire()).await else {
            let text = format!("cannot read {name} in the bucket: too many reads are under way");
            return Err(StoreError::Unavailable(text));
        };
        let read = self.call("read", name, async {
            for left in (0..READS).rev() {
                let Some(found) = self.open(name, None).await? else { return Ok(None) };
                match whole(found, max).await {
                    Err(_) if left > 0 => {}
                    read => return read.map(Some),
                }
            }
            Err(Failure::cut_off())
        });
        let read = read.await;
        drop(turn);
        match read? {
            Some(Read::Whole(got)) => Ok(Some(got)),
            Some(Read::TooLong) => Err(StoreError::Corrupt(format!("{name} is longer than {max} bytes"))),
            None => Ok(None),
        }
    }

    /// Is there anything under `name`? By reading its first byte: the answer to `HEAD` has no body,
    /// and without a code the absence of the bucket looks like that of the name.
    pub(super) async fn has(&self, name: &str) -> Result<bool, StoreError> {
        self.call("look for", name, async {
            match self.open(name, Some("bytes=0-0")).await {
                Ok(found) => Ok(found.is_some()),
                // There, and empty.
                Err(failure) if failure.status == Some(416) => Ok(true),
                Err(failure) => Err(failure),
            }
        })
        .await
    }

    /// At most `limit` names that begin with `start`, behind `after`; and whether they are the last.
    pub(super) async fn list(
        &self,
        start: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<String>, bool), StoreError> {
        let request = self
            .client
            .list_objects_v2()
            .bucket(&self.name)
            .prefix(self.key(start))
            .set_start_after(after.map(|after| self.key(after)))
            .max_keys(i32::try_from(limit).unwrap_or(i32::MAX));
        self.call("list", start, async {
            let listed = request.send().await.map_err(|error| Failure::new(&error))?;
            let keys = listed.contents().iter().filter_map(|object| object.key());
            let names = keys.filter_map(|key| key.strip_prefix(&self.prefix)).map(str::to_owned);
            Ok((names.collect(), listed.is_truncated() != Some(true)))
        })
        .await
    }

    /// Removes what is under `name`, if anything is; with a tag only in that state.
    pub(super) async fn delete(&self, name: &str, tag: Option<&str>) -> Result<Deleted, StoreError> {
        match self.delete_in_state(name, tag).await? {
            Some(deleted) => Ok(deleted),
            // Not every service that knows conditional writes knows conditional deletes.
            None => Ok(self.delete_in_state(name, None).await?.unwrap_or(Deleted::Forbidden)),
        }
    }

    /// `None`: the service removes without a condition only.
    async fn delete_in_state(&self, name: &str, tag: Option<&str>) -> Result<Option<Deleted>, StoreError> {
        let request = self.client.delete_object().bucket(&self.name).key(self.key(name));
        let request = request.set_if_match(tag.map(str::to_owned));
        self.call("delete", name, async {
            match request.send().await {
                Ok(_) => Ok(Some(Deleted::Done)),
                Err(error) => match Failure::new(&error) {
                    failure if failure.is_absence() => Ok(Some(Deleted::Done)),
                    failure if failure.status == Some(403) && failure.code == "AccessDenied" => {
                        Ok(Some(Deleted::Forbidden))
                    }
                    failure if tag.is_some() && matches!(failure.status, Some(409 | 412)) => {
                        Ok(Some(Deleted::Refused))
                    }
                    failure if tag.is_some() && failure.code == "NotImplemented" => Ok(None),
                    failure => Err(failure),
                },
            }
        })
        .await
    }

    async fn open(&self, name: &str, range: Option<&str>) -> Result<Option<GetObjectOutput>, Failure> {
        let request = self.client.get_object().bucket(&self.name).key(self.key(name));
        match request.set_range(range.map(str::to_owned)).send().await {
            Ok(found) => Ok(Some(found)),
            Err(error) => match Failure::new(&error) {
                failure if failure.is_absence() => Ok(None),
                failure => Err(failure),
            },
        }
    }

    /// Lets the breaker and the clock watch over `work`.
    async fn call<T>(
        &self,
        doing: &str,
        name: &str,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, StoreError> {
        let pass = self.breaker.enter().map_err(|wait| {
            StoreError::Unavailable(format!(
                "cannot {doing} {name}: the bucket has not answered lately, and is asked again in {wait:.1?}"
            ))
        })?;
        // Whoever tries for all others does not take long over it.
        let limit = if pass.is_trial() { self.attempt } else { self.whole };
        match timeout(limit, work).await {
            Ok(Ok(done)) => {
                pass.succeeded();
                Ok(done)
            }
            Ok(Err(failure)) => {
                if failure.is_outage() {
                    pass.failed();
                } else {
                    pass.succeeded();
                }
                Err(failure.of(doing, name))
            }
            Err(_) => {
                pass.timed_out();
                Err(StoreError::Unavailable(format!(
                    "cannot {doing} {name} in the bucket: it did not answer within {limit:?}"
                )))
            }
        }
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

enum Read {
    Whole(Got),
    TooLong,
}

/// Reads a body to its end. What is too long is not read on.
async fn whole(found: GetObjectOutput, max: u64) -> Result<Read, Failure> {
    let declared = found.content_length().and_then(|length| u64::try_from(length).ok());
    if declared.is_some_and(|length| length > max) {
        return Ok(Read::TooLong);
    }
    let tag = found.e_tag().unwrap_or_default().to_owned();
    let mut body = found.body;
    let mut bytes = BytesMut::with_capacity(usize::try_from(declared.unwrap_or(0)).unwrap_or(0));
    while let Some(piece) = body.next().await {
        bytes.extend_from_slice(&piece.map_err(|_| Failure::cut_off())?);
        if bytes.len() as u64 > max {
            return Ok(Read::TooLong);
        }
    }
    if declared.is_some_and(|length| length != bytes.len() as u64) {
        return Err(Failure::cut_off());
    }
    Ok(Read::Whole(Got { bytes: bytes.freeze(), tag }))
}
