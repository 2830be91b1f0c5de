//! The families by team. A team's name comes from the configuration and never from a request; only so
//! many have series of their own, and all beyond are `other` together.
//!
//! Counters of a team that is removed stay until the process ends, because what they counted was so and
//! sums must not go down; gauges go with it. A team that was there once keeps its label.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use prometheus::{IntCounter, IntCounterVec};

use super::Metrics;
use super::families::{Each, Families, Rows};
use super::labels::{Label, labels};
use crate::base::outcome::{CacheStatus, SavingCause};
use crate::ledger::CallState;
pub(super) use crate::teams::OTHER_TEAMS;
use crate::teams::{BudgetMode, Team};

/// Teams that have series of their own, at most.
const MOST_TEAMS: usize = 200;

labels! {
    /// How a crop request ended.
    enum Outcome {
        HitMemory = "hit_memory",
        HitLedger = "hit_ledger",
        HitStore = "hit_store",
        Coalesced = "coalesced",
        Miss = "miss",
        Refresh = "refresh",
        Rejected = "rejected",
        Error = "error",
    }
}

impl From<CacheStatus> for Outcome {
    fn from(status: CacheStatus) -> Self {
        match status {
            CacheStatus::HitMemory => Self::HitMemory,
            CacheStatus::HitLedger => Self::HitLedger,
            CacheStatus::HitStore => Self::HitStore,
            CacheStatus::Coalesced => Self::Coalesced,
            CacheStatus::Miss => Self::Miss,
            CacheStatus::Refresh => Self::Refresh,
        }
    }
}

impl Label for CacheStatus {
    const ALL: &'static [Self] = &Self::ALL;

    fn as_str(self) -> &'static str {
        self.as_str()
    }

    fn position(self) -> usize {
        self as usize
    }
}

impl Label for SavingCause {
    const ALL: &'static [Self] = &Self::ALL;

    fn as_str(self) -> &'static str {
        self.as_str()
    }

    fn position(self) -> usize {
        self as usize
    }
}

/// See the module.
pub(super) struct TeamFamilies {
    vectors: Vectors,
    known: RwLock<Known>,
    /// Made when a team has none.
    others: OnceLock<Arc<TeamSeries>>,
    overflow: IntCounter,
    info: Rows,
}

#[derive(Default)]
struct Known {
    series: HashMap<String, Arc<TeamSeries>>,
    /// Those that came too late for series of their own.
    beyond: HashSet<String>,
}

struct Vectors {
    requests: IntCounterVec,
    spent: IntCounterVec,
    refunded: IntCounterVec,
    saved: IntCounterVec,
}

/// What is counted of one team.
struct TeamSeries {
    requests: Each<Outcome, IntCounter>,
    spent: IntCounter,
    refunded: IntCounter,
    saved: Each<SavingCause, IntCounter>,
}

impl TeamFamilies {
    pub(super) fn new(families: &Families<'_>) -> Self {
        let overflow = families.counter(
            "granary_label_overflow_total",
            "Teams that came when 200 had series of their own, and are counted as other",
            &["label"],
        );
        Self {
            vectors: Vectors {
                requests: families.counter(
                    "granary_requests_total",
                    "Crop requests by team and outcome (grain: requests)",
                    &["team", "outcome"],
                ),
                spent: families.counter(
                    "granary_credits_spent_total",
                    "Credits of calls whose answer was booked, by the team that paid (grain: credits)",
                    &["team"],
                ),
                refunded: families.counter(
                    "granary_credits_refunded_total",
                    "Credits that were reserved and came back, because the call provably cost nothing, by team \
                     (grain: credits)",
                    &["team"],
                ),
                saved: families.counter(
                    "granary_credits_saved_total",
                    "Credits not spent because the result was there or being made, by team and cause (grain: credits)",
                    &["team", "cause"],
                ),
            },
            known: RwLock::default(),
            others: OnceLock::new(),
            overflow: overflow.with_label_values(&["team"]),
            info: families.rows(
                "granary_team_info",
                "1 for each team of the configuration in force, and what happens when its budget is used up",
                &["team", "mode"],
            ),
        }
    }

    /// Teams that there are from now on.
    pub(super) fn add<'a>(&self, teams: impl Iterator<Item = &'a str>) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        for team in teams {
            if known.series.contains_key(team) {
                continue;
            }
            if known.series.len() < MOST_TEAMS {
                known.series.insert(team.to_owned(), Arc::new(self.vectors.of(team)));
            } else if known.beyond.insert(team.to_owned()) {
                self.overflow.inc();
                self.others();
            }
        }
    }

    /// The label of a team.
    pub(super) fn label<'a>(&self, team: &'a str) -> &'a str {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if known.series.contains_key(team) { team } else { OTHER_TEAMS }
    }

    fn of(&self, team: &str) -> Arc<TeamSeries> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.series.get(team).unwrap_or_else(|| self.others()).clone()
    }

    fn others(&self) -> &Arc<TeamSeries> {
        self.others.get_or_init(|| Arc::new(self.vectors.of(OTHER_TEAMS)))
    }
}

impl Vectors {
    fn of(&self, team: &str) -> TeamSeries {
        TeamSeries {
            requests: Each::new(|outcome: Outcome| {
                self.requests.with_label_values(&[team, outcome.as_str()])
            }),
            spent: self.spent.with_label_values(&[team]),
            refunded: self.refunded.with_label_values(&[team]),
            saved: Each::new(|cause: SavingCause| self.saved.with_label_values(&[team, cause.as_str()])),
        }
    }
}

impl Metrics {
    /// Teams that there are from now on: their series begin at zero.
    pub fn add_teams<'a>(&self, teams: impl Iterator<Item = &'a str> + Clone) {
        self.teams.add(teams.clone());
        self.upstream.add_teams(teams.map(|team| self.teams.label(team)));
    }

    /// These teams, and no others, are in force from now on.
    pub fn teams_in_force<'a>(&self, teams: impl Iterator<Item = &'a Team> + Clone) {
        self.teams.add(teams.clone().map(|team| team.name.as_str()));
        self.upstream.set_teams(teams.clone().map(|team| self.teams.label(&team.name)));
        let row = |team: &Team| {
            let mode = match team.mode {
                _ if team.disabled => "disabled",
                mode @ (BudgetMode::Enforce | BudgetMode::Shadow) => mode.as_str(),
            };
            (vec![self.teams.label(&team.name).to_owned(), mode.to_owned()], 1)
        };
        let rows: BTreeMap<_, _> = teams.map(row).filter(|(labels, _)| labels[0] != OTHER_TEAMS).collect();
        self.teams.info.set(rows);
    }

    /// A crop request was answered with a result, which saved its team `saved` credits.
    pub fn answered(&self, team: &str, status: CacheStatus, saved: u64) {
        let series = self.teams.of(team);
        series.requests[status.into()].inc();
        if let Some(cause) = status.saving() {
            series.saved[cause].inc_by(saved);
        }
    }

    /// A hash-first look-up found its answer.
    pub fn looked_up(&self, team: &str, saved: u64) {
        self.teams.of(team).saved[SavingCause::HashFirst].inc_by(saved);
    }

    /// A crop request of a known team was answered with an error; `is_refusal` when by a rule or for
    /// its own fault.
    pub fn not_answered(&self, team: &str, is_refusal: bool) {
        let outcome = if is_refusal { Outcome::Rejected } else { Outcome::Error };
        self.teams.of(team).requests[outcome].inc();
    }

    /// The credits of a row that reached a state.
    pub(super) fn credited(&self, state: CallState, team: &str, credits: u64) {
        match state {
            CallState::Answered => self.teams.of(team).spent.inc_by(credits),
            CallState::Released | CallState::Refused | CallState::Failed => {
                self.teams.of(team).refunded.inc_by(credits);
            }
            CallState::Reserved | CallState::Sent | CallState::Stored => {}
            CallState::Unknown | CallState::Unfetchable | CallState::Lost => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(metrics: &Metrics) -> Vec<String> {
        let text = String::from_utf8(metrics.render()).expect("the exposition is UTF-8");
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_team_that_comes_later_begins_at_zero_and_one_that_stays_goes_on() {
        let metrics = Metrics::new(["a"].into_iter(), 7);
        metrics.answered("a", CacheStatus::Miss, 0);
        metrics.add_teams(["a", "b"].into_iter());
        let lines = lines(&metrics);
        for line in [
            r#"granary_requests_total{outcome="miss",team="a"} 1"#,
            r#"granary_requests_total{outcome="miss",team="b"} 0"#,
            r#"granary_credits_spent_total{team="b"} 0"#,
        ] {
            assert!(lines.iter().any(|seen| seen == line), "{line} is missing in\n{lines:#?}");
        }
    }

    #[test]
    fn teams_beyond_two_hundred_are_others_and_counted() {
        let names: Vec<String> = (0..205).map(|number| format!("team{number:03}")).collect();
        let metrics = Metrics::new(names.iter().map(String::as_str), 7);
        for team in &names {
            metrics.answered(team, CacheStatus::Miss, 0);
        }
        metrics.answered("never-heard-of", CacheStatus::Miss, 0);
        let lines = lines(&metrics);
        for line in [
            r#"granary_label_overflow_total{label="team"} 5"#,
            r#"granary_requests_total{outcome="miss",team="other"} 6"#,
            r#"granary_requests_total{outcome="miss",team="team199"} 1"#,
        ] {
            assert!(lines.iter().any(|seen| seen == line), "{line} is missing");
        }
        assert!(!lines.iter().any(|line| line.contains("team200")));
        metrics.add_teams(["team003", "team204"].into_iter());
        assert_eq!(metrics.teams.overflow.get(), 5, "a team is counted once");
    }

    #[test]
    fn a_team_that_is_gone_loses_its_gauges_and_keeps_what_it_counted() {
        let team = |name: &str| Team { name: name.to_owned(), ..Team::local() };
        let metrics = Metrics::new(std::iter::empty(), 7);
        let (a, b) = (team("a"), Team { mode: BudgetMode::Shadow, ..team("b") });
        metrics.teams_in_force([&a, &b].into_iter());
        metrics.booked(CallState::Answered, "a", 3);
        metrics.teams_in_force([&Team { disabled: true, ..b }].into_iter());
        let lines = lines(&metrics);
        let info: Vec<_> = lines.iter().filter(|line| line.starts_with("granary_team_info")).collect();
        assert_eq!(info, [r#"granary_team_info{mode="disabled",team="b"} 1"#]);
        assert!(lines.iter().any(|line| line == r#"granary_credits_spent_total{team="a"} 3"#));
    }
}
