//! The policy: who may call, from which pages, and what may be spent. A [`Policy`] never changes; a reload
//! replaces it ([`CurrentPolicy`]). A request takes one when its head has been read, a fill when it asks who
//! pays, and uses only that one, so that no decision mixes two configurations.

mod rate;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::HeaderValue;
use tokio::time::Instant;

use self::rate::Rate;
pub use self::rate::Turn;
use crate::ledger::budget::{Budget, Scope, Window};
use crate::teams::{AuthError, BudgetMode, Team, Teams};

#[derive(Clone, Debug)]
pub struct PolicyConfig {
    pub teams: Teams,
    /// For all teams together; `None` for no limit.
    pub daily_credits: Option<u64>,
    pub monthly_credits: Option<u64>,
    /// As browsers write them.
    pub origins: Vec<HeaderValue>,
}

#[derive(Debug)]
pub struct Policy {
    terms: PolicyConfig,
    rates: HashMap<String, Arc<Rate>>,
}

impl Policy {
    /// A team whose rate stays the same keeps its limiter from `former`.
    fn new(terms: PolicyConfig, former: Option<&Self>) -> Self {
        let rate = |team: &Arc<Team>| {
            let per_second = team.misses_per_second?;
            let kept = former.and_then(|former| former.rates.get(&team.name));
            let period = Duration::try_from_secs_f64(1.0 / per_second).ok()?;
            let kept = kept.filter(|rate| rate.period == period).cloned();
            Some((team.name.clone(), kept.unwrap_or_else(|| Rate::new(period))))
        };
        let rates = terms.teams.iter().filter_map(rate).collect();
        Self { terms, rates }
    }

    pub fn teams(&self) -> &Teams {
        &self.terms.teams
    }

    pub fn origins(&self) -> &[HeaderValue] {
        &self.terms.origins
    }

    /// The team, if it may pay. Its token may have been checked under another policy.
    pub fn payer(&self, name: &str) -> Result<&Arc<Team>, AuthError> {
        let team = self.terms.teams.get(name).ok_or(AuthError::Unknown)?;
        if team.disabled { Err(AuthError::Disabled { team: team.name.clone() }) } else { Ok(team) }
    }

    /// Global budgets are never in shadow mode.
    pub fn budgets(&self, team: &Team) -> Vec<Budget> {
        let own = Scope::Team(team.name.clone());
        let enforced = team.mode == BudgetMode::Enforce;
        [
            (Scope::Global, Window::Day, self.terms.daily_credits, true),
            (Scope::Global, Window::Month, self.terms.monthly_credits, true),
            (own.clone(), Window::Day, team.daily_credits, enforced),
            (own, Window::Month, team.monthly_credits, enforced),
        ]
        .into_iter()
        .filter_map(|(scope, window, limit, enforced)| {
            Some(Budget { scope, window, limit: limit?, enforced })
        })
        .collect()
    }

    /// Every limit of a call that costs `credits`: the budgets, and the refused calls of a day.
    pub fn limits(&self, team: &Team, credits: u64) -> Vec<Budget> {
        let mut limits = self.budgets(team);
        limits.push(Budget {
            scope: Scope::Refused(team.name.clone()),
            window: Window::Day,
            limit: credits.saturating_mul(team.refused_per_day),
            enforced: true,
        });
        limits
    }

    /// `None` without a rate. The error: the time until a miss is possible, if none is before the deadline.
    pub fn reserve_miss(&self, team: &Team, deadline: Instant) -> Result<Option<Turn>, Duration> {
        self.rates.get(&team.name).map(|rate| rate.reserve(deadline)).transpose()
    }
}

#[derive(Clone, Debug)]
pub struct CurrentPolicy(Arc<ArcSwap<Policy>>);

impl CurrentPolicy {
    pub fn new(terms: PolicyConfig) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(Policy::new(terms, None))))
    }

    /// Call once per decision.
    pub fn get(&self) -> Arc<Policy> {
        self.0.load_full()
    }

    /// Concurrent calls would lose limiters, so only one caller may do this.
    pub fn replace(&self, terms: PolicyConfig) {
        let former = self.get();
        self.0.store(Arc::new(Policy::new(terms, Some(&former))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn team(name: &str) -> Team {
        Team { name: name.to_owned(), ..Team::local() }
    }

    fn terms(teams: &[Team]) -> PolicyConfig {
        PolicyConfig {
            teams: Teams::new(teams.iter().map(|team| (team.clone(), Vec::new()))),
            daily_credits: Some(1000),
            monthly_credits: Some(10_000),
            origins: Vec::new(),
        }
    }

    #[test]
    fn the_budgets_of_a_call_are_the_global_ones_and_then_the_teams() {
        let policy = CurrentPolicy::new(terms(&[])).get();
        let team = Team { daily_credits: Some(30), monthly_credits: Some(300), ..Team::local() };
        let own = || Scope::Team("local".to_owned());
        let shown = |team: &Team| {
            let show = |budget: Budget| (budget.scope, budget.window, budget.limit, budget.enforced);
            policy.budgets(team).into_iter().map(show).collect::<Vec<_>>()
        };
        let global = [(Scope::Global, Window::Day, 1000, true), (Scope::Global, Window::Month, 10_000, true)];
        let expected = |enforced| {
            [&global[..], &[(own(), Window::Day, 30, enforced), (own(), Window::Month, 300, enforced)]]
                .concat()
        };
        assert_eq!(shown(&team), expected(true));
        assert_eq!(shown(&Team { mode: BudgetMode::Shadow, ..team }), expected(false));
        assert_eq!(shown(&Team::local()), global);
    }

    #[test]
    fn a_team_that_is_gone_or_disabled_does_not_pay() {
        let policy = CurrentPolicy::new(terms(&[team("a"), Team { disabled: true, ..team("b") }])).get();
        assert_eq!(policy.payer("a").map(|team| team.name.as_str()), Ok("a"));
        assert_eq!(policy.payer("b"), Err(AuthError::Disabled { team: "b".to_owned() }));
        assert_eq!(policy.payer("c"), Err(AuthError::Unknown));
        assert_eq!(policy.payer("local"), Err(AuthError::Unknown), "with teams there is no such team");
    }

    #[test]
    fn refused_calls_of_a_team_are_limited_by_the_credits_they_would_have_cost() {
        let policy = CurrentPolicy::new(terms(&[])).get();
        let team = Team { refused_per_day: 5, ..Team::local() };
        let added = policy.limits(&team, 3).split_off(policy.budgets(&team).len());
        let scope = Scope::Refused("local".to_owned());
        assert_eq!(added, [Budget { scope, window: Window::Day, limit: 15, enforced: true }]);
    }

    #[tokio::test(start_paused = true)]
    async fn unchanged_rate_survives_a_reload() {
        let paced = |per_second| Team { misses_per_second: Some(per_second), ..team("a") };
        let current = CurrentPolicy::new(terms(&[paced(0.1)]));
        let check = || {
            let policy = current.get();
            let team = policy.payer("a").expect("it is there");
            policy.reserve_miss(team, Instant::now() + Duration::from_millis(1)).map(drop)
        };
        assert_eq!(check(), Ok(()));
        tokio::time::advance(Duration::from_secs(4)).await;
        current.replace(terms(&[Team { daily_credits: Some(1), ..paced(0.1) }, team("b")]));
        assert_eq!(check(), Err(Duration::from_secs(6)), "the miss before the reload counts");
        current.replace(terms(&[paced(0.5)]));
        assert_eq!((check(), check()), (Ok(()), Err(Duration::from_secs(2))), "another rate begins anew");
        current.replace(terms(&[team("a")]));
        assert_eq!([(); 5].map(|()| check()), [Ok(()); 5], "no rate");
    }
}
