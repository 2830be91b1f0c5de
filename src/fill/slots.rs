//! Slots for paid calls ([`Slots`]): how many run at once, and which fills may wait.
//!
//! The number adapts to the upstream's flow control (`limit`); waiters are served first come first served
//! within their team, and the teams in turn (`queue`). A slot that cannot be expected within the caller's
//! time is refused at once, with the wait: a client that returns later costs less than one that times out.

mod limit;
mod queue;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use self::limit::{Burst, Limit};
use self::queue::{FairQueue, Place};
use crate::metrics::ShedReason;

/// Assumed duration of a call before the first one has ended.
const FIRST_GUESS: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug)]
pub struct SlotsConfig {
    /// Calls at once at the start.
    pub concurrency: usize,
    pub max_concurrency: usize,
    pub queue: usize,
}

/// Adaptive concurrency with a bounded queue that is fair by team.
pub struct Slots {
    state: Mutex<State>,
}

struct State {
    bounds: SlotsConfig,
    limit: Limit,
    in_flight: usize,
    queue: FairQueue<oneshot::Sender<Result<Slot, TooBusy>>>,
    /// No call begins before: the upstream asked for it.
    paused_until: Option<Instant>,
    /// Moving mean of how long a call holds its slot.
    held: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooBusy {
    /// Until a slot is expected to be free.
    pub wait: Duration,
    /// `QueueFull` or `WaitTimeout`.
    pub cause: ShedReason,
}

/// The outcome of a call, as far as it changes the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallEnd {
    Served,
    /// Flow control refused it, and may have asked for a wait.
    Throttled(Option<Duration>),
    Failed,
}

/// The right to make one paid call; given back on drop.
pub struct Slot {
    slots: Arc<Slots>,
    since: Instant,
    burst: Burst,
    end: Option<CallEnd>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotsLoad {
    pub limit: usize,
    pub in_flight: usize,
    /// Waiters by team, without teams that have none.
    pub queued: BTreeMap<String, usize>,
}

impl Slots {
    pub fn new(config: SlotsConfig) -> Arc<Self> {
        let state = State {
            bounds: config,
            limit: Limit::new(config.concurrency, config.max_concurrency),
            in_flight: 0,
            queue: FairQueue::new(),
            paused_until: None,
            held: FIRST_GUESS,
        };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// Waits for a slot for the team, if the call can be expected to end within `patience`. Dropping the
    /// future leaves the queue.
    ///
    /// # Errors
    /// [`TooBusy`]: at once, or later if a team with fewer waiters needs the place in a full queue.
    pub async fn take(self: &Arc<Self>, team: &str, patience: Duration) -> Result<Slot, TooBusy> {
        let (place, turn) = {
            let mut state = self.state();
            let now = Instant::now();
            if state.queue.len() == 0 && state.may_begin(now) {
                return Ok(self.grant(&mut state, now));
            }
            let wait = state.expected_wait(team, now);
            if wait + state.held > patience {
                return Err(TooBusy { wait, cause: ShedReason::WaitTimeout });
            }
            let busy = TooBusy { wait, cause: ShedReason::QueueFull };
            if state.queue.len() >= state.bounds.queue {
                let displaced = state.queue.displace_for(team).ok_or(busy)?;
                let _ = displaced.send(Err(busy));
            }
            let (sender, turn) = oneshot::channel();
            (state.queue.push(team, sender), turn)
        };
        let _leave = Leave { slots: self, place };
        turn.await.unwrap_or(Err(TooBusy { wait: Duration::ZERO, cause: ShedReason::QueueFull }))
    }

    /// Changes the bounds. Calls under way and waiters stay, even beyond the new bounds. A changed start
    /// number takes effect; otherwise the adapted limit is kept, within the new maximum.
    pub fn set_bounds(self: &Arc<Self>, bounds: SlotsConfig) {
        let mut state = self.state();
        let is_begun_anew = state.bounds.concurrency != bounds.concurrency;
        state.limit.set_bounds(is_begun_anew.then_some(bounds.concurrency), bounds.max_concurrency);
        state.bounds = bounds;
        drop(state);
        self.serve();
    }

    /// Returns true while the upstream throttles even single calls.
    pub fn are_spaced_out(&self) -> bool {
        self.state().limit.is_spaced_out()
    }

    pub fn load(&self) -> SlotsLoad {
        let state = self.state();
        SlotsLoad {
            limit: state.limit.allowed(),
            in_flight: state.in_flight,
            queued: state.queue.by_team().map(|(team, waiting)| (team.to_owned(), waiting)).collect(),
        }
    }

    fn grant(self: &Arc<Self>, state: &mut State, now: Instant) -> Slot {
        state.in_flight += 1;
        Slot { slots: self.clone(), since: now, burst: state.limit.burst(), end: None }
    }

    /// Gives free slots to the next waiters.
    fn serve(self: &Arc<Self>) {
        let mut turns = Vec::new();
        let mut state = self.state();
        let now = Instant::now();
        while state.may_begin(now)
            && let Some(waiting) = state.queue.pop()
        {
            turns.push((waiting, self.grant(&mut state, now)));
        }
        drop(state);
        // Without the lock, because a slot whose receiver is gone is given back in the same instant.
        for (waiting, slot) in turns {
            let _ = waiting.send(Ok(slot));
        }
    }

    fn end(self: &Arc<Self>, slot: &Slot) {
        let mut state = self.state();
        let held = slot.since.elapsed();
        match slot.end {
            Some(CallEnd::Served) => {
                let is_in_use = state.in_flight >= state.limit.allowed();
                state.limit.succeeded(is_in_use);
                state.sample(held);
            }
            Some(CallEnd::Throttled(asked)) => {
                if let Some(pause) = state.limit.throttled(slot.burst, asked) {
                    // The next slot is that much later.
                    state.sample(held + pause);
                    let until = Instant::now() + pause;
                    state.paused_until = Some(state.paused_until.map_or(until, |known| known.max(until)));
                    let slots = self.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep_until(until).await;
                        slots.serve();
                    });
                }
            }
            // A call that fails at once says nothing about the usual duration.
            Some(CallEnd::Failed) if held > state.held => state.sample(held),
            Some(CallEnd::Failed) | None => {}
        }
        state.in_flight -= 1;
        drop(state);
        self.serve();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn may_begin(&self, now: Instant) -> bool {
        self.in_flight < self.limit.allowed() && self.paused_until.is_none_or(|until| until <= now)
    }

    /// Until a newcomer of the team would have a slot.
    fn expected_wait(&self, team: &str, now: Instant) -> Duration {
        let allowed = self.limit.allowed();
        let turns = (self.in_flight + self.queue.ahead_of(team) + 1).saturating_sub(allowed);
        let pause = self.paused_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        pause + self.held.mul_f64(turns as f64 / allowed as f64)
    }

    fn sample(&mut self, held: Duration) {
        self.held = (self.held * 7 + held) / 8;
    }
}

impl Slot {
    pub fn end(mut self, end: CallEnd) {
        self.end = Some(end);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.clone().end(self);
    }
}

/// Leaves the queue however the wait ends.
struct Leave<'a> {
    slots: &'a Arc<Slots>,
    place: Place,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.slots.state().queue.remove(self.place);
    }
}
