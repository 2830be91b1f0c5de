//! Everything that is counted: every family is a field of [`Metrics`] or of one of its children, a
//! subject each, with its help text.
//!
//! Three grains, never mixed: *requests* (what clients sent), *attempts* (calls to the upstream) and
//! *credits*. Labels come from closed sets and from configured teams only, and every series starts
//! at zero, so that `rate()` and alerts work from the first event. There are no global registries.

mod admin;
mod auth;
mod cache;
mod coalesce;
mod config;
mod families;
mod http;
mod labels;
pub mod ledger;
mod limits;
mod process;
mod server;
mod stages;
pub mod store;
mod teams;
mod uploads;
mod upstream;
mod usage;

use std::collections::BTreeMap;

use prometheus::{Encoder, IntCounter, IntCounterVec, IntGauge, Registry, TextEncoder};

use self::admin::AdminFamilies;
use self::auth::AuthFamilies;
use self::cache::CacheFamilies;
pub use self::cache::{CacheTier, Eviction, Look};
use self::coalesce::CoalesceFamilies;
pub use self::coalesce::CoalesceScope;
pub use self::config::COMMIT;
use self::config::ConfigFamilies;
use self::families::{Each, Families, gauge_value};
use self::http::HttpFamilies;
pub use self::http::{InFlight, Route, ServedRequest, method_label};
pub use self::labels::{AttemptOutcome, RetryReason, ShedReason, Suspicion};
use self::ledger::LedgerFamilies;
use self::limits::LimitFamilies;
pub use self::limits::{Decision, LimitKind, LimitMode};
use self::process::ProcessFamilies;
use self::server::ServerFamilies;
pub use self::server::{ConnectionRefusal, ListenerName, OpenConnection, SlowPhase};
use self::stages::StageFamilies;
pub use self::stages::{Stage, Stages};
use self::store::StoreFamilies;
use self::teams::TeamFamilies;
use self::uploads::UploadFamilies;
use self::upstream::UpstreamFamilies;
use self::usage::UsageFamilies;
use crate::ledger::CallState;
use crate::ledger::admin::Action;
use crate::ledger::budget::Scope;
use crate::ledger::spool::SpoolUsage;

/// States in which a call's life ends.
const TERMINAL: [CallState; 6] = [
    CallState::Released,
    CallState::Stored,
    CallState::Refused,
    CallState::Failed,
    CallState::Unknown,
    CallState::Unfetchable,
];

/// See the module.
pub struct Metrics {
    registry: Registry,
    http: HttpFamilies,
    request_errors: IntCounterVec,
    auth: AuthFamilies,
    teams: TeamFamilies,
    stages: StageFamilies,
    cache: CacheFamilies,
    coalesce: CoalesceFamilies,
    limits: LimitFamilies,
    attempts: Each<AttemptOutcome, IntCounter>,
    fills: IntCounterVec,
    upstream_in_flight: IntGauge,
    upstream: UpstreamFamilies,
    store: StoreFamilies,
    ledger: LedgerFamilies,
    usage: UsageFamilies,
    config: ConfigFamilies,
    admin: AdminFamilies,
    server: ServerFamilies,
    uploads: UploadFamilies,
    process: ProcessFamilies,
    archive_guard: IntGauge,
    spool_objects: IntGauge,
    spool_bytes: IntGauge,
    spool_capacity: IntGauge,
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
            http: HttpFamilies::new(&families),
            request_errors: families.counter(
                "granary_request_errors_total",
                "Requests answered with an error, by whose fault it was and error code (grain: requests)",
                &["class", "code"],
            ),
            auth: AuthFamilies::new(&families),
            teams: TeamFamilies::new(&families),
            stages: StageFamilies::new(&families),
            cache: CacheFamilies::new(&families, memory_capacity),
            coalesce: CoalesceFamilies::new(&families),
            limits: LimitFamilies::new(&families),
            attempts: families.counters(
                "granary_upstream_attempts_total",
                "Attempts to buy a crop, by how they ended (grain: attempts)",
                "outcome",
            ),
            fills: families.counter(
                "granary_fills_total",
                "Ledger rows that reached a state in which their life ends (grain: attempts)",
                &["state"],
            ),
            upstream_in_flight: families.plain("granary_upstream_in_flight", "Paid calls under way"),
            upstream: UpstreamFamilies::new(&families),
            store: StoreFamilies::new(&families),
            ledger: LedgerFamilies::new(&families),
            usage: UsageFamilies::new(&families),
            config: ConfigFamilies::new(&families),
            admin: AdminFamilies::new(&families),
            server: ServerFamilies::new(&families),
            uploads: UploadFamilies::new(&families),
            process: ProcessFamilies::new(&families),
            archive_guard: families.plain(
                "granary_archive_guard_ok",
                "1 when ledger and store are known to belong together; else nothing is bought",
            ),
            spool_objects: families
                .plain("granary_spool_objects", "Results that wait in the ledger for the store"),
            spool_bytes: families
                .plain("granary_spool_bytes", "Bytes of the results that wait in the ledger for the store"),
            spool_capacity: families.plain(
                "granary_spool_capacity_bytes",
                "Bytes of results that may wait in the ledger for the store",
            ),
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
        for state in TERMINAL {
            metrics.fills.with_label_values(&[state.as_str()]);
        }
        metrics.add_teams(teams.iter().copied());
        metrics.observe_month(teams.into_iter(), &[]);
        metrics
    }

    /// Errors that requests may be answered with, by class and code: their series begin at zero.
    pub fn expect_errors(&self, errors: impl Iterator<Item = (&'static str, &'static str)>) {
        for (class, code) in errors {
            self.request_errors.with_label_values(&[class, code]);
        }
    }

    /// Bytes of results that may wait for the store.
    pub fn spool_may_hold(&self, bytes: u64) {
        self.spool_capacity.set(gauge_value(bytes));
    }

    /// Any request was answered with an error; `code` is from the vocabulary.
    pub fn error(&self, class: &'static str, code: &'static str) {
        self.request_errors.with_label_values(&[class, code]).inc();
    }

    /// An attempt to buy ended.
    pub fn attempt(&self, outcome: AttemptOutcome) {
        self.attempts[outcome].inc();
    }

    /// A row of the ledger reached a state.
    pub fn booked(&self, state: CallState, team: &str, credits: u64) {
        self.credited(state, team, credits);
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
        self.cache.observe(snapshot.memory_entries, snapshot.memory_bytes);
        self.coalesce.observe(snapshot.fills, snapshot.waiters);
        self.upstream_in_flight.set(gauge_value(snapshot.calls as u64));
        self.observe_queue(snapshot.limit, &snapshot.queued);
        self.ledger.observe(snapshot.is_ledger_up, snapshot.ledger.as_deref(), snapshot.is_ledger_sound);
        self.archive_guard.set(i64::from(snapshot.is_archive_known));
        if let Some(spool) = &snapshot.spool {
            self.spool_objects.set(gauge_value(spool.objects));
            self.spool_bytes.set(gauge_value(spool.bytes));
            self.spool_oldest_age.set(gauge_value(spool.oldest_age.unwrap_or_default().as_secs()));
            self.unstored_results.set(gauge_value(spool.answered_calls));
            self.unstored_oldest_age.set(gauge_value(spool.oldest_answer_age.unwrap_or_default().as_secs()));
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
    /// Did the ledger answer?
    pub is_ledger_up: bool,
    /// Is the ledger's file known to be undamaged?
    pub is_ledger_sound: bool,
    /// The ledger's sums, if it told them in time.
    pub ledger: Option<Vec<crate::ledger::StateTotal>>,
    /// What waits for the store, if the ledger answered.
    pub spool: Option<SpoolUsage>,
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
}
