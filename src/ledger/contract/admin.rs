//! What every [`LedgerAdmin`] must do, with the ledger it belongs to.
//!
//! A ledger runs all checks with one line in its own tests, [`admin_contract!`].

use super::*;
use crate::ledger::Changes;
use crate::ledger::admin::{LedgerAdmin, Purge};

/// Makes one test of each check; `$open` as in [`ledger_contract!`].
macro_rules! admin_contract {
    ($open:path) => {
        $crate::ledger::contract::admin::admin_contract! { @checks @each $open }
    };
    ($name:ident, $begin:path, $open:path) => {
        $crate::ledger::contract::admin::admin_contract! { @checks @all $name, $begin, $open }
    };
    (@checks $($how:tt)*) => {
        $crate::ledger::contract::admin::admin_contract! { $($how)*:
            a_purged_result_is_absent_and_the_next_is_of_a_higher_generation,
            a_purge_changes_no_row_and_no_budget,
            what_was_purged_is_not_adopted_again,
            a_purge_reaches_over_lost_results,
            a_purge_leaves_a_call_under_way_to_bring_the_new_result,
            purging_is_repeated_without_harm_and_nothing_is_not_purged,
            a_purge_concerns_one_key_of_one_namespace,
            a_spooled_result_is_purged_and_leaves_the_spool,
            a_late_result_of_a_purged_generation_stays_absent,
            changes_tell_purges_and_refreshes_in_order,
            concurrent_purges_agree,
        }
    };
    (@each $open:path: $($check:ident),* $(,)?) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $check() {
            let clock = $crate::ledger::contract::TurnableClock::at("2026-11-22T09:00:00Z");
            let (ledger, _keep) = $open(clock.clock(), $crate::ledger::contract::zone()).await;
            let ledger = std::sync::Arc::new(ledger);
            let bench = $crate::ledger::contract::Bench { ledger: ledger.clone(), clock };
            $crate::ledger::contract::admin::$check(&bench, &*ledger).await;
        }
    )* };
    (@all $name:ident, $begin:path, $open:path: $($check:ident),* $(,)?) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let ground = $begin();
            $(
                eprintln!("{}", stringify!($check));
                let clock = $crate::ledger::contract::TurnableClock::at("2026-11-22T09:00:00Z");
                let ledger = $open(&ground, clock.clock(), $crate::ledger::contract::zone()).await;
                let ledger = std::sync::Arc::new(ledger);
                let bench = $crate::ledger::contract::Bench { ledger: ledger.clone(), clock };
                $crate::ledger::contract::admin::$check(&bench, &*ledger).await;
            )*
        }
    };
}
pub(in crate::ledger) use admin_contract;

/// Asserts what a purge came to.
async fn assert_purge(admin: &dyn LedgerAdmin, wanted: &Reservation, expected: Purge) {
    let purge = admin.purge(&wanted.namespace, wanted.key).await.expect("the ledger can be asked");
    assert_eq!(purge, expected);
}

async fn purged(bench: &Bench, wanted: &Reservation) -> Option<u64> {
    bench.ledger.purged(&wanted.namespace, wanted.key).await.expect("the ledger can be asked")
}

async fn changes(bench: &Bench, after: Option<u64>) -> Changes {
    bench.ledger.changes(after).await.expect("the ledger can be asked")
}

pub(in crate::ledger) async fn a_purged_result_is_absent_and_the_next_is_of_a_higher_generation(
    bench: &Bench,
    admin: &dyn LedgerAdmin,
) {
    for generation in 0..3 {
        let kept = bench.store(picture(1)).await;
        assert_eq!(kept.generation, generation);
        assert_eq!(bench.look_up(&picture(1)).await, Some(kept));
        assert_purge(admin, &picture(1), Purge::Done { generation }).await;
        assert_eq!(purged(bench, &picture(1)).await, Some(generation));
        assert_eq!(bench.look_up(&picture(1)).await, None);
    }
    let refreshed = bench.store(refresh(1)).await;
    assert_eq!(refreshed.generation, 3);
    let newest = bench.store(refresh(1)).await;
    assert_eq!(bench.reserve(picture(1)).await, Reserved::Stored(Box::new(newest)));
    assert_purge(admin, &picture(1), Purge::Done { generation: 4 }).await;
    assert_eq!(bench.look_up(&picture(1)).await, None, "nor is an older generation found");
}

pub(in crate::ledger) async fn a_purge_changes_no_row_and_no_budget(bench: &Bench, admin: &dyn LedgerAdmin) {
    let won = bench.bring(1, CallState::Stored).await;
    let (totals, used) = (bench.totals().await, bench.used(Scope::Global, Window::Day).await);
    assert_purge(admin, &picture(1), Purge::Done { generation: 0 }).await;
    assert_eq!(bench.totals().await, totals);
    assert_eq!(bench.used(Scope::Global, Window::Day).await, used);
    let facts = bench.ledger.call(won.id).await.unwrap().expect("it stays");
    assert_eq!((facts.state, facts.generation), (CallState::Stored, 0));
    // Buying it again is a purchase like any other.
    bench.win(picture(1)).await;
    assert_eq!(bench.used(Scope::Global, Window::Day).await, used + 3);
}

pub(in crate::ledger) async fn what_was_purged_is_not_adopted_again(bench: &Bench, admin: &dyn LedgerAdmin) {
    let kept = bench.store(picture(1)).await;
    assert_purge(admin, &picture(1), Purge::Done { generation: 0 }).await;
    for old in [kept, foreign(1, 0, bench.clock.now())] {
        adopt(bench, &old).await;
        assert_eq!(bench.look_up(&picture(1)).await, None);
    }
    let newer = foreign(1, 1, bench.clock.now());
    adopt(bench, &newer).await;
    assert_eq!(bench.look_up(&picture(1)).await, Some(newer), "it is none of those that were purged");
    assert_purge(admin, &picture(1), Purge::Done { generation: 1 }).await;
    assert_eq!(bench.win(picture(1)).await.generation, 2);
}

pub(in crate::ledger) async fn a_purge_reaches_over_lost_results(bench: &Bench, admin: &dyn LedgerAdmin) {
    bench.store(picture(1)).await;
    let newest = bench.store(refresh(1)).await;
    bench.ledger.lose(&newest).await.expect("the ledger can be asked");
    assert_purge(admin, &picture(1), Purge::Done { generation: 1 }).await;
    assert_eq!(bench.look_up(&picture(1)).await, None);
    assert_eq!(bench.win(picture(1)).await.generation, 2);

    let only = bench.store(picture(2)).await;
    bench.ledger.lose(&only).await.expect("the ledger can be asked");
    assert_purge(admin, &picture(2), Purge::Nothing).await;
}

pub(in crate::ledger) async fn a_purge_leaves_a_call_under_way_to_bring_the_new_result(
    bench: &Bench,
    admin: &dyn LedgerAdmin,
) {
    for (n, state) in (1..).zip([CallState::Reserved, CallState::Sent, CallState::Answered]) {
        bench.store(picture(n)).await;
        let call = bench.win(refresh(n)).await;
        if state != CallState::Reserved {
            assert_eq!(bench.mark_sent(call.id).await, Permit::Granted);
        }
        if state == CallState::Answered {
            bench.book(call.id, answer(call.id)).await;
        }
        assert_purge(admin, &picture(n), Purge::Done { generation: 0 }).await;
        bench.assert_hold(&picture(n), call, state, state.as_str()).await;
        if state == CallState::Reserved {
            assert_eq!(bench.mark_sent(call.id).await, Permit::Granted);
        }
        if state != CallState::Answered {
            bench.book(call.id, answer(call.id)).await;
        }
        let kept = record(&picture(n), call, bench.clock.now());
        bench.book(call.id, stored(&kept)).await;
        assert_eq!(bench.look_up(&picture(n)).await, Some(kept), "{}", state.as_str());
    }
    // The first result of a key is not there yet, so there is nothing to purge.
    let first = bench.answered(picture(9)).await;
    assert_purge(admin, &picture(9), Purge::Nothing).await;
    let kept = record(&picture(9), first, bench.clock.now());
    bench.book(first.id, stored(&kept)).await;
    assert_eq!(bench.look_up(&picture(9)).await, Some(kept));
}

pub(in crate::ledger) async fn purging_is_repeated_without_harm_and_nothing_is_not_purged(
    bench: &Bench,
    admin: &dyn LedgerAdmin,
) {
    assert_purge(admin, &picture(1), Purge::Nothing).await;
    assert_eq!(purged(bench, &picture(1)).await, None);
    for (n, state) in (10..).zip(CallState::ALL) {
        if state != CallState::Stored {
            bench.bring(n, state).await;
            assert_purge(admin, &picture(n), Purge::Nothing).await;
        }
    }
    assert_eq!(changes(bench, Some(0)).await, Changes::default());
    bench.store(picture(1)).await;
    assert_purge(admin, &picture(1), Purge::Done { generation: 0 }).await;
    for _ in 0..2 {
        assert_purge(admin, &picture(1), Purge::Repeated { generation: 0 }).await;
    }
    assert_eq!(changes(bench, Some(0)).await.keys.len(), 1, "only the first one changed anything");
}

pub(in crate::ledger) async fn a_purge_concerns_one_key_of_one_namespace(
    bench: &Bench,
    admin: &dyn LedgerAdmin,
) {
    let elsewhere = Reservation { namespace: "builtin-v1".to_owned(), ..picture(1) };
    bench.store(picture(1)).await;
    let (same_key, other) = (bench.store(elsewhere.clone()).await, bench.store(picture(2)).await);
    assert_purge(admin, &picture(1), Purge::Done { generation: 0 }).await;
    assert_eq!(bench.look_up(&elsewhere).await, Some(same_key));
    assert_eq!(bench.look_up(&picture(2)).await, Some(other));
    assert_eq!((purged(bench, &elsewhere).await, purged(bench, &picture(2)).await), (None, None));
}

pub(in crate::ledger) async fn a_spooled_result_is_purged_and_leaves_the_spool(
    bench: &Bench,
    admin: &dyn LedgerAdmin,
) {
    for (n, by_another) in [(1, false), (2, true)] {
        let won = bench.answered(picture(n)).await;
        let kept = record(&picture(n), won, bench.clock.now());
        bench.book(won.id, spooled(&kept)).await;
        assert_purge(admin, &picture(n), Purge::Done { generation: 0 }).await;
        assert_eq!(bench.look_up(&picture(n)).await, None);
        assert_eq!(bench.object(&kept).await, Some(bytes_of(&kept)), "its URL still serves");
        // Whoever copies it tells what stands in the store: nothing but itself, or a later purchase.
        let newer = foreign(n, 1, bench.clock.now());
        bench.unspool(won.id, if by_another { &newer } else { &kept }).await;
        assert!(bench.waiting().await.is_empty());
        assert_eq!(bench.look_up(&picture(n)).await, by_another.then_some(newer));
    }
}

pub(in crate::ledger) async fn a_late_result_of_a_purged_generation_stays_absent(
    bench: &Bench,
    admin: &dyn LedgerAdmin,
) {
    let late = bench.bring(1, CallState::Unknown).await;
    bench.clock.turn(60);
    bench.store(picture(1)).await;
    assert_purge(admin, &picture(1), Purge::Done { generation: 0 }).await;
    bench.book(late.id, answer(late.id)).await;
    bench.book(late.id, stored(&record(&picture(1), late, bench.clock.now()))).await;
    assert_eq!(bench.look_up(&picture(1)).await, None, "it was bought before the purge");
    assert_eq!(bench.win(picture(1)).await.generation, 1);
}

pub(in crate::ledger) async fn changes_tell_purges_and_refreshes_in_order(
    bench: &Bench,
    admin: &dyn LedgerAdmin,
) {
    let start = changes(bench, None).await;
    assert!(start.keys.is_empty());
    bench.store(picture(1)).await;
    bench.store(picture(2)).await;
    assert_eq!(changes(bench, Some(start.position)).await, start, "a first result makes nothing out of date");
    bench.store(refresh(2)).await;
    assert_purge(admin, &picture(1), Purge::Done { generation: 0 }).await;
    let won = bench.answered(refresh(2)).await;
    assert_eq!(changes(bench, None).await.keys, [], "only the position to begin from");
    let kept = record(&picture(2), won, bench.clock.now());
    for _ in 0..2 {
        bench.book(won.id, spooled(&kept)).await;
    }
    let told = changes(bench, Some(start.position)).await;
    let named = |n| (picture(n).namespace, picture(n).key);
    // A key may be told once for each change, or once for all of them, in the place of the last.
    let is_last = |at: &usize| !told.keys[at + 1..].contains(&told.keys[*at]);
    let last: Vec<_> = (0..told.keys.len()).filter(is_last).map(|at| told.keys[at].clone()).collect();
    assert_eq!(last, [named(1), named(2)], "{:?}", told.keys);
    assert_eq!(changes(bench, Some(told.position)).await, Changes { keys: Vec::new(), ..told.clone() });
    assert_eq!(changes(bench, None).await.position, told.position);
    // What was told in between is told again to whoever is behind.
    bench.store(picture(1)).await;
    let later = changes(bench, Some(told.position)).await;
    assert_eq!(later.keys, [named(1)], "the generation after a purge");
    assert!(later.position > told.position && told.position > start.position);
}

pub(in crate::ledger) async fn concurrent_purges_agree(bench: &Bench, admin: &dyn LedgerAdmin) {
    bench.store(picture(1)).await;
    let Reservation { namespace, key, .. } = picture(1);
    let purge = || admin.purge(&namespace, key);
    let (a, b, c, d) = tokio::join!(purge(), purge(), purge(), purge());
    let done = [a, b, c, d].map(|purge| purge.expect("the ledger can be asked"));
    let first = done.iter().filter(|purge| matches!(purge, Purge::Done { generation: 0 })).count();
    let rest = done.iter().filter(|purge| matches!(purge, Purge::Repeated { generation: 0 })).count();
    assert_eq!((first, rest), (1, 3), "{done:?}");
}
