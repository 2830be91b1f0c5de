//! Timing of a fill: where its time went, what it waited for, which limits decided.

use std::time::Duration;

use tokio::time::Instant;

use super::machine::{Effect, Event, Machine};
use super::task::Task;
use crate::ledger::budget::{Budget, Scope, Used};
use crate::ledger::{Booking, LedgerError, Reservation, Reserved};
use crate::metrics::{CoalesceScope, Decision, LimitKind, LimitMode, Stage};
use crate::teams::policy::Turn;
use crate::upstream::Reply;

/// A turn that came within this time was not waited for.
const AT_ONCE: Duration = Duration::from_millis(1);

impl Task {
    /// Carries out an effect, and adds the time it took to its stage.
    pub(super) async fn timed(&mut self, effect: Effect, machine: &Machine) -> Event {
        let Some(stage) = self.stage_of(&effect) else { return self.perform(effect, machine).await };
        self.stage = stage;
        let begun = Instant::now();
        let event = self.perform(effect, machine).await;
        self.timing.stages.add(stage, begun.elapsed());
        event
    }

    /// `None` for what takes no time.
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
            // Until what came before is tried again.
            Effect::Pause(_) => self.stage,
            Effect::StepAside(_) => Stage::CoalesceWait,
            Effect::Admit | Effect::EnterCircuit | Effect::CheckWaiters => return None,
            Effect::RefuseTeam(_) | Effect::Tell(_) | Effect::Finish(_) | Effect::Stop => return None,
        })
    }

    /// Its end: whom it waited for until now was waited for in vain.
    pub(super) fn end_course(&mut self) {
        if std::mem::take(&mut self.is_held) {
            self.shared.core.metrics.coalesce_timeouts_total[self.holder()].inc();
        }
        self.shared.core.metrics.staged(&self.timing.stages);
    }

    /// Who holds a key that could not be reserved.
    fn holder(&self) -> CoalesceScope {
        if self.shared.core.ledger.has_leases() { CoalesceScope::Cluster } else { CoalesceScope::Local }
    }

    /// Whether the key was free, and what budgets said.
    pub(super) fn note_reserved(&mut self, asked: &Reservation, reserved: &Result<Reserved, LedgerError>) {
        let metrics = &self.shared.core.metrics;
        if matches!(reserved, Ok(Reserved::Held(_))) {
            if !self.is_held {
                metrics.coalesce_followers_total[self.holder()].inc();
            }
            self.is_held = true;
        } else {
            self.is_held = false;
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
            Ok(Reserved::Held(_) | Reserved::Stored(_) | Reserved::Resting { .. } | Reserved::Frozen(_))
            | Err(_) => {}
        }
    }

    /// What budgets that are only counted would have decided, said without keeping anybody waiting.
    fn note_shadow(&self, asked: &Reservation) {
        let shared = self.shared.clone();
        let team = asked.team.clone();
        let budgets: Vec<Budget> = asked.budgets.iter().filter(|budget| !budget.enforced).cloned().collect();
        tokio::spawn(async move {
            let Ok(used) = shared.core.ledger.used(budgets).await else { return };
            // The call is among what is used.
            let over = |used: &Used| used.used > used.budget.limit;
            let is_over = used.iter().any(over);
            let decision = if is_over { Decision::Deny } else { Decision::Allow };
            shared.core.metrics.decided(LimitKind::Budget, decision, LimitMode::Shadow);
            if is_over {
                tracing::warn!(team, "a crop was bought beyond a budget that is in shadow mode");
            }
        });
    }

    /// What a team's rate decided, if it has one.
    pub(super) fn note_rate(&self, reserved: &Result<Option<Turn>, Duration>) {
        let decision = match reserved {
            Ok(None) => return,
            Ok(Some(turn)) if turn.at <= Instant::now() => Decision::Allow,
            Ok(Some(_)) => Decision::Delay,
            Err(_) => Decision::Deny,
        };
        self.shared.core.metrics.decided(LimitKind::Rate, decision, LimitMode::Enforce);
    }

    /// Whether there was a turn, and when.
    pub(super) fn note_turn(&self, waited: Option<Duration>) {
        let decision = match waited {
            Some(waited) if waited <= AT_ONCE => Decision::Allow,
            Some(_) => Decision::Delay,
            None => Decision::Deny,
        };
        self.shared.core.metrics.decided(LimitKind::Concurrency, decision, LimitMode::Enforce);
    }

    /// The status of an answer, for the waiters' log lines.
    pub(super) fn note_reply(&mut self, reply: &Reply) {
        let status = match reply {
            Reply::Answered(_) => Some(http::StatusCode::OK),
            Reply::Refused(refusal) => Some(refusal.reply.status),
            Reply::Failed(reply) => Some(reply.status),
            Reply::NotSent(_) | Reply::Unknown(_) => None,
        };
        self.timing.upstream_status = status.or(self.timing.upstream_status);
    }
}
