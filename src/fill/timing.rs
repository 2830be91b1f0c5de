//! Timing of a fill, and the decisions of its limits.

use std::time::Duration;

use tokio::time::Instant;

use super::machine::{Effect, Event, Machine};
use super::task::Task;
use crate::ledger::budget::{Budget, Scope, Used};
use crate::ledger::{Booking, LedgerError, Reservation, Reserved};
use crate::metrics::{CoalesceScope, Decision, LimitKind, LimitMode, Stage};
use crate::teams::policy::Turn;

/// A slot that came within this time was not waited for.
const AT_ONCE: Duration = Duration::from_millis(1);

impl Task {
    /// Performs an effect, and adds its time to its stage.
    pub(super) async fn timed(&mut self, effect: Effect, machine: &Machine) -> Event {
        let Some(stage) = self.stage_of(&effect) else { return self.perform(effect, machine).await };
        self.stage = stage;
        let begun = Instant::now();
        let event = self.perform(effect, machine).await;
        self.timing.stages.add(stage, begun.elapsed());
        event
    }

    /// `None` for an effect that takes no time.
    fn stage_of(&self, effect: &Effect) -> Option<Stage> {
        Some(match effect {
            Effect::TakeSlot | Effect::Retry(_) => Stage::QueueWait,
            Effect::CheckRoom | Effect::LookAgain => Stage::Store,
            Effect::Reserve => Stage::Reserve,
            Effect::Import(_) | Effect::MarkSent(_) => Stage::Ledger,
            Effect::Open | Effect::Send => Stage::Upstream,
            Effect::Book(_, Booking::Stored { .. } | Booking::Spooled { .. }) => Stage::Persist,
            Effect::Book(..) => Stage::Ledger,
            Effect::Fetch(_) => Stage::Download,
            Effect::PutObject(_) | Effect::PutRecord(_) => Stage::Persist,
            Effect::Pause(_) => self.stage,
            Effect::StepAside(_) => Stage::CoalesceWait,
            Effect::Admit | Effect::EnterCircuit | Effect::CheckWaiters => return None,
            Effect::RefuseTeam(_) | Effect::Tell(_) | Effect::Finish(_) | Effect::Stop => return None,
        })
    }

    pub(super) fn end_timing(&mut self) {
        if std::mem::take(&mut self.is_held) {
            self.shared.core.metrics.coalesce_timeouts_total[self.holder()].inc();
        }
        self.shared.core.metrics.staged(&self.timing.stages);
    }

    fn holder(&self) -> CoalesceScope {
        if self.shared.core.ledger.has_leases() { CoalesceScope::Cluster } else { CoalesceScope::Local }
    }

    /// Counts whether the key was free, and the decision of the budgets.
    pub(super) fn note_reserved(&mut self, asked: &Reservation, reserved: &Result<Reserved, LedgerError>) {
        let metrics = &self.shared.core.metrics;
        let was_held = std::mem::replace(&mut self.is_held, matches!(reserved, Ok(Reserved::Held(_))));
        if self.is_held && !was_held {
            metrics.coalesce_followers_total[self.holder()].inc();
        }
        let is_budget = |budget: &&Budget| !matches!(budget.scope, Scope::Refused(_));
        let is_limited =
            |enforced| asked.budgets.iter().filter(is_budget).any(|budget| budget.enforced == enforced);
        match reserved {
            Ok(Reserved::OverBudget(refusal)) => {
                let is_budget = is_budget(&&refusal.budget);
                let kind = if is_budget { LimitKind::Budget } else { LimitKind::Refused };
                metrics.decided(kind, Decision::Deny, LimitMode::Enforce);
            }
            Ok(Reserved::Won(_)) => {
                if is_limited(true) {
                    metrics.decided(LimitKind::Budget, Decision::Allow, LimitMode::Enforce);
                }
                if is_limited(false) {
                    self.note_shadow(asked);
                }
            }
            _ => {}
        }
    }

    /// Counts what budgets in shadow mode would have decided, in the background.
    fn note_shadow(&self, asked: &Reservation) {
        let shared = self.shared.clone();
        let team = asked.team.clone();
        let budgets: Vec<Budget> = asked.budgets.iter().filter(|budget| !budget.enforced).cloned().collect();
        tokio::spawn(async move {
            let Ok(used) = shared.core.ledger.used(budgets).await else { return };
            // The used credits include this call.
            let over = |used: &Used| used.used > used.budget.limit;
            let is_over = used.iter().any(over);
            let decision = if is_over { Decision::Deny } else { Decision::Allow };
            shared.core.metrics.decided(LimitKind::Budget, decision, LimitMode::Shadow);
            if is_over {
                tracing::warn!(team, "a crop was bought beyond a budget that is in shadow mode");
            }
        });
    }

    pub(super) fn note_rate(&self, reserved: &Result<Option<Turn>, Duration>) {
        let decision = match reserved {
            Ok(None) => return,
            Ok(Some(turn)) if turn.at <= Instant::now() => Decision::Allow,
            Ok(Some(_)) => Decision::Delay,
            Err(_) => Decision::Deny,
        };
        self.shared.core.metrics.decided(LimitKind::Rate, decision, LimitMode::Enforce);
    }

    /// Counts whether there was a slot, and after which wait.
    pub(super) fn note_turn(&self, waited: Option<Duration>) {
        let decision = match waited {
            Some(waited) if waited <= AT_ONCE => Decision::Allow,
            Some(_) => Decision::Delay,
            None => Decision::Deny,
        };
        self.shared.core.metrics.decided(LimitKind::Concurrency, decision, LimitMode::Enforce);
    }
}
