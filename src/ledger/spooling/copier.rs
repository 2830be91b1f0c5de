//! The background task that copies the spool to the store. Every step can be repeated, so it may be killed at
//! any point, and several processes may run it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{LEDGER_PATIENCE, Spool};
use crate::base::crash::crash_point;
use crate::base::record::MAX_OBJECT_BYTES;
use crate::ledger::guard::StorageError;
use crate::ledger::{CallId, LedgerError, Spooled, rules};
use crate::store::StoreError;

/// Results in memory at once.
const AT_ONCE: usize = 4;
const PAGE: usize = 64;
/// The pause of an empty spool; other processes fill it too.
const IDLE: Duration = Duration::from_secs(5);
/// The pause after a failure is a tenth of the time since the first one, within these bounds.
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

pub struct Copier {
    task: JoinHandle<Option<()>>,
    stopping: CancellationToken,
}

impl Copier {
    pub fn start(spool: Arc<Spool>) -> Self {
        Self::start_with(spool, IDLE)
    }

    pub(crate) fn start_with(spool: Arc<Spool>, idle: Duration) -> Self {
        let stopping = CancellationToken::new();
        let work = stopping.clone().run_until_cancelled_owned(keep_copying(spool, idle));
        Self { task: tokio::spawn(work), stopping }
    }

    /// Stops between two steps.
    pub async fn stop(self) {
        self.stopping.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the copying of the spool panicked");
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum CopyError {
    /// The store may take other results.
    #[error(transparent)]
    Result(StoreError),
    #[error(transparent)]
    Store(StoreError),
    /// The store may not be ours, or is overloaded by this process.
    #[error(transparent)]
    Unreachable(StoreError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl From<StorageError> for CopyError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Ledger(error) => error.into(),
            StorageError::Store(error) => error.into(),
        }
    }
}

impl From<StoreError> for CopyError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Busy(_) => Self::Unreachable(error),
            _ => Self::Result(error),
        }
    }
}

async fn keep_copying(spool: Arc<Spool>, idle: Duration) {
    let mut rounds = Rounds { spool: spool.clone(), failed: HashMap::new() };
    let mut failing_since = None;
    loop {
        match rounds.copy_all().await {
            Ok(copied) => {
                failing_since = None;
                rounds.set_away(false);
                if copied > 0 && rounds.failed.is_empty() {
                    tracing::info!(results = copied, "the spool is empty: the store has what waited");
                }
                let due = rounds.failed.values().map(|failed| failed.until).min();
                let wait = due.map_or(idle, |due| due.saturating_duration_since(Instant::now()).min(idle));
                // A write that was refused just now is not in the spool yet.
                if tokio::time::timeout(wait, spool.refused.notified()).await.is_ok() {
                    tokio::time::sleep(SHORTEST_PAUSE).await;
                }
            }
            Err(error) => {
                rounds.set_away(match error {
                    CopyError::Store(_) => true,
                    CopyError::Unreachable(_) => spool.room.of_each().is_some(),
                    CopyError::Result(_) | CopyError::Ledger(_) => false,
                });
                tracing::warn!(%error, "results wait in the spool: they cannot be brought to the store yet");
                tokio::time::sleep(pause_after(*failing_since.get_or_insert_with(Instant::now))).await;
            }
        }
    }
}

fn pause_after(failing_since: Instant) -> Duration {
    (failing_since.elapsed() / 10).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

struct Rounds {
    spool: Arc<Spool>,
    /// Results that the store did not take while it took its proof.
    failed: HashMap<CallId, Failed>,
}

struct Failed {
    since: Instant,
    until: Instant,
}

impl Rounds {
    /// Copies results oldest first, except for those whose pause is not over; returns their number. A copy that
    /// fails is followed by a proof of the store: if it fails too, the store is away, and the round ends.
    async fn copy_all(&mut self) -> Result<u64, CopyError> {
        let (mut copied, mut broken) = (0, None);
        let (mut queue, mut copies) = (Queue::default(), JoinSet::new());
        loop {
            while broken.is_none() && copies.len() < AT_ONCE {
                match self.next(&mut queue).await {
                    Ok(Some(next)) => {
                        let (id, spool) = (next.id, self.spool.clone());
                        copies.spawn(async move { (id, copy(spool, next).await) });
                    }
                    Ok(None) => break,
                    Err(error) => broken = Some(error),
                }
            }
            match copies.join_next().await {
                Some(Ok((id, Ok(())))) => {
                    copied += 1;
                    self.failed.remove(&id);
                    self.set_away(false);
                }
                Some(Ok((id, Err(CopyError::Result(error))))) => {
                    if broken.is_none() {
                        broken = self.spool.store.prove().await.err().map(CopyError::Store);
                    }
                    if broken.is_none() {
                        self.has_failed(id, &error);
                    }
                }
                Some(Ok((_, Err(error)))) => broken = Some(error),
                Some(Err(error)) => tracing::error!(%error, "the copying of a result broke off"),
                None => break,
            }
        }
        if queue.is_at_end {
            // Another process may have copied what failed here.
            self.failed.retain(|id, _| queue.listed.contains(id));
        }
        broken.map_or(Ok(copied), Err)
    }

    async fn next(&self, queue: &mut Queue) -> Result<Option<Spooled>, CopyError> {
        let next = loop {
            if let Some(next) = queue.page.pop_front() {
                queue.after = next.position;
                queue.listed.insert(next.id);
                if self.failed.get(&next.id).is_none_or(|failed| failed.until <= Instant::now()) {
                    break next;
                }
            } else if queue.is_at_end {
                return Ok(None);
            } else {
                queue.page.extend(self.spool.ledger.spooled(queue.after, PAGE).await?);
                queue.is_at_end = queue.page.is_empty();
            }
        };
        if !self.spool.room.is_store_proved() {
            return Err(CopyError::Store(StoreError::Unavailable("it was not seen since the start".into())));
        }
        Ok(Some(next))
    }

    fn has_failed(&mut self, id: CallId, error: &StoreError) {
        let now = Instant::now();
        let failed = self.failed.entry(id).or_insert(Failed { since: now, until: now });
        failed.until = now + pause_after(failed.since);
        tracing::warn!(call = id.0, %error, "a result waits in the spool: it alone cannot be brought to the store");
    }

    fn set_away(&self, is_away: bool) {
        self.spool.set_away(is_away, !self.failed.is_empty());
    }
}

/// One round through the spool.
#[derive(Default)]
struct Queue {
    page: VecDeque<Spooled>,
    after: u64,
    is_at_end: bool,
    listed: HashSet<CallId>,
}

/// Writes the object, then the record, and removes the result from the spool when both are confirmed.
async fn copy(spool: Arc<Spool>, spooled: Spooled) -> Result<(), CopyError> {
    let Spooled { id, record, .. } = spooled;
    let damaged = |what: &str| CopyError::Result(StoreError::Corrupt(format!("call {}: {what}", id.0)));
    let name = record.object().ok_or_else(|| damaged("its record names no object"))?;
    spool.check_ours().await.map_err(CopyError::Unreachable)?;
    let Some(bytes) = spool.ledger.spooled_object(name).await? else { return Ok(()) };
    if bytes.len() as u64 > MAX_OBJECT_BYTES {
        return Err(damaged("its result is longer than any store takes"));
    }
    crash_point("CP22");
    spool.store.put_object(name, bytes).await?;
    crash_point("CP24");
    // After a purge the URL stays, and the record must not come back.
    let standing = match spool.purged(&record, LEDGER_PATIENCE).await? {
        Some(_) => record.clone(),
        None => spool.store.put_record(&record).await?,
    };
    // The store may have been replaced during the write.
    spool.check_ours().await.map_err(CopyError::Unreachable)?;
    spool.forget_if_purged(&standing, LEDGER_PATIENCE).await?;
    crash_point("CP40");
    spool.ledger.unspool(id, &standing).await?;
    crash_point("CP40");
    if !rules::is_same_purchase(&record, &standing) {
        tracing::warn!(call = id.0, key = %standing.key, "the store has another result under the key; both are kept");
    }
    tracing::debug!(call = id.0, "a result went from the spool to the store");
    Ok(())
}
