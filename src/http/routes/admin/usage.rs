//! `GET /admin/v1/usage`: who paid, who was served and what that saved, as JSON or CSV.
//!
//! What is answered is described by [`UsageReport`]; `compile.rs` makes it of what the ledger says.

mod compile;
mod csv;
mod report;

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use self::compile::Findings;
pub use self::report::{AccountReport, BudgetReport, MonthReport, TeamMonthReport, UsageReport, UsageRow};
use super::AdminState;
use super::failure::AdminFailure;
use super::health::asked;
use crate::base::clock::Clock;
use crate::billing::balance::BalanceWatch;
use crate::billing::metering::Meter;
use crate::billing::money::Price;
use crate::ledger::budget::{Budget, Windows};
use crate::ledger::usage::UsageBook;
use crate::ledger::{Ledger, LedgerError};
use crate::metrics::{Metrics, gauge_value};
use crate::teams::policy::{CurrentPolicy, Policy};

/// Where usage is asked for.
pub const USAGE_PATH: &str = "/admin/v1/usage";

/// The longest period of a report, in days: ten years.
const MOST_DAYS: i32 = 3660;
/// How long a report waits for what was served last to be booked.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);

/// What usage is told from. Cheap to clone.
#[derive(Clone)]
pub struct UsageState(Arc<UsageParts>);

/// See [`UsageState`].
pub struct UsageParts {
    /// Who paid and who was served.
    pub book: Arc<dyn UsageBook>,
    /// What is used of budgets.
    pub ledger: Arc<dyn Ledger>,
    /// What was served and is not booked yet.
    pub meter: Arc<Meter>,
    /// Last known balance of the upstream's account.
    pub balance: Arc<BalanceWatch>,
    /// Knows the teams, and which budgets they have.
    pub policy: CurrentPolicy,
    /// The time of day.
    pub clock: Clock,
    /// Where days and months begin.
    pub zone: TimeZone,
    /// What a credit costs, if anybody said.
    pub price: Option<Price>,
}

/// What each row of a report is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UsageBy {
    /// A team, over all days.
    #[default]
    #[serde(rename = "team")]
    Team,
    /// A day, over all teams.
    #[serde(rename = "day")]
    Day,
    /// A team's day.
    #[serde(rename = "team,day")]
    TeamAndDay,
}

/// How a report is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UsageFormat {
    /// A [`UsageReport`].
    #[default]
    Json,
    /// Its rows, a line each, under a line with the names of the columns.
    Csv,
}

/// The query of `GET /admin/v1/usage`; everything may be left out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageQuery {
    /// The first day, such as `2026-11-01`; by default the first of the present month, or of the month
    /// of `to`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Date>,
    /// The last day, itself included; by default today.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Date>,
    /// What each row is about: `team` (the default), `day`, or `team,day`.
    #[serde(default)]
    pub by: UsageBy,
    /// `json` (the default) or `csv`.
    #[serde(default)]
    pub format: UsageFormat,
}

impl UsageState {
    /// Shares the parts.
    pub fn new(parts: UsageParts) -> Self {
        Self(Arc::new(parts))
    }

    /// Sets the gauges that are about usage. What the ledger does not tell stays as it was.
    pub(super) async fn observe(&self, metrics: &Metrics) {
        let parts = &self.0;
        let policy = parts.policy.get();
        let (used, month) =
            tokio::join!(asked(parts.ledger.used(self.budgets(&policy))), asked(parts.book.month()));
        if let Some(used) = used {
            metrics.observe_budgets(&used, &Windows::at(parts.clock.now(), &parts.zone));
        }
        if let Some(month) = month {
            metrics.observe_month(policy.teams().iter().map(|team| team.name.as_str()), &month);
        }
        metrics.usage_unbooked_requests.set(gauge_value(parts.meter.unbooked()));
        if let Some(balance) = parts.balance.last() {
            metrics.upstream_balance_credits.set(balance.credits as f64);
        }
    }

    /// Books what was served until now, so that it is in the report; without the ledger the report
    /// fails, or says how much is missing.
    async fn flush(&self) {
        let flushed = tokio::time::timeout(FLUSH_PATIENCE, self.0.meter.flush(&*self.0.book)).await;
        if !matches!(flushed, Ok(Ok(()))) {
            tracing::warn!("what was served last is not in the usage report");
        }
    }

    /// Every budget there is, once.
    fn budgets(&self, policy: &Policy) -> Vec<Budget> {
        let mut budgets = Vec::new();
        for team in policy.teams().iter() {
            for budget in policy.budgets(team) {
                if !budgets.contains(&budget) {
                    budgets.push(budget);
                }
            }
        }
        budgets
    }

    async fn find(&self, from: Date, to: Date) -> Result<Findings, LedgerError> {
        let parts = &self.0;
        let now = parts.clock.now().to_zoned_datetime(parts.zone.clone());
        let usage = parts.book.usage(from, to).await?;
        let (first, today) = (now.date().first_of_month(), now.date());
        let month =
            if (from, to) == (first, today) { usage.clone() } else { parts.book.usage(first, today).await? };
        let policy = parts.policy.get();
        let used = parts.ledger.used(self.budgets(&policy)).await?;
        let teams = policy.teams().iter().map(|team| team.name.clone()).collect();
        let (account, unbooked) = (parts.balance.last(), parts.meter.unbooked());
        Ok(Findings { from, to, now, usage, month, teams, used, account, unbooked, price: parts.price })
    }
}

pub(super) async fn usage(
    State(state): State<AdminState>,
    query: Result<Query<UsageQuery>, QueryRejection>,
) -> Result<Response, AdminFailure> {
    let state = &state.usage;
    let Query(query) = query.map_err(|rejection| {
        AdminFailure::invalid(format!(
            "the query cannot be understood ({}); it may have from and to, days such as 2026-11-01, by \
             (team, day or team,day) and format (json or csv)",
            rejection.body_text()
        ))
    })?;
    let today = state.0.clock.now().to_zoned_datetime(state.0.zone.clone()).date();
    let to = query.to.unwrap_or(today);
    let from = query.from.unwrap_or_else(|| to.first_of_month());
    if from > to {
        return Err(AdminFailure::invalid(format!("the period ends on {to} before it begins on {from}")));
    }
    if from.until(to).is_ok_and(|span| span.get_days() > MOST_DAYS) {
        return Err(AdminFailure::invalid(format!(
            "the period from {from} to {to} is longer than ten years"
        )));
    }
    state.flush().await;
    let findings = state.find(from, to).await?;
    let report = compile::compile(&findings, query.by);
    Ok(match query.format {
        UsageFormat::Json => ([(CACHE_CONTROL, "no-store")], Json(report)).into_response(),
        UsageFormat::Csv => {
            let headers = [(CONTENT_TYPE, "text/csv; charset=utf-8"), (CACHE_CONTROL, "no-store")];
            (headers, csv::write(&report)).into_response()
        }
    })
}
