//! The families about the month and the upstream's account: read off the ledger, not counted here, so
//! that every replica tells the same. Boards read them with `max`, never with `increase()`.

use std::collections::BTreeMap;

use prometheus::{Gauge, IntGauge};

use super::families::{Rows, gauge_value};
use super::teams::OTHER_TEAMS;
use super::{Families, Metrics};
use crate::ledger::usage::{AccountRow, TeamMonth};

/// See the module.
pub(super) struct UsageFamilies {
    spent: Rows,
    saved: Rows,
    unbooked: IntGauge,
    balance: Gauge,
    balance_seen: Gauge,
    drift: Gauge,
}

impl UsageFamilies {
    pub(super) fn new(families: &Families<'_>) -> Self {
        let all = Self {
            spent: families.rows(
                "granary_month_credits",
                "Credits spent since the month began, by team, from the ledger (grain: credits)",
                &["team"],
            ),
            saved: families.rows(
                "granary_month_saved_credits",
                "Credits saved since the month began, by the team served, from the ledger (grain: credits)",
                &["team"],
            ),
            unbooked: families.plain(
                "granary_usage_unbooked_requests",
                "Hits and coalesced requests that are counted in memory and not booked yet (grain: requests)",
            ),
            balance: families.float(
                "granary_upstream_balance_credits",
                "The upstream account's last known balance; NaN when it is not known (grain: credits)",
            ),
            balance_seen: families.float(
                "granary_upstream_balance_timestamp_seconds",
                "When the upstream account's balance was seen last, in Unix time; 0 when it never was",
            ),
            drift: families.float(
                "granary_ledger_drift_credits",
                "Credits that left the upstream's account and are not in the ledger: spent outside; NaN when unknown",
            ),
        };
        all.balance.set(f64::NAN);
        all.drift.set(f64::NAN);
        all
    }
}

impl Metrics {
    /// Sets what the ledger says of the present month, for these teams. Teams that are in the ledger and
    /// not among them, or have no series of their own, are told together.
    pub fn observe_month<'a>(&self, teams: impl Iterator<Item = &'a str>, month: &[TeamMonth]) {
        let all = teams.map(|team| self.teams.label(team)).chain([OTHER_TEAMS]);
        let mut sums: BTreeMap<&str, (i64, u64)> = all.map(|team| (team, (0, 0))).collect();
        for TeamMonth { team, spent, saved } in month {
            let name = if sums.contains_key(team.as_str()) { team } else { OTHER_TEAMS };
            let sum = sums.entry(name).or_default();
            *sum = (sum.0.saturating_add(*spent), sum.1.saturating_add(*saved));
        }
        let row = |team: &str, value| (vec![team.to_owned()], value);
        self.usage.spent.set(sums.iter().map(|(team, (spent, _))| row(team, *spent)).collect());
        self.usage.saved.set(sums.iter().map(|(team, (_, saved))| row(team, gauge_value(*saved))).collect());
    }

    /// Sets how many requests are counted and not booked.
    pub fn observe_unbooked(&self, requests: u64) {
        self.usage.unbooked.set(i64::try_from(requests).unwrap_or(i64::MAX));
    }

    /// Sets what is known of the upstream's account.
    pub fn observe_account(&self, account: &AccountRow) {
        // Whole numbers, which a float has exactly up to nine million thousand millions.
        self.usage.balance.set(account.balance as f64);
        self.usage.balance_seen.set(account.seen_at.as_second() as f64);
        self.usage.drift.set(account.outside as f64);
    }
}
