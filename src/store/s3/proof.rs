//! Proves the required abilities of a bucket with one small name, and whether it could keep a new result. Other
//! processes may use the name at once: a step that they may have disturbed is repeated; one refusal is enough.

use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::bucket::{ABSENT, Bucket, Condition, Deleted, Headers, Kind, Written};
use super::records::pause;
use crate::store::StoreError;

/// Always the same, so that a policy can name it.
pub(super) const TRIAL: &str = "trial";

const HEADERS: Headers = Headers { content_type: "text/plain", cache_control: "no-store" };

/// A tag that no value has.
const NO_STATE: &str = "\"00000000000000000000000000000000\"";

const MAX_BYTES: u64 = 1 << 10;

/// Many processes may start at once and prove the bucket by the same name.
const TRIES: u32 = 12;

/// After one write: less than a miss takes.
const PROOF_HOLDS: Duration = Duration::from_secs(5);

/// For a bucket that said it is full, unless a write succeeds before.
const FULL_HOLDS: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub(super) struct Room {
    /// Held during a check: concurrent callers share its result.
    asking: tokio::sync::Mutex<Known>,
    last_write: Mutex<Option<(Instant, Result<(), StoreError>)>>,
}

#[derive(Debug, Default)]
struct Known {
    /// The proof succeeded once in this process.
    is_fit: bool,
    failed: Option<(Instant, StoreError)>,
}

impl Room {
    pub(super) fn learn(&self, written: &Result<(), StoreError>) {
        // Damage and outages say nothing about room.
        if matches!(written, Ok(()) | Err(StoreError::Full(_))) {
            *self.last_write.lock() = Some((Instant::now(), written.clone()));
        }
    }

    pub(super) async fn check(&self, bucket: &Bucket) -> Result<(), StoreError> {
        if bucket.is_open() {
            return Err(StoreError::Unavailable(
                "the bucket does not answer; it is probed every second".into(),
            ));
        }
        let came = Instant::now();
        let mut known = self.asking.lock().await;
        if let Some((_, error)) = known.failed.as_ref().filter(|(when, _)| *when >= came) {
            return Err(error.clone());
        }
        let asked = if !known.is_fit {
            prove(bucket).await
        } else if let Some(believed) = self.believed() {
            return believed;
        } else {
            try_to_write(bucket).await
        };
        known.is_fit |= asked.is_ok();
        known.failed = asked.clone().err().map(|error| (Instant::now(), error));
        self.learn(&asked);
        asked
    }

    /// The result of the last write, if it still holds.
    pub(super) fn believed(&self) -> Option<Result<(), StoreError>> {
        let last = self.last_write.lock();
        let (when, written) = last.as_ref()?;
        let holds = if written.is_ok() { PROOF_HOLDS } else { FULL_HOLDS };
        (when.elapsed() < holds).then(|| written.clone())
    }

    pub(super) async fn prove(&self, bucket: &Bucket) -> Result<(), StoreError> {
        let proved = prove(bucket).await;
        self.asking.lock().await.is_fit |= proved.is_ok();
        self.learn(&proved);
        proved
    }
}

/// A refusal because it exists is as good: the permission is checked before.
async fn try_to_write(bucket: &Bucket) -> Result<(), StoreError> {
    bucket.put(Kind::Metadata, TRIAL, token(), HEADERS, Condition::Absent).await.map(drop)
}

/// Proves writes, reads, the refusal of a second creation and of a replacement of another state, and absence.
async fn prove(bucket: &Bucket) -> Result<(), StoreError> {
    reads_back(bucket).await?;
    refuses_to_create_again(bucket).await?;
    if bucket.put(Kind::Metadata, TRIAL, token(), HEADERS, Condition::Matches(NO_STATE)).await?
        == Written::Done
    {
        return Err(StoreError::Unfit(
            "the bucket ignores If-Match, so of two records written at once the newer could be lost; use a \
             store that honours conditional writes"
                .into(),
        ));
    }
    // Fails without the permission to list.
    bucket.has(ABSENT).await?;
    if bucket.delete(TRIAL, None).await? == Deleted::Forbidden {
        tracing::info!(name = TRIAL, "the trial stays in the bucket: it may not be deleted");
    }
    Ok(())
}

async fn reads_back(bucket: &Bucket) -> Result<(), StoreError> {
    for tried in 0..TRIES {
        let before = bucket.get(Kind::Metadata, TRIAL, MAX_BYTES).await?;
        let condition = before.as_ref().map_or(Condition::Absent, |got| Condition::Matches(&got.tag));
        if bucket.put(Kind::Metadata, TRIAL, token(), HEADERS, condition).await? == Written::Done {
            let after = bucket.get(Kind::Metadata, TRIAL, MAX_BYTES).await?;
            // Ours, or what another process did after it: a stale read would be `before`.
            if after.map(|got| got.bytes) != before.map(|got| got.bytes) {
                return Ok(());
            }
        }
        pause(tried.min(1)).await;
    }
    Err(StoreError::Unavailable(format!(
        "what was written as {TRIAL} was not read back, {TRIES} times; the bucket's reads are stale, or \
         others use that name all the time"
    )))
}

async fn refuses_to_create_again(bucket: &Bucket) -> Result<(), StoreError> {
    for tried in 0..TRIES {
        if bucket.put(Kind::Metadata, TRIAL, token(), HEADERS, Condition::Absent).await? != Written::Done {
            return Ok(());
        }
        // Another process may have deleted it.
        pause(tried.min(1)).await;
    }
    Err(StoreError::Unfit(
        "the bucket ignores If-None-Match, so a result could be overwritten; use a store that honours \
         conditional writes"
            .into(),
    ))
}

fn token() -> Bytes {
    uuid::Uuid::new_v4().to_string().into()
}
