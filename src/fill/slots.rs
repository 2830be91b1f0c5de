//! Slots for paid calls ([`Slots`]): how many run at once, and which fills may wait. The number adapts to the
//! upstream's flow control (`limit`), and teams share the slots fairly ([`Permits`]). A slot that cannot be expected
//! within the caller's time is refused at once, with the wait: a client that returns later costs less than one that
//! times out.

mod limit;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::time::Instant;

use self::limit::{Burst, Limit};
use crate::base::permits::{Party, Permit, Permits, Sharing};
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

/// Adaptive concurrency with a bounded queue, both fair by team.
pub struct Slots {
    /// As many as the limit allows; none while the upstream has asked for a pause.
    calls: Permits,
    places: Permits,
    state: Mutex<State>,
}

struct State {
    concurrency: usize,
    limit: Limit,
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
    /// Given back when what the call says about the limit is known.
    _permit: Permit,
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
        let limit = Limit::new(config.concurrency, config.max_concurrency);
        Arc::new(Self {
            calls: Permits::new(limit.allowed() as u64, Sharing::Whole),
            places: Permits::new(config.queue as u64, Sharing::Headroom),
            state: Mutex::new(State {
                concurrency: config.concurrency,
                limit,
                paused_until: None,
                held: FIRST_GUESS,
            }),
        })
    }

    /// Waits for a slot, if the call is expected to end within `patience`. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// [`TooBusy`], at once.
    pub async fn take(self: &Arc<Self>, team: &str, patience: Duration) -> Result<Slot, TooBusy> {
        let party = Party::new(team);
        let (wait, held) = self.expected_wait(&party);
        let mut turn = pin!(self.calls.take(&party, 1));
        if let Some(permit) = (&mut turn).now_or_never() {
            return Ok(self.slot(permit));
        }
        if wait + held > patience {
            return Err(TooBusy { wait, cause: ShedReason::WaitTimeout });
        }
        let Some(_place) = self.places.try_take(&party, 1) else {
            return Err(TooBusy { wait, cause: ShedReason::QueueFull });
        };
        Ok(self.slot(turn.await))
    }

    /// Changes the bounds. Calls under way and waiters stay, even beyond the new bounds. A changed start
    /// number takes effect; otherwise the adapted limit is kept, within the new maximum.
    pub fn set_bounds(&self, bounds: SlotsConfig) {
        let mut state = self.state.lock();
        let is_begun_anew = state.concurrency != bounds.concurrency;
        state.limit.set_bounds(is_begun_anew.then_some(bounds.concurrency), bounds.max_concurrency);
        state.concurrency = bounds.concurrency;
        self.places.set_capacity(bounds.queue as u64);
        self.apply(&state);
    }

    /// Returns true while the upstream throttles even single calls.
    pub fn are_spaced_out(&self) -> bool {
        self.state.lock().limit.is_spaced_out()
    }

    pub fn load(&self) -> SlotsLoad {
        let waiting = self.calls.waiting().into_iter();
        SlotsLoad {
            limit: self.state.lock().limit.allowed(),
            in_flight: self.calls.used() as usize,
            queued: waiting.map(|(team, waiting)| (team.name().to_owned(), waiting)).collect(),
        }
    }

    fn slot(self: &Arc<Self>, permit: Permit) -> Slot {
        let burst = self.state.lock().limit.burst();
        Slot { slots: self.clone(), since: Instant::now(), burst, end: None, _permit: permit }
    }

    /// Until a newcomer of the team would have a slot, and how long it would hold it.
    fn expected_wait(&self, team: &Party) -> (Duration, Duration) {
        let state = self.state.lock();
        let allowed = state.limit.allowed();
        let turns = (self.calls.used() as usize + self.calls.ahead_of(team) + 1).saturating_sub(allowed);
        let now = Instant::now();
        let pause = state.paused_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        (pause + state.held.mul_f64(turns as f64 / allowed as f64), state.held)
    }

    fn apply(&self, state: &State) {
        let is_paused = state.paused_until.is_some_and(|until| until > Instant::now());
        self.calls.set_capacity(if is_paused { 0 } else { state.limit.allowed() as u64 });
    }

    fn end(self: &Arc<Self>, slot: &Slot) {
        let mut state = self.state.lock();
        let held = slot.since.elapsed();
        match slot.end {
            Some(CallEnd::Served) => {
                let is_in_use = self.calls.used() >= state.limit.allowed() as u64;
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
                        slots.apply(&slots.state.lock());
                    });
                }
            }
            // A call that fails at once says nothing about the usual duration.
            Some(CallEnd::Failed) if held > state.held => state.sample(held),
            Some(CallEnd::Failed) | None => {}
        }
        self.apply(&state);
    }
}

impl State {
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
