//! Leases on a shared ledger: each process renews its own, and takes over calls whose owner is silent.
//!
//! No wall clock is read, and no two clocks are compared. An owner counts a lease from before it requested
//! the renewal; another process counts from after it read the row, and acts only if the row is unchanged a
//! full lease later, by an update that fails if it has changed. By then the lease is over on the owner's
//! clock too, however long either slept (Gray and Cheriton, "Leases", 1989, with the two clocks kept apart).
//!
//! A lease guards sending ([`Held::may_send`]), never booking.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Filler;
use crate::base::clock::Clock;
use crate::ledger::{CallId, CallState, ForeignOpenCall, Ledger};

const LEASE: Duration = Duration::from_secs(15);
const RENEWAL: Duration = Duration::from_secs(5);
/// The lease of a `sent` call exceeds the hard stop by this.
const SENT_MARGIN: Duration = Duration::from_secs(20);
/// A tail is sent within this time of a renewal: its answer can then be booked within the lease.
const TAIL_WITHIN: Duration = Duration::from_secs(10);
/// Interval of looks at other owners' calls.
const WATCH: Duration = Duration::from_secs(2);
/// After a longer gap between two looks, the watch starts again.
const BLIND: Duration = Duration::from_secs(10);

/// The calls of this process.
#[derive(Clone)]
pub(super) struct Leases {
    clock: Clock,
    /// False if the process has its ledger to itself.
    are_kept: bool,
    /// Uptime of the last renewal; `None` once another process has taken the call over.
    held: Arc<Mutex<HashMap<CallId, Option<Duration>>>>,
}

impl Leases {
    pub(super) fn new(ledger: &dyn Ledger, clock: Clock) -> Self {
        Self { clock, are_kept: ledger.has_leases(), held: Arc::default() }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<CallId, Option<Duration>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a call, whose row was written after the uptime `since`, until the return value is dropped.
    pub(super) fn hold(&self, id: CallId, since: Duration) -> Held {
        self.held().insert(id, Some(since));
        Held { id, leases: self.clone() }
    }

    /// Keeps a call that was just taken over; `None` if this process has it already.
    pub(super) fn resume(&self, id: CallId) -> Option<Held> {
        let since = self.clock.uptime();
        let mut held = self.held();
        let Entry::Vacant(free) = held.entry(id) else { return None };
        free.insert(Some(since));
        Some(Held { id, leases: self.clone() })
    }

    fn ids(&self) -> Vec<CallId> {
        self.held().keys().copied().collect()
    }

    async fn keep_renewing(&self, ledger: &dyn Ledger) {
        loop {
            tokio::time::sleep(RENEWAL).await;
            self.renew(ledger).await;
        }
    }

    /// Renews all leases at once. If that fails, they go on running out.
    async fn renew(&self, ledger: &dyn Ledger) {
        let calls = self.ids();
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
            if let Some(since) = held.get_mut(&id) {
                // A lost lease stays lost: its new owner may have released the call.
                *since = since.filter(|_| ours.contains(&id)).map(|_| before);
            }
        }
    }
}

pub(super) struct Held {
    id: CallId,
    leases: Leases,
}

impl Held {
    /// The row was written by a request made after the uptime `since`.
    pub(super) fn renewed(&self, since: Duration) {
        if let Some(Some(renewed)) = self.leases.held().get_mut(&self.id) {
            *renewed = (*renewed).max(since);
        }
    }

    /// Returns true if no other process can take the call over before its answer is booked.
    pub(super) fn may_send(&self) -> bool {
        let since = self.leases.held().get(&self.id).copied().flatten();
        let age = |since| self.leases.clock.uptime().saturating_sub(since);
        !self.leases.are_kept || since.is_some_and(|since| age(since) < TAIL_WITHIN)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.leases.held().remove(&self.id);
    }
}

/// Other owners' open calls, and since when each was seen unchanged.
#[derive(Default)]
struct Watch {
    since: HashMap<ForeignOpenCall, Duration>,
    looked: Duration,
}

impl Watch {
    /// Notes the calls seen at some moment up to `now`; returns those whose owners are silent.
    fn see(
        &mut self,
        calls: &[ForeignOpenCall],
        now: Duration,
        sent_lease: Duration,
    ) -> Vec<ForeignOpenCall> {
        // The ledger may have been away for the owners too; they get time to renew.
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
    /// Renews this process's leases, and takes over calls whose owners are silent. Must run while a fill is
    /// under way; returns at once if the ledger has no leases.
    pub async fn keep_leases(&self) {
        if self.0.leases.are_kept {
            tokio::join!(self.0.leases.keep_renewing(&*self.0.core.ledger), self.watch_others());
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
        let calls = match core.ledger.foreign_calls(self.0.leases.ids()).await {
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
    use jiff::Timestamp;
    use jiff::tz::TimeZone;
    use tokio::time::advance;

    use super::*;
    use crate::ledger::Reserved;
    use crate::testing::ledger_contract::picture;
    use crate::testing::memory_ledger::MemoryLedger;

    const SENT_LEASE: Duration = Duration::from_secs(200);

    fn call(id: i64, state: CallState, heartbeat: u64) -> ForeignOpenCall {
        ForeignOpenCall { id: CallId(id), state, heartbeat }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A clock of tokio's time, and a ledger with leases.
    fn shared_ledger() -> (Clock, MemoryLedger) {
        let clock = Clock::from_fn(|| Timestamp::UNIX_EPOCH);
        (clock.clone(), MemoryLedger::new(clock, TimeZone::UTC).kept_by(1))
    }

    #[tokio::test(start_paused = true)]
    async fn tail_is_sent_only_within_ten_seconds_of_a_renewal() {
        let (clock, shared) = shared_ledger();
        let alone = MemoryLedger::new(clock.clone(), TimeZone::UTC);
        let [shared, alone] = [&shared, &alone].map(|ledger| {
            let leases = Leases::new(ledger, clock.clone());
            leases.hold(CallId(1), clock.uptime())
        });
        let may_send = || [shared.may_send(), alone.may_send()];
        assert_eq!(may_send(), [true, true]);
        advance(at(10) - Duration::from_millis(1)).await;
        assert_eq!(may_send(), [true, true]);
        advance(Duration::from_millis(1)).await;
        assert_eq!(may_send(), [false, true]);
        shared.renewed(clock.uptime());
        assert_eq!(may_send(), [true, true]);
        shared.renewed(Duration::ZERO);
        assert_eq!(may_send(), [true, true], "an earlier renewal changes nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn renewal_keeps_own_calls_and_a_lost_lease_stays_lost() {
        let (clock, ledger) = shared_ledger();
        let leases = Leases::new(&ledger, clock.clone());
        let [own, lost] = [(1, ledger.clone()), (2, ledger.kept_by(2))].map(|(n, ledger)| {
            let Reserved::Won(won) = ledger.reserve(&picture(n)) else { panic!("picture {n} is free") };
            leases.hold(won.id, clock.uptime())
        });
        let renewing = tokio::time::timeout(2 * TAIL_WITHIN, leases.keep_renewing(&ledger));
        assert!(renewing.await.is_err(), "it goes on");
        assert_eq!([own.may_send(), lost.may_send()], [true, false]);
        lost.renewed(clock.uptime());
        leases.renew(&ledger.kept_by(2)).await;
        assert_eq!([own.may_send(), lost.may_send()], [false, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn call_that_is_held_is_not_resumed_again() {
        let (clock, ledger) = shared_ledger();
        let leases = Leases::new(&ledger, clock);
        advance(TAIL_WITHIN).await;
        let held = leases.resume(CallId(1)).expect("nobody holds it");
        assert!(held.may_send(), "its lease begins now");
        assert!(leases.resume(CallId(1)).is_none());
        drop(held);
        assert!(leases.resume(CallId(1)).is_some());
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
