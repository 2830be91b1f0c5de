//! What every [`LedgerAdmin`] must do, with the ledger it belongs to.
//!
//! A ledger runs all checks with one line in its own tests, [`admin_contract!`].

use super::*;
use crate::ledger::Changes;
use crate::ledger::admin::{
    Actor, AuditLine, CallDetail, CallFilter, CallPage, GivenBack, LedgerAdmin, Purge, Settled, Settlement,
};

/// Makes one test of each check; `$open` as in [`ledger_contract!`].
macro_rules! admin_contract {
    ($open:path) => {
        $crate::testing::ledger_contract::admin::admin_contract! { @checks @each $open }
    };
    ($name:ident, $begin:path, $open:path) => {
        $crate::testing::ledger_contract::admin::admin_contract! { @checks @all $name, $begin, $open }
    };
    (@checks $($how:tt)*) => {
        $crate::testing::ledger_contract::admin::admin_contract! { $($how)*:
            a_purged_result_is_absent_and_the_next_is_of_a_higher_generation,
            a_purge_changes_no_row_and_no_budget,
            what_was_purged_is_not_imported_again,
            a_purge_reaches_over_lost_results,
            a_purge_leaves_a_call_under_way_to_bring_the_new_result,
            purging_is_repeated_without_harm_and_nothing_is_not_purged,
            a_purge_concerns_one_key_of_one_namespace,
            a_spooled_result_is_purged_and_leaves_the_spool,
            a_late_result_of_a_purged_generation_stays_absent,
            changes_tell_purges_and_refreshes_in_order,
            concurrent_purges_agree,
            each_change_is_one_line_of_the_audit,
            the_audit_is_read_newest_first_in_pieces,
            a_freeze_by_an_operator_is_the_ledgers,
            a_charged_call_keeps_its_credits,
            a_call_that_was_not_charged_gives_its_credits_back,
            a_closed_month_does_not_change,
            only_an_unknown_call_is_settled,
            a_late_answer_may_follow_a_call_that_was_settled_as_charged,
            calls_are_listed_newest_first_in_pieces,
            calls_are_filtered,
            a_call_is_told_in_every_field_but_its_answers_text,
        }
    };
    (@each $open:path: $($check:ident),* $(,)?) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $check() {
            let clock = $crate::testing::ledger_contract::TurnableClock::at("2026-11-22T09:00:00Z");
            let (ledger, _keep) = $open(clock.clock(), $crate::testing::ledger_contract::zone()).await;
            let ledger = std::sync::Arc::new(ledger);
            let bench = $crate::testing::ledger_contract::Bench { ledger: ledger.clone(), clock };
            $crate::testing::ledger_contract::admin::$check(&bench, &*ledger).await;
        }
    )* };
    (@all $name:ident, $begin:path, $open:path: $($check:ident),* $(,)?) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let ground = $begin();
            $(
                eprintln!("{}", stringify!($check));
                let clock = $crate::testing::ledger_contract::TurnableClock::at("2026-11-22T09:00:00Z");
                let ledger = $open(&ground, clock.clock(), $crate::testing::ledger_contract::zone()).await;
                let ledger = std::sync::Arc::new(ledger);
                let bench = $crate::testing::ledger_contract::Bench { ledger: ledger.clone(), clock };
                $crate::testing::ledger_contract::admin::$check(&bench, &*ledger).await;
            )*
        }
    };
}
pub(crate) use admin_contract;

fn by() -> Actor {
    Actor::token("opsteam1")
}

/// Asserts what a purge came to.
async fn assert_purge(admin: &dyn LedgerAdmin, wanted: &Reservation, expected: Purge) {
    let purge = admin.purge(&wanted.namespace, wanted.key, &by()).await.expect("the ledger can be asked");
    assert_eq!(purge, expected);
}

async fn purged(bench: &Bench, wanted: &Reservation) -> Option<u64> {
    bench.ledger.purged(&wanted.namespace, wanted.key).await.expect("the ledger can be asked")
}

async fn changes(bench: &Bench, after: Option<u64>) -> Changes {
    bench.ledger.changes(after).await.expect("the ledger can be asked")
}

pub(crate) async fn a_purged_result_is_absent_and_the_next_is_of_a_higher_generation(
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

pub(crate) async fn a_purge_changes_no_row_and_no_budget(bench: &Bench, admin: &dyn LedgerAdmin) {
    bench.bring(1, CallState::Stored).await;
    let (totals, used) = (bench.totals().await, bench.used(Scope::Global, Window::Day).await);
    assert_purge(admin, &picture(1), Purge::Done { generation: 0 }).await;
    assert_eq!(bench.totals().await, totals);
    assert_eq!(bench.used(Scope::Global, Window::Day).await, used);
    // Buying it again is a purchase like any other.
    bench.win(picture(1)).await;
    assert_eq!(bench.used(Scope::Global, Window::Day).await, used + 3);
}

pub(crate) async fn what_was_purged_is_not_imported_again(bench: &Bench, admin: &dyn LedgerAdmin) {
    let kept = bench.store(picture(1)).await;
    assert_purge(admin, &picture(1), Purge::Done { generation: 0 }).await;
    for old in [kept, foreign(1, 0, bench.clock.now())] {
        import_record(bench, &old).await;
        assert_eq!(bench.look_up(&picture(1)).await, None);
    }
    let newer = foreign(1, 1, bench.clock.now());
    import_record(bench, &newer).await;
    assert_eq!(bench.look_up(&picture(1)).await, Some(newer), "it is none of those that were purged");
    assert_purge(admin, &picture(1), Purge::Done { generation: 1 }).await;
    assert_eq!(bench.win(picture(1)).await.generation, 2);
    // Nor is there a row of it that could be mistaken for a result.
    let purged = foreign(2, 3, bench.clock.now());
    import_record(bench, &purged).await;
    assert_purge(admin, &picture(2), Purge::Done { generation: 3 }).await;
    // Also where no row has its generation any more.
    bench.ledger.lose(&purged).await.expect("the ledger can be asked");
    for old in [foreign(2, 2, bench.clock.now()), Record { digest: Digest::of(b"another"), ..purged }] {
        import_record(bench, &old).await;
    }
    let key = Some((picture(2).namespace, picture(2).key));
    assert_eq!(all(admin, CallFilter { key, ..CallFilter::default() }).await.len(), 1);
}

pub(crate) async fn a_purge_reaches_over_lost_results(bench: &Bench, admin: &dyn LedgerAdmin) {
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

pub(crate) async fn a_purge_leaves_a_call_under_way_to_bring_the_new_result(
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

pub(crate) async fn purging_is_repeated_without_harm_and_nothing_is_not_purged(
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

pub(crate) async fn a_purge_concerns_one_key_of_one_namespace(bench: &Bench, admin: &dyn LedgerAdmin) {
    let elsewhere = Reservation { namespace: "builtin-v1".to_owned(), ..picture(1) };
    bench.store(picture(1)).await;
    let (same_key, other) = (bench.store(elsewhere.clone()).await, bench.store(picture(2)).await);
    assert_purge(admin, &picture(1), Purge::Done { generation: 0 }).await;
    assert_eq!(bench.look_up(&elsewhere).await, Some(same_key));
    assert_eq!(bench.look_up(&picture(2)).await, Some(other));
    assert_eq!((purged(bench, &elsewhere).await, purged(bench, &picture(2)).await), (None, None));
}

pub(crate) async fn a_spooled_result_is_purged_and_leaves_the_spool(bench: &Bench, admin: &dyn LedgerAdmin) {
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

pub(crate) async fn a_late_result_of_a_purged_generation_stays_absent(
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

pub(crate) async fn changes_tell_purges_and_refreshes_in_order(bench: &Bench, admin: &dyn LedgerAdmin) {
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

pub(crate) async fn concurrent_purges_agree(bench: &Bench, admin: &dyn LedgerAdmin) {
    bench.store(picture(1)).await;
    let Reservation { namespace, key, .. } = picture(1);
    let by = by();
    let purge = || admin.purge(&namespace, key, &by);
    let (a, b, c, d) = tokio::join!(purge(), purge(), purge(), purge());
    let done = [a, b, c, d].map(|purge| purge.expect("the ledger can be asked"));
    let first = done.iter().filter(|purge| matches!(purge, Purge::Done { generation: 0 })).count();
    let rest = done.iter().filter(|purge| matches!(purge, Purge::Repeated { generation: 0 })).count();
    assert_eq!((first, rest), (1, 3), "{done:?}");
}

async fn lines(admin: &dyn LedgerAdmin) -> Vec<AuditLine> {
    let mut lines = admin.audit(None, 1000).await.expect("the ledger can be asked");
    lines.reverse();
    lines
}

async fn settle(admin: &dyn LedgerAdmin, id: CallId, settlement: Settlement) -> Settled {
    admin.settle(id, settlement, &by()).await.expect("the ledger can be asked")
}

async fn freeze(admin: &dyn LedgerAdmin, scope: Scope, frozen: bool) -> bool {
    admin.freeze(scope, frozen, &by()).await.expect("the ledger can be asked")
}

async fn page(admin: &dyn LedgerAdmin, filter: CallFilter) -> CallPage {
    admin.calls(filter).await.expect("the ledger can be asked")
}

/// All that a filter lets through, page by page.
async fn all(admin: &dyn LedgerAdmin, filter: CallFilter) -> Vec<CallDetail> {
    let (mut all, mut before) = (Vec::new(), None);
    loop {
        let page = page(admin, CallFilter { before, limit: 3, ..filter.clone() }).await;
        assert!(page.calls.len() <= 3);
        all.extend(page.calls);
        match page.next {
            Some(next) => before = Some(next),
            None => return all,
        }
    }
}

pub(crate) async fn each_change_is_one_line_of_the_audit(bench: &Bench, admin: &dyn LedgerAdmin) {
    let unknown = bench.bring(1, CallState::Unknown).await;
    bench.store(picture(2)).await;
    let archive = ArchiveId::random();
    for _ in 0..2 {
        // What changes nothing leaves no line.
        assert_purge(admin, &picture(3), Purge::Nothing).await;
        settle(admin, CallId(4711), Settlement::Free).await;
        freeze(admin, team("press"), false).await;
    }
    let began = bench.clock.now();
    for _ in 0..2 {
        freeze(admin, Scope::Global, true).await;
        freeze(admin, team("press"), true).await;
    }
    bench.clock.turn(1);
    for _ in 0..2 {
        freeze(admin, team("press"), false).await;
        settle(admin, unknown.id, Settlement::Charged).await;
        settle(admin, unknown.id, Settlement::Free).await;
        admin.purge(&picture(2).namespace, picture(2).key, &Actor::loopback()).await.unwrap();
    }
    admin.note_adoption(archive, "the store was empty", &Actor::command_line()).await.unwrap();

    let lines = lines(admin).await;
    let told: Vec<_> =
        lines.iter().map(|line| (line.who.as_str(), line.action.as_str(), line.subject.clone())).collect();
    let token = "token opsteam1";
    assert_eq!(
        told,
        [
            (token, "freeze", "global".to_owned()),
            (token, "freeze", "team:press".to_owned()),
            (token, "thaw", "team:press".to_owned()),
            (token, "settle", unknown.id.0.to_string()),
            ("loopback", "purge", picture(2).key.to_string()),
            ("command line", "adopt", archive.to_string()),
        ]
    );
    assert_eq!(lines[1].at, began);
    assert_eq!(lines[2].at, began + SignedDuration::from_secs(1));
    assert!(lines[3].detail.starts_with("charged"), "{}", lines[3].detail);
    assert_eq!(lines[4].detail, "ailab-v1, up to generation 0");
    assert_eq!(lines[5].detail, "the store was empty");
}

pub(crate) async fn the_audit_is_read_newest_first_in_pieces(_: &Bench, admin: &dyn LedgerAdmin) {
    for n in 0..7 {
        freeze(admin, team(&format!("team-{n}")), true).await;
    }
    let (mut seen, mut before) = (Vec::new(), None);
    for expected in [3, 3, 1, 0] {
        let piece = admin.audit(before, 3).await.expect("the ledger can be asked");
        assert_eq!(piece.len(), expected);
        before = piece.last().map(|line| line.id).or(before);
        seen.extend(piece.into_iter().map(|line| line.subject));
    }
    let expected: Vec<String> = (0..7).rev().map(|n| format!("team:team-{n}")).collect();
    assert_eq!(seen, expected);
}

pub(crate) async fn a_freeze_by_an_operator_is_the_ledgers(bench: &Bench, admin: &dyn LedgerAdmin) {
    assert_eq!(admin.frozen().await.unwrap(), []);
    for scope in [team("press"), Scope::Global] {
        assert!(freeze(admin, scope.clone(), true).await);
        assert!(!freeze(admin, scope.clone(), true).await, "it was so before");
        assert_eq!(bench.reserve(picture(1)).await, Reserved::Frozen(scope));
    }
    assert_eq!(admin.frozen().await.unwrap(), [Scope::Global, team("press")]);
    for scope in [team("press"), Scope::Global] {
        assert!(freeze(admin, scope.clone(), false).await);
        assert!(!freeze(admin, scope, false).await);
    }
    bench.win(picture(1)).await;
    // It is the same freeze, whoever asks for it.
    bench.freeze(Scope::Global, true).await;
    assert!(freeze(admin, Scope::Global, false).await);
    bench.win(picture(2)).await;
}

pub(crate) async fn a_charged_call_keeps_its_credits(bench: &Bench, admin: &dyn LedgerAdmin) {
    let unknown = bench.bring(1, CallState::Unknown).await;
    let (totals, used) = (bench.totals().await, bench.used(team("press"), Window::Day).await);
    assert_eq!(admin.unsettled().await.unwrap(), 3);
    assert_eq!(settle(admin, unknown.id, Settlement::Charged).await, Settled::Done { given_back: None });
    assert_eq!(admin.unsettled().await.unwrap(), 0);
    assert_eq!(bench.totals().await, totals);
    assert_eq!(bench.used(team("press"), Window::Day).await, used);
    bench.assert_rests(picture(1), 60).await;
    assert_eq!(settle(admin, unknown.id, Settlement::Charged).await, Settled::Repeated);
    let other = settle(admin, unknown.id, Settlement::Free).await;
    assert_eq!(other, Settled::Otherwise(Settlement::Charged));
}

pub(crate) async fn a_call_that_was_not_charged_gives_its_credits_back(
    bench: &Bench,
    admin: &dyn LedgerAdmin,
) {
    bench.clock.set(instant("2026-11-22T22:30:00Z"));
    let (reserved_on, unknown) = (bench.clock.now(), bench.bring(1, CallState::Unknown).await);
    bench.bring(2, CallState::Unknown).await;
    bench.clock.turn(3600);
    let free = settle(admin, unknown.id, Settlement::Free).await;
    assert_eq!(free, Settled::Done { given_back: Some(GivenBack::Budgets) });
    assert_eq!(admin.unsettled().await.unwrap(), 3, "the other one");
    assert_eq!((bench.calls(CallState::Unknown).await, bench.calls(CallState::Failed).await), (1, 1));
    for scope in [Scope::Global, team("press")] {
        assert_eq!(bench.used(scope.clone(), Window::Month).await, 3);
        assert_eq!(bench.used(scope, Window::Day).await, 0, "the new day had nothing to give back");
    }
    // To the day it had been taken from; and the key rests no more.
    let now = bench.clock.now();
    bench.clock.set(reserved_on);
    assert_eq!(bench.used(team("press"), Window::Day).await, 3);
    bench.clock.set(now);
    assert_eq!(settle(admin, unknown.id, Settlement::Free).await, Settled::Repeated);
    let other = settle(admin, unknown.id, Settlement::Charged).await;
    assert_eq!(other, Settled::Otherwise(Settlement::Free));
    assert_eq!(bench.used(Scope::Global, Window::Month).await, 3);
    bench.win(picture(1)).await;
}

pub(crate) async fn a_closed_month_does_not_change(bench: &Bench, admin: &dyn LedgerAdmin) {
    // A month is closed when the first day of the next is over.
    let (november, december) = (instant("2026-11-30T22:59:59Z"), instant("2026-12-01T23:00:00Z"));
    bench.clock.set(november);
    let unknown = bench.bring(1, CallState::Unknown).await;
    bench.clock.set(december);
    bench.bring(2, CallState::Unknown).await;
    let free = settle(admin, unknown.id, Settlement::Free).await;
    assert_eq!(free, Settled::Done { given_back: Some(GivenBack::Adjustment) });
    // The budgets of either month have what their own calls cost; what the closed one tells as spent is
    // a matter of usage.
    for (at, used) in [(november, 0), (december, 3)] {
        bench.clock.set(at);
        for window in [Window::Day, Window::Month] {
            assert_eq!(bench.used(team("press"), window).await, used, "{at}");
            assert_eq!(bench.used(Scope::Global, window).await, used, "{at}");
        }
    }
    bench.clock.set(december);
    assert_eq!(settle(admin, unknown.id, Settlement::Free).await, Settled::Repeated);
    assert_eq!(bench.calls(CallState::Failed).await, 1);
}

pub(crate) async fn only_an_unknown_call_is_settled(bench: &Bench, admin: &dyn LedgerAdmin) {
    assert_eq!(settle(admin, CallId(4711), Settlement::Free).await, Settled::NoSuchCall);
    for (n, state) in (1..).zip(CallState::ALL) {
        let won = bench.bring(n, state).await;
        if state == CallState::Unknown {
            continue;
        }
        for settlement in [Settlement::Free, Settlement::Charged] {
            assert_eq!(settle(admin, won.id, settlement).await, Settled::NotUnknown(state));
        }
    }
    assert!(lines(admin).await.is_empty());
}

pub(crate) async fn a_late_answer_may_follow_a_call_that_was_settled_as_charged(
    bench: &Bench,
    admin: &dyn LedgerAdmin,
) {
    let charged = bench.bring(1, CallState::Unknown).await;
    let free = bench.bring(2, CallState::Unknown).await;
    settle(admin, charged.id, Settlement::Charged).await;
    settle(admin, free.id, Settlement::Free).await;
    let used = bench.used(Scope::Global, Window::Day).await;
    bench.book(charged.id, answer(charged.id)).await;
    let kept = record(&picture(1), charged, bench.clock.now());
    bench.book(charged.id, stored(&kept)).await;
    assert_eq!(bench.look_up(&picture(1)).await, Some(kept));
    // What was declared not to have been charged cannot have an answer.
    let late = bench.ledger.book(free.id, answer(free.id)).await;
    assert!(matches!(late, Err(LedgerError::Contradiction { .. })), "{late:?}");
    assert_eq!(bench.used(Scope::Global, Window::Day).await, used);
}

pub(crate) async fn calls_are_listed_newest_first_in_pieces(bench: &Bench, admin: &dyn LedgerAdmin) {
    assert_eq!(page(admin, CallFilter { limit: 3, ..CallFilter::default() }).await, CallPage::default());
    let mut ids = Vec::new();
    for (n, state) in (1..).zip(CallState::ALL) {
        ids.push(bench.bring(n, state).await.id);
    }
    ids.reverse();
    let listed: Vec<CallId> = all(admin, CallFilter::default()).await.iter().map(|call| call.id).collect();
    assert_eq!(listed, ids);
    let rest = page(admin, CallFilter { before: Some(ids[7]), limit: 100, ..CallFilter::default() }).await;
    assert_eq!((rest.calls.len(), rest.next), (2, None));
}

pub(crate) async fn calls_are_filtered(bench: &Bench, admin: &dyn LedgerAdmin) {
    for (n, state) in (1..).zip(CallState::ALL) {
        bench.bring(n, state).await;
    }
    let elsewhere = Reservation { namespace: "builtin-v1".to_owned(), ..picture(5) };
    bench.store(elsewhere).await;
    let theirs = Reservation { team: "print".to_owned(), ..refresh(5) };
    bench.store(theirs).await;
    for state in CallState::ALL {
        let found = all(admin, CallFilter { state: Some(state), ..CallFilter::default() }).await;
        assert!(found.iter().all(|call| call.state == state));
        assert_eq!(found.len(), if state == CallState::Stored { 3 } else { 1 }, "{}", state.as_str());
    }
    let filter = CallFilter { team: Some("print".to_owned()), ..CallFilter::default() };
    let print = all(admin, filter.clone()).await;
    assert_eq!((print.len(), print[0].key, print[0].generation), (1, picture(5).key, 1));
    let nobody = CallFilter { team: Some("nobody".to_owned()), ..CallFilter::default() };
    assert!(all(admin, nobody).await.is_empty());
    let key = Some((picture(5).namespace, picture(5).key));
    let of_key = all(admin, CallFilter { key: key.clone(), ..CallFilter::default() }).await;
    let generations: Vec<u64> = of_key.iter().map(|call| call.generation).collect();
    assert_eq!(generations, [1, 0]);
    assert_eq!(all(admin, CallFilter { key, ..filter }).await, print);
}

pub(crate) async fn a_call_is_told_in_every_field_but_its_answers_text(
    bench: &Bench,
    admin: &dyn LedgerAdmin,
) {
    let (start, bought) = (bench.clock.now(), picture(1));
    let at = |seconds| start + SignedDuration::from_secs(seconds);
    let won = bench.win(bought.clone()).await;
    bench.clock.turn(1);
    assert_eq!(bench.mark_sent(won.id).await, Permit::Granted);
    bench.clock.turn(1);
    bench.book(won.id, answer(won.id)).await;
    let one = async || {
        let filter = CallFilter { limit: 1, ..CallFilter::default() };
        page(admin, filter).await.calls.remove(0)
    };
    let answered = CallDetail {
        id: won.id,
        namespace: bought.namespace.clone(),
        key: bought.key,
        generation: 0,
        state: CallState::Answered,
        late: false,
        adopted: false,
        team: "press".to_owned(),
        credits: 3,
        day: "2026-11-22".to_owned(),
        image: bought.image,
        width: 640,
        height: 427,
        reserved_at: start,
        sent_at: Some(at(1)),
        answered_at: Some(at(2)),
        ended_at: None,
        reason: None,
        request_id: Some(format!("request {}", won.id.0)),
        log_id: Some(format!("log {}", won.id.0)),
        digest: None,
        extension: None,
        bytes: None,
        settled: None,
    };
    assert_eq!(one().await, answered);
    bench.clock.turn(1);
    let kept = record(&bought, won, bench.clock.now());
    bench.book(won.id, stored(&kept)).await;
    let stored = CallDetail {
        state: CallState::Stored,
        ended_at: Some(at(3)),
        digest: Some(kept.digest),
        extension: Some(kept.extension),
        bytes: Some(kept.bytes),
        ..answered
    };
    assert_eq!(one().await, stored);

    let unknown = bench.bring(2, CallState::Unknown).await;
    settle(admin, unknown.id, Settlement::Charged).await;
    let told = one().await;
    assert_eq!((told.id, told.settled), (unknown.id, Some(Settlement::Charged)));
    assert_eq!(told.reason.as_deref(), Some("no answer in time"));
    let imported = foreign(3, 2, bench.clock.now());
    import_record(bench, &imported).await;
    let told = one().await;
    assert_eq!((told.adopted, told.generation, told.digest), (true, 2, Some(imported.digest)));
    assert_eq!(told.request_id, Some(imported.upstream_request_id));
}
