//! What operators did, and what is left for them to do.

use prometheus::{IntCounterVec, IntGauge};

use super::Families;
use crate::ledger::admin::Action;
use crate::ledger::budget::Scope;

/// What an action came to.
const RESULTS: [&str; 3] = ["done", "refused", "failed"];

pub(super) struct AdminFamilies {
    actions: IntCounterVec,
    unknown_credits: IntGauge,
    frozen: IntGauge,
}

impl AdminFamilies {
    pub(super) fn new(families: &Families<'_>) -> Self {
        let found = Self {
            actions: families.counter(
                "granary_admin_actions_total",
                "Changes asked for over the admin listener, by action and what came of it",
                &["action", "result"],
            ),
            unknown_credits: families.plain(
                "granary_unknown_credits",
                "Credits of calls whose outcome is unknown and that nobody has settled yet (grain: credits)",
            ),
            frozen: families.plain("granary_frozen", "1 when the spending of all teams is frozen"),
        };
        for action in Action::ALL {
            for result in RESULTS {
                found.actions.with_label_values(&[action.as_str(), result]);
            }
        }
        found
    }

    pub(super) fn acted(&self, action: Action, result: &'static str) {
        self.actions.with_label_values(&[action.as_str(), result]).inc();
    }

    pub(super) fn observe(&self, unknown_credits: u64, frozen: &[Scope]) {
        self.unknown_credits.set(i64::try_from(unknown_credits).unwrap_or(i64::MAX));
        self.frozen.set(i64::from(frozen.contains(&Scope::Global)));
    }
}
