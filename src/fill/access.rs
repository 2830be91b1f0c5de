//! A fill's access to the upstream: its slot, its pass, its retries, and its reports on each attempt.

use std::time::Duration;

use tokio::time::Instant;

use super::machine::{Admission, Event, FillSource, Machine, Retry, Verdict};
use super::retry::wait_before;
use super::suspect::suspicions;
use super::task::Task;
use super::{FillOutcome, Waiter};
use crate::base::identity::Identity;
use crate::error::GatewayError;
use crate::fill::circuit::Attempt;
use crate::fill::coalesce::Coalescer;
use crate::fill::slots::CallEnd;
use crate::ledger::CallState;
use crate::metrics::{AttemptOutcome, RetryReason, ShedReason};
use crate::upstream::download::{FetchError, Fetched};
use crate::upstream::{NotSent, Refusal, RefusalKind, Reply, UnknownCause};

impl Task {
    /// Waits for a slot while the fill has waiters and the upstream may be called.
    pub(super) async fn take_slot(&mut self) -> Event {
        (self.slot, self.pass) = (None, None);
        let shared = self.shared.clone();
        let metrics = &shared.core.metrics;
        // An upstream that throttles even single calls is not called for clients that ignore `Retry-After`.
        if !self.is_retry
            && shared.slots.are_spaced_out()
            && let Some(wait) = shared.retry_after.remaining(&self.identity)
        {
            metrics.upstream_shed_total[ShedReason::RetryAfterCache].inc();
            return Event::Slot(Err(GatewayError::UpstreamThrottled { wait }));
        }
        loop {
            let Some((_, waiter)) = self.groups.candidate(&self.identity) else {
                return Event::Admitted(Admission::Nobody);
            };
            if let Err(error) = self.reserve_miss(&waiter) {
                self.refuse(&waiter, error);
                continue;
            }
            let (rated, groups, identity) = (self.rate_allows_at(), &self.groups, &self.identity);
            let turn = async {
                if let Some(at) = rated {
                    tokio::time::sleep_until(at).await;
                }
                let asked = Instant::now();
                (shared.slots.take(&waiter.team.name, patience(groups, identity)).await, asked.elapsed())
            };
            let (shed, error) = tokio::select! {
                biased;
                error = shared.circuit.refuses() => (ShedReason::BreakerOpen, error),
                () = shared.draining.cancelled() => (ShedReason::Draining, GatewayError::Draining),
                (taken, waited) = turn => match taken {
                    Ok(slot) => {
                        self.note_turn(Some(waited));
                        self.slot = Some(slot);
                        return Event::Slot(Ok(()));
                    }
                    Err(busy) => {
                        self.note_turn(None);
                        (busy.cause, GatewayError::TooBusy { wait: busy.wait })
                    }
                },
                () = self.groups.deserted(&self.identity) => {
                    metrics.upstream_shed_total[ShedReason::Deserted].inc();
                    continue;
                }
            };
            metrics.upstream_shed_total[shed].inc();
            return Event::Slot(Err(error));
        }
    }

    pub(super) fn enter_circuit(&mut self) -> Result<(), GatewayError> {
        let policy = self.shared.core.policy.get();
        let has_others = policy.teams().iter().nth(1).is_some();
        let waiter = self.groups.candidate(&self.identity).filter(|_| has_others);
        let team = waiter.as_ref().map(|(_, waiter)| waiter.team.name.as_str());
        let entered = self.shared.circuit.enter(&self.identity, team);
        if entered.is_err() {
            self.shared.core.metrics.upstream_shed_total[ShedReason::BreakerOpen].inc();
        }
        self.pass = Some(entered?);
        Ok(())
    }

    /// Waits for another try, if the circuit, the callers' time and the budget allow one.
    pub(super) async fn retry(&mut self, retry: Retry) -> bool {
        let shared = self.shared.clone();
        let Retry { reason, number, asked } = retry;
        let may_call = self.pass.as_ref().is_none_or(|pass| pass.may_retry());
        let wait = wait_before(number, asked);
        if !may_call || wait >= patience(&self.groups, &self.identity) || shared.draining.is_cancelled() {
            return false;
        }
        if reason == RetryReason::RateLimited && !shared.retries.take() {
            return false;
        }
        tokio::select! {
            biased;
            () = shared.draining.cancelled() => return false,
            () = tokio::time::sleep(wait) => {}
        }
        shared.core.metrics.upstream_retries_total[reason].inc();
        true
    }

    /// Reports the outcome of an attempt. An order that did not go out whole keeps its slot for another try.
    pub(super) fn report(&mut self, reply: &Reply, is_whole: bool) {
        let (attempt, end, outcome) = match reply {
            Reply::Answered(_) => (Attempt::Sold, CallEnd::Served, AttemptOutcome::Ok),
            Reply::Refused(Refusal { kind, reply }) => match *kind {
                // It comes from something before the upstream, which may be all that is left of it.
                RefusalKind::Other if reply.body.is_none() => {
                    (Attempt::Broken, CallEnd::Failed, AttemptOutcome::CallerRejected)
                }
                RefusalKind::Order | RefusalKind::Other => {
                    (Attempt::Refused, CallEnd::Served, AttemptOutcome::CallerRejected)
                }
                RefusalKind::Key => (Attempt::KeyRefused, CallEnd::Served, AttemptOutcome::Auth),
                RefusalKind::Credits => (Attempt::NoCredits, CallEnd::Served, AttemptOutcome::Quota),
                RefusalKind::Flow { retry_after } => {
                    (Attempt::Refused, CallEnd::Throttled(retry_after), AttemptOutcome::RateLimited)
                }
            },
            Reply::Failed(reply) if reply.status.is_server_error() => {
                let attempt = if reply.body.is_some() { Attempt::Failed } else { Attempt::Broken };
                (attempt, CallEnd::Failed, AttemptOutcome::ServerError)
            }
            // 200 with an error code: the upstream works.
            Reply::Failed(_) => (Attempt::Refused, CallEnd::Served, AttemptOutcome::ServerError),
            Reply::NotSent(_) => (Attempt::Lost, CallEnd::Failed, AttemptOutcome::Connect),
            Reply::Unknown(UnknownCause::Timeout) => {
                (Attempt::Lost, CallEnd::Failed, AttemptOutcome::Timeout)
            }
            Reply::Unknown(_) => (Attempt::Lost, CallEnd::Failed, AttemptOutcome::BadBody),
        };
        self.shared.core.metrics.upstream_attempts_total[outcome].inc();
        self.timing.upstream_status = reply.status().or(self.timing.upstream_status);
        if let Reply::NotSent(NotSent::Picture(_)) = reply {
            // It says nothing about the upstream.
            (self.slot, self.pass) = (None, None);
        }
        let keeps_slot = !is_whole && matches!(reply, Reply::NotSent(_));
        if let Some(slot) = self.slot.take_if(|_| !keeps_slot) {
            slot.end(end);
        }
        if let Some(pass) = &self.pass {
            pass.tell(attempt);
        }
        if attempt == Attempt::NoCredits {
            self.shared.watch_balance();
        }
    }

    /// The callers have their answer. The fill goes on without its slot; it keeps its pass only to report its result.
    pub(super) fn report_settled(&mut self, verdict: &Verdict) {
        self.go_on_without_a_slot();
        match verdict {
            Err(GatewayError::ResultNotFetched { .. }) => {
                if let Some(pass) = &self.pass {
                    self.shared.circuit.result_delayed(pass);
                }
            }
            Ok(filled) if filled.source == FillSource::Bought => {}
            _ => self.pass = None,
        }
    }

    pub(super) fn report_booked(&mut self, state: CallState) {
        match state {
            CallState::Stored => self.shared.circuit.result_kept(self.pass.take()),
            CallState::Unfetchable => self.shared.circuit.result_lost(self.pass.take()),
            _ => {}
        }
    }

    /// Counts a result that is not what was ordered.
    pub(super) fn report_mismatch(&self, fetched: &Result<Fetched, FetchError>, machine: &Machine) {
        let (Ok(fetched), Some(order), Some(answer)) = (fetched, &machine.payer, &machine.answer) else {
            return;
        };
        for reason in suspicions(order.width, order.height, &fetched.bytes, answer.text().expose()) {
            tracing::warn!(key = %self.identity, reason = reason.as_str(), "a result is not what was ordered");
            self.shared.core.metrics.results_suspect_total[reason].inc();
        }
    }
}

/// How long the last waiter for a key still waits.
fn patience(groups: &Coalescer<Identity, Waiter, FillOutcome>, identity: &Identity) -> Duration {
    let latest = groups.waiting(identity).iter().map(|waiter| waiter.deadline).max();
    latest.map_or(Duration::ZERO, |deadline| deadline.saturating_duration_since(Instant::now()))
}
