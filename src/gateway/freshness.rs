//! Keeps the memory of processes on a shared ledger fresh after refreshes and purges ([`Freshness`]). Each process
//! reads the ledger's changes every second and forgets those answers. While that fails, every lookup asks the ledger
//! first, and memory serves only if that fails too: so a process that reaches the ledger again never serves from
//! memory what others have purged meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use crate::base::identity::Identity;
use crate::cache::MemoryCache;
use crate::ledger::{Ledger, LedgerError};

const POLL: Duration = Duration::from_secs(1);
/// How long memory is fresh after the start of the last successful read of changes.
const FRESH_FOR: Duration = Duration::from_secs(2);

pub struct Freshness {
    ledger: Arc<dyn Ledger>,
    cache: Arc<MemoryCache>,
    /// Other processes may change the ledger.
    pub(super) is_shared: bool,
    began: Instant,
    fresh_until: AtomicU64,
}

impl Freshness {
    /// With a shared ledger, memory keeps nothing before [`follow`](Self::follow) has read the changes once.
    pub fn new(ledger: Arc<dyn Ledger>, cache: Arc<MemoryCache>) -> Self {
        let is_shared = ledger.has_leases();
        if is_shared {
            cache.close();
        }
        Self { ledger, cache, is_shared, began: Instant::now(), fresh_until: AtomicU64::new(0) }
    }

    /// Returns true if memory may be served without asking the ledger.
    pub fn is_current(&self) -> bool {
        !self.is_shared || self.since_start(Instant::now()) < self.fresh_until.load(Ordering::Relaxed)
    }

    /// Follows the ledger's changes; returns at once if the ledger is not shared.
    pub async fn follow(&self) {
        if !self.is_shared {
            return;
        }
        let (mut position, mut was_cut_off) = (None, false);
        loop {
            let asked = Instant::now();
            let learnt = timeout(FRESH_FOR, self.catch_up(&mut position)).await;
            let learnt = learnt.unwrap_or_else(|_| {
                Err(LedgerError::Unavailable(format!("it did not answer within {FRESH_FOR:?}")))
            });
            match learnt {
                Ok(()) => {
                    self.fresh_until.store(self.since_start(asked + FRESH_FOR), Ordering::Relaxed);
                    if was_cut_off {
                        tracing::info!("the ledger's changes are known again: memory is believed");
                    }
                }
                Err(error) if !was_cut_off => {
                    tracing::warn!(%error, "the ledger's changes are not known: it is asked before memory");
                }
                Err(_) => {}
            }
            was_cut_off = !self.is_current();
            sleep_until(asked + POLL).await;
        }
    }

    /// Forgets all answers that have changed since the last time.
    async fn catch_up(&self, position: &mut Option<u64>) -> Result<(), LedgerError> {
        loop {
            let changes = self.ledger.changes(*position).await?;
            for (namespace, key) in &changes.keys {
                self.cache.forget_answer(&Identity::new(namespace, *key));
            }
            if position.replace(changes.position).is_none() {
                // Answers read before this moment may be older than the position.
                self.cache.open();
            } else if changes.keys.is_empty() {
                return Ok(());
            }
        }
    }

    fn since_start(&self, instant: Instant) -> u64 {
        u64::try_from(instant.duration_since(self.began).as_millis()).unwrap_or(u64::MAX)
    }
}
