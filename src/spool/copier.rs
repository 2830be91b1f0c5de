//! The background task that brings to the store what waits in the spool.
//!
//! It begins with what it finds, so a restart needs no word of the process before; and it may die at
//! any point, since everything it does can be repeated. Several processes may do the same work.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Spool;
use crate::crash::crash_point;
use crate::ledger::LedgerError;
use crate::ledger::spool::Spooled;
use crate::store::{MAX_OBJECT_BYTES, Record, StoreError};

/// Results on their way at once; so many are in memory.
const AT_ONCE: usize = 4;
/// Results listed at once, without their bytes.
const PAGE: usize = 64;
/// How often an empty spool is looked at: other processes fill it too.
const IDLE: Duration = Duration::from_secs(5);
/// The pause after a failure is a tenth of the time that all has failed, within these bounds; so the
/// backlog begins to flow soon after the store is back, and a store that is gone is left in peace.
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The task; it ends with [`stop`](Self::stop).
pub struct Copier {
    /// Ends without a value when it is stopped.
    task: JoinHandle<Option<()>>,
    stopping: CancellationToken,
}

impl Copier {
    /// Starts with what waits in the spool.
    pub fn start(spool: Arc<Spool>) -> Self {
        Self::start_with(spool, IDLE)
    }

    /// The same, looking at an empty spool at these intervals.
    pub(crate) fn start_with(spool: Arc<Spool>, idle: Duration) -> Self {
        let stopping = CancellationToken::new();
        let work = stopping.clone().run_until_cancelled_owned(copy_for_ever(spool, idle));
        Self { task: tokio::spawn(work), stopping }
    }

    /// Stops it between two steps. What still waits does so until the next start.
    pub async fn stop(self) {
        self.stopping.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the copying of the spool panicked");
        }
    }
}

/// Why a result could not be copied.
#[derive(Debug, thiserror::Error)]
enum CopyError {
    /// It concerns this result, and no other.
    #[error(transparent)]
    Result(StoreError),
    /// The store takes nothing.
    #[error(transparent)]
    Store(StoreError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl From<StoreError> for CopyError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Corrupt(_) => Self::Result(error),
            StoreError::Unavailable(_) | StoreError::Full(_) | StoreError::Unfit(_) => Self::Store(error),
        }
    }
}

async fn copy_for_ever(spool: Arc<Spool>, idle: Duration) {
    let mut failing_since = None;
    loop {
        match copy_all(&spool).await {
            Ok(copied) => {
                if copied > 0 {
                    tracing::info!(results = copied, "the spool is empty: the store has what waited");
                }
                failing_since = None;
                spool.set_away(false);
                // What was refused just now is not yet in the spool.
                let refused = tokio::time::timeout(idle, spool.refused.notified()).await;
                if refused.is_ok() {
                    tokio::time::sleep(SHORTEST_PAUSE).await;
                }
            }
            Err(error) => {
                spool.set_away(matches!(error, CopyError::Store(_)));
                tracing::warn!(%error, "results wait in the spool: they cannot be brought to the store yet");
                let since = *failing_since.get_or_insert_with(Instant::now);
                let pause = (since.elapsed() / 10).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// Copies what waits, oldest first. A result that cannot be copied for a reason of its own stays and
/// keeps no other from it. Returns how many were copied when all were.
async fn copy_all(spool: &Arc<Spool>) -> Result<u64, CopyError> {
    let (mut copied, mut after, mut left) = (0, 0, None);
    let (mut waiting, mut copies) = (VecDeque::new(), JoinSet::new());
    loop {
        while copies.len() < AT_ONCE {
            if waiting.is_empty() {
                waiting.extend(spool.ledger.spooled(after, PAGE).await?);
            }
            let Some(next) = waiting.pop_front() else { break };
            if !spool.room.is_store_proved() {
                return Err(CopyError::Store(StoreError::Unavailable(
                    "it was not seen since the start".into(),
                )));
            }
            after = next.position;
            copies.spawn(copy(Arc::clone(spool), next));
        }
        match copies.join_next().await {
            Some(Ok(Ok(()))) => {
                copied += 1;
                spool.set_away(false);
            }
            Some(Ok(Err(error @ CopyError::Result(_)))) => left = Some(error),
            Some(Ok(Err(error))) => return Err(error),
            Some(Err(error)) => {
                left =
                    Some(CopyError::Result(StoreError::Unavailable(format!("copying broke off: {error}"))));
            }
            None => return left.map_or(Ok(copied), Err),
        }
    }
}

/// Object first, then the record, as for any result; and only what the store has confirmed goes.
async fn copy(spool: Arc<Spool>, spooled: Spooled) -> Result<(), CopyError> {
    let Spooled { id, record, .. } = spooled;
    let damaged = |what: &str| CopyError::Result(StoreError::Corrupt(format!("call {}: {what}", id.0)));
    let name = record.object().ok_or_else(|| damaged("its record names no object"))?;
    let Some(bytes) = spool.ledger.spooled_object(name).await? else { return Ok(()) };
    if bytes.len() as u64 > MAX_OBJECT_BYTES {
        return Err(damaged("its result is longer than any store takes"));
    }
    spool.check_ours().map_err(CopyError::Store)?;
    crash_point("CP22");
    spool.store.put_object(name, bytes).await?;
    crash_point("CP24");
    let standing = spool.store.put_record(&record).await?;
    crash_point("CP40");
    spool.ledger.unspool(id, &standing).await?;
    crash_point("CP40");
    if standing != (Record { stored_at: standing.stored_at, ..record }) {
        tracing::warn!(call = id.0, key = %standing.key, "the store has another result under the key; both are kept");
    }
    tracing::debug!(call = id.0, "a result went from the spool to the store");
    Ok(())
}
