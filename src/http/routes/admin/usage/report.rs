//! The JSON of `GET /admin/v1/usage`; `openapi.json` describes its fields. Money is a text with a decimal number,
//! such as `"1.23"`: credits times `upstream.credit_price`, exact, and `null` without a price. Days are those of
//! `time_zone`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use super::UsageBy;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageReport {
    pub from: Date,
    pub to: Date,
    pub time_zone: String,
    pub as_of: Timestamp,
    pub by: UsageBy,
    pub rows: Vec<UsageRow>,
    pub total: UsageRow,
    pub month: MonthReport,
    pub account: Option<AccountReport>,
    pub unbooked_requests: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRow {
    pub day: Option<Date>,
    pub team: Option<String>,
    pub spent_credits: i64,
    pub spent_money: Option<String>,
    pub adjusted_credits: i64,
    pub bought: u64,
    pub calls: BTreeMap<String, u64>,
    pub served: BTreeMap<String, u64>,
    pub saved_credits: u64,
    pub saved_within_credits: u64,
    pub saved_from_others_credits: u64,
    pub saved_money: Option<String>,
}

/// The current month, with a forecast.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonthReport {
    pub month: String,
    pub ends_at: Timestamp,
    pub teams: Vec<TeamMonthReport>,
    pub total: TeamMonthReport,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeamMonthReport {
    pub team: Option<String>,
    pub spent_credits: i64,
    pub spent_money: Option<String>,
    pub saved_credits: u64,
    pub saved_money: Option<String>,
    pub forecast_credits: i64,
    pub forecast_money: Option<String>,
    pub budgets: Vec<BudgetReport>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetReport {
    pub window: String,
    pub limit_credits: u64,
    pub used_credits: u64,
    pub left_credits: u64,
    pub enforced: bool,
    pub resets_at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountReport {
    pub balance_credits: u64,
    pub balance_money: Option<String>,
    pub seen_at: Timestamp,
}
