//! The balance of the upstream's account. Asking is free. What is spent outside of Granary is found by comparing
//! its metric with the ledger's, in a recording rule.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use crate::base::clock::Clock;
use crate::base::random::jittered;
use crate::upstream::Upstream;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balance {
    pub credits: u64,
    pub seen_at: Timestamp,
}

/// Asks for the balance periodically and keeps the last one in memory.
pub struct BalanceWatch {
    upstream: Arc<dyn Upstream>,
    clock: Clock,
    last: Mutex<Option<Balance>>,
}

impl BalanceWatch {
    pub fn new(upstream: Arc<dyn Upstream>, clock: Clock) -> Self {
        Self { upstream, clock, last: Mutex::default() }
    }

    pub fn last(&self) -> Option<Balance> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks at once and then every `interval` or somewhat less, unless `may_ask` denies it.
    pub async fn run(self: Arc<Self>, interval: Duration, may_ask: impl Fn() -> bool) {
        loop {
            if may_ask()
                && let Some(credits) = self.upstream.credits_left().await
            {
                let balance = Balance { credits, seen_at: self.clock.now() };
                *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(balance);
            }
            tokio::time::sleep(jittered(interval)).await;
        }
    }
}
