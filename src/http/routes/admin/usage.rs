//! `GET /admin/v1/usage`: a [`UsageReport`] as JSON or CSV.

mod compile;
mod csv;
mod report;

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use self::compile::Findings;
pub use self::report::{AccountReport, BudgetReport, MonthReport, TeamMonthReport, UsageReport, UsageRow};
use super::AdminState;
use super::failure::AdminFailure;
use super::health::asked;
use crate::ledger::LedgerError;
use crate::ledger::budget::{Budget, Windows};
use crate::metrics::gauge_value;
use crate::teams::policy::Policy;

pub const USAGE_PATH: &str = "/admin/v1/usage";

/// In days: ten years.
const MOST_DAYS: i32 = 3660;
/// For booking the requests served last.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UsageBy {
    #[default]
    #[serde(rename = "team")]
    Team,
    #[serde(rename = "day")]
    Day,
    #[serde(rename = "team,day")]
    TeamAndDay,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum UsageFormat {
    #[default]
    Json,
    Csv,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UsageQuery {
    /// By default the first of the month of `to`.
    from: Option<Date>,
    /// Included; by default today.
    to: Option<Date>,
    #[serde(default)]
    by: UsageBy,
    #[serde(default)]
    format: UsageFormat,
}

impl AdminState {
    /// Gauges that the ledger does not answer in time keep their values.
    pub(super) async fn observe_usage(&self) {
        let (metrics, policy) = (&self.metrics, self.policy.get());
        let (used, month) =
            tokio::join!(asked(self.ledger.used(budgets(&policy))), asked(self.usage.month()));
        if let Some(used) = used {
            metrics.observe_budgets(&used, &Windows::at(self.clock.now(), &self.zone));
        }
        if let Some(month) = month {
            metrics.observe_month(policy.teams().names(), &month);
        }
        metrics.usage_unbooked_requests.set(gauge_value(self.meter.unbooked()));
        if let Some(balance) = self.balance.last() {
            metrics.upstream_balance_credits.set(balance.credits as f64);
        }
    }

    async fn find(&self, from: Date, to: Date) -> Result<Findings, LedgerError> {
        // Without the ledger the report fails below, or says how much is missing.
        let flushed = tokio::time::timeout(FLUSH_PATIENCE, self.meter.flush(&*self.usage)).await;
        if !matches!(flushed, Ok(Ok(()))) {
            tracing::warn!("what was served last is not in the usage report");
        }
        let now = self.clock.now().to_zoned_datetime(self.zone.clone());
        let usage = self.usage.usage(from, to).await?;
        let (first, today) = (now.date().first_of_month(), now.date());
        let month =
            if (from, to) == (first, today) { usage.clone() } else { self.usage.usage(first, today).await? };
        let policy = self.policy.get();
        let used = self.ledger.used(budgets(&policy)).await?;
        let teams = policy.teams().names().map(str::to_owned).collect();
        let (account, unbooked) = (self.balance.last(), self.meter.unbooked());
        Ok(Findings { from, to, now, usage, month, teams, used, account, unbooked, price: self.price })
    }
}

fn budgets(policy: &Policy) -> Vec<Budget> {
    let mut budgets = Vec::new();
    for budget in policy.teams().iter().flat_map(|team| policy.budgets(team)) {
        if !budgets.contains(&budget) {
            budgets.push(budget);
        }
    }
    budgets
}

pub(super) async fn usage(
    State(state): State<AdminState>,
    query: Result<Query<UsageQuery>, QueryRejection>,
) -> Result<Response, AdminFailure> {
    let Query(query) = query.map_err(|rejection| {
        AdminFailure::invalid(format!(
            "the query cannot be understood ({}); it may have from and to, days such as 2026-11-01, by \
             (team, day or team,day) and format (json or csv)",
            rejection.body_text()
        ))
    })?;
    let today = state.clock.now().to_zoned_datetime(state.zone.clone()).date();
    let to = query.to.unwrap_or(today);
    let from = query.from.unwrap_or_else(|| to.first_of_month());
    if from > to {
        return Err(AdminFailure::invalid(format!("the period ends on {to} before it begins on {from}")));
    }
    if from.until(to).is_ok_and(|span| span.get_days() > MOST_DAYS) {
        let text = format!("the period from {from} to {to} is longer than ten years");
        return Err(AdminFailure::invalid(text));
    }
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
