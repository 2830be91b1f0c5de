//! The suite every [`Ledger`] must pass: small checks of what the trait promises.
//!
//! A ledger runs all of them with one line in its own tests, [`ledger_contract!`], one that has leases
//! with another, [`lease_contract!`], and each lives its random lives with [`model`]. Nothing here knows how a ledger keeps its book: states are read off
//! what the trait tells, and time passes only when a check turns the clock.

pub(crate) mod admin;
mod lease;
pub(crate) mod model;
mod spool;

pub(crate) use self::lease::*;
pub(crate) use self::spool::*;

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use tokio::task::JoinSet;

use crate::base::archive::{ArchiveId, Import, Membership};
use crate::base::clock::Clock;
use crate::base::key::{CacheKey, Digest};
use crate::base::record::Record;
use crate::base::secret::Secret;
use crate::ledger::admin::{Actor, LedgerAdmin};
use crate::ledger::budget::{Budget, BudgetRefusal, Scope, Used, Window};
use crate::ledger::{
    Absence, Booking, CallId, CallState, Ledger, LedgerError, Orphan, Permit, Recovery, Reservation,
    Reserved, StateTotal, Won,
};

/// Bytes that may wait in the spool of every ledger on the bench.
pub(crate) const SPOOL_MAX: u64 = 4096;

/// Makes one test of each check. `$open` is an async function that takes a clock and the zone of
/// its days, and returns an empty ledger, whose spool takes [`SPOOL_MAX`] bytes, and whatever must
/// live as long.
///
/// With a name before it, it makes one test of all of them, for a ledger whose making is dear: `$open`
/// gets what `$begin` has returned besides.
macro_rules! ledger_contract {
    ($open:path) => {
        $crate::testing::ledger_contract::ledger_contract! { @checks @each $open }
    };
    ($name:ident, $begin:path, $open:path) => {
        $crate::testing::ledger_contract::ledger_contract! { @checks @all $name, $begin, $open }
    };
    (@checks $($how:tt)*) => {
        $crate::testing::ledger_contract::ledger_contract! { $($how)*:
            one_of_many_concurrent_reservations_of_a_key_wins_and_the_rest_are_held,
            a_key_is_one_call_and_another_key_or_namespace_another,
            a_stored_result_is_found_whole_by_look_up_and_by_reserve,
            a_call_changes_its_state_along_the_table_and_in_no_other_way,
            only_a_reserved_call_may_send_and_only_once,
            each_outcome_keeps_or_gives_back_the_key_and_the_credits,
            a_refresh_gets_the_next_generation_and_is_found_from_then_on,
            a_refresh_that_fails_leaves_the_old_result,
            one_of_many_concurrent_refreshes_wins,
            a_key_rests_a_minute_then_ten_and_is_bought_three_times_a_day,
            a_resting_key_disturbs_nobody_else_and_its_stored_result_is_still_a_hit,
            a_freeze_stops_reserving_and_sending_until_the_thaw,
            a_freeze_stops_neither_hits_nor_bookings,
            a_freeze_of_everyone_is_told_before_that_of_a_team,
            a_budget_is_exact_to_the_credit_under_concurrency,
            the_first_budget_that_is_short_is_named_and_none_is_charged,
            a_shadow_budget_counts_and_never_refuses,
            refused_orders_are_limited_by_team_and_day,
            budgets_are_counted_by_team_and_for_everyone,
            a_daily_budget_starts_anew_at_local_midnight_also_when_the_clocks_change,
            a_monthly_budget_starts_anew_on_the_first,
            credits_given_back_after_midnight_go_to_the_day_they_were_taken_from,
            a_late_answer_leaves_the_key_to_whoever_took_it,
            a_late_answer_takes_the_key_back_when_nobody_has_it,
            a_late_result_takes_the_key_back_when_its_rival_let_go,
            a_result_that_came_second_to_the_store_leaves_the_key_to_the_first,
            an_imported_record_is_found_and_costs_nothing,
            importing_never_displaces_a_call,
            record_of_a_call_whose_owner_died_makes_it_stored,
            record_that_no_call_can_have_made_settles_no_call,
            call_whose_owner_lived_on_is_no_orphan,
            owner_that_lived_on_keeps_its_result_beside_a_record_taken_for_it,
            result_stored_without_its_answer_is_booked_in_full,
            import_is_complete_once_it_is_noted,
            key_of_a_call_whose_owner_died_is_not_known_in_full,
            a_lost_result_is_bought_again_as_the_next_generation,
            a_lost_result_is_not_imported_again,
            losing_a_record_that_is_not_the_stored_one_changes_nothing,
            recovery_settles_what_dead_owners_left_open,
            recovering_twice_is_the_same_as_once,
            totals_name_every_state_once,
            a_ledger_belongs_to_one_archive,
            a_spooled_result_is_stored_and_its_bytes_are_found_by_name,
            what_waits_is_listed_oldest_first_in_pieces,
            a_result_that_does_not_fit_is_refused_and_its_row_stays_answered,
            equal_results_of_two_calls_leave_the_spool_one_by_one,
            a_spooled_result_whose_record_stands_elsewhere_leaves_the_key_to_it,
            spooling_and_taking_out_may_be_repeated,
            usage_tells_what_waits_and_what_may_still_come,
        }
    };
    (@each $open:path: $($check:ident),* $(,)?) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $check() {
            let clock = $crate::testing::ledger_contract::TurnableClock::at("2026-11-22T09:00:00Z");
            let (ledger, _keep) = $open(clock.clock(), $crate::testing::ledger_contract::zone()).await;
            let bench = $crate::testing::ledger_contract::Bench { ledger: std::sync::Arc::new(ledger), clock };
            $crate::testing::ledger_contract::$check(&bench).await;
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
                let bench = $crate::testing::ledger_contract::Bench { ledger: std::sync::Arc::new(ledger), clock };
                $crate::testing::ledger_contract::$check(&bench).await;
            )*
        }
    };
}
pub(crate) use ledger_contract;

/// The zone of days and months: one whose clocks change.
pub(crate) fn zone() -> TimeZone {
    TimeZone::get("Europe/Berlin").expect("a known zone")
}

/// A clock that stands still until it is turned.
#[derive(Clone)]
pub(crate) struct TurnableClock(Arc<Mutex<Timestamp>>);

impl TurnableClock {
    pub(crate) fn at(text: &str) -> Self {
        Self(Arc::new(Mutex::new(instant(text))))
    }

    /// The clock to give to a ledger.
    pub(crate) fn clock(&self) -> Clock {
        let hand = self.clone();
        Clock::from_fn(move || hand.now())
    }

    pub(crate) fn now(&self) -> Timestamp {
        *self.0.lock().expect("no check panics while it turns the clock")
    }

    pub(crate) fn set(&self, to: Timestamp) {
        *self.0.lock().expect("no check panics while it turns the clock") = to;
    }

    pub(crate) fn turn(&self, seconds: i64) {
        self.set(self.now() + SignedDuration::from_secs(seconds));
    }
}

pub(crate) fn instant(text: &str) -> Timestamp {
    text.parse().expect("a timestamp in a test")
}

/// What 3 credits of team `press` would buy: picture `n`.
pub(crate) fn picture(n: u32) -> Reservation {
    Reservation {
        namespace: "ailab-v1".to_owned(),
        key: CacheKey::of(&n.to_le_bytes(), 640, 427),
        refresh: false,
        team: "press".to_owned(),
        credits: 3,
        budgets: Vec::new(),
        image: Digest::of(&n.to_le_bytes()),
        width: 640,
        height: 427,
    }
}

fn refresh(n: u32) -> Reservation {
    Reservation { refresh: true, ..picture(n) }
}

/// The answer of the upstream to a call, with a signed URL of its own.
pub(crate) fn answer(id: CallId) -> Booking {
    let call = id.0;
    Booking::Answered {
        text: Secret::new(signed_answer(call)),
        request_id: format!("request {call}"),
        log_id: format!("log {call}"),
    }
}

fn signed_answer(call: i64) -> String {
    format!(r#"{{"data":{{"url":"https://results.example/{call}.png?Signature=signed-{call}-signed"}}}}"#)
}

/// What is kept of a call once its result is.
pub(crate) fn record(bought: &Reservation, won: Won, stored_at: Timestamp) -> Record {
    let call = won.id.0;
    let bytes = format!("result of call {call}");
    Record {
        version: Record::VERSION,
        namespace: bought.namespace.clone(),
        key: bought.key,
        generation: won.generation,
        answer: format!(r#"{{"data":{{"url":"results/{call}.png"}}}}"#),
        digest: Digest::of(bytes.as_bytes()),
        extension: "png".to_owned(),
        bytes: bytes.len() as u64,
        team: bought.team.clone(),
        credits: bought.credits,
        stored_at,
        upstream_request_id: format!("request {call}"),
        upstream_log_id: format!("log {call}"),
        image: bought.image,
        width: bought.width,
        height: bought.height,
    }
}

pub(crate) fn stored(record: &Record) -> Booking {
    Booking::Stored { record: Box::new(record.clone()), holds_key: true }
}

pub(crate) fn released() -> Booking {
    Booking::Released { reason: "the upload was cut".to_owned() }
}

pub(crate) fn refused() -> Booking {
    Booking::Refused { reason: "400 ERROR_PARAMETERS".to_owned(), for_order: true }
}

pub(crate) fn failed() -> Booking {
    Booking::Failed { reason: "500 ERROR_INTERNAL".to_owned() }
}

pub(crate) fn unknown() -> Booking {
    Booking::Unknown { reason: "no answer in time".to_owned() }
}

pub(crate) fn unfetchable() -> Booking {
    Booking::Unfetchable { reason: "404 for 15 minutes".to_owned() }
}

pub(crate) fn team(name: &str) -> Scope {
    Scope::Team(name.to_owned())
}

fn daily(scope: Scope, limit: u64) -> Budget {
    Budget { scope, window: Window::Day, limit, enforced: true }
}

fn monthly(scope: Scope, limit: u64) -> Budget {
    Budget { window: Window::Month, ..daily(scope, limit) }
}

/// Lets all calls race, and gives their outcomes in any order.
pub(crate) async fn all_at_once<T: Send + 'static>(
    calls: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    calls.into_iter().collect::<JoinSet<T>>().join_all().await
}

/// A ledger, and what operators ask of it.
pub(crate) trait WholeLedger: Ledger + LedgerAdmin {}

impl<L: Ledger + LedgerAdmin> WholeLedger for L {}

/// A ledger on the bench, with its clock.
#[derive(Clone)]
pub(crate) struct Bench {
    pub(crate) ledger: Arc<dyn WholeLedger>,
    pub(crate) clock: TurnableClock,
}

impl Bench {
    pub(crate) async fn reserve(&self, wanted: Reservation) -> Reserved {
        self.ledger.reserve(wanted).await.expect("the ledger can be asked")
    }

    /// Reserves what must be free.
    pub(crate) async fn win(&self, wanted: Reservation) -> Won {
        match self.reserve(wanted).await {
            Reserved::Won(won) => won,
            other => panic!("the key was to be free, but: {other:?}"),
        }
    }

    async fn mark_sent(&self, id: CallId) -> Permit {
        self.ledger.mark_sent(id).await.expect("the ledger can be asked")
    }

    pub(crate) async fn book(&self, id: CallId, booking: Booking) {
        self.ledger.book(id, booking).await.expect("a legal booking");
    }

    pub(crate) async fn send(&self, wanted: Reservation) -> Won {
        let won = self.win(wanted).await;
        assert_eq!(self.mark_sent(won.id).await, Permit::Granted);
        won
    }

    pub(crate) async fn answered(&self, wanted: Reservation) -> Won {
        let won = self.send(wanted).await;
        self.book(won.id, answer(won.id)).await;
        won
    }

    pub(crate) async fn store(&self, wanted: Reservation) -> Record {
        let won = self.answered(wanted.clone()).await;
        let record = record(&wanted, won, self.clock.now());
        self.book(won.id, stored(&record)).await;
        record
    }

    /// Takes a new call of picture `n` to a state, by the shortest way.
    pub(crate) async fn bring(&self, n: u32, state: CallState) -> Won {
        let wanted = picture(n);
        match state {
            CallState::Reserved => self.win(wanted).await,
            CallState::Sent => self.send(wanted).await,
            CallState::Answered => self.answered(wanted).await,
            CallState::Released => {
                let won = self.win(wanted).await;
                self.book(won.id, released()).await;
                won
            }
            CallState::Refused | CallState::Failed | CallState::Unknown => {
                let won = self.send(wanted).await;
                let outcome = match state {
                    CallState::Refused => refused(),
                    CallState::Failed => failed(),
                    _ => unknown(),
                };
                self.book(won.id, outcome).await;
                won
            }
            CallState::Stored | CallState::Lost | CallState::Unfetchable => {
                let won = self.answered(wanted.clone()).await;
                if state == CallState::Unfetchable {
                    self.book(won.id, unfetchable()).await;
                    return won;
                }
                self.book(won.id, stored(&record(&wanted, won, self.clock.now()))).await;
                if state == CallState::Lost {
                    self.book(won.id, Booking::Lost).await;
                }
                won
            }
        }
    }

    pub(crate) async fn look_up(&self, wanted: &Reservation) -> Option<Record> {
        self.ledger.look_up(&wanted.namespace, wanted.key).await.expect("the ledger can be asked")
    }

    pub(crate) async fn totals(&self) -> Vec<StateTotal> {
        self.ledger.totals().await.expect("the ledger can be asked")
    }

    async fn calls(&self, state: CallState) -> u64 {
        self.totals().await.iter().find(|total| total.state == state).map_or(0, |total| total.calls)
    }

    async fn used(&self, scope: Scope, window: Window) -> u64 {
        let budget = Budget { window, ..daily(scope, 0) };
        let used = self.ledger.used(vec![budget]).await.expect("the ledger can be asked");
        used.iter().map(|used| used.used).sum()
    }

    async fn freeze(&self, scope: Scope, frozen: bool) {
        self.ledger.freeze(scope, frozen, &Actor::loopback()).await.expect("the ledger can be asked");
    }

    /// What is done for dead owners. A ledger with leases waits for a lease first; here nobody lives.
    async fn recover(&self) -> Recovery {
        if !self.ledger.has_leases() {
            return self.ledger.recover().await.expect("the ledger can be asked");
        }
        let silent = self.ledger.foreign_calls(Vec::new()).await.expect("the ledger can be asked");
        self.ledger.take_over(silent).await.expect("the ledger can be asked")
    }

    /// Asserts that a call in `state` has just the hold on its key that the state gives it. Asking
    /// for a free key buys it; the purchase is released again.
    async fn assert_hold(&self, wanted: &Reservation, won: Won, state: CallState, context: &str) {
        let reserved = self.reserve(wanted.clone()).await;
        match state {
            CallState::Reserved | CallState::Sent | CallState::Answered => {
                assert_eq!(reserved, Reserved::Held(won.id), "{context}");
            }
            CallState::Stored => {
                assert!(matches!(reserved, Reserved::Stored(_)), "{context}: {reserved:?}");
            }
            CallState::Unknown | CallState::Unfetchable => {
                assert!(matches!(reserved, Reserved::Resting { .. }), "{context}: {reserved:?}");
            }
            CallState::Released | CallState::Refused | CallState::Failed | CallState::Lost => {
                let Reserved::Won(next) = reserved else { panic!("{context}: {reserved:?}") };
                let generation = won.generation + u64::from(state == CallState::Lost);
                assert_eq!(next.generation, generation, "{context}");
                self.book(next.id, released()).await;
            }
        }
    }

    /// Asserts that `n` is at rest, and exactly for how long.
    async fn assert_rests(&self, wanted: Reservation, seconds: u64) {
        let wait = Duration::from_secs(seconds);
        let until = self.clock.now() + wait;
        assert_eq!(self.reserve(wanted).await, Reserved::Resting { until, wait });
    }
}

/// Do the credits of a call in this state count? By the table of the specification, not by the code.
fn counts(state: CallState) -> bool {
    !matches!(state, CallState::Released | CallState::Refused | CallState::Failed)
}

pub(crate) async fn one_of_many_concurrent_reservations_of_a_key_wins_and_the_rest_are_held(bench: &Bench) {
    let calls = (0..100).map(|n| {
        let bench = bench.clone();
        let wanted = Reservation { team: format!("team-{}", n % 7), ..picture(1) };
        async move { bench.reserve(wanted).await }
    });
    let outcomes = all_at_once(calls).await;
    let winners: Vec<CallId> = outcomes
        .iter()
        .filter_map(|outcome| match outcome {
            Reserved::Won(won) => Some(won.id),
            _ => None,
        })
        .collect();
    let [winner] = winners[..] else { panic!("{winners:?} won") };
    assert_eq!(outcomes.iter().filter(|&outcome| *outcome == Reserved::Held(winner)).count(), 99);
    assert_eq!(bench.calls(CallState::Reserved).await, 1);
    assert_eq!(bench.used(Scope::Global, Window::Day).await, 3);
}

pub(crate) async fn a_key_is_one_call_and_another_key_or_namespace_another(bench: &Bench) {
    let first = bench.win(picture(1)).await;
    let second = bench.win(picture(2)).await;
    let third = bench.win(Reservation { namespace: "builtin-v1".to_owned(), ..picture(1) }).await;
    assert!(first.id != second.id && second.id != third.id && first.id != third.id);
    assert_eq!([first, second, third].map(|won| won.generation), [0; 3]);
}

pub(crate) async fn a_stored_result_is_found_whole_by_look_up_and_by_reserve(bench: &Bench) {
    let won = bench.answered(picture(1)).await;
    assert_eq!(bench.look_up(&picture(1)).await, None, "answered is not stored");
    let kept = record(&picture(1), won, bench.clock.now() - SignedDuration::from_nanos(1));
    bench.book(won.id, stored(&kept)).await;

    assert_eq!(bench.look_up(&picture(1)).await, Some(kept.clone()));
    let asker =
        Reservation { team: "print".to_owned(), budgets: vec![daily(Scope::Global, 0)], ..picture(1) };
    assert_eq!(bench.reserve(asker).await, Reserved::Stored(Box::new(kept)), "a hit needs no budget");
    for other in [picture(2), Reservation { namespace: "builtin-v1".to_owned(), ..picture(1) }] {
        assert_eq!(bench.look_up(&other).await, None);
    }
}

/// The table of the specification, by hand: which bookings a state takes.
fn table(from: CallState) -> &'static [CallState] {
    use CallState::*;
    match from {
        Reserved => &[Released, Refused, Failed, Unknown],
        Sent => &[Released, Answered, Stored, Refused, Failed, Unknown],
        Answered => &[Stored, Unfetchable],
        Stored => &[Lost],
        Unknown => &[Answered, Stored, Refused, Failed],
        Released | Refused | Failed | Unfetchable | Lost => &[],
    }
}

pub(crate) async fn a_call_changes_its_state_along_the_table_and_in_no_other_way(bench: &Bench) {
    let mut n = 0;
    for from in CallState::ALL {
        for kind in 0..9 {
            n += 1;
            let wanted = picture(n);
            let won = bench.bring(n, from).await;
            let booking = match kind {
                0 => released(),
                1 => answer(won.id),
                2 => stored(&record(&wanted, won, bench.clock.now())),
                3 => refused(),
                4 => failed(),
                5 => unknown(),
                6 => unfetchable(),
                7 => spooled(&record(&wanted, won, bench.clock.now())),
                _ => Booking::Lost,
            };
            let to = booking.state();
            let context = format!("{} to {}", from.as_str(), to.as_str());
            let before = bench.totals().await;
            let used = bench.used(Scope::Global, Window::Month).await;

            let booked = bench.ledger.book(won.id, booking).await;
            let now = if from == to || table(from).contains(&to) {
                assert!(booked.is_ok(), "{context}: {booked:?}");
                to
            } else {
                let Err(LedgerError::Contradiction { id, state, wanted }) = booked else {
                    panic!("{context}: {booked:?}")
                };
                assert_eq!((id, state.as_str(), wanted), (won.id.0, from.as_str(), to.as_str()));
                from
            };

            let mut expected = before;
            for total in &mut expected {
                if total.state == from {
                    (total.calls, total.credits) = (total.calls - 1, total.credits - 3);
                }
                if total.state == now {
                    (total.calls, total.credits) = (total.calls + 1, total.credits + 3);
                }
            }
            assert_eq!(bench.totals().await, expected, "{context}");
            let given_back = if counts(from) && !counts(now) { 3 } else { 0 };
            assert_eq!(bench.used(Scope::Global, Window::Month).await, used - given_back, "{context}");
            bench.assert_hold(&wanted, won, now, &context).await;
        }
    }
}

pub(crate) async fn only_a_reserved_call_may_send_and_only_once(bench: &Bench) {
    for (n, state) in (1..).zip(CallState::ALL) {
        let won = bench.bring(n, state).await;
        let before = bench.totals().await;
        let permit = bench.mark_sent(won.id).await;
        let now = if state == CallState::Reserved {
            assert_eq!(permit, Permit::Granted);
            assert_eq!(bench.calls(CallState::Sent).await, 1);
            CallState::Sent
        } else {
            assert_eq!(permit, Permit::Lost, "{}", state.as_str());
            assert_eq!(bench.totals().await, before, "{}", state.as_str());
            state
        };
        assert_eq!(bench.mark_sent(won.id).await, Permit::Lost, "a second time");
        bench.assert_hold(&picture(n), won, now, state.as_str()).await;
    }
}

pub(crate) async fn each_outcome_keeps_or_gives_back_the_key_and_the_credits(bench: &Bench) {
    let mut expected = 0;
    for (n, state) in (1..).zip(CallState::ALL) {
        let won = bench.bring(n, state).await;
        expected += if counts(state) { 3 } else { 0 };
        for (scope, window) in [
            (Scope::Global, Window::Day),
            (Scope::Global, Window::Month),
            (team("press"), Window::Day),
            (team("press"), Window::Month),
        ] {
            assert_eq!(bench.used(scope, window).await, expected, "{} {window:?}", state.as_str());
        }
        bench.assert_hold(&picture(n), won, state, state.as_str()).await;
        bench.assert_hold(&picture(n), won, state, "asked again").await;
    }
}

pub(crate) async fn a_refresh_gets_the_next_generation_and_is_found_from_then_on(bench: &Bench) {
    let nothing_there = bench.store(refresh(1)).await;
    assert_eq!(nothing_there.generation, 0, "a refresh of nothing is a purchase");
    for generation in 1..4 {
        let old = bench.look_up(&picture(1)).await.expect("a stored result");
        let won = bench.answered(refresh(1)).await;
        assert_eq!(won.generation, generation);
        assert_eq!(bench.look_up(&picture(1)).await, Some(old), "until the new one is stored");
        let new = record(&picture(1), won, bench.clock.now());
        bench.book(won.id, stored(&new)).await;
        assert_eq!(bench.look_up(&picture(1)).await, Some(new.clone()));
        assert_eq!(bench.reserve(picture(1)).await, Reserved::Stored(Box::new(new)));
    }
    assert_eq!(bench.calls(CallState::Stored).await, 4, "no result is ever forgotten");
}

pub(crate) async fn a_refresh_that_fails_leaves_the_old_result(bench: &Bench) {
    let old = bench.store(picture(1)).await;
    for outcome in [released(), refused(), failed(), unknown()] {
        let won = bench.send(refresh(1)).await;
        assert_eq!(won.generation, 1);
        bench.book(won.id, outcome).await;
        assert_eq!(bench.look_up(&picture(1)).await, Some(old.clone()));
        assert_eq!(bench.reserve(picture(1)).await, Reserved::Stored(Box::new(old.clone())));
    }
    bench.clock.turn(60);
    let won = bench.answered(refresh(1)).await;
    bench.book(won.id, unfetchable()).await;
    assert_eq!(bench.look_up(&picture(1)).await, Some(old));
}

pub(crate) async fn one_of_many_concurrent_refreshes_wins(bench: &Bench) {
    let old = bench.store(picture(1)).await;
    let calls = (0..50).map(|n| {
        let bench = bench.clone();
        let wanted = if n % 2 == 0 { refresh(1) } else { picture(1) };
        async move { bench.reserve(wanted).await }
    });
    let outcomes = all_at_once(calls).await;
    let mut won = 0;
    for outcome in outcomes {
        match outcome {
            Reserved::Won(winner) => {
                won += 1;
                assert_eq!(winner.generation, 1);
            }
            Reserved::Stored(record) => assert_eq!(*record, old, "who came before the refresh"),
            Reserved::Held(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(won, 1);
}

pub(crate) async fn a_key_rests_a_minute_then_ten_and_is_bought_three_times_a_day(bench: &Bench) {
    use CallState::{Unfetchable, Unknown};
    for (n, outcomes) in (1..).zip([[Unknown; 3], [Unfetchable; 3], [Unknown, Unfetchable, Unknown]]) {
        let first_ended = bench.clock.now();
        bench.bring(n, outcomes[0]).await;
        bench.assert_rests(picture(n), 60).await;
        bench.assert_rests(refresh(n), 60).await;
        bench.clock.turn(59);
        bench.assert_rests(picture(n), 1).await;
        bench.clock.turn(1);
        bench.bring(n, outcomes[1]).await;
        bench.assert_rests(picture(n), 600).await;
        bench.clock.turn(599);
        bench.assert_rests(picture(n), 1).await;
        bench.clock.turn(1);
        bench.bring(n, outcomes[2]).await;
        bench.assert_rests(picture(n), 86_400 - 660).await;
        bench.clock.set(first_ended + SignedDuration::from_secs(86_399));
        bench.assert_rests(picture(n), 1).await;
        bench.clock.turn(1);
        bench.bring(n, outcomes[0]).await;
        // The second of the four is the first of the last three.
        bench.assert_rests(picture(n), 60).await;
    }
}

pub(crate) async fn a_resting_key_disturbs_nobody_else_and_its_stored_result_is_still_a_hit(bench: &Bench) {
    let old = bench.store(picture(1)).await;
    let won = bench.send(refresh(1)).await;
    bench.book(won.id, unknown()).await;
    bench.assert_rests(refresh(1), 60).await;
    assert_eq!(bench.reserve(picture(1)).await, Reserved::Stored(Box::new(old)));
    bench.win(picture(2)).await;
    bench.win(Reservation { namespace: "builtin-v1".to_owned(), ..picture(1) }).await;
}

pub(crate) async fn a_freeze_stops_reserving_and_sending_until_the_thaw(bench: &Bench) {
    for (n, scope) in (0..).map(|n| n * 10).zip([Scope::Global, team("press")]) {
        let before = bench.win(picture(n)).await;
        bench.freeze(scope.clone(), true).await;
        bench.freeze(scope.clone(), true).await;
        assert_eq!(bench.reserve(picture(n + 1)).await, Reserved::Frozen(scope.clone()));
        assert_eq!(bench.mark_sent(before.id).await, Permit::Frozen(scope.clone()));
        assert_eq!(bench.reserve(picture(n)).await, Reserved::Held(before.id), "it is still reserved");

        let other = Reservation { team: "print".to_owned(), ..picture(n + 2) };
        match scope {
            Scope::Global => assert_eq!(bench.reserve(other).await, Reserved::Frozen(Scope::Global)),
            Scope::Team(_) | Scope::Refused(_) => {
                bench.send(other).await;
            }
        }
        bench.freeze(scope, false).await;
        assert_eq!(bench.mark_sent(before.id).await, Permit::Granted);
        bench.send(picture(n + 1)).await;
    }
}

pub(crate) async fn a_freeze_stops_neither_hits_nor_bookings(bench: &Bench) {
    let hit = bench.store(picture(1)).await;
    let sent = bench.send(picture(2)).await;
    let reserved = bench.win(picture(3)).await;
    bench.freeze(Scope::Global, true).await;
    bench.freeze(team("press"), true).await;

    assert_eq!(bench.look_up(&picture(1)).await, Some(hit.clone()));
    assert_eq!(bench.reserve(picture(1)).await, Reserved::Stored(Box::new(hit)));
    bench.book(sent.id, answer(sent.id)).await;
    let kept = record(&picture(2), sent, bench.clock.now());
    bench.book(sent.id, stored(&kept)).await;
    assert_eq!(bench.look_up(&picture(2)).await, Some(kept));
    bench.book(reserved.id, released()).await;
}

pub(crate) async fn a_freeze_of_everyone_is_told_before_that_of_a_team(bench: &Bench) {
    bench.freeze(team("press"), true).await;
    bench.freeze(Scope::Global, true).await;
    assert_eq!(bench.reserve(picture(1)).await, Reserved::Frozen(Scope::Global));
    bench.freeze(Scope::Global, false).await;
    assert_eq!(bench.reserve(picture(1)).await, Reserved::Frozen(team("press")), "one thaw thaws one");
    bench.freeze(team("press"), false).await;
    bench.send(picture(1)).await;
}

pub(crate) async fn a_budget_is_exact_to_the_credit_under_concurrency(bench: &Bench) {
    // 30 credits are ten calls of 3, and two credits more are not an eleventh.
    for (n, limit) in [(0, 30), (1000, 62)] {
        let budget = daily(Scope::Global, limit);
        let calls = (0..200).map(|m| {
            let bench = bench.clone();
            let wanted = Reservation {
                team: format!("team-{}", m % 3),
                budgets: vec![budget.clone()],
                ..picture(n + m)
            };
            async move { bench.reserve(wanted).await }
        });
        let outcomes = all_at_once(calls).await;
        let won = outcomes.iter().filter(|outcome| matches!(outcome, Reserved::Won(_))).count();
        let refused = outcomes
            .iter()
            .filter(|outcome| matches!(outcome, Reserved::OverBudget(refusal) if refusal.budget == budget));
        assert_eq!((won, refused.count()), (10, 190));
        assert_eq!(bench.used(Scope::Global, Window::Day).await, u64::from(n / 1000 + 1) * 30);
    }
}

pub(crate) async fn the_first_budget_that_is_short_is_named_and_none_is_charged(bench: &Bench) {
    let short = monthly(team("press"), 2);
    let wanted = Reservation {
        budgets: vec![daily(team("press"), 3), short.clone(), monthly(Scope::Global, 1)],
        ..picture(1)
    };
    let Reserved::OverBudget(refusal) = bench.reserve(wanted.clone()).await else { panic!("2 is not 3") };
    assert_eq!(refusal.budget, short);
    assert_eq!(bench.calls(CallState::Reserved).await, 0);
    for scope in [Scope::Global, team("press")] {
        assert_eq!(bench.used(scope.clone(), Window::Day).await, 0);
        assert_eq!(bench.used(scope, Window::Month).await, 0);
    }
    bench
        .win(Reservation { budgets: vec![daily(team("press"), 3), monthly(Scope::Global, 3)], ..wanted })
        .await;
}

pub(crate) async fn a_shadow_budget_counts_and_never_refuses(bench: &Bench) {
    let shadow = Budget { enforced: false, ..daily(team("press"), 4) };
    let hard = daily(Scope::Global, 9);
    for n in 0..3 {
        bench.win(Reservation { budgets: vec![shadow.clone(), hard.clone()], ..picture(n) }).await;
    }
    let used = bench.ledger.used(vec![hard.clone(), shadow.clone()]).await.expect("the ledger can be asked");
    assert_eq!(
        used,
        [Used { budget: hard.clone(), used: 9 }, Used { budget: shadow.clone(), used: 9 }],
        "in the order asked"
    );
    assert_eq!(used[1].left(), 0);
    let refused = bench.reserve(Reservation { budgets: vec![shadow, hard.clone()], ..picture(3) }).await;
    assert!(matches!(refused, Reserved::OverBudget(refusal) if refusal.budget == hard));
}

pub(crate) async fn refused_orders_are_limited_by_team_and_day(bench: &Bench) {
    let scope = |name: &str| Scope::Refused(name.to_owned());
    let limit = Budget { scope: scope("press"), ..daily(Scope::Global, 6) };
    let want = |n| Reservation { budgets: vec![limit.clone()], ..picture(n) };
    let other_refusal = Booking::Refused { reason: "429 EXCEEDING_LIMITS".to_owned(), for_order: false };
    for (n, booking) in [refused(), refused(), other_refusal.clone(), failed()].into_iter().enumerate() {
        assert_eq!(bench.used(scope("press"), Window::Day).await, [0, 3, 6, 6][n]);
        // Only what has been refused by then counts.
        let sent = bench.send(picture(n as u32)).await;
        bench.book(sent.id, booking.clone()).await;
        bench.book(sent.id, booking).await;
    }
    assert_eq!(bench.used(scope("press"), Window::Month).await, 0);
    let Reserved::OverBudget(refusal) = bench.reserve(want(10)).await else { panic!("two were refused") };
    assert_eq!((&refusal.budget, refusal.resets_at.to_string().as_str()), (&limit, "2026-11-22T23:00:00Z"));
    assert_eq!(bench.used(Scope::Global, Window::Day).await, 0, "a refusal costs nothing");
    let print = Budget { scope: scope("print"), ..limit.clone() };
    bench.win(Reservation { team: "print".to_owned(), budgets: vec![print], ..picture(11) }).await;
    bench.clock.set(refusal.resets_at);
    bench.win(want(10)).await;
}

pub(crate) async fn budgets_are_counted_by_team_and_for_everyone(bench: &Bench) {
    bench.win(picture(1)).await;
    bench.win(Reservation { team: "print".to_owned(), credits: 5, ..picture(2) }).await;
    for (scope, used) in [(Scope::Global, 8), (team("press"), 3), (team("print"), 5), (team("web"), 0)] {
        for window in [Window::Day, Window::Month] {
            assert_eq!(bench.used(scope.clone(), window).await, used, "{scope}");
        }
    }
    // A team called "global" is a team.
    bench.win(Reservation { team: "global".to_owned(), ..picture(3) }).await;
    assert_eq!(bench.used(team("global"), Window::Day).await, 3);
    assert_eq!(bench.used(Scope::Global, Window::Day).await, 11);
}

/// Uses a budget up at `start`, and asserts that it is refused until the second `end`, which must
/// be `hours` away, and not from then on.
async fn assert_window(bench: &Bench, n: u32, budget: Budget, (start, end, hours): (&str, &str, u64)) {
    let (start, end) = (instant(start), instant(end));
    let want = |n| Reservation { budgets: vec![budget.clone()], ..picture(n) };
    bench.clock.set(start);
    bench.win(want(n)).await;
    let refusal =
        |resets_in| Reserved::OverBudget(BudgetRefusal { budget: budget.clone(), resets_at: end, resets_in });
    assert_eq!(bench.reserve(want(n + 1)).await, refusal(Duration::from_secs(hours * 3600)), "{start}");
    bench.clock.set(end - SignedDuration::from_secs(1));
    assert_eq!(bench.reserve(want(n + 1)).await, refusal(Duration::from_secs(1)), "{start}");
    assert_eq!(bench.used(budget.scope.clone(), budget.window).await, 3, "{start}");
    bench.clock.set(end);
    assert_eq!(bench.used(budget.scope.clone(), budget.window).await, 0, "{start}");
    let won = bench.win(want(n + 1)).await;
    // The next window of the check must find it empty.
    bench.book(won.id, released()).await;
}

pub(crate) async fn a_daily_budget_starts_anew_at_local_midnight_also_when_the_clocks_change(bench: &Bench) {
    for (n, day) in (0..).map(|n| n * 10).zip([
        ("2026-11-21T23:00:00Z", "2026-11-22T23:00:00Z", 24),
        ("2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z", 23),
        ("2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z", 25),
        ("2026-12-30T23:00:00Z", "2026-12-31T23:00:00Z", 24),
    ]) {
        assert_window(bench, n, daily(team("press"), 3), day).await;
    }
}

pub(crate) async fn a_monthly_budget_starts_anew_on_the_first(bench: &Bench) {
    for (n, month) in (0..).map(|n| n * 10).zip([
        ("2026-01-31T23:00:00Z", "2026-02-28T23:00:00Z", 28 * 24),
        ("2026-02-28T23:00:00Z", "2026-03-31T22:00:00Z", 31 * 24 - 1),
        ("2026-09-30T22:00:00Z", "2026-10-31T23:00:00Z", 31 * 24 + 1),
        ("2026-11-30T23:00:00Z", "2026-12-31T23:00:00Z", 31 * 24),
    ]) {
        assert_window(bench, n, monthly(Scope::Global, 3), month).await;
    }
}

pub(crate) async fn credits_given_back_after_midnight_go_to_the_day_they_were_taken_from(bench: &Bench) {
    let (before, after) = (instant("2026-11-30T22:59:59Z"), instant("2026-11-30T23:00:00Z"));
    for (n, outcome) in (0..).map(|n| n * 10).zip([released(), refused(), failed()]) {
        bench.clock.set(before);
        let old = bench.send(picture(n)).await;
        bench.clock.set(after);
        let new = bench.win(picture(n + 1)).await;
        bench.book(old.id, outcome).await;
        for window in [Window::Day, Window::Month] {
            bench.clock.set(after);
            assert_eq!(bench.used(team("press"), window).await, 3);
            bench.clock.set(before);
            assert_eq!(bench.used(team("press"), window).await, 0);
        }
        bench.book(new.id, released()).await;
    }
}

pub(crate) async fn a_late_answer_leaves_the_key_to_whoever_took_it(bench: &Bench) {
    // How far the second call is when the first one's answer comes, and whether the first one's
    // result claims the key: whatever they are, the second keeps it.
    let states = [CallState::Reserved, CallState::Sent, CallState::Answered, CallState::Stored];
    let cases = states.into_iter().flat_map(|state| [(state, true), (state, false)]);
    for (n, (state, claims)) in (1..).zip(cases) {
        let wanted = picture(n);
        let late = bench.bring(n, CallState::Unknown).await;
        bench.clock.turn(60);
        let holder = bench.bring(n, state).await;
        assert_eq!(holder.generation, late.generation);

        bench.book(late.id, answer(late.id)).await;
        bench.assert_hold(&wanted, holder, state, "the late answer is booked").await;
        let second_object = record(&wanted, late, bench.clock.now());
        let booking = Booking::Stored { record: Box::new(second_object), holds_key: claims };
        bench.book(late.id, booking).await;
        bench.assert_hold(&wanted, holder, state, "the late result is stored").await;

        if state == CallState::Reserved {
            assert_eq!(bench.mark_sent(holder.id).await, Permit::Granted);
        }
        let kept = record(&wanted, holder, bench.clock.now());
        if state != CallState::Stored {
            assert_eq!(bench.look_up(&wanted).await, None, "{} holds the key", state.as_str());
            bench.book(holder.id, answer(holder.id)).await;
            bench.book(holder.id, stored(&kept)).await;
        }
        assert_eq!(bench.look_up(&wanted).await, Some(kept.clone()));
        assert_eq!(bench.reserve(wanted).await, Reserved::Stored(Box::new(kept)));
        assert_eq!(bench.win(refresh(n)).await.generation, 1);
    }
    assert_eq!(bench.calls(CallState::Stored).await, 16, "both results of each key");
}

pub(crate) async fn a_late_answer_takes_the_key_back_when_nobody_has_it(bench: &Bench) {
    let late = bench.bring(1, CallState::Unknown).await;
    bench.assert_rests(picture(1), 60).await;
    bench.book(late.id, answer(late.id)).await;
    assert_eq!(bench.reserve(picture(1)).await, Reserved::Held(late.id));
    let kept = record(&picture(1), late, bench.clock.now());
    bench.book(late.id, stored(&kept)).await;
    assert_eq!(bench.look_up(&picture(1)).await, Some(kept));

    // Who came and failed meanwhile is no holder either.
    let late = bench.bring(2, CallState::Unknown).await;
    bench.clock.turn(60);
    bench.bring(2, CallState::Refused).await;
    bench.book(late.id, answer(late.id)).await;
    let kept = record(&picture(2), late, bench.clock.now());
    bench.book(late.id, stored(&kept)).await;
    assert_eq!(bench.reserve(picture(2)).await, Reserved::Stored(Box::new(kept)));
}

pub(crate) async fn a_late_result_takes_the_key_back_when_its_rival_let_go(bench: &Bench) {
    let late = bench.bring(1, CallState::Unknown).await;
    bench.clock.turn(60);
    let rival = bench.win(picture(1)).await;
    bench.book(late.id, answer(late.id)).await;
    bench.book(rival.id, released()).await;
    let kept = record(&picture(1), late, bench.clock.now());
    bench.book(late.id, stored(&kept)).await;
    assert_eq!(bench.look_up(&picture(1)).await, Some(kept));
}

pub(crate) async fn a_lost_result_is_not_imported_again(bench: &Bench) {
    let kept = bench.store(picture(1)).await;
    bench.ledger.lose(&kept).await.expect("the ledger can be asked");
    import_record(bench, &kept).await;
    assert_eq!(bench.look_up(&picture(1)).await, None, "its record outlived it in the store");
    assert_eq!(bench.win(picture(1)).await.generation, 1);
}

/// A record of another ledger.
fn foreign(n: u32, generation: u64, stored_at: Timestamp) -> Record {
    record(&picture(n), Won { id: CallId(1_000_000 + i64::from(n)), generation }, stored_at)
}

async fn import_record(bench: &Bench, record: &Record) {
    bench.ledger.import_record(record).await.expect("the ledger can be asked");
}

pub(crate) async fn a_result_that_came_second_to_the_store_leaves_the_key_to_the_first(bench: &Bench) {
    let ours = bench.answered(picture(1)).await;
    let second = Box::new(record(&picture(1), ours, bench.clock.now()));
    bench.book(ours.id, Booking::Stored { record: second, holds_key: false }).await;
    assert_eq!(bench.calls(CallState::Stored).await, 1);
    assert_eq!(bench.look_up(&picture(1)).await, None);
    let next = bench.win(picture(1)).await;
    assert_eq!(next.generation, 0, "the ledger knows of no result to be newer than");
    bench.book(next.id, released()).await;

    let first = foreign(1, 0, bench.clock.now());
    import_record(bench, &first).await;
    assert_eq!(bench.look_up(&picture(1)).await, Some(first));
}

pub(crate) async fn an_imported_record_is_found_and_costs_nothing(bench: &Bench) {
    let before = bench.totals().await;
    let theirs = foreign(1, 4, bench.clock.now());
    for _ in 0..2 {
        import_record(bench, &theirs).await;
        assert_eq!(bench.look_up(&picture(1)).await, Some(theirs.clone()));
        assert_eq!(bench.reserve(picture(1)).await, Reserved::Stored(Box::new(theirs.clone())));
        assert_eq!(bench.totals().await, before);
        assert_eq!(bench.used(Scope::Global, Window::Month).await, 0);
        assert_eq!(bench.used(team("press"), Window::Day).await, 0);
    }
    assert_eq!(bench.win(refresh(1)).await.generation, 5);
}

pub(crate) async fn importing_never_displaces_a_call(bench: &Bench) {
    let theirs = |n| foreign(n, 0, bench.clock.now());
    for (n, state) in (1..).zip([CallState::Reserved, CallState::Sent, CallState::Answered]) {
        let ours = bench.bring(n, state).await;
        import_record(bench, &theirs(n)).await;
        assert_eq!(bench.look_up(&picture(n)).await, None);
        bench.assert_hold(&picture(n), ours, state, state.as_str()).await;
    }
    let ours = bench.store(picture(4)).await;
    import_record(bench, &theirs(4)).await;
    assert_eq!(bench.look_up(&picture(4)).await, Some(ours));

    let newer = foreign(4, 1, bench.clock.now());
    import_record(bench, &newer).await;
    import_record(bench, &theirs(4)).await;
    assert_eq!(bench.look_up(&picture(4)).await, Some(newer), "the highest generation counts");
    assert_eq!(bench.calls(CallState::Stored).await, 1);
}

pub(crate) async fn a_lost_result_is_bought_again_as_the_next_generation(bench: &Bench) {
    let imported = foreign(2, 3, bench.clock.now());
    import_record(bench, &imported).await;
    for (n, kept) in [(1, bench.store(picture(1)).await), (2, imported)] {
        for _ in 0..2 {
            bench.ledger.lose(&kept).await.expect("the ledger can be asked");
            assert_eq!(bench.look_up(&picture(n)).await, None);
        }
        let again = bench.store(picture(n)).await;
        assert_eq!(again.generation, kept.generation + 1);
        assert_eq!(bench.look_up(&picture(n)).await, Some(again));
    }
    assert_eq!(bench.calls(CallState::Lost).await, 1, "imported ones are not ours to count");
    assert_eq!(bench.used(Scope::Global, Window::Day).await, 9, "the lost one was paid for");
}

pub(crate) async fn losing_a_record_that_is_not_the_stored_one_changes_nothing(bench: &Bench) {
    let old = bench.store(picture(1)).await;
    let new = bench.store(refresh(1)).await;
    for wrong in [
        Record { digest: old.digest, ..new.clone() },
        Record { generation: 7, ..new.clone() },
        Record { namespace: "builtin-v1".to_owned(), ..new.clone() },
        Record { key: picture(2).key, ..new.clone() },
    ] {
        bench.ledger.lose(&wrong).await.expect("the ledger can be asked");
        assert_eq!(bench.calls(CallState::Lost).await, 0, "{wrong:?}");
    }
    bench.ledger.lose(&old).await.expect("the ledger can be asked");
    assert_eq!(bench.look_up(&picture(1)).await, Some(new), "the newest is not touched");
}

pub(crate) async fn recovery_settles_what_dead_owners_left_open(bench: &Bench) {
    let mut won = Vec::new();
    for (n, state) in (1..).zip(CallState::ALL) {
        won.push((state, bench.bring(n, state).await));
    }
    let bought =
        Reservation { team: "print".to_owned(), credits: 7, width: 1, height: 65_535, ..picture(20) };
    let answered_at = bench.clock.now();
    let another = bench.answered(bought.clone()).await;
    bench.clock.turn(5);
    let used = bench.used(Scope::Global, Window::Day).await;

    let found = bench.recover().await;
    assert_eq!((found.released, found.unknown), (1, 1));
    assert_eq!(found.unfinished.len(), 2);
    let [first, second] = &found.unfinished[..] else { panic!("two were answered") };
    assert_eq!((first.id, &first.reservation.key), (won[3].1.id, &picture(4).key));
    assert_eq!((second.id, second.generation, second.answered_at), (another.id, 0, answered_at));
    assert_eq!(second.text.expose(), signed_answer(another.id.0));
    let told = &second.reservation;
    assert_eq!((&told.namespace, told.key, &told.team), (&bought.namespace, bought.key, &bought.team));
    assert_eq!((told.credits, told.image, told.width, told.height), (7, bought.image, 1, 65_535));

    assert_eq!(bench.used(Scope::Global, Window::Day).await, used - 3, "reserved gives back, sent does not");
    for ((n, (was, won)), other) in (1..).zip(won).zip(CallState::ALL) {
        let now = match was {
            CallState::Reserved => CallState::Released,
            CallState::Sent => CallState::Unknown,
            _ => other,
        };
        assert_eq!(bench.mark_sent(won.id).await, Permit::Lost, "{}", was.as_str());
        bench.assert_hold(&picture(n), won, now, was.as_str()).await;
    }
    bench.assert_rests(picture(3), 60).await;
    let kept = record(&bought, another, bench.clock.now());
    bench.book(another.id, stored(&kept)).await;
    assert_eq!(bench.look_up(&bought).await, Some(kept));
}

pub(crate) async fn recovering_twice_is_the_same_as_once(bench: &Bench) {
    for (n, state) in (1..).zip(CallState::ALL) {
        bench.bring(n, state).await;
    }
    let first = bench.recover().await;
    let (totals, used) = (bench.totals().await, bench.used(Scope::Global, Window::Day).await);
    bench.clock.turn(30);
    let second = bench.recover().await;
    assert_eq!((second.released, second.unknown), (0, 0));
    let ids = |found: &Recovery| found.unfinished.iter().map(|call| call.id).collect::<Vec<_>>();
    assert_eq!((ids(&first).len(), ids(&first)), (1, ids(&second)));
    assert_eq!(bench.totals().await, totals);
    assert_eq!(bench.used(Scope::Global, Window::Day).await, used);
    bench.assert_rests(picture(3), 30).await;
}

pub(crate) async fn totals_name_every_state_once(bench: &Bench) {
    let nothing = CallState::ALL.map(|state| StateTotal { state, calls: 0, credits: 0 });
    assert_eq!(bench.totals().await, nothing);
    for (n, state) in (0..).map(|n| n * 10).zip(CallState::ALL) {
        bench.bring(n, state).await;
        let won = bench.win(Reservation { credits: 4, ..picture(n + 1) }).await;
        bench.book(won.id, released()).await;
    }
    let expected = CallState::ALL.map(|state| match state {
        CallState::Released => StateTotal { state, calls: 11, credits: 43 },
        _ => StateTotal { state, calls: 1, credits: 3 },
    });
    assert_eq!(bench.totals().await, expected);
}

pub(crate) async fn a_ledger_belongs_to_one_archive(bench: &Bench) {
    let (ours, other) = (ArchiveId::random(), ArchiveId::random());
    assert_eq!(bench.ledger.archive().await.unwrap(), None);
    let begun = Membership::new(ours, false);
    assert_eq!(bench.ledger.begin_archive(ours).await.unwrap(), begun);
    assert_eq!(bench.ledger.begin_archive(other).await.unwrap(), begun, "the first one stands");
    assert_eq!(bench.ledger.archive().await.unwrap(), Some(begun));
    bench.ledger.settle_archive(ours).await.unwrap();
    assert_eq!(bench.ledger.begin_archive(other).await.unwrap(), Membership::new(ours, true));
    bench.ledger.settle_archive(other).await.unwrap();
    assert_eq!(bench.ledger.archive().await.unwrap(), Some(Membership::new(other, true)), "an adoption");
}

pub(crate) async fn import_is_complete_once_it_is_noted(bench: &Bench) {
    let (ours, other) = (ArchiveId::random(), ArchiveId::random());
    let knows = async || {
        let Reservation { namespace, key, .. } = picture(1);
        let absence = bench.ledger.absence(&namespace, key).await.expect("the ledger can be asked");
        absence == Absence::Certain
    };
    let import = async || bench.ledger.archive().await.unwrap().expect("it has one").import;
    assert!(!knows().await, "it has no archive");
    bench.ledger.settle_archive(ours).await.unwrap();
    assert_eq!((import().await, knows().await), (Import::UpTo(None), false));
    let half = Import::UpTo(Some("records/ailab-v1/7f/".to_owned()));
    bench.ledger.note_import(ours, half.clone()).await.unwrap();
    assert_eq!((import().await, knows().await), (half.clone(), false));
    bench.ledger.note_import(other, Import::Complete).await.unwrap();
    assert_eq!((import().await, knows().await), (half, false), "it is not about this archive");
    bench.ledger.note_import(ours, Import::Complete).await.unwrap();
    assert_eq!((import().await, knows().await), (Import::Complete, true));
    bench.ledger.settle_archive(ours).await.unwrap();
    assert_eq!((import().await, knows().await), (Import::UpTo(None), false), "adopted again");
}

pub(crate) async fn key_of_a_call_whose_owner_died_is_not_known_in_full(bench: &Bench) {
    let archive = ArchiveId::random();
    bench.ledger.settle_archive(archive).await.unwrap();
    bench.ledger.note_import(archive, Import::Complete).await.unwrap();
    let absence = async |n| {
        let Reservation { namespace, key, .. } = picture(n);
        bench.ledger.absence(&namespace, key).await.expect("the ledger can be asked")
    };
    let orphans = async || bench.ledger.orphans().await.expect("the ledger can be asked");
    // Its owner lived, and knows that there is no result.
    bench.bring(1, CallState::Unknown).await;
    let sent = bench.bring(2, CallState::Sent).await;
    bench.bring(3, CallState::Answered).await;
    bench.bring(4, CallState::Reserved).await;
    assert_eq!(orphans().await, []);
    // An open call may have written a record that is not booked, unless nothing was sent.
    let of_all = [absence(1).await, absence(2).await, absence(3).await, absence(4).await];
    assert_eq!(of_all, [Absence::Certain, Absence::OpenCall, Absence::OpenCall, Absence::Certain]);
    bench.recover().await;
    let Reservation { namespace, key, .. } = picture(2);
    assert_eq!(orphans().await, [Orphan { id: sent.id, namespace, key }]);
    let of_all = [absence(1).await, absence(2).await, absence(3).await];
    assert_eq!(of_all, [Absence::Certain, Absence::Uncertain, Absence::OpenCall]);
    import_record(bench, &foreign(2, 0, bench.clock.now())).await;
    assert_eq!((orphans().await, absence(2).await), (Vec::new(), Absence::Certain));
}

pub(crate) async fn record_of_a_call_whose_owner_died_makes_it_stored(bench: &Bench) {
    let sent = bench.bring(1, CallState::Sent).await;
    let used = bench.used(Scope::Global, Window::Day).await;
    bench.recover().await;
    assert_eq!(bench.calls(CallState::Unknown).await, 1);
    let kept = record(&picture(1), sent, bench.clock.now());
    for _ in 0..2 {
        import_record(bench, &kept).await;
        assert_eq!((bench.calls(CallState::Unknown).await, bench.calls(CallState::Stored).await), (0, 1));
        assert_eq!(bench.look_up(&picture(1)).await, Some(kept.clone()));
        assert_eq!(bench.reserve(picture(1)).await, Reserved::Stored(Box::new(kept.clone())));
    }
    assert_eq!(bench.used(Scope::Global, Window::Day).await, used, "it is paid for once");
    // The owner lived after all: what it books is booked already.
    bench.book(sent.id, stored(&kept)).await;
    bench.ledger.lose(&kept).await.expect("the ledger can be asked");
    import_record(bench, &kept).await;
    assert_eq!(bench.look_up(&picture(1)).await, None, "a lost result is not imported again");
}

pub(crate) async fn record_that_no_call_can_have_made_settles_no_call(bench: &Bench) {
    // An owner that lived has no result.
    bench.bring(1, CallState::Unknown).await;
    for n in 2..5 {
        bench.bring(n, CallState::Sent).await;
    }
    bench.recover().await;
    let at = bench.clock.now();
    let theirs = |n| foreign(n, 0, at);
    for other in [
        theirs(1),
        Record { team: "print".to_owned(), ..theirs(2) },
        Record { credits: 4, ..theirs(3) },
        foreign(4, 1, at),
    ] {
        import_record(bench, &other).await;
    }
    assert_eq!((bench.calls(CallState::Unknown).await, bench.calls(CallState::Stored).await), (4, 0));
    // One that is booked already made this record.
    bench.clock.turn(60);
    let again = bench.bring(5, CallState::Sent).await;
    bench.recover().await;
    bench.clock.turn(60);
    let kept = bench.store(picture(5)).await;
    import_record(bench, &kept).await;
    assert_eq!(bench.calls(CallState::Unknown).await, 5, "call {}", again.id.0);
}

pub(crate) async fn owner_that_lived_on_keeps_its_result_beside_a_record_taken_for_it(bench: &Bench) {
    let sent = bench.bring(1, CallState::Sent).await;
    bench.recover().await;
    let theirs = foreign(1, 0, bench.clock.now());
    import_record(bench, &theirs).await;
    assert_eq!(bench.look_up(&picture(1)).await, Some(theirs));
    let own = record(&picture(1), sent, bench.clock.now());
    for _ in 0..2 {
        bench.book(sent.id, spool::spooled(&own)).await;
        assert_eq!(bench.look_up(&picture(1)).await, Some(own.clone()));
    }
    assert_eq!(bench.object(&own).await, Some(spool::bytes_of(&own)));
    assert_eq!((bench.calls(CallState::Stored).await, bench.used(Scope::Global, Window::Day).await), (1, 3));
}

pub(crate) async fn call_whose_owner_lived_on_is_no_orphan(bench: &Bench) {
    let sent = bench.bring(1, CallState::Sent).await;
    bench.recover().await;
    assert_eq!(bench.ledger.orphans().await.expect("the ledger can be asked").len(), 1);
    bench.clock.turn(20);
    bench.book(sent.id, unknown()).await;
    assert_eq!(bench.ledger.orphans().await.expect("the ledger can be asked"), []);
    bench.assert_rests(picture(1), 40).await;
    // What a call of another ledger made of the same picture is not the result of this one.
    import_record(bench, &foreign(1, 0, bench.clock.now())).await;
    assert_eq!((bench.calls(CallState::Unknown).await, bench.calls(CallState::Stored).await), (1, 0));
}

pub(crate) async fn result_stored_without_its_answer_is_booked_in_full(bench: &Bench) {
    for (n, from) in (1..).zip([CallState::Sent, CallState::Unknown]) {
        let won = bench.bring(n, from).await;
        let kept = record(&picture(n), won, bench.clock.now());
        for _ in 0..2 {
            bench.book(won.id, stored(&kept)).await;
            assert_eq!(bench.look_up(&picture(n)).await, Some(kept.clone()), "{from:?}");
        }
    }
    assert_eq!(bench.calls(CallState::Stored).await, 2);
    assert_eq!(bench.used(Scope::Global, Window::Day).await, 6);
}
