//! The families about the month and the upstream's account: read off the ledger, not counted here, so
//! that every replica tells the same. Boards read them with `max`, never with `increase()`.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use prometheus::{Gauge, IntGauge, IntGaugeVec};

use super::{Families, Metrics};
use crate::ledger::usage::{AccountRow, TeamMonth};

/// Teams that are in the ledger and no more in the configuration, together.
const OTHER_TEAMS: &str = "other";

/// See the module.
pub(super) struct UsageFamilies {
    spent: IntGaugeVec,
    saved: IntGaugeVec,
    unbooked: IntGauge,
    balance: Gauge,
    balance_seen: Gauge,
    drift: Gauge,
    /// The teams that have series.
    teams: Mutex<Vec<String>>,
}

impl UsageFamilies {
    pub(super) fn new<'a>(families: &Families<'_>, teams: impl Iterator<Item = &'a str>) -> Self {
        let all = Self {
            spent: families.gauge(
                "granary_month_credits",
                "Credits spent since the month began, by team, from the ledger (grain: credits)",
                &["team"],
            ),
            saved: families.gauge(
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
            teams: Mutex::default(),
        };
        all.observe_month(teams, &[]);
        all.balance.set(f64::NAN);
        all.drift.set(f64::NAN);
        all
    }

    fn observe_month<'a>(&self, teams: impl Iterator<Item = &'a str>, month: &[TeamMonth]) {
        let all = teams.chain([OTHER_TEAMS]);
        let mut sums: BTreeMap<&str, (i64, u64)> = all.map(|team| (team, (0, 0))).collect();
        for TeamMonth { team, spent, saved } in month {
            let name = if sums.contains_key(team.as_str()) { team } else { OTHER_TEAMS };
            let sum = sums.entry(name).or_default();
            *sum = (sum.0.saturating_add(*spent), sum.1.saturating_add(*saved));
        }
        let mut known = self.teams.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in known.iter().filter(|team| !sums.contains_key(team.as_str())) {
            // A series that is not there is as good as removed.
            let _ = self.spent.remove_label_values(&[gone]);
            let _ = self.saved.remove_label_values(&[gone]);
        }
        *known = sums.keys().map(|team| (*team).to_owned()).collect();
        for (team, (spent, saved)) in sums {
            self.spent.with_label_values(&[team]).set(spent);
            self.saved.with_label_values(&[team]).set(i64::try_from(saved).unwrap_or(i64::MAX));
        }
    }
}

impl Metrics {
    /// Sets what the ledger says of the present month, for these teams.
    pub fn observe_month<'a>(&self, teams: impl Iterator<Item = &'a str>, month: &[TeamMonth]) {
        self.usage.observe_month(teams, month);
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
