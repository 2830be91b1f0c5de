//! Everything that is counted: every family is a field of [`Metrics`], with its help text.
//!
//! Three grains, never mixed: *requests* (what clients sent), *attempts* (calls to the upstream) and
//! *credits*. Labels come from closed sets and from configured teams only, and every series starts
//! at zero, so that `rate()` and alerts work from the first event. There are no global registries.

mod admin;
mod config;
mod labels;
mod uploads;
mod upstream;
mod usage;

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus::{
    Encoder, Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use self::admin::AdminFamilies;
use self::config::ConfigFamilies;
pub use self::labels::{RetryReason, ShedReason, Suspicion};
use self::uploads::UploadFamilies;
use self::upstream::UpstreamFamilies;
use self::usage::UsageFamilies;
use crate::ledger::CallState;
use crate::ledger::admin::Action;
use crate::ledger::budget::Scope;
use crate::ledger::spool::SpoolUsage;
use crate::outcome::{CacheStatus, SavingCause};

/// Request durations, in seconds.
const REQUEST_BUCKETS: [f64; 15] =
    [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0];

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
    upstream: UpstreamFamilies,
    config: ConfigFamilies,
    usage: UsageFamilies,
    admin: AdminFamilies,
    uploads: UploadFamilies,
    ledger_credits: IntGaugeVec,
    ledger_up: IntGauge,
    ledger_sound: IntGauge,
    archive_guard: IntGauge,
    spool_objects: IntGauge,
    spool_bytes: IntGauge,
    spool_oldest_age: IntGauge,
    unstored_results: IntGauge,
    unstored_oldest_age: IntGauge,
}

impl Metrics {
    /// All families at zero, for these teams.
    pub fn new<'a>(teams: impl Iterator<Item = &'a str>, memory_capacity: u64) -> Self {
        let teams: Vec<&str> = teams.collect();
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
            upstream: UpstreamFamilies::new(&families),
            usage: UsageFamilies::new(&families, teams.iter().copied()),
            config: ConfigFamilies::new(&families),
            admin: AdminFamilies::new(&families),
            uploads: UploadFamilies::new(&families),
            ledger_credits: families.gauge(
                "granary_ledger_credits",
                "Credits of this ledger's rows by state (grain: credits)",
                &["state"],
            ),
            ledger_up: families.plain("granary_ledger_up", "1 when the ledger answered the last time it was asked"),
            ledger_sound: families.plain(
                "granary_ledger_sound",
                "1 when the ledger's file was read whole since the start and found undamaged; else nothing is bought",
            ),
            archive_guard: families.plain(
                "granary_archive_guard_ok",
                "1 when ledger and store are known to belong together; else nothing is bought",
            ),
            spool_objects: families.plain("granary_spool_objects", "Results that wait in the ledger for the store"),
            spool_bytes: families.plain("granary_spool_bytes", "Bytes of the results that wait in the ledger for the store"),
            spool_oldest_age: families.plain(
                "granary_spool_oldest_age_seconds",
                "How long the oldest result has waited for the store; 0 when none does",
            ),
            unstored_results: families.plain(
                "granary_unstored_results",
                "Results that are paid for and not kept anywhere yet (grain: attempts)",
            ),
            unstored_oldest_age: families.plain(
                "granary_unstored_results_oldest_age_seconds",
                "How long ago the oldest result that is not kept yet was paid for; its URL lives a day",
            ),
            registry,
        };
        metrics.zero(memory_capacity);
        metrics.add_teams(teams.into_iter());
        metrics
    }

    /// Teams that there are from now on: their series begin at zero. Those of teams that are gone
    /// stay, because what they counted was so.
    pub fn add_teams<'a>(&self, teams: impl Iterator<Item = &'a str>) {
        for team in teams {
            self.upstream.add_team(team);
            for outcome in CacheStatus::ALL.map(CacheStatus::as_str).into_iter().chain(REFUSED_OUTCOMES) {
                self.requests.with_label_values(&[team, outcome]);
            }
            self.credits_spent.with_label_values(&[team]);
            for cause in SavingCause::ALL {
                self.credits_saved.with_label_values(&[team, cause.as_str()]);
            }
        }
    }

    fn zero(&self, memory_capacity: u64) {
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
        if let Some(cause) = status.saving() {
            self.credits_saved.with_label_values(&[team, cause.as_str()]).inc_by(saved);
        }
    }

    /// A hash-first look-up found its answer.
    pub fn looked_up(&self, team: &str, saved: u64) {
        self.credits_saved.with_label_values(&[team, SavingCause::HashFirst.as_str()]).inc_by(saved);
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
        self.upstream.observe(snapshot.limit, &snapshot.queued);
        self.ledger_up.set(i64::from(snapshot.ledger.is_some()));
        self.ledger_sound.set(i64::from(snapshot.is_ledger_sound));
        self.archive_guard.set(i64::from(snapshot.is_archive_known));
        if let Some(spool) = &snapshot.spool {
            set(&self.spool_objects, spool.objects);
            set(&self.spool_bytes, spool.bytes);
            set(&self.spool_oldest_age, spool.oldest_age.unwrap_or_default().as_secs());
            set(&self.unstored_results, spool.answered_calls);
            set(&self.unstored_oldest_age, spool.oldest_answer_age.unwrap_or_default().as_secs());
        }
        for total in snapshot.ledger.iter().flatten() {
            set(&self.ledger_credits.with_label_values(&[total.state.as_str()]), total.credits);
        }
    }

    /// An operator asked for a change; `result` is `done`, `refused` or `failed`.
    pub fn admin_action(&self, action: Action, result: &'static str) {
        self.admin.acted(action, result);
    }

    /// Sets what is left for operators: credits of unknown calls, and what stands frozen.
    pub fn observe_admin(&self, unknown_credits: u64, frozen: &[Scope]) {
        self.admin.observe(unknown_credits, frozen);
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
    /// Are ledger and store known to belong together?
    pub is_archive_known: bool,
    /// Is the ledger's file known to be undamaged?
    pub is_ledger_sound: bool,
    /// The ledger's sums, if it answered.
    pub ledger: Option<Vec<crate::ledger::StateTotal>>,
    /// What waits for the store, if the ledger answered.
    pub spool: Option<SpoolUsage>,
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

    fn float(&self, name: &str, help: &str) -> Gauge {
        self.add(Gauge::new(name, help))
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
    fn a_team_that_comes_later_begins_at_zero_and_one_that_stays_goes_on() {
        let metrics = Metrics::new(["a"].into_iter(), 7);
        metrics.answered("a", CacheStatus::Miss, 0);
        metrics.add_teams(["a", "b"].into_iter());
        let text = String::from_utf8(metrics.render()).expect("the exposition is UTF-8");
        for line in [
            r#"granary_requests_total{outcome="miss",team="a"} 1"#,
            r#"granary_requests_total{outcome="miss",team="b"} 0"#,
            r#"granary_credits_spent_total{team="b"} 0"#,
            r#"granary_upstream_queue_depth{team="b"} 0"#,
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
