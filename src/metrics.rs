//! Metrics. [`families`] declares every family; callers record in its fields directly, and this module has
//! what takes more than one step.

mod families;
mod family;
mod http;
mod labels;
mod stages;
pub mod store;
mod teams;

use std::ops::Deref;
use std::sync::OnceLock;
use std::time::Duration;

use prometheus::process_collector::ProcessCollector;
use prometheus::{Encoder, IntGauge, Registry, TextEncoder};
use tokio::runtime::Handle;

pub use self::families::Families;
pub use self::http::{Route, method_label};
pub use self::labels::{
    ActionResult, AttemptOutcome, AuthFailure, BlockCause, CacheTier, CloseReason, CoalesceScope, Decision,
    Eviction, LimitKind, LimitMode, ListenerName, Look, ReloadedFile, RetryReason, ShedReason, SizedTier,
    Space, Suspicion,
};
use self::labels::{EndState, OpLabel, Success};
pub use self::stages::{Stage, Stages};
use self::teams::Teams;
use crate::base::outcome::CacheStatus;
use crate::ledger::budget::{Budget, Scope, Used, Window, Windows};
use crate::ledger::{CallState, LedgerError, LedgerObserver, LedgerOp};
use crate::upstream::{CallPhase, CallTimer};

/// The commit of this build, from `GRANARY_COMMIT`.
pub const COMMIT: Option<&str> = option_env!("GRANARY_COMMIT");
const HASH_DIGITS: usize = 16;
/// Of the process collector, on no board.
const NOT_SHOWN: [&str; 2] = ["process_threads", "process_virtual_memory_bytes"];

pub struct Metrics {
    registry: Registry,
    families: Families,
    teams: Teams,
    dropped_lines: OnceLock<Box<dyn Fn() -> u64 + Send + Sync>>,
}

impl Deref for Metrics {
    type Target = Families;

    fn deref(&self) -> &Families {
        &self.families
    }
}

pub fn gauge_value(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Counts something in a gauge until it is dropped.
pub struct Counted(IntGauge);

impl Counted {
    pub fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    pub fn new<'a>(teams: impl Iterator<Item = &'a str>) -> Self {
        let registry = Registry::new();
        registry.register(Box::new(ProcessCollector::for_self())).expect("names of families are unique");
        let families = Families::declare(&registry);
        let metrics = Self { families, registry, teams: Teams::default(), dropped_lines: OnceLock::new() };
        let version = [env!("CARGO_PKG_VERSION"), COMMIT.unwrap_or("unknown")].map(str::to_owned);
        metrics.build_info.set([(version.into(), 1)].into());
        metrics.store_up.set(1);
        metrics.upstream_balance_credits.set(f64::NAN);
        ReloadedFile::ALL.into_iter().for_each(|file| metrics.reload_ok[file].set(1));
        let teams: Vec<&str> = teams.collect();
        metrics.add_teams(teams.iter().copied());
        metrics.observe_month(teams.into_iter(), &[]);
        metrics
    }

    pub fn expect_errors(&self, errors: impl Iterator<Item = (&'static str, &'static str)>) {
        errors.for_each(|(class, code)| drop(self.request_errors_total.with_label_values(&[class, code])));
    }

    pub fn count_dropped_lines(&self, dropped: impl Fn() -> u64 + Send + Sync + 'static) {
        // A process has one log.
        let _ = self.dropped_lines.set(Box::new(dropped));
    }

    pub fn staged(&self, stages: &Stages) {
        for stage in Stage::ALL {
            if let Some(time) = stages.of(stage) {
                self.stage_duration_seconds[stage].observe(time.as_secs_f64());
            }
        }
    }

    /// Both times are without the wait for the request's body, which is the client's.
    pub fn answered_after(&self, outcome: CacheStatus, took: Duration, waited: Duration) {
        self.request_duration_seconds[outcome].observe(took.as_secs_f64());
        self.overhead_seconds[outcome].observe(took.saturating_sub(waited).as_secs_f64());
    }

    pub fn decided(&self, kind: LimitKind, decision: Decision, mode: LimitMode) {
        self.limit_decisions_total[(kind, (decision, mode))].inc();
    }

    pub fn booked(&self, state: CallState, team: &str, credits: u64) {
        if state == CallState::Answered {
            self.credits_spent_total.of(self.team_label(team), ()).inc_by(credits);
        }
        if let Some(end) = EndState::of(state) {
            self.fills_total[end].inc();
        }
    }

    pub fn fills_recovered(&self, released: u64, unknown: u64) {
        self.fills_total[EndState::Released].inc_by(released);
        self.fills_total[EndState::Unknown].inc_by(unknown);
    }

    pub fn reloaded(&self, file: ReloadedFile, is_ok: bool) {
        let success = if is_ok { Success::Ok } else { Success::Error };
        self.reloads_total[(file, success)].inc();
        self.reload_ok[file].set(i64::from(is_ok));
    }

    pub fn config_shown(&self, shown: &str) {
        let hash = blake3::hash(shown.as_bytes()).to_hex();
        self.config_info.set([(vec![hash[..HASH_DIGITS].to_owned()], 1)].into());
    }

    pub fn observe_space(&self, space: Space, used: u64, limit: u64) {
        self.space_used_bytes[space].set(gauge_value(used));
        self.space_limit_bytes[space].set(gauge_value(limit));
    }

    /// Leaves out teams without series, since budgets do not add up, and limits of refused calls.
    pub fn observe_budgets(&self, used: &[Used], windows: &Windows) {
        let labels = |budget: &Budget| {
            let (scope, id) = match &budget.scope {
                Scope::Global => ("global", "global"),
                Scope::Team(team) if self.has_series(team) => ("team", team.as_str()),
                Scope::Team(_) | Scope::Refused(_) => return None,
            };
            let window = match budget.window {
                Window::Day => "day",
                Window::Month => "month",
            };
            Some([scope, id, window].map(str::to_owned).to_vec())
        };
        let rows = |value: fn(&Used, &Windows) -> i64| {
            used.iter().filter_map(|used| Some((labels(&used.budget)?, value(used, windows)))).collect()
        };
        self.budget_limit_credits.set(rows(|used, _| gauge_value(used.budget.limit)));
        self.budget_used_credits.set(rows(|used, _| gauge_value(used.used)));
        self.budget_reset_timestamp_seconds
            .set(rows(|used, windows| windows.of(used.budget.window).1.as_second()));
    }

    /// Reads `/proc`, so it may block.
    pub fn render(&self) -> Vec<u8> {
        if let Ok(runtime) = Handle::try_current() {
            let runtime = runtime.metrics();
            let busy = (0..runtime.num_workers()).map(|worker| runtime.worker_total_busy_duration(worker));
            self.tokio_busy_seconds_total.raise_to(busy.sum::<Duration>().as_secs_f64());
        }
        if let Some(dropped) = self.dropped_lines.get() {
            self.log_lines_dropped_total.raise_to(dropped() as f64);
        }
        let mut families = self.registry.gather();
        families.retain(|family| !NOT_SHOWN.contains(&family.name()));
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&families, &mut text) {
            tracing::error!(%error, "metrics encoding failed");
        }
        text
    }
}

impl CallTimer for Metrics {
    fn took(&self, phase: CallPhase, time: Duration) {
        self.upstream_duration_seconds[phase].observe(time.as_secs_f64());
    }
}

impl LedgerObserver for Metrics {
    fn observe(&self, op: LedgerOp, took: Duration, error: Option<&LedgerError>) {
        let Some(label) = OpLabel::of(op) else { return };
        self.ledger_duration_seconds[label].observe(took.as_secs_f64());
        if op.is_write() && matches!(error, Some(LedgerError::Unavailable(_) | LedgerError::Damaged(_))) {
            self.ledger_write_failures_total.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_of_a_closed_set_starts_at_zero() {
        let metrics = Metrics::new(["local"].into_iter());
        let text = String::from_utf8(metrics.render()).expect("the exposition is UTF-8");
        for line in [
            r#"granary_requests_total{outcome="hit_memory",team="local"} 0"#,
            r#"granary_requests_total{outcome="error",team="local"} 0"#,
            r#"granary_upstream_attempts_total{outcome="bad_body"} 0"#,
            r#"granary_fills_total{state="unfetchable"} 0"#,
            r#"granary_credits_spent_total{team="local"} 0"#,
            r#"granary_credits_saved_total{cause="coalesced",team="local"} 0"#,
            r#"granary_limit_decisions_total{decision="deny",kind="rate",mode="shadow"} 0"#,
        ] {
            assert!(text.lines().any(|seen| seen == line), "{line} is missing in\n{text}");
        }
        assert!(text.contains("# HELP granary_space_limit_bytes Limits of granary_space_used_bytes\n"));
    }

    #[test]
    fn process_metrics_are_exposed() {
        let metrics = Metrics::new(std::iter::empty());
        metrics.count_dropped_lines(|| 3);
        metrics.render();
        let text = String::from_utf8(metrics.render()).expect("the exposition is UTF-8");
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("{name} is missing")).parse().expect("a figure")
        };
        assert!(value("process_resident_memory_bytes") > 1e6 && value("process_open_fds") > 2.0);
        assert!(value("process_start_time_seconds") > 1.7e9);
        assert_eq!(value("granary_log_lines_dropped_total"), 3.0);
    }

    #[test]
    fn a_gauge_counts_until_the_guard_is_dropped() {
        let metrics = Metrics::new(std::iter::empty());
        let open = &metrics.connections_open[ListenerName::Public];
        let (one, other) = (Counted::new(open), Counted::new(open));
        assert_eq!(open.get(), 2);
        drop((one, other));
        assert_eq!(open.get(), 0);
    }
}
