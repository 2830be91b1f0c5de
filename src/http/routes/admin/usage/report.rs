//! What a usage report says: the JSON of `GET /admin/v1/usage`, field by field.
//!
//! Credits are whole numbers. Money is a text with a decimal number, such as `"1.23"`: credits times
//! `upstream.credit_price`, exact, and `null` when no price is set. Days are those of `time_zone`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use super::UsageBy;

/// The whole answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageReport {
    /// The first day it is about.
    pub from: Date,
    /// The last day it is about.
    pub to: Date,
    /// The time zone in which days and months begin, by its IANA name.
    pub time_zone: String,
    /// When it was made.
    pub as_of: Timestamp,
    /// What each row is about.
    pub by: UsageBy,
    /// By day, then by team. By `team` each configured team has a row; otherwise days and teams without
    /// anything are left out.
    pub rows: Vec<UsageRow>,
    /// The sum of all rows, without team and day.
    pub total: UsageRow,
    /// The present month, whatever the period of the rows.
    pub month: MonthReport,
    /// What is known of the upstream's account; `null` when its balance was never seen.
    pub account: Option<AccountReport>,
    /// Hits and coalesced requests of this process that are missing in the rows, because the ledger has
    /// not taken them yet. Those of other replicas come in within seconds.
    pub unbooked_requests: u64,
}

/// What was paid and what was served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRow {
    /// The day; `null` when the row is about all of them.
    pub day: Option<Date>,
    /// The team: the one that paid, and the one that was served; `null` when the row is about all.
    pub team: Option<String>,
    /// Credits of the team's calls that count, and `adjusted_credits`.
    pub spent_credits: i64,
    /// The same in money.
    pub spent_money: Option<String>,
    /// Credits by which calls of closed months changed on these days: less than 0 when, say, an
    /// `unknown` call turned out to have cost nothing.
    pub adjusted_credits: i64,
    /// Calls whose credits count.
    pub bought: u64,
    /// Calls reserved on these days, by state: every state of the ledger.
    pub calls: BTreeMap<String, u64>,
    /// Requests answered without a purchase, by cause: `hit_memory`, `hit_ledger`, `hit_store`,
    /// `coalesced`, `hash_first`.
    pub served: BTreeMap<String, u64>,
    /// What these would have cost: the sum of the next two.
    pub saved_credits: u64,
    /// The part that the team itself had paid for.
    pub saved_within_credits: u64,
    /// The part that other teams had paid for.
    pub saved_from_others_credits: u64,
    /// `saved_credits` in money.
    pub saved_money: Option<String>,
}

/// The present month so far, and what it may come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonthReport {
    /// Such as `2026-11`.
    pub month: String,
    /// When it ends.
    pub ends_at: Timestamp,
    /// Each configured team, and each other that has spent or was served; by name.
    pub teams: Vec<TeamMonthReport>,
    /// All teams together, with the global budgets.
    pub total: TeamMonthReport,
}

/// A team's month.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeamMonthReport {
    /// The team; `null` for all together.
    pub team: Option<String>,
    /// Credits spent since the month began.
    pub spent_credits: i64,
    /// The same in money.
    pub spent_money: Option<String>,
    /// Credits saved since the month began.
    pub saved_credits: u64,
    /// The same in money.
    pub saved_money: Option<String>,
    /// Credits spent by the end of the month if it goes on as it began: what was spent, times the
    /// length of the month, divided by the time since it began, which counts as a day at least; rounded
    /// up. Adjustments count once.
    pub forecast_credits: i64,
    /// The same in money.
    pub forecast_money: Option<String>,
    /// The team's own budgets, or the global ones.
    pub budgets: Vec<BudgetReport>,
}

/// A budget in its present window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetReport {
    /// `daily` or `monthly`.
    pub window: String,
    /// Credits that may be spent.
    pub limit_credits: u64,
    /// Credits that are spent or reserved.
    pub used_credits: u64,
    /// Credits that are left; 0 when it is overdrawn.
    pub left_credits: u64,
    /// Is more refused? Not in shadow mode.
    pub enforced: bool,
    /// When the window ends.
    pub resets_at: Timestamp,
}

/// The upstream's account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountReport {
    /// Credits that were left when it was asked last.
    pub balance_credits: u64,
    /// The same in money.
    pub balance_money: Option<String>,
    /// When that was.
    pub seen_at: Timestamp,
}
