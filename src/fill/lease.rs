//! Leases: where several processes keep one ledger, each says that its calls live, and acts for the
//! owners of calls that are silent.
//!
//! No wall clock is read, and no two clocks are compared. An owner counts a lease from before it
//! requested the renewal; a process that would take over counts from after it has seen the row, and only a
//! full lease later, when the row is as it was, does it act, by an update that fails if it is not.
//! So at that moment the owner's own clock says that its lease is over, however long either slept
//! (after Gray and Cheriton, "Leases", 1989, with the two clocks kept apart).
//!
//! A lease guards sending alone: [`Held::may_send`] is asked before the tail goes. Booking never
//! asks.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Filler;
use crate::base::clock::Clock;
use crate::ledger::{CallId, CallState, ForeignOpenCall, Ledger};

/// How long an owner may be silent.
const LEASE: Duration = Duration::from_secs(15);
/// How often it says that it lives.
const RENEWAL: Duration = Duration::from_secs(5);
/// What a `sent` call's lease is longer than the longest wait for its answer.
const SENT_MARGIN: Duration = Duration::from_secs(20);
/// A tail goes at the latest so long after the last renewal: by then its answer, too, comes within
/// the lease, with time left to book it.
const TAIL_WITHIN: Duration = Duration::from_secs(10);
/// How often other owners' calls are looked at.
const WATCH: Duration = Duration::from_secs(2);
/// Whoever has not looked for longer begins to watch anew.
const BLIND: Duration = Duration::from_secs(10);

/// The calls this process has in its hands, and when each was last renewed.
#[derive(Clone)]
pub(super) struct Leases {
    clock: Clock,
    /// A process that has its ledger to itself needs none.
    are_kept: bool,
    held: Arc<Mutex<HashMap<CallId, Standing>>>,
}

#[derive(Clone, Copy)]
enum Standing {
    /// It began at this uptime, or somewhat later.
    Since(Duration),
    /// Somebody has taken the call over.
    Lost,
}

impl Leases {
    pub(super) fn new(ledger: &dyn Ledger, clock: Clock) -> Self {
        Self { clock, are_kept: ledger.has_leases(), held: Arc::default() }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<CallId, Standing>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The uptime before a call is reserved.
    pub(super) fn before(&self) -> Duration {
        self.clock.uptime()
    }

    /// Keeps a call whose row was written after `since`, until the return value is dropped.
    pub(super) fn hold(&self, id: CallId, since: Duration) -> Held {
        self.held().insert(id, Standing::Since(since));
        Held { id, leases: self.clone() }
    }

    /// As [`hold`](Self::hold), for a call that was taken over just now; `None` when it is in hand.
    pub(super) fn resume(&self, id: CallId) -> Option<Held> {
        let since = self.clock.uptime();
        match self.held().entry(id) {
            Entry::Occupied(_) => None,
            Entry::Vacant(free) => {
                free.insert(Standing::Since(since));
                Some(Held { id, leases: self.clone() })
            }
        }
    }

    fn in_hand(&self) -> Vec<CallId> {
        self.held().keys().copied().collect()
    }

    /// Renews all at once. A renewal that fails changes nothing: the lease goes on running out.
    async fn renew(&self, ledger: &dyn Ledger) {
        let calls = self.in_hand();
        if calls.is_empty() {
            return;
        }
        let before = self.clock.uptime();
        let ours = match ledger.renew(calls.clone()).await {
            Ok(ours) => ours,
            Err(error) => return tracing::warn!(%error, calls = calls.len(), "leases could not be renewed"),
        };
        let mut held = self.held();
        for id in calls {
            if let Some(standing) = held.get_mut(&id) {
                // Lost once is lost for good: its new owner may have let it go again.
                *standing = match *standing {
                    Standing::Since(_) if ours.contains(&id) => Standing::Since(before),
                    _ => Standing::Lost,
                };
            }
        }
    }
}

pub(super) struct Held {
    id: CallId,
    leases: Leases,
}

impl Held {
    /// The row is about to be marked, or has been, by a request made after `since`.
    pub(super) fn renewed(&self, since: Duration) {
        if let Some(Standing::Since(renewed)) = self.leases.held().get_mut(&self.id) {
            *renewed = (*renewed).max(since);
        }
    }

    /// Is it certain that no other process takes the call over before its answer is booked, if it goes now?
    pub(super) fn may_send(&self) -> bool {
        match self.leases.held().get(&self.id) {
            _ if !self.leases.are_kept => true,
            Some(Standing::Since(since)) => self.leases.clock.uptime().saturating_sub(*since) < TAIL_WITHIN,
            Some(Standing::Lost) | None => false,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.leases.held().remove(&self.id);
    }
}

/// Other owners' open calls, each since when it has been seen as it is.
#[derive(Default)]
struct Watch {
    since: HashMap<ForeignOpenCall, Duration>,
    looked: Duration,
}

impl Watch {
    /// Takes what was seen at some moment up to `now`; returns the calls whose owners are silent.
    fn see(
        &mut self,
        calls: &[ForeignOpenCall],
        now: Duration,
        sent_lease: Duration,
    ) -> Vec<ForeignOpenCall> {
        // Whoever could not look may have been kept from the ledger like everyone else. The owners
        // that live get the time to say so.
        if now.saturating_sub(self.looked) > BLIND {
            self.since.clear();
        }
        self.looked = now;
        let since = |call: &ForeignOpenCall| (*call, self.since.get(call).copied().unwrap_or(now));
        self.since = calls.iter().map(since).collect();
        let is_silent = |call: &&ForeignOpenCall| {
            let lease = if call.state == CallState::Sent { sent_lease } else { LEASE };
            self.since.get(call).is_some_and(|&since| now.saturating_sub(since) >= lease)
        };
        calls.iter().filter(is_silent).copied().collect()
    }
}

impl Filler {
    /// Keeps this process's leases, and acts for others whose owners are silent; returns at once
    /// where a lock does that. Must run for as long as anything is under way.
    pub async fn keep_leases(&self) {
        if !self.0.leases.are_kept {
            return;
        }
        tokio::join!(self.renew_leases(), self.watch_others());
    }

    async fn renew_leases(&self) {
        loop {
            tokio::time::sleep(RENEWAL).await;
            self.0.leases.renew(&*self.0.core.ledger).await;
        }
    }

    async fn watch_others(&self) {
        let mut watch = Watch::default();
        let sent_lease = self.0.config.hard_stop + SENT_MARGIN;
        while !self.is_draining() {
            self.look_at_others(&mut watch, sent_lease).await;
            tokio::time::sleep(WATCH).await;
        }
    }

    async fn look_at_others(&self, watch: &mut Watch, sent_lease: Duration) {
        let core = &self.0.core;
        let calls = match core.ledger.foreign_calls(self.0.leases.in_hand()).await {
            Ok(calls) => calls,
            Err(error) => return tracing::debug!(%error, "other owners' calls could not be looked at"),
        };
        let silent = watch.see(&calls, core.clock.uptime(), sent_lease);
        if silent.is_empty() {
            return;
        }
        match core.ledger.take_over(silent).await {
            Ok(recovery) => self.resume(recovery),
            Err(error) => tracing::warn!(%error, "calls whose owner is silent could not be taken over"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT_LEASE: Duration = Duration::from_secs(200);

    fn call(id: i64, state: CallState, heartbeat: u64) -> ForeignOpenCall {
        ForeignOpenCall { id: CallId(id), state, heartbeat }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_owner_is_silent_when_its_call_was_seen_unchanged_for_a_full_lease() {
        let mut watch = Watch::default();
        let (reserved, sent) = (call(1, CallState::Reserved, 7), call(2, CallState::Sent, 3));
        for now in [100, 107, 114] {
            assert_eq!(watch.see(&[reserved, sent], at(now), SENT_LEASE), [], "at {now}");
        }
        assert_eq!(watch.see(&[reserved, sent], at(115), SENT_LEASE), [reserved]);
        for now in (116..300).step_by(3) {
            assert_eq!(watch.see(&[sent], at(now), SENT_LEASE), [], "at {now}");
        }
        assert_eq!(watch.see(&[sent], at(300), SENT_LEASE), [sent]);
    }

    #[test]
    fn each_change_begins_a_lease_anew() {
        let mut watch = Watch::default();
        for (now, state, heartbeat) in [
            (0, CallState::Reserved, 1),
            (10, CallState::Reserved, 2),
            (24, CallState::Answered, 3),
            (33, CallState::Answered, 4),
            (40, CallState::Answered, 4),
            (47, CallState::Answered, 4),
        ] {
            assert_eq!(watch.see(&[call(1, state, heartbeat)], at(now), SENT_LEASE), [], "at {now}");
        }
        let silent = call(1, CallState::Answered, 4);
        assert_eq!(watch.see(&[silent], at(48), SENT_LEASE), [silent]);
    }

    #[test]
    fn what_was_out_of_sight_is_new() {
        let mut watch = Watch::default();
        let reserved = call(1, CallState::Reserved, 7);
        watch.see(&[reserved], at(0), SENT_LEASE);
        watch.see(&[], at(10), SENT_LEASE);
        for now in [20, 27, 34] {
            assert_eq!(watch.see(&[reserved], at(now), SENT_LEASE), [], "at {now}");
        }
        assert_eq!(watch.see(&[reserved], at(35), SENT_LEASE), [reserved]);
    }

    #[test]
    fn whoever_could_not_look_for_a_while_begins_anew() {
        let mut watch = Watch::default();
        let reserved = call(1, CallState::Reserved, 7);
        for now in [0, 10, 21, 31] {
            assert_eq!(watch.see(&[reserved], at(now), SENT_LEASE), [], "at {now}");
        }
        assert_eq!(watch.see(&[reserved], at(36), SENT_LEASE), [reserved]);
    }
}
