//! The families about the upstream: how many calls, who waits, what is given up, and alarms.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::families::{Each, Rows, gauge_value};
use super::labels::{ALARMS, BREAKER_POSITIONS, Label, RetryReason, ShedReason, Success, Suspicion};
use super::{Families, Metrics};
use crate::upstream::{CallPhase, CallTimer};

/// Times waited for a turn, in seconds.
const WAIT_BUCKETS: [f64; 12] = [0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0];

/// Times of a paid call, in seconds, up to its hard stop.
const CALL_BUCKETS: [f64; 14] = [0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0, 30.0, 60.0, 180.0];

impl Label for CallPhase {
    const ALL: &'static [Self] = &Self::ALL;

    fn as_str(self) -> &'static str {
        self.as_str()
    }

    fn position(self) -> usize {
        self as usize
    }
}

/// See the module.
pub(super) struct UpstreamFamilies {
    limit: IntGauge,
    queue: Rows,
    queue_wait: HistogramVec,
    duration: Each<CallPhase, Histogram>,
    shed: Each<ShedReason, IntCounter>,
    retries: Each<RetryReason, IntCounter>,
    retry_budget_exhausted: IntCounter,
    breaker_state: IntGauge,
    breaker_transitions: IntCounterVec,
    alarms: IntGaugeVec,
    suspects: Each<Suspicion, IntCounter>,
    key_reloads: Each<Success, IntCounter>,
    key_is_current: IntGauge,
    /// Labels of the teams in force.
    teams: Mutex<BTreeSet<String>>,
}

impl UpstreamFamilies {
    pub(super) fn new(families: &Families<'_>) -> Self {
        let all = Self {
                limit: families.plain(
                    "granary_upstream_concurrency_limit",
                    "Paid calls that may be under way at once, adapted to what the upstream's flow control says",
                ),
                queue: families.rows(
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
                duration: families.histograms(
                    "granary_upstream_duration_seconds",
                    "Time of a paid call: to connect, from its last byte to the answer's first, and in all without \
                     waiting for the ledger (grain: attempts)",
                    "phase",
                    &CALL_BUCKETS,
                ),
                shed: families.counters(
                    "granary_upstream_shed_total",
                    "Fills given up before anything was reserved, by why",
                    "reason",
                ),
                retries: families.counters(
                    "granary_upstream_retries_total",
                    "Attempts made again after one that cost nothing, by why (grain: attempts)",
                    "reason",
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
                suspects: families.counters(
                    "granary_results_suspect_total",
                    "Results that are kept although they are not what was ordered, by what is odd (grain: attempts)",
                    "reason",
                ),
            key_reloads: families.counters(
                "granary_upstream_key_reloads_total",
                "Changes of the upstream's key that were noticed, by what came of them",
                "result",
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
        for position in BREAKER_POSITIONS {
            self.breaker_transitions.with_label_values(&[position]);
        }
        for cause in ALARMS {
            self.alarms.with_label_values(&[cause]);
        }
        self.key_is_current.set(1);
    }

    /// Teams whose fills may wait, by their labels, beside those there are.
    pub(super) fn add_teams<'a>(&self, labels: impl Iterator<Item = &'a str>) {
        self.teams().extend(labels.map(str::to_owned));
        self.queue.set(self.queues(&BTreeMap::new()));
    }

    /// As [`add_teams`](Self::add_teams), and there are no others any more.
    pub(super) fn set_teams<'a>(&self, labels: impl Iterator<Item = &'a str>) {
        self.teams().clear();
        self.add_teams(labels);
    }

    fn teams(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.teams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many wait by label, the teams that have none waiting among them.
    fn queues(&self, waiting: &BTreeMap<&str, usize>) -> BTreeMap<Vec<String>, i64> {
        let teams = self.teams();
        let idle = teams.iter().map(|team| (vec![team.clone()], 0));
        let busy =
            waiting.iter().map(|(team, number)| (vec![(*team).to_owned()], gauge_value(*number as u64)));
        idle.chain(busy).collect()
    }
}

impl Metrics {
    /// Sets what is read at scrape time.
    pub(super) fn observe_queue(&self, limit: usize, queued: &BTreeMap<String, usize>) {
        self.upstream.limit.set(gauge_value(limit as u64));
        let mut waiting = BTreeMap::new();
        for (team, number) in queued {
            *waiting.entry(self.teams.label(team)).or_default() += number;
        }
        self.upstream.queue.set(self.upstream.queues(&waiting));
    }

    /// A fill had its turn after so long.
    pub fn queue_waited(&self, time: Duration) {
        self.upstream.queue_wait.with_label_values(&[] as &[&str]).observe(time.as_secs_f64());
    }

    /// A fill was given up before anything was reserved.
    pub fn shed(&self, reason: ShedReason) {
        self.upstream.shed[reason].inc();
    }

    /// An attempt is made again.
    pub fn retried(&self, reason: RetryReason) {
        self.upstream.retries[reason].inc();
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
        self.upstream.key_reloads[Success::of(is_ok)].inc();
        self.key_is_current(is_ok);
    }

    /// Whether the key in use is the one in its file.
    pub fn key_is_current(&self, is_current: bool) {
        self.upstream.key_is_current.set(i64::from(is_current));
    }

    /// A result is not what was ordered.
    pub fn suspect(&self, reason: Suspicion) {
        self.upstream.suspects[reason].inc();
    }
}

impl CallTimer for Metrics {
    fn took(&self, phase: CallPhase, time: Duration) {
        self.upstream.duration[phase].observe(time.as_secs_f64());
    }
}
