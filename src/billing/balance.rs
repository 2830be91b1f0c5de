//! The balance of the upstream's account, which is free to query. A recording rule compares its metric with
//! the ledger's to find credits spent outside of Granary.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;

use crate::base::clock::Clock;
use crate::base::random::jittered;
use crate::upstream::Upstream;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balance {
    pub credits: u64,
    pub seen_at: Timestamp,
}

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
        *self.last.lock()
    }

    /// At once, then every `interval` or somewhat less, while `may_ask` allows it.
    pub async fn run(self: Arc<Self>, interval: Duration, may_ask: impl Fn() -> bool) {
        loop {
            if may_ask()
                && let Some(credits) = self.upstream.credits_left().await
            {
                let balance = Balance { credits, seen_at: self.clock.now() };
                *self.last.lock() = Some(balance);
            }
            tokio::time::sleep(jittered(interval)).await;
        }
    }
}
