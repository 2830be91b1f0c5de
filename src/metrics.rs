//! Everything that is counted: every family is a field of [`Metrics`], with its help text.
//!
//! Three grains, never mixed: *requests* (what clients sent), *attempts* (calls to the upstream) and
//! *credits*. Labels come from closed sets and from configured teams only, and every series starts
//! at zero, so that `rate()` and alerts work from the first event. There are no global registries.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::ledger::CallState;
use crate::outcome::CacheStatus;

/// Request durations, in seconds.
const REQUEST_BUCKETS: [f64; 15] =
    [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0];

/// Times waited for a turn, in seconds.
const WAIT_BUCKETS: [f64; 12] = [0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0];

/// How an attempt to buy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// With a result.
    Ok,
    /// Refused for the order's sake.
    CallerRejected,
    /// Refused for being too fast.
    RateLimited,
    /// Refused for our key's sake.
    Auth,
    /// Refused for want of credits.
    Quota,
    /// A complete error.
    ServerError,
    /// No complete answer in time.
    Timeout,
    /// Never sent whole.
    Connect,
    /// No complete answer, or one that could not be understood.
    BadBody,
}

impl AttemptOutcome {
    const ALL: [Self; 9] = [
        Self::Ok,
        Self::CallerRejected,
        Self::RateLimited,
        Self::Auth,
        Self::Quota,
        Self::ServerError,
        Self::Timeout,
        Self::Connect,
        Self::BadBody,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::CallerRejected => "caller_rejected",
            Self::RateLimited => "rate_limited",
            Self::Auth => "auth",
            Self::Quota => "quota",
            Self::ServerError => "server_error",
            Self::Timeout => "timeout",
            Self::Connect => "connect",
            Self::BadBody => "bad_body",
        }
    }
}

/// Why a fill was given up before anything was reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShedReason {
    /// As many wait as may.
    QueueFull,
    /// Its turn would have come too late.
    WaitTimeout,
    /// The upstream is not to be called.
    BreakerOpen,
    /// The process is stopping.
    Draining,
    /// Nobody waited for it any more.
    Deserted,
    /// The upstream is throttling, and its callers had been told to come back later than this.
    ToldToWait,
}

impl ShedReason {
    const ALL: [Self; 6] = [
        Self::QueueFull,
        Self::WaitTimeout,
        Self::BreakerOpen,
        Self::Draining,
        Self::Deserted,
        Self::ToldToWait,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::WaitTimeout => "wait_timeout",
            Self::BreakerOpen => "breaker_open",
            Self::Draining => "draining",
            Self::Deserted => "deserted",
            Self::ToldToWait => "told_to_wait",
        }
    }
}

/// Why an attempt was made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryReason {
    /// It had not been sent whole.
    NotSent,
    /// The upstream's flow control had refused it.
    RateLimited,
}

impl RetryReason {
    const ALL: [Self; 2] = [Self::NotSent, Self::RateLimited];

    fn as_str(self) -> &'static str {
        match self {
            Self::NotSent => "not_sent",
            Self::RateLimited => "rate_limited",
        }
    }
}

/// What is odd about a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspicion {
    /// It has another size than was ordered.
    Dimensions,
    /// Its `retain_location` is no place in it.
    RetainLocation,
}

impl Suspicion {
    const ALL: [Self; 2] = [Self::Dimensions, Self::RetainLocation];

    /// The word in labels and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dimensions => "dimensions",
            Self::RetainLocation => "retain_location",
        }
    }
}

/// Why nothing may be bought, as labels.
const ALARMS: [&str; 4] = ["key_refused", "no_credits", "unfetchable", "outage"];
/// Where the breaker goes, as labels.
const BREAKER_POSITIONS: [&str; 3] = ["closed", "half_open", "open"];

/// How a crop request ended, beside the ways of [`CacheStatus`].
const REFUSED_OUTCOMES: [&str; 2] = ["rejected", "error"];

/// States in which a call's life ends.
const TERMINAL: [CallState; 6] = [
    CallState::Released,
    CallState::Stored,
    CallState::Refused,
    CallState::Failed,
    CallState::Unknown,
    CallState::Unfetchable,
];

/// A method as a word of a closed set: clients may write anything there, a token too.
pub fn method_label(method: &http::Method) -> &'static str {
    const KNOWN: [&str; 7] = ["GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("other")
}

/// The routes, as labels.
pub const ROUTES: [&str; 6] = ["crop", "lookup", "result", "credits", "page", "unmatched"];

/// See the module.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    request_errors: IntCounterVec,
    request_duration: HistogramVec,
    http_requests: IntCounterVec,
    attempts: IntCounterVec,
    fills: IntCounterVec,
    credits_spent: IntCounterVec,
    credits_saved: IntCounterVec,
    cache_entries: IntGaugeVec,
    cache_bytes: IntGaugeVec,
    cache_capacity: IntGaugeVec,
    fills_in_flight: IntGauge,
    followers: IntGauge,
    upstream_in_flight: IntGauge,
    upstream_limit: IntGauge,
    upstream_queue: IntGaugeVec,
    upstream_queue_wait: HistogramVec,
    upstream_shed: IntCounterVec,
    upstream_retries: IntCounterVec,
    upstream_retry_budget_exhausted: IntCounter,
    breaker_state: IntGauge,
    breaker_transitions: IntCounterVec,
    alarms: IntGaugeVec,
    suspects: IntCounterVec,
    teams: Vec<String>,
    ledger_credits: IntGaugeVec,
    ledger_up: IntGauge,
}

impl Metrics {
    /// All families at zero, for these teams.
    pub fn new<'a>(teams: impl Iterator<Item = &'a str> + Clone, memory_capacity: u64) -> Self {
        let registry = Registry::new();
        let families = Families(&registry);
        let metrics = Self {
            requests: families.counter(
                "granary_requests_total",
                "Crop requests by team and outcome (grain: requests)",
                &["team", "outcome"],
            ),
            request_errors: families.counter(
                "granary_request_errors_total",
                "Requests answered with an error, by whose fault it was and error code (grain: requests)",
                &["class", "code"],
            ),
            request_duration: families.histogram(
                "granary_http_request_duration_seconds",
                "Time from a request's head to its answer (grain: requests)",
                &["route", "outcome"],
                &REQUEST_BUCKETS,
            ),
            http_requests: families.counter(
                "granary_http_requests_total",
                "HTTP requests on the public listener by route, method and status (grain: requests)",
                &["route", "method", "code"],
            ),
            attempts: families.counter(
                "granary_upstream_attempts_total",
                "Attempts to buy a crop, by how they ended (grain: attempts)",
                &["outcome"],
            ),
            fills: families.counter(
                "granary_fills_total",
                "Ledger rows that reached a state in which their life ends (grain: attempts)",
                &["state"],
            ),
            credits_spent: families.counter(
                "granary_credits_spent_total",
                "Credits of calls whose answer was booked, by the team that paid (grain: credits)",
                &["team"],
            ),
            credits_saved: families.counter(
                "granary_credits_saved_total",
                "Credits not spent because the result was there or being made, by team and cause (grain: credits)",
                &["team", "cause"],
            ),
            cache_entries: families.gauge("granary_cache_entries", "Entries in a cache tier", &["tier"]),
            cache_bytes: families.gauge("granary_cache_bytes", "Bytes in a cache tier", &["tier"]),
            cache_capacity: families.gauge("granary_cache_capacity_bytes", "Bytes a cache tier may hold", &["tier"]),
            fills_in_flight: families.plain("granary_coalesce_groups_in_flight", "Keys being made at the moment"),
            followers: families.plain("granary_coalesce_followers", "Requests waiting for a fill at the moment"),
            upstream_in_flight: families.plain("granary_upstream_in_flight", "Paid calls under way"),
            upstream_limit: families.plain(
                "granary_upstream_concurrency_limit",
                "Paid calls that may be under way at once, adapted to what the upstream's flow control says",
            ),
            upstream_queue: families.gauge(
                "granary_upstream_queue_depth",
                "Fills waiting for an upstream slot, by team",
                &["team"],
            ),
            upstream_queue_wait: families.histogram(
                "granary_upstream_queue_wait_seconds",
                "Time a fill waited for its upstream slot",
                &[],
                &WAIT_BUCKETS,
            ),
            upstream_shed: families.counter(
                "granary_upstream_shed_total",
                "Fills given up before anything was reserved, by why",
                &["reason"],
            ),
            upstream_retries: families.counter(
                "granary_upstream_retries_total",
                "Attempts made again after one that cost nothing, by why (grain: attempts)",
                &["reason"],
            ),
            upstream_retry_budget_exhausted: families.count(
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
            teams: teams.clone().map(str::to_owned).collect(),
            ledger_credits: families.gauge(
                "granary_ledger_credits",
                "Credits of this ledger's rows by state (grain: credits)",
                &["state"],
            ),
            ledger_up: families.plain("granary_ledger_up", "1 when the ledger answered the last time it was asked"),
            registry,
        };
        metrics.zero(teams, memory_capacity);
        metrics
    }

    fn zero<'a>(&self, teams: impl Iterator<Item = &'a str>, memory_capacity: u64) {
        for team in teams {
            for outcome in CacheStatus::ALL.map(CacheStatus::as_str).into_iter().chain(REFUSED_OUTCOMES) {
                self.requests.with_label_values(&[team, outcome]);
            }
            self.credits_spent.with_label_values(&[team]);
            for status in CacheStatus::ALL.into_iter().filter(|status| status.is_free()) {
                self.credits_saved.with_label_values(&[team, status.as_str()]);
            }
            self.credits_saved.with_label_values(&[team, HASH_FIRST]);
        }
        for team in &self.teams {
            self.upstream_queue.with_label_values(&[team]);
        }
        self.upstream_queue_wait.with_label_values(&[] as &[&str]);
        for reason in ShedReason::ALL {
            self.upstream_shed.with_label_values(&[reason.as_str()]);
        }
        for reason in RetryReason::ALL {
            self.upstream_retries.with_label_values(&[reason.as_str()]);
        }
        for position in BREAKER_POSITIONS {
            self.breaker_transitions.with_label_values(&[position]);
        }
        for cause in ALARMS {
            self.alarms.with_label_values(&[cause]);
        }
        for reason in Suspicion::ALL {
            self.suspects.with_label_values(&[reason.as_str()]);
        }
        for outcome in AttemptOutcome::ALL {
            self.attempts.with_label_values(&[outcome.as_str()]);
        }
        for state in TERMINAL {
            self.fills.with_label_values(&[state.as_str()]);
        }
        for state in CallState::ALL {
            self.ledger_credits.with_label_values(&[state.as_str()]);
        }
        for route in ROUTES {
            self.request_duration.with_label_values(&[route, "ok"]);
        }
        let capacity = i64::try_from(memory_capacity).unwrap_or(i64::MAX);
        self.cache_capacity.with_label_values(&["memory"]).set(capacity);
    }

    /// A crop request was answered with a result, which cost its team `charged` credits or saved it
    /// `saved`.
    pub fn answered(&self, team: &str, status: CacheStatus, saved: u64) {
        self.requests.with_label_values(&[team, status.as_str()]).inc();
        if status.is_free() {
            self.credits_saved.with_label_values(&[team, status.as_str()]).inc_by(saved);
        }
    }

    /// A hash-first look-up found its answer.
    pub fn looked_up(&self, team: &str, saved: u64) {
        self.credits_saved.with_label_values(&[team, HASH_FIRST]).inc_by(saved);
    }

    /// A crop request of a known team was answered with an error; `is_refusal` when by a rule or for
    /// its own fault.
    pub fn not_answered(&self, team: &str, is_refusal: bool) {
        let outcome = if is_refusal { "rejected" } else { "error" };
        self.requests.with_label_values(&[team, outcome]).inc();
    }

    /// Any request was answered with an error; `code` is from the vocabulary.
    pub fn error(&self, class: &'static str, code: &'static str) {
        self.request_errors.with_label_values(&[class, code]).inc();
    }

    /// A request on the public listener was answered. `route` is one of [`ROUTES`].
    pub fn served(
        &self,
        route: &'static str,
        method: &http::Method,
        status: http::StatusCode,
        took: Duration,
    ) {
        self.http_requests.with_label_values(&[route, method_label(method), status.as_str()]).inc();
        let outcome = match status.as_u16() {
            0..=399 => "ok",
            400..=499 => "client_error",
            _ => "server_error",
        };
        self.request_duration.with_label_values(&[route, outcome]).observe(took.as_secs_f64());
    }

    /// An attempt to buy ended.
    pub fn attempt(&self, outcome: AttemptOutcome) {
        self.attempts.with_label_values(&[outcome.as_str()]).inc();
    }

    /// A fill had its turn after so long.
    pub fn queue_waited(&self, time: Duration) {
        self.upstream_queue_wait.with_label_values(&[] as &[&str]).observe(time.as_secs_f64());
    }

    /// A fill was given up before anything was reserved.
    pub fn shed(&self, reason: ShedReason) {
        self.upstream_shed.with_label_values(&[reason.as_str()]).inc();
    }

    /// An attempt is made again.
    pub fn retried(&self, reason: RetryReason) {
        self.upstream_retries.with_label_values(&[reason.as_str()]).inc();
    }

    /// One would have been made again, had there been budget left for it.
    pub fn retry_budget_exhausted(&self) {
        self.upstream_retry_budget_exhausted.inc();
    }

    /// The upstream's breaker changed to this position, by name and number.
    pub fn breaker(&self, to: &'static str, number: i64) {
        self.breaker_state.set(number);
        self.breaker_transitions.with_label_values(&[to]).inc();
    }

    /// A cause for buying nothing began, or is over.
    pub fn alarm(&self, cause: &'static str, is_on: bool) {
        self.alarms.with_label_values(&[cause]).set(i64::from(is_on));
    }

    /// A result is not what was ordered.
    pub fn suspect(&self, reason: Suspicion) {
        self.suspects.with_label_values(&[reason.as_str()]).inc();
    }

    /// A row of the ledger reached a state.
    pub fn booked(&self, state: CallState, team: &str, credits: u64) {
        if state == CallState::Answered {
            self.credits_spent.with_label_values(&[team]).inc_by(credits);
        }
        if TERMINAL.contains(&state) {
            self.fills.with_label_values(&[state.as_str()]).inc();
        }
    }

    /// A start settled what a dead process had left open.
    pub fn fills_recovered(&self, released: u64, unknown: u64) {
        self.fills.with_label_values(&[CallState::Released.as_str()]).inc_by(released);
        self.fills.with_label_values(&[CallState::Unknown.as_str()]).inc_by(unknown);
    }

    /// Sets what is read at scrape time; see [`Snapshot`].
    pub fn observe(&self, snapshot: &Snapshot) {
        let set = |gauge: &IntGauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        set(&self.cache_entries.with_label_values(&["memory"]), snapshot.memory_entries);
        set(&self.cache_bytes.with_label_values(&["memory"]), snapshot.memory_bytes);
        set(&self.fills_in_flight, snapshot.fills as u64);
        set(&self.followers, snapshot.waiters as u64);
        set(&self.upstream_in_flight, snapshot.calls as u64);
        set(&self.upstream_limit, snapshot.limit as u64);
        for team in &self.teams {
            let queued = snapshot.queued.get(team).copied().unwrap_or(0);
            set(&self.upstream_queue.with_label_values(&[team]), queued as u64);
        }
        self.ledger_up.set(i64::from(snapshot.ledger.is_some()));
        for total in snapshot.ledger.iter().flatten() {
            set(&self.ledger_credits.with_label_values(&[total.state.as_str()]), total.credits);
        }
    }

    /// The text exposition.
    pub fn render(&self) -> Vec<u8> {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "the metrics could not be written");
        }
        text
    }
}

const HASH_FIRST: &str = "hash_first";

/// Figures that are read, not counted.
pub struct Snapshot {
    /// Entries in memory.
    pub memory_entries: u64,
    /// Bytes in memory.
    pub memory_bytes: u64,
    /// Keys being made.
    pub fills: usize,
    /// Requests waiting for them.
    pub waiters: usize,
    /// Paid calls under way.
    pub calls: usize,
    /// Paid calls that may be under way at once.
    pub limit: usize,
    /// Fills waiting for a slot, by team.
    pub queued: BTreeMap<String, usize>,
    /// The ledger's sums, if it answered.
    pub ledger: Option<Vec<crate::ledger::StateTotal>>,
}

/// Makes families; a name that is taken or malformed is a mistake in this file.
struct Families<'a>(&'a Registry);

impl Families<'_> {
    fn add<C: prometheus::core::Collector + Clone + 'static>(&self, family: prometheus::Result<C>) -> C {
        let family = family.expect("names and labels in this file are well-formed");
        self.0.register(Box::new(family.clone())).expect("names in this file are unique");
        family
    }

    fn counter(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn plain(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    fn count(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    fn histogram(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        self.add(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_of_a_closed_set_starts_at_zero() {
        let metrics = Metrics::new(["local"].into_iter(), 7);
        let text = String::from_utf8(metrics.render()).expect("the exposition is UTF-8");
        for line in [
            r#"granary_requests_total{outcome="hit_memory",team="local"} 0"#,
            r#"granary_requests_total{outcome="error",team="local"} 0"#,
            r#"granary_upstream_attempts_total{outcome="bad_body"} 0"#,
            r#"granary_fills_total{state="unfetchable"} 0"#,
            r#"granary_credits_spent_total{team="local"} 0"#,
            r#"granary_credits_saved_total{cause="coalesced",team="local"} 0"#,
            r#"granary_cache_capacity_bytes{tier="memory"} 7"#,
        ] {
            assert!(text.lines().any(|seen| seen == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn an_unheard_of_method_makes_no_series_of_its_own() {
        let metrics = Metrics::new(["local"].into_iter(), 7);
        for method in ["BREW", "PROPFIND", "X"] {
            let method = http::Method::from_bytes(method.as_bytes()).expect("a token");
            metrics.served("unmatched", &method, http::StatusCode::NOT_FOUND, Duration::ZERO);
        }
        let text = String::from_utf8(metrics.render()).expect("the exposition is UTF-8");
        assert!(
            text.contains(r#"granary_http_requests_total{code="404",method="other",route="unmatched"} 3"#)
        );
    }
}
