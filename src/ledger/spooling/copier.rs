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
use crate::ledger::spool::Spooled;
use crate::ledger::{CallId, LedgerError, rules};
use crate::store::StoreError;

/// Results in memory at once.
const AT_ONCE: usize = 4;
const PAGE: usize = 64;
/// The pause of an empty spool; other processes fill it too.
const IDLE: Duration = Duration::from_secs(5);
/// The pause after a failure is a tenth of the time since the first one, within these bounds.
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// While the store does not answer, or is not known to be ours: such an attempt costs hardly anything.
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(500);

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
    /// The result itself is damaged.
    #[error(transparent)]
    Result(StoreError),
    /// The store may take other results.
    #[error(transparent)]
    Store(StoreError),
    /// The store does not answer, may not be ours, or is overloaded by this process.
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
            StoreError::Corrupt(_) | StoreError::TooLong(_) => Self::Result(error),
            StoreError::Busy(_) => Self::Unreachable(error),
            StoreError::Unavailable(_) | StoreError::Full(_) | StoreError::Unfit(_) => Self::Store(error),
        }
    }
}

async fn keep_copying(spool: Arc<Spool>, idle: Duration) {
    let mut backlog = Backlog { spool: Arc::clone(&spool), failed: HashMap::new() };
    let (mut failing_since, mut is_unreachable) = (None, false);
    loop {
        match backlog.copy_all().await {
            Ok(copied) => {
                is_unreachable = false;
                if copied > 0 && backlog.failed.is_empty() {
                    tracing::info!(results = copied, "the spool is empty: the store has what waited");
                }
                // The store may have caused these failures, so it is not known to work.
                if backlog.doubtful() == 0 {
                    failing_since = None;
                    spool.set_away(false);
                }
                // A write that was refused just now is not in the spool yet.
                let wait = backlog.next_rest().map_or(idle, |rest| rest.max(SHORTEST_PAUSE).min(idle));
                let refused = tokio::time::timeout(wait, spool.refused.notified()).await;
                if refused.is_ok() {
                    tokio::time::sleep(SHORTEST_PAUSE).await;
                }
            }
            Err(error @ CopyError::Unreachable(_)) => {
                if !is_unreachable {
                    tracing::warn!(%error, "results wait in the spool: nothing is brought to the store");
                }
                is_unreachable = true;
                spool.set_away(spool.room.of_each().is_some());
                tokio::time::sleep(UNREACHABLE_PAUSE).await;
            }
            Err(error) => {
                spool.set_away(matches!(error, CopyError::Store(_)));
                tracing::warn!(%error, "results wait in the spool: they cannot be brought to the store yet");
                let since = *failing_since.get_or_insert_with(Instant::now);
                tokio::time::sleep(pause_after(since)).await;
            }
        }
    }
}

fn pause_after(failing_since: Instant) -> Duration {
    (failing_since.elapsed() / 10).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

struct Backlog {
    spool: Arc<Spool>,
    failed: HashMap<CallId, Failed>,
}

#[derive(Clone, Copy)]
struct Failed {
    since: Instant,
    until: Instant,
    /// The failure is the result's own: the store takes others.
    is_own: bool,
}

impl Backlog {
    /// Copies new results oldest first, then failed ones whose pause is over; returns their number. A result
    /// that fails for a reason of its own does not block others. The store is at fault when several results
    /// fail in a row, or when all fail and its proof too.
    async fn copy_all(&mut self) -> Result<u64, CopyError> {
        let (mut copied, mut in_a_row, mut doubt, mut broken) = (0, 0, None, None);
        let (mut queue, mut copies) = (Queue::default(), JoinSet::new());
        loop {
            while broken.is_none() && in_a_row < AT_ONCE && copies.len() < AT_ONCE {
                match self.next(&mut queue).await {
                    Ok(Some(next)) => {
                        let (id, spool) = (next.id, Arc::clone(&self.spool));
                        copies.spawn(async move { (id, copy(spool, next).await) });
                    }
                    Ok(None) => break,
                    Err(error) => broken = Some(error),
                }
            }
            match copies.join_next().await {
                Some(Ok((id, Ok(())))) => {
                    copied += 1;
                    (in_a_row, doubt) = (0, None);
                    self.failed.remove(&id);
                    self.store_is_well();
                    self.spool.set_away(false);
                }
                Some(Ok((id, Err(CopyError::Result(error))))) => self.has_failed(id, true, &error),
                Some(Ok((id, Err(CopyError::Store(error))))) => {
                    self.has_failed(id, false, &error);
                    if !self.failed[&id].is_own {
                        in_a_row += 1;
                        doubt = Some(error);
                    }
                }
                Some(Ok((_, Err(error)))) => broken = Some(error),
                Some(Err(error)) => tracing::error!(%error, "the copying of a result broke off"),
                None => break,
            }
        }
        if let Some(error) = broken {
            return Err(error);
        }
        if queue.is_at_end {
            // Another process may have copied what failed here.
            self.failed.retain(|id, _| queue.listed.contains(id));
        }
        let Some(error) = doubt else { return Ok(copied) };
        if self.doubtful() >= AT_ONCE || self.spool.store.prove().await.is_err() {
            return Err(CopyError::Store(error));
        }
        tracing::warn!(%error, "the store does not take a result, and is well");
        self.store_is_well();
        Ok(copied)
    }

    async fn next(&self, queue: &mut Queue) -> Result<Option<Spooled>, CopyError> {
        let next = loop {
            if let Some(next) = queue.page.pop_front() {
                queue.after = next.position;
                queue.listed.insert(next.id);
                match self.failed.get(&next.id) {
                    None => break next,
                    Some(failed) if failed.until <= Instant::now() => queue.rested.push_back(next),
                    Some(_) => {}
                }
            } else if !queue.is_at_end {
                queue.page.extend(self.spool.ledger.spooled(queue.after, PAGE).await?);
                queue.is_at_end = queue.page.is_empty();
            } else {
                match queue.rested.pop_front() {
                    Some(next) => break next,
                    None => return Ok(None),
                }
            }
        };
        if !self.spool.room.is_store_proved() {
            let error = StoreError::Unavailable("it was not seen since the start".into());
            return Err(CopyError::Store(error));
        }
        Ok(Some(next))
    }

    fn has_failed(&mut self, id: CallId, is_own: bool, error: &StoreError) {
        let now = Instant::now();
        let failed = self.failed.entry(id).or_insert(Failed { since: now, until: now, is_own });
        failed.is_own |= is_own;
        failed.until = now + pause_after(failed.since);
        if failed.is_own {
            tracing::warn!(call = id.0, %error, "a result waits in the spool: it alone cannot be brought to the store");
        }
    }

    fn store_is_well(&mut self) {
        self.failed.values_mut().for_each(|failed| failed.is_own = true);
    }

    fn doubtful(&self) -> usize {
        self.failed.values().filter(|failed| !failed.is_own).count()
    }

    fn next_rest(&self) -> Option<Duration> {
        let until = self.failed.values().map(|failed| failed.until).min()?;
        Some(until.saturating_duration_since(Instant::now()))
    }
}

/// One round through the spool.
#[derive(Default)]
struct Queue {
    page: VecDeque<Spooled>,
    after: u64,
    is_at_end: bool,
    listed: HashSet<CallId>,
    /// Failed results that may be tried again.
    rested: VecDeque<Spooled>,
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
