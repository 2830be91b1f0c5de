//! The families about what may be spent: decisions by limits, and how far budgets are used.

use std::collections::BTreeMap;

use prometheus::IntCounter;

use super::Metrics;
use super::families::{Each, Families, RowLabels, Rows, gauge_value};
use super::labels::{Label, labels};
use super::teams::OTHER_TEAMS;
use crate::ledger::budget::{Budget, Scope, Used, Window, Windows};

labels! {
    /// What limits purchases.
    pub enum LimitKind {
        /// A team's `misses_per_second`.
        Rate = "rate",
        /// Paid calls at once.
        Concurrency = "concurrency",
        /// Credits of a day or a month.
        Budget = "budget",
        /// A team's `refused_per_day`.
        Refused = "refused",
    }
}

labels! {
    /// What a limit decided.
    pub enum Decision {
        /// At once.
        Allow = "allow",
        /// After a wait.
        Delay = "delay",
        /// Not.
        Deny = "deny",
    }
}

labels! {
    /// Is a decision acted upon?
    pub enum LimitMode {
        /// It is.
        Enforce = "enforce",
        /// It is counted, and the purchase made all the same.
        Shadow = "shadow",
    }
}

/// See the module.
pub(super) struct LimitFamilies {
    decisions: Each<LimitKind, Each<Decision, Each<LimitMode, IntCounter>>>,
    limit: Rows,
    used: Rows,
    reset: Rows,
}

impl LimitFamilies {
    pub(super) fn new(families: &Families<'_>) -> Self {
        let decisions = families.counter(
            "granary_limit_decisions_total",
            "Decisions about fills by a limit that is set, by its kind (grain: attempts)",
            &["kind", "decision", "mode"],
        );
        let series = |kind: LimitKind, decision: Decision, mode: LimitMode| {
            decisions.with_label_values(&[kind.as_str(), decision.as_str(), mode.as_str()])
        };
        let budget = |name, help| families.rows(name, help, &["scope", "id", "window"]);
        Self {
            decisions: Each::new(|kind| Each::new(|decision| Each::new(|mode| series(kind, decision, mode)))),
            limit: budget(
                "granary_budget_limit_credits",
                "Credits of a budget, by whose it is and for how long (grain: credits)",
            ),
            used: budget(
                "granary_budget_used_credits",
                "Credits of a budget that are spent or reserved in its present window (grain: credits)",
            ),
            reset: budget(
                "granary_budget_reset_timestamp_seconds",
                "When a budget's present window ends, in Unix time",
            ),
        }
    }
}

impl Metrics {
    /// A limit decided about a fill.
    pub fn decided(&self, kind: LimitKind, decision: Decision, mode: LimitMode) {
        self.limits.decisions[kind][decision][mode].inc();
    }

    /// Sets how far the budgets are used in their windows; these, and no others, are in force.
    pub fn observe_budgets(&self, used: &[Used], windows: &Windows) {
        let (mut limits, mut uses, mut resets) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for Used { budget, used } in used {
            let Some(labels) = self.budget_labels(budget) else { continue };
            let (_, ends) = windows.of(budget.window);
            limits.insert(labels.clone(), gauge_value(budget.limit));
            uses.insert(labels.clone(), gauge_value(*used));
            resets.insert(labels, ends.as_second());
        }
        self.limits.limit.set(limits);
        self.limits.used.set(uses);
        self.limits.reset.set(resets);
    }

    /// `None` for a team without series of its own, since budgets of several do not add up to one, and
    /// for refused calls, which are no budget.
    fn budget_labels(&self, budget: &Budget) -> Option<RowLabels> {
        let (scope, id) = match &budget.scope {
            Scope::Global => ("global", "global"),
            Scope::Team(team) => ("team", self.teams.label(team)),
            Scope::Refused(_) => return None,
        };
        let window = match budget.window {
            Window::Day => "day",
            Window::Month => "month",
        };
        let has_series = scope == "global" || id != OTHER_TEAMS;
        has_series.then(|| [scope, id, window].map(str::to_owned).into())
    }
}
