//! Permits of a resource that parties share ([`Permits`]), in bytes or places. A [`Permit`] is part of the value that it
//! stands for, and gives its units back on drop.
//!
//! What becomes free goes to the waiting party that holds least (max-min fairness: Bertsekas and Gallager, *Data
//! Networks*, section 6.5.2), of several to the one whose last turn is longest ago, and within a party to the first that
//! came. Where units are held for long, some stay free for newcomers ([`Sharing::Headroom`]).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// A team, or the network of a client without a token.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Party(Arc<str>);

/// What one party may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// All, while no other party waits: units come back soon.
    Whole,
    /// At most [`HEADROOM`] times what is free (dynamic thresholds: Choudhury and Hahne, 1998). One party alone may hold
    /// seven eighths, and each of two seven fifteenths; nothing that is held must be taken back for a newcomer.
    Headroom,
}

const HEADROOM: u64 = 7;

#[derive(Clone, Debug)]
pub struct Permits(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    sharing: Sharing,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    capacity: u64,
    used: u64,
    /// None has neither units nor waiters.
    parties: HashMap<Party, Standing>,
    /// Counts turns and waiters, which have its values as their order and id.
    clock: u64,
}

#[derive(Debug, Default)]
struct Standing {
    held: u64,
    /// When it last was granted units, or else came.
    turn: u64,
    waiting: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    units: u64,
    granted: oneshot::Sender<Permit>,
}

#[derive(Debug)]
pub struct Permit {
    shared: Arc<Shared>,
    party: Party,
    units: u64,
}

impl Party {
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    pub fn name(&self) -> &str {
        &self.0
    }
}

impl Permits {
    pub fn new(capacity: u64, sharing: Sharing) -> Self {
        let state = State { capacity, ..State::default() };
        Self(Arc::new(Shared { sharing, state: Mutex::new(state) }))
    }

    /// A permit without units, which can [grow](Permit::grow_to).
    pub fn none(&self, party: &Party) -> Permit {
        self.0.permit(party, 0)
    }

    /// At once, or not at all.
    pub fn try_take(&self, party: &Party, units: u64) -> Option<Permit> {
        let mut permit = self.none(party);
        permit.grow_to(units).then_some(permit)
    }

    /// Waits at most `patience` for its turn, for all units if `units` are more.
    pub async fn take_within(&self, party: &Party, units: u64, patience: Duration) -> Option<Permit> {
        tokio::time::timeout(patience, self.take(party, units.min(self.capacity()))).await.ok()
    }

    /// Waits for its turn; dropping the future gives it up. More than all units are never granted.
    pub async fn take(&self, party: &Party, units: u64) -> Permit {
        let (turn, id) = {
            let mut state = self.0.state.lock();
            if state.parties.values().all(|standing| standing.waiting.is_empty())
                && state.admits(self.0.sharing, party, units)
            {
                state.hold(party, units);
                return self.0.permit(party, units);
            }
            let (granted, turn) = oneshot::channel();
            let id = state.tick();
            let standing = state.parties.entry(party.clone());
            let standing = standing.or_insert_with(|| Standing { turn: id, ..Standing::default() });
            standing.waiting.push_back(Waiter { id, units, granted });
            (turn, id)
        };
        self.0.serve();
        let _leave = Leave { shared: &self.0, party, id };
        turn.await.expect("a waiter is removed by its permit, or when it leaves")
    }

    /// Permits under way stay, even beyond the new capacity.
    pub fn set_capacity(&self, capacity: u64) {
        self.0.state.lock().capacity = capacity;
        self.0.serve();
    }

    pub fn capacity(&self) -> u64 {
        self.0.state.lock().capacity
    }

    pub fn used(&self) -> u64 {
        self.0.state.lock().used
    }

    /// Waiters by party, without parties that have none.
    pub fn waiting(&self) -> Vec<(Party, usize)> {
        let state = self.0.state.lock();
        let waiting = state.parties.iter().map(|(party, standing)| (party.clone(), standing.waiting.len()));
        waiting.filter(|(_, waiting)| *waiting > 0).collect()
    }

    /// The most waiters that are served before a newcomer of the party, if all wait for as many units.
    pub fn ahead_of(&self, party: &Party) -> usize {
        let waiting = self.waiting();
        let own = waiting.iter().find(|(other, _)| other == party).map_or(0, |(_, waiting)| *waiting);
        let others = waiting.iter().filter(|(other, _)| other != party);
        // Each other party has one turn for each of ours, and one before ours.
        own + others.map(|(_, waiting)| (*waiting).min(own + 1)).sum::<usize>()
    }
}

impl Permit {
    /// At once, or returns false.
    pub fn grow_to(&mut self, units: u64) -> bool {
        let more = units.saturating_sub(self.units);
        let mut state = self.shared.state.lock();
        let is_granted = state.admits(self.shared.sharing, &self.party, more);
        if is_granted {
            state.hold(&self.party, more);
            self.units += more;
        }
        is_granted
    }

    pub fn shrink_to(&mut self, units: u64) {
        let surplus = self.units.saturating_sub(units);
        self.units -= surplus;
        self.shared.give_back(&self.party, surplus);
    }

    /// The other one must be of the same resource and party.
    pub fn join(&mut self, mut other: Self) {
        self.units += std::mem::take(&mut other.units);
    }

    /// Each slice of the bytes keeps the permit.
    pub fn hold(self, bytes: impl AsRef<[u8]> + Send + 'static) -> Bytes {
        Bytes::from_owner(Held { bytes, _permit: self })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.shared.give_back(&self.party, self.units);
    }
}

struct Held<B> {
    bytes: B,
    _permit: Permit,
}

impl<B: AsRef<[u8]>> AsRef<[u8]> for Held<B> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

impl Shared {
    fn permit(self: &Arc<Self>, party: &Party, units: u64) -> Permit {
        Permit { shared: self.clone(), party: party.clone(), units }
    }

    fn give_back(self: &Arc<Self>, party: &Party, units: u64) {
        if units > 0 {
            self.state.lock().give_back(party, units);
            self.serve();
        }
    }

    fn serve(self: &Arc<Self>) {
        let mut turns = Vec::new();
        let mut state = self.state.lock();
        while let Some((party, waiter)) = state.next(self.sharing) {
            state.hold(&party, waiter.units);
            turns.push((waiter.granted, self.permit(&party, waiter.units)));
        }
        drop(state);
        // Without the lock, because a permit whose receiver is gone is given back in the same instant.
        for (granted, permit) in turns {
            let _ = granted.send(permit);
        }
    }
}

impl State {
    fn admits(&self, sharing: Sharing, party: &Party, units: u64) -> bool {
        let held = self.parties.get(party).map_or(0, |standing| standing.held);
        self.free().checked_sub(units).is_some_and(|free| match sharing {
            Sharing::Whole => true,
            Sharing::Headroom => held.saturating_add(units) <= free.saturating_mul(HEADROOM) || held == 0,
        })
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn free(&self) -> u64 {
        self.capacity.saturating_sub(self.used)
    }

    fn hold(&mut self, party: &Party, units: u64) {
        if units > 0 {
            self.used += units;
            let turn = self.tick();
            let standing = self.parties.entry(party.clone()).or_default();
            standing.held += units;
            standing.turn = turn;
        }
    }

    fn give_back(&mut self, party: &Party, units: u64) {
        self.used -= units;
        self.change(party, |standing| standing.held -= units);
    }

    fn change(&mut self, party: &Party, change: impl FnOnce(&mut Standing)) {
        if let Some(standing) = self.parties.get_mut(party) {
            change(standing);
            if standing.held == 0 && standing.waiting.is_empty() {
                self.parties.remove(party);
            }
        }
    }

    /// Takes the next waiter that may be served out of its line. One that needs more than is free holds up its own party
    /// alone.
    fn next(&mut self, sharing: Sharing) -> Option<(Party, Waiter)> {
        let waiting = self.parties.iter().filter_map(|(party, standing)| {
            let units = standing.waiting.front()?.units;
            self.admits(sharing, party, units).then_some((standing.held, standing.turn, party))
        });
        let party = waiting.min()?.2.clone();
        let waiter = self.parties.get_mut(&party)?.waiting.pop_front()?;
        Some((party, waiter))
    }
}

/// Leaves the line however the wait ends.
struct Leave<'a> {
    shared: &'a Arc<Shared>,
    party: &'a Party,
    id: u64,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let leave = |standing: &mut Standing| standing.waiting.retain(|waiter| waiter.id != self.id);
        self.shared.state.lock().change(self.party, leave);
        // A smaller one behind it may fit.
        self.shared.serve();
    }
}

#[cfg(test)]
mod tests;
