//! May memory be believed? When several processes share a ledger, what one of them refreshes or
//! purges must leave the memory of all: [`Freshness`].
//!
//! Each process asks the ledger every second what has changed, and forgets those answers. As long as
//! it learns that in time, its memory is right but for these seconds. When it cannot, the ledger is
//! asked first at every look-up, and memory serves only if the ledger cannot be asked then either: so
//! a process that was cut off never serves from memory what others have purged meanwhile, once it
//! reaches the ledger again.
//!
//! A ledger that one process has to itself changes by that process's own hand alone, and nothing
//! has to be asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use crate::base::identity::Identity;
use crate::cache::MemoryCache;
use crate::ledger::{Ledger, LedgerError};

/// Time between two reads of the ledger's changes.
const POLL: Duration = Duration::from_secs(1);
/// How long memory is believed after the last question that was answered was asked: what others
/// change is seen within this time, or not served from memory.
const FRESH_FOR: Duration = Duration::from_secs(2);

pub struct Freshness {
    ledger: Arc<dyn Ledger>,
    cache: Arc<MemoryCache>,
    is_shared: bool,
    began: Instant,
    fresh_until: AtomicU64,
}

impl Freshness {
    /// With a shared ledger nothing is kept in memory before [`follow`](Self::follow) has asked once.
    pub fn new(ledger: Arc<dyn Ledger>, cache: Arc<MemoryCache>) -> Self {
        let is_shared = ledger.has_leases();
        if is_shared {
            cache.close();
        }
        Self { ledger, cache, is_shared, began: Instant::now(), fresh_until: AtomicU64::new(0) }
    }

    /// Is what memory has what the ledger says, as of a moment ago?
    pub fn is_current(&self) -> bool {
        !self.is_shared || self.since_start(Instant::now()) < self.fresh_until.load(Ordering::Relaxed)
    }

    /// May others change what the ledger says?
    pub fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// This process has changed what stands under a key.
    pub fn forget(&self, identity: &Identity) {
        self.cache.forget_answer(identity);
    }

    /// Follows the ledger's changes for ever; returns at once when the ledger is not shared.
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

    /// Forgets all that has changed since the last time.
    async fn catch_up(&self, position: &mut Option<u64>) -> Result<(), LedgerError> {
        loop {
            let changes = self.ledger.changes(*position).await?;
            for (namespace, key) in &changes.keys {
                self.cache.forget_answer(&Identity::new(namespace, *key));
            }
            if position.replace(changes.position).is_none() {
                // What was read before this moment may be older than the position.
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
