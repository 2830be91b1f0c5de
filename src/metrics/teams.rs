//! Series by team. Names come from the configuration, never from a request; teams beyond the 200th share the
//! label `other`. Counters of a removed team stay until the process ends, because sums must not fall.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use parking_lot::{Mutex, RwLock};

use super::labels::{Outcome, labels};
use super::{Metrics, gauge_value};
use crate::base::outcome::{CacheStatus, SavingCause};
use crate::ledger::usage::TeamMonth;
use crate::teams::{BudgetMode, OTHER_TEAMS, Team};

const MOST_TEAMS: usize = 200;

labels! {
    pub(crate) enum Overflow { Team = "team" }
}

/// Known teams, and the labels of those in force.
#[derive(Default)]
pub(super) struct Teams {
    known: RwLock<Known>,
    in_force: Mutex<BTreeSet<String>>,
}

#[derive(Default)]
struct Known {
    with_series: HashSet<String>,
    beyond: HashSet<String>,
}

impl Metrics {
    pub fn add_teams<'a>(&self, teams: impl Iterator<Item = &'a str> + Clone) {
        {
            let mut known = self.teams.known.write();
            for team in teams.clone().filter(|team| !known.with_series.contains(*team)).collect::<Vec<_>>() {
                if known.with_series.len() < MOST_TEAMS {
                    known.with_series.insert(team.to_owned());
                    self.families.add_team(team);
                } else if known.beyond.insert(team.to_owned()) {
                    self.label_overflow_total[Overflow::Team].inc();
                    self.families.add_team(OTHER_TEAMS);
                }
            }
        }
        let labels = teams.map(|team| self.team_label(team).to_owned());
        self.teams.in_force.lock().extend(labels);
        self.observe_queue(&BTreeMap::new());
    }

    pub fn teams_in_force<'a>(&self, teams: impl Iterator<Item = &'a Team> + Clone) {
        self.teams.in_force.lock().clear();
        self.add_teams(teams.clone().map(|team| team.name.as_str()));
        let row = |team: &Team| {
            let mode = match team.mode {
                _ if team.disabled => "disabled",
                mode @ (BudgetMode::Enforce | BudgetMode::Shadow) => mode.as_str(),
            };
            (vec![team.name.clone(), mode.to_owned()], 1)
        };
        self.team_info.set(teams.filter(|team| self.has_series(&team.name)).map(row).collect());
    }

    pub(super) fn has_series(&self, team: &str) -> bool {
        self.teams.known.read().with_series.contains(team)
    }

    pub(super) fn team_label<'a>(&self, team: &'a str) -> &'a str {
        if self.has_series(team) { team } else { OTHER_TEAMS }
    }

    /// With a result, which may have saved its team credits.
    pub fn answered(&self, team: &str, status: CacheStatus, saved: u64) {
        let team = self.team_label(team);
        self.requests_total.of(team, status.into()).inc();
        if let Some(cause) = status.saving() {
            self.credits_saved_total.of(team, cause).inc_by(saved);
        }
    }

    pub fn not_answered(&self, team: &str, is_refusal: bool) {
        let outcome = if is_refusal { Outcome::Rejected } else { Outcome::Error };
        self.requests_total.of(self.team_label(team), outcome).inc();
    }

    pub fn looked_up(&self, team: &str, saved: u64) {
        self.credits_saved_total.of(self.team_label(team), SavingCause::HashFirst).inc_by(saved);
    }

    /// Waiting fills by team; teams in force without any have 0.
    pub fn observe_queue(&self, waiting: &BTreeMap<String, usize>) {
        let in_force = self.teams.in_force.lock();
        let mut rows: BTreeMap<_, _> = in_force.iter().map(|team| (vec![team.clone()], 0)).collect();
        for (team, number) in waiting {
            *rows.entry(vec![self.team_label(team).to_owned()]).or_default() += gauge_value(*number as u64);
        }
        self.upstream_queue_depth.set(rows);
    }

    /// Other teams in the ledger are summed up as `other`.
    pub fn observe_month<'a>(&self, teams: impl Iterator<Item = &'a str>, month: &[TeamMonth]) {
        let all = teams.map(|team| self.team_label(team)).chain([OTHER_TEAMS]);
        let mut sums: BTreeMap<&str, (i64, u64)> = all.map(|team| (team, (0, 0))).collect();
        for TeamMonth { team, spent, saved } in month {
            let name = if sums.contains_key(team.as_str()) { team } else { OTHER_TEAMS };
            let sum = sums.entry(name).or_default();
            *sum = (sum.0.saturating_add(*spent), sum.1.saturating_add(*saved));
        }
        let row = |team: &str, value| (vec![team.to_owned()], value);
        self.month_credits.set(sums.iter().map(|(team, (spent, _))| row(team, *spent)).collect());
        self.month_saved_credits
            .set(sums.iter().map(|(team, (_, saved))| row(team, gauge_value(*saved))).collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::CallState;

    fn lines(metrics: &Metrics) -> Vec<String> {
        let text = String::from_utf8(metrics.render()).expect("the exposition is UTF-8");
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_team_that_comes_later_begins_at_zero_and_one_that_stays_goes_on() {
        let metrics = Metrics::new(["a"].into_iter());
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
        let metrics = Metrics::new(names.iter().map(String::as_str));
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
        assert_eq!(metrics.label_overflow_total[Overflow::Team].get(), 5, "a team is counted once");
    }

    #[test]
    fn a_team_that_is_gone_loses_its_gauges_and_keeps_what_it_counted() {
        let team = |name: &str| Team { name: name.to_owned(), ..Team::local() };
        let metrics = Metrics::new(std::iter::empty());
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
