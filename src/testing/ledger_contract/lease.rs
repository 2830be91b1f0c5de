//! What a ledger with leases promises besides: two owners at the same book.

use jiff::SignedDuration;

use super::{Bench, all_at_once, answer, monthly, picture, record, refresh, released, stored, team, unknown};
use crate::base::key::CacheKey;
use crate::ledger::budget::{Scope, Window};
use crate::ledger::{Booking, CallId, CallState, ForeignOpenCall, Permit, Reservation, Reserved, Won};

/// Makes one test, `$name`, of all checks. `$open` is an async function that takes what `$begin` has
/// returned, a clock and the zone of its days, and returns two ledgers of different owners with one
/// empty book.
macro_rules! lease_contract {
    ($name:ident, $begin:path, $open:path) => {
        $crate::testing::ledger_contract::lease_contract! { @all $name, $begin, $open:
            open_calls_of_others_are_seen_and_ones_own_are_not,
            a_beat_changes_with_each_renewal_and_each_change_of_state,
            renewing_tells_which_calls_are_still_ones_own_and_open,
            a_call_whose_reservation_was_never_acknowledged_is_seen_by_its_own_owner,
            a_silent_owners_reserved_call_is_released_and_its_credits_are_given_back,
            a_silent_owners_sent_call_becomes_unknown_and_its_late_answer_is_booked,
            a_silent_owners_answered_call_is_finished_by_whoever_takes_it,
            a_result_that_its_first_owner_books_after_all_is_booked,
            a_call_that_has_changed_is_not_taken_over,
            of_two_takers_one_gets_a_call,
            a_restart_leaves_the_calls_of_the_last_process_to_takers,
            a_refresh_stored_over_an_older_generation_is_told_to_all,
            a_record_imported_over_an_older_generation_is_told_to_all,
            concurrent_changes_are_told_each_once_in_order,
            one_of_many_owners_wins_a_key,
            budgets_are_exact_over_owners,
            a_freeze_by_one_owner_stops_the_others,
            the_spool_and_its_bound_are_common_to_all_owners,
        }
    };
    (@all $name:ident, $begin:path, $open:path: $($check:ident),* $(,)?) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let ground = $begin();
            $(
                eprintln!("{}", stringify!($check));
                let clock = $crate::testing::ledger_contract::TurnableClock::at("2026-11-22T09:00:00Z");
                let two = $open(&ground, clock.clock(), $crate::testing::ledger_contract::zone()).await;
                let [one, other] = two.map(|ledger| $crate::testing::ledger_contract::Bench {
                    ledger: std::sync::Arc::new(ledger),
                    clock: clock.clone(),
                });
                $crate::testing::ledger_contract::$check(&one, &other).await;
            )*
        }
    };
}
pub(crate) use lease_contract;

impl Bench {
    async fn renew(&self, calls: &[Won]) -> Vec<CallId> {
        let mut held =
            self.ledger.renew(calls.iter().map(|won| won.id).collect()).await.expect("can be asked");
        held.sort_unstable();
        held
    }

    /// All open calls: whoever asks has none in hand.
    async fn foreign(&self) -> Vec<ForeignOpenCall> {
        self.foreign_to(&[]).await
    }

    /// The open calls that are not among these.
    async fn foreign_to(&self, in_hand: &[Won]) -> Vec<ForeignOpenCall> {
        let in_hand = in_hand.iter().map(|won| won.id).collect();
        self.ledger.foreign_calls(in_hand).await.expect("the ledger can be asked")
    }

    /// A call of another owner, as it is seen now.
    async fn seen(&self, won: Won) -> ForeignOpenCall {
        let found = self.foreign().await.into_iter().find(|call| call.id == won.id);
        found.unwrap_or_else(|| panic!("call {} is not seen", won.id.0))
    }

    async fn take(&self, silent: &[ForeignOpenCall]) -> crate::ledger::Recovery {
        self.ledger.take_over(silent.to_vec()).await.expect("the ledger can be asked")
    }

    async fn position(&self) -> u64 {
        self.ledger.changes(None).await.expect("the ledger can be asked").position
    }

    async fn changed_since(&self, position: u64) -> Vec<(String, CacheKey)> {
        self.ledger.changes(Some(position)).await.expect("the ledger can be asked").keys
    }
}

fn counts(found: &crate::ledger::Recovery) -> (u64, u64, usize) {
    (found.released, found.unknown, found.unfinished.len())
}

pub(crate) async fn open_calls_of_others_are_seen_and_ones_own_are_not(one: &Bench, other: &Bench) {
    let mut ours = Vec::new();
    for (n, state) in (1..).zip(CallState::ALL) {
        ours.push(one.bring(n, state).await);
    }
    let seen: Vec<_> = other.foreign().await.into_iter().map(|call| (call.id, call.state)).collect();
    let open = [(0, CallState::Reserved), (2, CallState::Sent), (3, CallState::Answered)];
    assert_eq!(seen, open.map(|(n, state)| (ours[n].id, state)));
    assert_eq!(one.foreign_to(&ours).await, []);
}

pub(crate) async fn a_beat_changes_with_each_renewal_and_each_change_of_state(one: &Bench, other: &Bench) {
    let won = one.win(picture(1)).await;
    let mut heartbeats = vec![other.seen(won).await.heartbeat];
    assert_eq!(other.seen(won).await.heartbeat, heartbeats[0], "looking changes nothing");
    one.renew(&[won]).await;
    heartbeats.push(other.seen(won).await.heartbeat);
    assert_eq!(one.mark_sent(won.id).await, Permit::Granted);
    heartbeats.push(other.seen(won).await.heartbeat);
    one.renew(&[won]).await;
    heartbeats.push(other.seen(won).await.heartbeat);
    one.book(won.id, answer(won.id)).await;
    heartbeats.push(other.seen(won).await.heartbeat);
    let last = *other.foreign().await.last().expect("it is open");
    assert_eq!(counts(&other.take(&[last]).await), (0, 0, 1));
    heartbeats.push(one.seen(won).await.heartbeat);
    let mut distinct = heartbeats.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), heartbeats.len(), "{heartbeats:?}");
}

pub(crate) async fn renewing_tells_which_calls_are_still_ones_own_and_open(one: &Bench, other: &Bench) {
    let (reserved, sent) = (one.win(picture(1)).await, one.send(picture(2)).await);
    let (answered, done) = (one.answered(picture(3)).await, one.bring(4, CallState::Refused).await);
    let theirs = other.win(picture(5)).await;
    let all = [reserved, sent, answered, done, theirs];
    assert_eq!(one.renew(&all).await, [reserved.id, sent.id, answered.id]);
    let silent = [other.seen(answered).await, other.seen(reserved).await];
    other.take(&silent).await;
    assert_eq!(one.renew(&all).await, [sent.id], "what was taken over is not ours");
    assert_eq!(other.renew(&all).await, [answered.id, theirs.id]);
    assert_eq!(one.renew(&[]).await, []);
}

pub(crate) async fn a_call_whose_reservation_was_never_acknowledged_is_seen_by_its_own_owner(
    one: &Bench,
    _: &Bench,
) {
    let known = one.win(picture(1)).await;
    // Committed; but whoever asked has gone, and renews what he knows.
    let lost = one.win(picture(2)).await;
    let silent = one.seen(lost).await;
    assert_eq!(one.foreign_to(&[known]).await, [silent]);
    assert_eq!(counts(&one.take(&[silent]).await), (1, 0, 0));
    assert_eq!(one.mark_sent(lost.id).await, Permit::Lost);
    one.win(picture(2)).await;
}

pub(crate) async fn a_silent_owners_reserved_call_is_released_and_its_credits_are_given_back(
    one: &Bench,
    other: &Bench,
) {
    let won = one.win(picture(1)).await;
    let silent = other.seen(won).await;
    assert_eq!(counts(&other.take(&[silent]).await), (1, 0, 0));
    assert_eq!(other.used(Scope::Global, Window::Day).await, 0);
    assert_eq!(other.calls(CallState::Released).await, 1);
    assert_eq!(one.mark_sent(won.id).await, Permit::Lost, "it woke up too late");
    let next = other.win(picture(1)).await;
    assert_eq!(one.reserve(picture(1)).await, Reserved::Held(next.id));
    assert_eq!(one.mark_sent(next.id).await, Permit::Lost, "it is another's");
    assert_eq!(other.mark_sent(next.id).await, Permit::Granted);
}

pub(crate) async fn a_silent_owners_sent_call_becomes_unknown_and_its_late_answer_is_booked(
    one: &Bench,
    other: &Bench,
) {
    let won = one.send(picture(1)).await;
    let silent = other.seen(won).await;
    assert_eq!(counts(&other.take(&[silent]).await), (0, 1, 0));
    assert_eq!(other.used(Scope::Global, Window::Day).await, 3, "it may have been paid");
    other.assert_rests(picture(1), 60).await;
    one.book(won.id, answer(won.id)).await;
    assert_eq!(one.renew(&[won]).await, [won.id], "whoever books the answer fetches the result");
    let kept = record(&picture(1), won, one.clock.now());
    one.book(won.id, stored(&kept)).await;
    assert_eq!(other.look_up(&picture(1)).await, Some(kept));
}

pub(crate) async fn a_silent_owners_answered_call_is_finished_by_whoever_takes_it(
    one: &Bench,
    other: &Bench,
) {
    let bought = Reservation { team: "print".to_owned(), credits: 7, width: 1, height: 65_535, ..picture(1) };
    let answered_at = one.clock.now();
    let won = one.answered(bought.clone()).await;
    one.clock.turn(5);
    let silent = other.seen(won).await;
    let found = other.take(&[silent]).await;
    assert_eq!(counts(&found), (0, 0, 1));
    let call = &found.unfinished[0];
    assert_eq!((call.id, call.generation, call.answered_at), (won.id, 0, answered_at));
    assert_eq!(call.text.expose(), super::signed_answer(won.id.0));
    let told = &call.reservation;
    assert_eq!((&told.namespace, told.key, &told.team), (&bought.namespace, bought.key, &bought.team));
    assert_eq!((told.credits, told.image, told.width, told.height), (7, bought.image, 1, 65_535));
    assert_eq!(other.renew(&[won]).await, [won.id]);
    let kept = record(&bought, won, other.clock.now());
    other.book(won.id, stored(&kept)).await;
    assert_eq!(one.look_up(&bought).await, Some(kept));
}

pub(crate) async fn a_result_that_its_first_owner_books_after_all_is_booked(one: &Bench, other: &Bench) {
    let won = one.answered(picture(1)).await;
    let silent = other.seen(won).await;
    other.take(&[silent]).await;
    let kept = record(&picture(1), won, one.clock.now());
    one.book(won.id, stored(&kept)).await;
    // And the taker's own, which is the same state.
    other.book(won.id, stored(&record(&picture(1), won, one.clock.now()))).await;
    assert_eq!(other.look_up(&picture(1)).await, Some(kept));
    assert_eq!(other.calls(CallState::Stored).await, 1);
}

pub(crate) async fn a_call_that_has_changed_is_not_taken_over(one: &Bench, other: &Bench) {
    let won = one.win(picture(1)).await;
    let mut stale = vec![other.seen(won).await];
    one.renew(&[won]).await;
    stale.push(other.seen(won).await);
    assert_eq!(one.mark_sent(won.id).await, Permit::Granted);
    stale.push(other.seen(won).await);
    one.book(won.id, answer(won.id)).await;
    assert_eq!(counts(&other.take(&stale).await), (0, 0, 0));
    assert_eq!(one.renew(&[won]).await, [won.id]);
    // Nor one that has ended.
    let last = other.seen(won).await;
    let kept = record(&picture(1), won, one.clock.now());
    one.book(won.id, stored(&kept)).await;
    let nobody = ForeignOpenCall { id: CallId(4711), ..last };
    assert_eq!(counts(&other.take(&[last, nobody]).await), (0, 0, 0));
    assert_eq!(other.look_up(&picture(1)).await, Some(kept));
}

pub(crate) async fn of_two_takers_one_gets_a_call(one: &Bench, other: &Bench) {
    let mut silent = Vec::new();
    for n in 0..20 {
        let state = [CallState::Reserved, CallState::Sent, CallState::Answered][n as usize % 3];
        silent.push(one.seen(one.bring(n, state).await).await);
    }
    let takers = [one.clone(), other.clone()].into_iter().map(|taker| {
        let silent = silent.clone();
        async move { taker.take(&silent).await }
    });
    let found = all_at_once(takers).await;
    let sum = |of: fn(&crate::ledger::Recovery) -> u64| found.iter().map(of).sum::<u64>();
    assert_eq!((sum(|f| f.released), sum(|f| f.unknown)), (7, 7));
    let mut unfinished: Vec<_> = found.iter().flat_map(|f| f.unfinished.iter().map(|call| call.id)).collect();
    unfinished.sort_unstable();
    unfinished.dedup();
    assert_eq!((unfinished.len(), sum(|f| f.unfinished.len() as u64)), (6, 6));
    assert_eq!(one.used(Scope::Global, Window::Day).await, 13 * 3);
}

pub(crate) async fn a_restart_leaves_the_calls_of_the_last_process_to_takers(one: &Bench, other: &Bench) {
    let won = one.send(picture(1)).await;
    let found = other.ledger.recover().await.expect("the ledger can be asked");
    assert_eq!(counts(&found), (0, 0, 0), "its owner may live");
    assert_eq!(other.seen(won).await.state, CallState::Sent);
}

pub(crate) async fn a_refresh_stored_over_an_older_generation_is_told_to_all(one: &Bench, other: &Bench) {
    let begun = other.position().await;
    one.store(picture(1)).await;
    one.store(picture(2)).await;
    assert_eq!(other.changed_since(begun).await, [], "what is new is in nobody's memory");
    one.store(refresh(1)).await;
    let Reservation { namespace, key, .. } = picture(1);
    assert_eq!(other.changed_since(begun).await, [(namespace.clone(), key)]);
    let first = other.position().await;
    assert!(first > begun);
    assert_eq!(other.changed_since(first).await, []);
    // Again, and through the spool.
    let won = other.answered(refresh(1)).await;
    let kept = record(&picture(1), won, one.clock.now());
    other.book(won.id, super::spooled(&kept)).await;
    for position in [begun, first] {
        assert_eq!(one.changed_since(position).await, [(namespace.clone(), key)], "once, however often");
    }
    assert!(one.position().await > first);
}

pub(crate) async fn a_record_imported_over_an_older_generation_is_told_to_all(one: &Bench, other: &Bench) {
    let begun = other.position().await;
    one.ledger.import_record(&super::foreign(1, 0, one.clock.now())).await.expect("the ledger can be asked");
    assert_eq!(other.changed_since(begun).await, []);
    let newer = super::foreign(1, 4, one.clock.now());
    one.ledger.import_record(&newer).await.expect("the ledger can be asked");
    one.ledger.import_record(&newer).await.expect("the ledger can be asked");
    assert_eq!(other.changed_since(begun).await.len(), 1);
    assert_eq!(other.look_up(&picture(1)).await, Some(newer));
}

pub(crate) async fn concurrent_changes_are_told_each_once_in_order(one: &Bench, other: &Bench) {
    for n in 0..12 {
        one.store(picture(n)).await;
    }
    let begun = one.position().await;
    let storing = (0..12).map(|n| {
        let payer = if n % 2 == 0 { one.clone() } else { other.clone() };
        async move { payer.store(refresh(n)).await.key }
    });
    let watcher = other.clone();
    let watching = tokio::spawn(async move {
        let (mut position, mut seen) = (begun, Vec::new());
        while seen.len() < 12 {
            let changes = watcher.ledger.changes(Some(position)).await.expect("the ledger can be asked");
            assert!(changes.position >= position);
            position = changes.position;
            seen.extend(changes.keys.into_iter().map(|(_, key)| key));
        }
        seen
    });
    let mut stored = all_at_once(storing).await;
    let mut seen = watching.await.expect("it does not panic");
    let order = |key: &CacheKey| *key.as_bytes();
    stored.sort_unstable_by_key(order);
    seen.sort_unstable_by_key(order);
    assert_eq!(seen, stored, "whoever looks again and again misses none");
}

pub(crate) async fn one_of_many_owners_wins_a_key(one: &Bench, other: &Bench) {
    for n in 0..10 {
        let asking = (0..10).map(|at| {
            let asker = if at % 2 == 0 { one.clone() } else { other.clone() };
            async move { asker.reserve(picture(n)).await }
        });
        let won = all_at_once(asking).await;
        let winners = won.iter().filter(|outcome| matches!(outcome, Reserved::Won(_))).count();
        let held = won.iter().filter(|outcome| matches!(outcome, Reserved::Held(_))).count();
        assert_eq!((winners, held), (1, 9));
    }
    assert_eq!(one.used(Scope::Global, Window::Day).await, 30);
}

pub(crate) async fn budgets_are_exact_over_owners(one: &Bench, other: &Bench) {
    let budgets = vec![monthly(Scope::Global, 30), super::daily(team("press"), 100)];
    let asking = (0..60).map(|n| {
        let asker = if n % 2 == 0 { one.clone() } else { other.clone() };
        let wanted = Reservation { budgets: budgets.clone(), ..picture(n) };
        async move { asker.reserve(wanted).await }
    });
    let outcomes = all_at_once(asking).await;
    let mut won = outcomes.iter().filter_map(|outcome| match outcome {
        Reserved::Won(won) => Some(*won),
        Reserved::OverBudget(_) => None,
        other => panic!("{other:?}"),
    });
    let first = won.next().expect("ten fit");
    assert_eq!(1 + won.count(), 10);
    one.book(first.id, released()).await;
    let wanted = Reservation { budgets, ..picture(100) };
    other.win(wanted.clone()).await;
    let refused = one.reserve(Reservation { key: picture(101).key, ..wanted }).await;
    assert!(matches!(refused, Reserved::OverBudget(_)), "{refused:?}");
    assert_eq!(one.used(team("press"), Window::Day).await, 30);
}

pub(crate) async fn a_freeze_by_one_owner_stops_the_others(one: &Bench, other: &Bench) {
    let won = other.win(picture(1)).await;
    one.freeze(Scope::Global, true).await;
    assert_eq!(other.mark_sent(won.id).await, Permit::Frozen(Scope::Global));
    assert_eq!(other.reserve(picture(2)).await, Reserved::Frozen(Scope::Global));
    other.freeze(Scope::Global, false).await;
    assert_eq!(other.mark_sent(won.id).await, Permit::Granted);

    // Whatever is granted was granted before the freeze was confirmed.
    for n in 10..20 {
        let won = one.win(picture(n)).await;
        let sent_before = other.calls(CallState::Sent).await;
        let sender = one.clone();
        let sending = tokio::spawn(async move { sender.mark_sent(won.id).await });
        other.freeze(team("press"), true).await;
        let sent = other.calls(CallState::Sent).await - sent_before;
        let permit = sending.await.expect("it does not panic");
        match permit {
            Permit::Granted => assert_eq!(sent, 1, "sent after the freeze"),
            other => assert_eq!(other, Permit::Frozen(team("press"))),
        }
        other.freeze(team("press"), false).await;
    }
}

pub(crate) async fn the_spool_and_its_bound_are_common_to_all_owners(one: &Bench, other: &Bench) {
    let half = vec![b'x'; usize::try_from(super::SPOOL_MAX / 2).expect("a small number")];
    let mut booking = Vec::new();
    for n in 0..6 {
        let owner = if n % 2 == 0 { one } else { other };
        let won = owner.answered(picture(n)).await;
        let made = record(&picture(n), won, one.clock.now());
        let bytes = bytes::Bytes::from([&half[..half.len() - 1], &[n as u8]].concat());
        let kept = super::Record {
            digest: crate::base::key::Digest::of(&bytes),
            bytes: bytes.len() as u64,
            stored_at: one.clock.now() + SignedDuration::from_secs(i64::from(n)),
            ..made
        };
        let owner = owner.clone();
        booking.push(async move {
            let spooled = Booking::Spooled { record: Box::new(kept), bytes };
            owner.ledger.book(won.id, spooled).await.is_ok()
        });
    }
    let booked = all_at_once(booking).await;
    assert_eq!(booked.iter().filter(|&&booked| booked).count(), 2, "two halves, whoever came first");
    assert_eq!(one.usage().await.bytes, super::SPOOL_MAX);
    let waiting = other.waiting().await;
    for waits in &waiting {
        assert!(one.object(&waits.record).await.is_some(), "every owner serves it");
    }
    one.unspool(waiting[0].id, &waiting[0].record).await;
    assert_eq!(other.waiting().await.len(), 1);
    let won = one.send(picture(30)).await;
    one.book(won.id, unknown()).await;
}
