//! The families about the upstream: how many calls, who waits, what is given up, and alarms.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::labels::{ALARMS, BREAKER_POSITIONS, RetryReason, ShedReason, Suspicion};
use super::{Families, Metrics};

/// Times waited for a turn, in seconds.
const WAIT_BUCKETS: [f64; 12] = [0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0];

/// See the module.
pub(super) struct UpstreamFamilies {
    limit: IntGauge,
    queue: IntGaugeVec,
    queue_wait: HistogramVec,
    shed: IntCounterVec,
    retries: IntCounterVec,
    retry_budget_exhausted: IntCounter,
    breaker_state: IntGauge,
    breaker_transitions: IntCounterVec,
    alarms: IntGaugeVec,
    suspects: IntCounterVec,
    key_reloads: IntCounterVec,
    key_is_current: IntGauge,
    /// Every team that there has been.
    teams: Mutex<BTreeSet<String>>,
}

impl UpstreamFamilies {
    pub(super) fn new(families: &Families<'_>) -> Self {
        let all = Self {
                limit: families.plain(
                    "granary_upstream_concurrency_limit",
                    "Paid calls that may be under way at once, adapted to what the upstream's flow control says",
                ),
                queue: families.gauge(
                    "granary_upstream_queue_depth",
                    "Fills waiting for an upstream slot, by team",
                    &["team"],
                ),
                queue_wait: families.histogram(
                    "granary_upstream_queue_wait_seconds",
                    "Time a fill waited for its upstream slot",
                    &[],
                    &WAIT_BUCKETS,
                ),
                shed: families.counter(
                    "granary_upstream_shed_total",
                    "Fills given up before anything was reserved, by why",
                    &["reason"],
                ),
                retries: families.counter(
                    "granary_upstream_retries_total",
                    "Attempts made again after one that cost nothing, by why (grain: attempts)",
                    &["reason"],
                ),
                retry_budget_exhausted: families.count(
                    "granary_upstream_retry_budget_exhausted_total",
                    "Flow-control refusals not tried again because retries would exceed a tenth of all purchases",
                ),
                breaker_state: families.plain(
                    "granary_upstream_breaker_state",
                    "0 while the upstream is called, 1 while one request finds out, 2 while it is not called",
                ),
                breaker_transitions: families.counter(
                    "granary_upstream_breaker_transitions_total",
                    "Changes of the upstream breaker's state, by the new one",
                    &["to"],
                ),
                alarms: families.gauge(
                    "granary_upstream_alarm",
                    "1 while nothing is bought for this cause, and someone should look",
                    &["cause"],
                ),
                suspects: families.counter(
                    "granary_results_suspect_total",
                    "Results that are kept although they are not what was ordered, by what is odd (grain: attempts)",
                    &["reason"],
                ),
            key_reloads: families.counter(
                "granary_upstream_key_reloads_total",
                "Changes of the upstream's key that were noticed, by what came of them",
                &["result"],
            ),
            key_is_current: families.plain(
                "granary_upstream_key_current",
                "1 unless upstream.api_key_file cannot be read or holds no key; the old key is used then",
            ),
            teams: Mutex::default(),
        };
        all.zero();
        all
    }

    fn zero(&self) {
        self.queue_wait.with_label_values(&[] as &[&str]);
        for reason in ShedReason::ALL {
            self.shed.with_label_values(&[reason.as_str()]);
        }
        for reason in RetryReason::ALL {
            self.retries.with_label_values(&[reason.as_str()]);
        }
        for position in BREAKER_POSITIONS {
            self.breaker_transitions.with_label_values(&[position]);
        }
        for cause in ALARMS {
            self.alarms.with_label_values(&[cause]);
        }
        for result in ["ok", "error"] {
            self.key_reloads.with_label_values(&[result]);
        }
        self.key_is_current.set(1);
        for reason in Suspicion::ALL {
            self.suspects.with_label_values(&[reason.as_str()]);
        }
    }

    /// A team whose fills may wait.
    pub(super) fn add_team(&self, team: &str) {
        self.queue.with_label_values(&[team]);
        self.teams().insert(team.to_owned());
    }

    fn teams(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.teams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets what is read at scrape time.
    pub(super) fn observe(&self, limit: usize, queued: &BTreeMap<String, usize>) {
        let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.limit.set(gauge(limit));
        for team in &*self.teams() {
            let waiting = queued.get(team).copied().unwrap_or(0);
            self.queue.with_label_values(&[team]).set(gauge(waiting));
        }
    }
}

impl Metrics {
    /// A fill had its turn after so long.
    pub fn queue_waited(&self, time: Duration) {
        self.upstream.queue_wait.with_label_values(&[] as &[&str]).observe(time.as_secs_f64());
    }

    /// A fill was given up before anything was reserved.
    pub fn shed(&self, reason: ShedReason) {
        self.upstream.shed.with_label_values(&[reason.as_str()]).inc();
    }

    /// An attempt is made again.
    pub fn retried(&self, reason: RetryReason) {
        self.upstream.retries.with_label_values(&[reason.as_str()]).inc();
    }

    /// One would have been made again, had there been budget left for it.
    pub fn retry_budget_exhausted(&self) {
        self.upstream.retry_budget_exhausted.inc();
    }

    /// The upstream's breaker changed to this position, by name and number.
    pub fn breaker(&self, to: &'static str, number: i64) {
        self.upstream.breaker_state.set(number);
        self.upstream.breaker_transitions.with_label_values(&[to]).inc();
    }

    /// A cause for buying nothing began, or is over.
    pub fn alarm(&self, cause: &'static str, is_on: bool) {
        self.upstream.alarms.with_label_values(&[cause]).set(i64::from(is_on));
    }

    /// The upstream's key was read anew, or its file turned out to be of no use.
    pub fn key_reloaded(&self, is_ok: bool) {
        self.upstream.key_reloads.with_label_values(&[if is_ok { "ok" } else { "error" }]).inc();
        self.key_is_current(is_ok);
    }

    /// Whether the key in use is the one in its file.
    pub fn key_is_current(&self, is_current: bool) {
        self.upstream.key_is_current.set(i64::from(is_current));
    }

    /// A result is not what was ordered.
    pub fn suspect(&self, reason: Suspicion) {
        self.upstream.suspects.with_label_values(&[reason.as_str()]).inc();
    }
}
