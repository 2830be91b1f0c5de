//! A fill's access to the upstream: its turn, its pass, its retries, and its reports on each attempt.

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
use crate::fill::slots::{BusyCause, CallEnd};
use crate::ledger::CallState;
use crate::metrics::{RetryReason, ShedReason};
use crate::upstream::download::{FetchError, Fetched};
use crate::upstream::{NotSent, RefusalKind, Reply};

impl Task {
    /// Waits for a turn for as long as anybody waits for the fill, and the upstream may be called.
    pub(super) async fn take_slot(&mut self) -> Event {
        (self.slot, self.pass) = (None, None);
        let shared = self.shared.clone();
        let metrics = &shared.core.metrics;
        // No failure is remembered for its own sake; but an upstream that throttles even single calls
        // is not called for clients that ignore `Retry-After`.
        if !self.is_retry
            && shared.slots.are_spaced_out()
            && let Some(wait) = shared.told_to_wait.remaining(&self.identity)
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
            let (rated, groups, identity) =
                (self.rate_allows_at(), self.groups.clone(), self.identity.clone());
            let turn = async {
                if let Some(at) = rated {
                    tokio::time::sleep_until(at).await;
                }
                let asked = Instant::now();
                (shared.slots.take(&waiter.team.name, patience(&groups, &identity)).await, asked.elapsed())
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
                        let reason = match busy.cause {
                            BusyCause::QueueFull => ShedReason::QueueFull,
                            BusyCause::TooLate => ShedReason::WaitTimeout,
                        };
                        (reason, GatewayError::TooBusy { wait: busy.wait })
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
        let entered = self.shared.circuit.enter(&self.identity);
        if entered.is_err() {
            self.shared.core.metrics.upstream_shed_total[ShedReason::BreakerOpen].inc();
        }
        self.pass = Some(entered?);
        Ok(())
    }

    /// Waits for another try, if the circuit, the callers' time and the budget allow one.
    pub(super) async fn retry(&mut self, retry: Retry) -> bool {
        let shared = self.shared.clone();
        let (reason, number, asked) = match retry {
            Retry::NotSent { retry } => (RetryReason::NotSent, retry, None),
            Retry::Throttled { retry, asked } => (RetryReason::RateLimited, retry, asked),
        };
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

    /// The order did not go out whole; its slot stays, for another try.
    pub(super) fn tell_not_sent(&self) {
        if let Some(pass) = &self.pass {
            pass.tell(Attempt::Lost);
        }
    }

    /// It was answered before it had gone out whole.
    pub(super) fn tell_early(&mut self, reply: &Reply) {
        match reply {
            Reply::NotSent(_) => self.tell_not_sent(),
            reply => self.tell_reply(reply),
        }
    }

    /// The call is over; its slot goes to the next.
    pub(super) fn tell_reply(&mut self, reply: &Reply) {
        let (attempt, end) = match reply {
            Reply::Answered(_) => (Attempt::Sold, CallEnd::Served),
            Reply::Refused(refusal) => match refusal.kind {
                // Something before the upstream said so, which may be all that is left of it.
                RefusalKind::Other if refusal.reply.body.is_none() => (Attempt::Failed, CallEnd::Failed),
                RefusalKind::Order | RefusalKind::Other => (Attempt::Refused, CallEnd::Served),
                RefusalKind::Key => (Attempt::KeyRefused, CallEnd::Served),
                RefusalKind::Credits => (Attempt::NoCredits, CallEnd::Served),
                RefusalKind::Flow { retry_after_seconds } => {
                    let asked = retry_after_seconds.map(Duration::from_secs);
                    (Attempt::Refused, CallEnd::Throttled(asked))
                }
            },
            Reply::Failed(reply) if reply.status.is_server_error() => (Attempt::Failed, CallEnd::Failed),
            // 200 with an error code: the upstream is there.
            Reply::Failed(_) => (Attempt::Refused, CallEnd::Served),
            // It says nothing of the upstream.
            Reply::NotSent(NotSent::Picture(_)) => {
                (self.slot, self.pass) = (None, None);
                return;
            }
            Reply::NotSent(_) | Reply::Unknown(_) => (Attempt::Lost, CallEnd::Failed),
        };
        if let Some(slot) = self.slot.take() {
            slot.end(end);
        }
        if let Some(pass) = &self.pass {
            pass.tell(attempt);
        }
        if attempt == Attempt::NoCredits {
            self.shared.watch_balance();
        }
    }

    /// The callers have their answer, and the fill goes on without them: it gives back its turn, and
    /// keeps its pass only to report on its result.
    pub(super) fn tell_settled(&mut self, verdict: &Verdict) {
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

    /// A row of this fill has ended, or has come so far.
    pub(super) fn tell_booked(&mut self, state: CallState) {
        match state {
            CallState::Stored => self.shared.circuit.result_kept(self.pass.take()),
            CallState::Unfetchable => self.shared.circuit.result_lost(self.pass.take()),
            CallState::Reserved | CallState::Sent | CallState::Answered => {}
            CallState::Released
            | CallState::Refused
            | CallState::Failed
            | CallState::Unknown
            | CallState::Lost => {}
        }
    }

    /// Counts a result that is not what was ordered. It was paid for, so it is kept all the same.
    pub(super) fn report_mismatch(&self, fetched: &Result<Fetched, FetchError>, machine: &Machine) {
        let (Ok(fetched), Some(order), Some(answer)) = (fetched, machine.payer(), machine.answer()) else {
            return;
        };
        for reason in suspicions(order.width, order.height, &fetched.bytes, answer.text().expose()) {
            tracing::warn!(key = %self.identity, reason = reason.as_str(), "a result is not what was ordered");
            self.shared.core.metrics.results_suspect_total[reason].inc();
        }
    }
}

/// How long the most patient waiter for a key still waits.
fn patience(groups: &Coalescer<Identity, Waiter, FillOutcome>, identity: &Identity) -> Duration {
    let latest = groups.waiting(identity).iter().map(|waiter| waiter.deadline).max();
    latest.map_or(Duration::ZERO, |deadline| deadline.saturating_duration_since(Instant::now()))
}
