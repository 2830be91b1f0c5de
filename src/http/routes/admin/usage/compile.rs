//! From the ledger's figures to a report. Pure.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use jiff::civil::Date;
use jiff::{Timestamp, ZonedDateTime};

use super::UsageBy;
use super::report::{AccountReport, BudgetReport, MonthReport, TeamMonthReport, UsageReport, UsageRow};
use crate::base::outcome::SavingCause;
use crate::billing::balance::Balance;
use crate::billing::money::Price;
use crate::ledger::CallState;
use crate::ledger::budget::{Scope, Used, Windows};
use crate::ledger::usage::{DayUsage, Figures, Payer};

/// In seconds: an hour is no basis for a forecast of thirty days.
const LEAST_ELAPSED: i64 = 86_400;

pub(super) struct Findings {
    pub(super) from: Date,
    pub(super) to: Date,
    /// In the time zone of days and months.
    pub(super) now: ZonedDateTime,
    pub(super) usage: Vec<DayUsage>,
    pub(super) month: Vec<DayUsage>,
    pub(super) teams: Vec<String>,
    pub(super) used: Vec<Used>,
    pub(super) account: Option<Balance>,
    pub(super) unbooked: u64,
    pub(super) price: Option<Price>,
}

pub(super) fn compile(findings: &Findings, by: UsageBy) -> UsageReport {
    let price = findings.price;
    let mut sums: BTreeMap<(Option<Date>, Option<&str>), Figures> = BTreeMap::new();
    if by == UsageBy::Team {
        sums.extend(findings.teams.iter().map(|team| ((None, Some(team.as_str())), Figures::default())));
    }
    for DayUsage { day, team, figures } in &findings.usage {
        let about = match by {
            UsageBy::Team => (None, Some(team.as_str())),
            UsageBy::Day => (Some(*day), None),
            UsageBy::TeamAndDay => (Some(*day), Some(team.as_str())),
        };
        *sums.entry(about).or_default() += figures;
    }
    let mut total = Figures::default();
    for figures in sums.values() {
        total += figures;
    }
    UsageReport {
        from: findings.from,
        to: findings.to,
        time_zone: findings.now.time_zone().iana_name().unwrap_or("UTC").to_owned(),
        as_of: findings.now.timestamp(),
        by,
        rows: sums.iter().map(|((day, team), figures)| row(*day, *team, figures, price)).collect(),
        total: row(None, None, &total, price),
        month: month(findings),
        account: findings.account.map(|balance| AccountReport {
            balance_credits: balance.credits,
            balance_money: money(price, signed(balance.credits)),
            seen_at: balance.seen_at,
        }),
        unbooked_requests: findings.unbooked,
    }
}

fn row(day: Option<Date>, team: Option<&str>, figures: &Figures, price: Option<Price>) -> UsageRow {
    let (within, from_others) = (figures.saved(Payer::Own).credits, figures.saved(Payer::Other).credits);
    let saved = within.saturating_add(from_others);
    let served = |cause| Payer::ALL.into_iter().map(|payer| figures.served(cause, payer).number).sum();
    let calls = CallState::ALL.map(|state| (state.as_str().to_owned(), figures.calls(state).number));
    UsageRow {
        day,
        team: team.map(str::to_owned),
        spent_credits: figures.spent(),
        spent_money: money(price, figures.spent()),
        adjusted_credits: figures.adjusted,
        bought: figures.bought().number,
        calls: calls.into(),
        served: SavingCause::ALL.map(|cause| (cause.as_str().to_owned(), served(cause))).into(),
        saved_credits: saved,
        saved_within_credits: within,
        saved_from_others_credits: from_others,
        saved_money: money(price, signed(saved)),
    }
}

fn month(findings: &Findings) -> MonthReport {
    let windows = Windows::at(findings.now.timestamp(), findings.now.time_zone());
    let mut sums: BTreeMap<&str, Figures> =
        findings.teams.iter().map(|team| (team.as_str(), Figures::default())).collect();
    let mut total = Figures::default();
    for DayUsage { team, figures, .. } in &findings.month {
        *sums.entry(team).or_default() += figures;
        total += figures;
    }
    let teams = sums.iter().map(|(team, figures)| team_month(findings, &windows, Some(team), figures));
    MonthReport {
        month: windows.month.clone(),
        ends_at: windows.month_ends,
        teams: teams.collect(),
        total: team_month(findings, &windows, None, &total),
    }
}

fn team_month(
    findings: &Findings,
    windows: &Windows,
    team: Option<&str>,
    figures: &Figures,
) -> TeamMonthReport {
    let scope = team.map_or(Scope::Global, |team| Scope::Team(team.to_owned()));
    let budgets = findings.used.iter().filter(|used| used.budget.scope == scope);
    let forecast = forecast(figures, &findings.now, windows.month_ends);
    let saved = figures.saved(Payer::Own).credits.saturating_add(figures.saved(Payer::Other).credits);
    TeamMonthReport {
        team: team.map(str::to_owned),
        spent_credits: figures.spent(),
        spent_money: money(findings.price, figures.spent()),
        saved_credits: saved,
        saved_money: money(findings.price, signed(saved)),
        forecast_credits: forecast,
        forecast_money: money(findings.price, forecast),
        budgets: budgets.map(|used| budget(used, windows)).collect(),
    }
}

/// Extrapolates the credits bought to the whole month, rounded up. Adjustments count once.
fn forecast(figures: &Figures, now: &ZonedDateTime, month_ends: Timestamp) -> i64 {
    let begins = now.first_of_month().and_then(|first| first.start_of_day());
    let Ok(begins) = begins.map(|begins| begins.timestamp()) else { return figures.spent() };
    let length = i128::from(month_ends.duration_since(begins).as_secs());
    let elapsed = i128::from(now.timestamp().duration_since(begins).as_secs().max(LEAST_ELAPSED));
    let spent = i128::from(figures.bought().credits);
    let by_the_end = (spent * length + elapsed - 1) / elapsed;
    i64::try_from(by_the_end).unwrap_or(i64::MAX).saturating_add(figures.adjusted)
}

fn budget(used: &Used, windows: &Windows) -> BudgetReport {
    BudgetReport {
        window: used.budget.window.as_str().to_owned(),
        limit_credits: used.budget.limit,
        used_credits: used.used,
        left_credits: used.left(),
        enforced: used.budget.enforced,
        resets_at: windows.of(used.budget.window).1,
    }
}

fn money(price: Option<Price>, credits: i64) -> Option<String> {
    price.map(|price| price.of(credits))
}

fn signed(credits: u64) -> i64 {
    i64::try_from(credits).unwrap_or(i64::MAX)
}
