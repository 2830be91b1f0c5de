//! The families about requests that wait for what is being made already, here or elsewhere.

use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntGauge};

use super::Metrics;
use super::families::{Each, Families, gauge_value};
use super::labels::labels;

/// Times waited for another's fill, in seconds.
const WAIT_BUCKETS: [f64; 12] = [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0];

labels! {
    /// Who is waited for.
    pub enum CoalesceScope {
        /// A fill of this process.
        Local = "local",
        /// One of another process on the same ledger.
        Cluster = "cluster",
    }
}

/// See the module.
pub(super) struct CoalesceFamilies {
    groups: IntGauge,
    waiting: IntGauge,
    followers: Each<CoalesceScope, IntCounter>,
    timeouts: Each<CoalesceScope, IntCounter>,
    wait: Each<CoalesceScope, Histogram>,
}

impl CoalesceFamilies {
    pub(super) fn new(families: &Families<'_>) -> Self {
        Self {
            groups: families.plain("granary_coalesce_groups_in_flight", "Keys being made at the moment"),
            waiting: families.plain("granary_coalesce_followers", "Requests waiting for a fill at the moment"),
            followers: families.counters(
                "granary_coalesce_followers_total",
                "Requests that joined a fill of this process (local), and fills that waited for another process's \
                 (cluster)",
                "scope",
            ),
            timeouts: families.counters(
                "granary_coalesce_timeouts_total",
                "Those of granary_coalesce_followers_total that gave up before there was a result",
                "scope",
            ),
            wait: families.histograms(
                "granary_coalesce_wait_seconds",
                "Time waited for another's fill, whatever came of it",
                "scope",
                &WAIT_BUCKETS,
            ),
        }
    }

    /// Sets what is read at scrape time.
    pub(super) fn observe(&self, groups: usize, waiting: usize) {
        self.groups.set(gauge_value(groups as u64));
        self.waiting.set(gauge_value(waiting as u64));
    }
}

impl Metrics {
    /// Somebody begins to wait for another's fill.
    pub fn follows(&self, scope: CoalesceScope) {
        self.coalesce.followers[scope].inc();
    }

    /// The wait is over; `in_time` unless it was given up.
    pub fn followed(&self, scope: CoalesceScope, waited: Duration, in_time: bool) {
        self.coalesce.wait[scope].observe(waited.as_secs_f64());
        if !in_time {
            self.coalesce.timeouts[scope].inc();
        }
    }
}
