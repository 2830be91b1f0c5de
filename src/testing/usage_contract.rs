//! The suite every [`UsageBook`] must pass, together with the [`Ledger`] it is the other side of.
//!
//! A ledger runs all of it with one line in its own tests, [`usage_contract!`], and its random lives
//! with [`live`].

use std::collections::BTreeMap;

use jiff::civil::Date;
use proptest::prelude::*;
use uuid::Uuid;

use crate::base::outcome::SavingCause;
use crate::base::record::Record;
use crate::ledger::usage::*;
use crate::ledger::{Booking, CallId, CallState, Reservation, rules};
use crate::testing::ledger_contract::{
    Bench, TurnableClock, WholeLedger, all_at_once, answer, failed, instant, picture, record, refused,
    released, stored, unknown, zone,
};

/// Makes one test of each check, or one of all with a name before them. `$begin` and `$open` are as for
/// `ledger_contract!`; what is opened is a [`UsageBook`] too.
macro_rules! usage_contract {
    ($open:path) => {
        $crate::testing::usage_contract::usage_contract! { @checks @each $open }
    };
    ($name:ident, $begin:path, $open:path) => {
        $crate::testing::usage_contract::usage_contract! { @checks @all $name, $begin, $open }
    };
    (@checks $($how:tt)*) => {
        $crate::testing::usage_contract::usage_contract! { $($how)*:
            what_was_paid_is_told_by_day_team_and_state,
            what_was_paid_through_another_ledger_is_nobodys_spending,
            what_was_served_adds_up_over_batches_and_processes,
            a_batch_is_booked_once_however_often_it_comes,
            a_bad_line_is_dropped_and_not_its_batch,
            what_was_served_in_a_closed_month_counts_on_the_day_of_booking,
            an_unknown_call_that_is_settled_late_is_an_adjustment_of_that_day,
            whatever_becomes_of_a_closed_months_calls_its_figures_stay,
            a_change_before_the_month_is_closed_is_no_adjustment,
            an_illegal_booking_adjusts_nothing,
            the_month_is_the_sum_of_its_days,
        }
    };
    (@each $open:path: $($check:ident),* $(,)?) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $check() {
            let clock = $crate::testing::ledger_contract::TurnableClock::at("2026-11-22T09:00:00Z");
            let (ledger, _keep) = $open(clock.clock(), $crate::testing::ledger_contract::zone()).await;
            let bench = $crate::testing::usage_contract::UsageBench::new(std::sync::Arc::new(ledger), clock);
            $crate::testing::usage_contract::$check(&bench).await;
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
                let bench = $crate::testing::usage_contract::UsageBench::new(std::sync::Arc::new(ledger), clock);
                $crate::testing::usage_contract::$check(&bench).await;
            )*
        }
    };
}
pub(crate) use usage_contract;

/// One ledger, from both sides.
#[derive(Clone)]
pub(crate) struct UsageBench {
    bench: Bench,
    book: std::sync::Arc<dyn UsageBook>,
}

impl UsageBench {
    pub(crate) fn new<L: WholeLedger + UsageBook + 'static>(
        ledger: std::sync::Arc<L>,
        clock: TurnableClock,
    ) -> Self {
        Self { bench: Bench { ledger: ledger.clone(), clock }, book: ledger }
    }

    fn at(&self, text: &str) {
        self.bench.clock.set(instant(text));
    }

    async fn between(&self, from: &str, to: &str) -> BTreeMap<(String, String), Figures> {
        let usage = self.book.usage(date(from), date(to)).await.expect("the ledger can be asked");
        usage.into_iter().map(|usage| ((usage.day.to_string(), usage.team), usage.figures)).collect()
    }

    async fn all(&self) -> BTreeMap<(String, String), Figures> {
        self.between("2000-01-01", "2099-12-31").await
    }

    /// The owner of what is open has died, and another one settles it.
    async fn recover(&self) {
        let ledger = &self.bench.ledger;
        ledger.recover().await.expect("the ledger can be written");
        let silent = ledger.foreign_calls(Vec::new()).await.expect("the ledger can be asked");
        ledger.take_over(silent).await.expect("the ledger can be written");
    }

    async fn serve(&self, process: Uuid, number: u64, served: Vec<Served>) {
        let batch = ServedBatch { process, number, served };
        self.book.book_served(batch).await.expect("the ledger can be written");
    }
}

fn date(text: &str) -> Date {
    text.parse().expect("a date in a test")
}

fn of(team: &str, n: u32) -> Reservation {
    Reservation { team: team.to_owned(), ..picture(n) }
}

fn calls(counts: &[(CallState, u64)]) -> Figures {
    let mut figures = Figures::default();
    for (state, number) in counts {
        *figures.calls_mut(*state) += Count { number: *number, credits: 3 * number };
    }
    figures
}

fn served(day: &str, team: &str, cause: SavingCause, payer: Payer, number: u64) -> Served {
    let count = Count { number, credits: 3 * number };
    Served { day: date(day), team: team.to_owned(), cause, payer, count }
}

fn key(day: &str, team: &str) -> (String, String) {
    (day.to_owned(), team.to_owned())
}

pub(crate) async fn what_was_paid_is_told_by_day_team_and_state(bench: &UsageBench) {
    for (n, state) in (1..).zip(CallState::ALL) {
        bench.bench.bring(n, state).await;
    }
    bench.bench.store(of("web", 20)).await;
    // An hour before midnight in UTC is the next day in Berlin; the day is that of the reservation.
    bench.at("2026-11-23T22:59:59Z");
    let open = bench.bench.answered(of("web", 21)).await;
    bench.at("2026-11-23T23:00:00Z");
    bench.bench.book(open.id, stored(&record(&of("web", 21), open, bench.bench.clock.now()))).await;
    bench.bench.store(of("web", 22)).await;
    let one_of_each: Vec<_> = CallState::ALL.map(|state| (state, 1)).to_vec();
    let expected = BTreeMap::from([
        (key("2026-11-22", "press"), calls(&one_of_each)),
        (key("2026-11-22", "web"), calls(&[(CallState::Stored, 1)])),
        (key("2026-11-23", "web"), calls(&[(CallState::Stored, 1)])),
        (key("2026-11-24", "web"), calls(&[(CallState::Stored, 1)])),
    ]);
    assert_eq!(bench.all().await, expected);
    assert_eq!(expected[&key("2026-11-22", "press")].spent(), 21);
    let inner = bench.between("2026-11-23", "2026-11-23").await;
    assert_eq!(inner.into_keys().collect::<Vec<_>>(), [key("2026-11-23", "web")]);
    assert_eq!(bench.between("2026-11-25", "2026-11-30").await, BTreeMap::new());
}

pub(crate) async fn what_was_paid_through_another_ledger_is_nobodys_spending(bench: &UsageBench) {
    let theirs = Record { team: "theirs".to_owned(), ..bench.bench.store(picture(1)).await };
    let theirs = Record { key: picture(2).key, ..theirs };
    bench.bench.ledger.import_record(&theirs).await.expect("the ledger can be written");
    bench.at("2027-01-15T09:00:00Z");
    bench.bench.ledger.lose(&theirs).await.expect("the ledger can be written");
    assert_eq!(bench.all().await.into_keys().collect::<Vec<_>>(), [key("2026-11-22", "press")]);
}

pub(crate) async fn what_was_served_adds_up_over_batches_and_processes(bench: &UsageBench) {
    let (one, two) = (Uuid::new_v4(), Uuid::new_v4());
    let hits = |number| served("2026-11-22", "web", SavingCause::HitMemory, Payer::Own, number);
    let mut expected = Figures::default();
    bench
        .serve(one, 1, vec![hits(2), served("2026-11-21", "web", SavingCause::HitStore, Payer::Own, 1)])
        .await;
    bench.serve(two, 1, vec![hits(30)]).await;
    bench.serve(one, 2, vec![hits(400)]).await;
    for (cause, number) in SavingCause::ALL.into_iter().zip(1..) {
        for payer in Payer::ALL {
            bench.serve(Uuid::new_v4(), 1, vec![served("2026-11-22", "app", cause, payer, number)]).await;
            *expected.served_mut(cause, payer) += Count { number, credits: 3 * number };
        }
    }
    let found = bench.all().await;
    assert_eq!(found[&key("2026-11-22", "app")], expected);
    let web = found[&key("2026-11-22", "web")];
    assert_eq!(web.served(SavingCause::HitMemory, Payer::Own), Count { number: 432, credits: 1296 });
    assert_eq!(found[&key("2026-11-21", "web")].saved(Payer::Own), Count { number: 1, credits: 3 });
    assert_eq!((found.len(), web.spent()), (3, 0));
}

pub(crate) async fn a_batch_is_booked_once_however_often_it_comes(bench: &UsageBench) {
    let process = Uuid::new_v4();
    let batch = |number| ServedBatch {
        process,
        number,
        served: vec![served("2026-11-22", "web", SavingCause::Coalesced, Payer::Other, 1)],
    };
    for number in [1, 2] {
        let tries = (0..8).map(|_| {
            let (book, batch) = (bench.book.clone(), batch(number));
            async move { book.book_served(batch).await }
        });
        assert!(all_at_once(tries).await.iter().all(Result::is_ok));
    }
    // One that was sent before and comes after.
    bench.book.book_served(batch(1)).await.expect("it is booked already");
    let saved = bench.all().await[&key("2026-11-22", "web")].saved(Payer::Other);
    assert_eq!(saved, Count { number: 2, credits: 6 });
}

pub(crate) async fn a_bad_line_is_dropped_and_not_its_batch(bench: &UsageBench) {
    let line = |team: &str, count| Served {
        count,
        ..served("2026-11-22", team, SavingCause::HitStore, Payer::Other, 1)
    };
    let forged = Count { number: 1, credits: 1 << 63 };
    let batch = |number: u8| ServedBatch {
        process: Uuid::from_u128(number.into()),
        number: 1,
        served: vec![
            line("bad", forged),
            line("web", Count { number: 2, credits: 6 }),
            line("worse", Count { number: u64::MAX, credits: u64::MAX }),
        ],
    };
    for number in 1..=3 {
        bench.book.book_served(batch(number)).await.expect("the good line can be booked");
    }
    let all = bench.all().await;
    assert_eq!(all[&key("2026-11-22", "web")].saved(Payer::Other), Count { number: 6, credits: 18 });
    assert_eq!(all.len(), 1, "{all:?}");
}

pub(crate) async fn what_was_served_in_a_closed_month_counts_on_the_day_of_booking(bench: &UsageBench) {
    let process = Uuid::new_v4();
    let late = || vec![served("2026-11-30", "web", SavingCause::HitLedger, Payer::Own, 1)];
    bench.at("2026-12-01T22:59:59Z");
    bench.serve(process, 1, late()).await;
    bench.at("2026-12-01T23:00:00Z");
    bench.serve(process, 2, late()).await;
    let days: Vec<_> = bench.all().await.into_keys().collect();
    assert_eq!(days, [key("2026-11-30", "web"), key("2026-12-02", "web")]);
}

pub(crate) async fn an_unknown_call_that_is_settled_late_is_an_adjustment_of_that_day(bench: &UsageBench) {
    let call = bench.bench.bring(1, CallState::Unknown).await;
    bench.bench.store(picture(2)).await;
    bench.at("2026-12-24T12:00:00Z");
    let before = bench.between("2026-11-01", "2026-11-30").await;
    bench.bench.book(call.id, failed()).await;
    // As when its outcome was lost.
    bench.bench.book(call.id, failed()).await;
    let after = bench.all().await;
    assert_eq!(after[&key("2026-11-22", "press")], before[&key("2026-11-22", "press")]);
    assert_eq!(after[&key("2026-11-22", "press")].spent(), 6);
    let adjusted = after[&key("2026-12-24", "press")];
    assert_eq!((adjusted, adjusted.spent()), (Figures { adjusted: -3, ..Figures::default() }, -3));
}

pub(crate) async fn whatever_becomes_of_a_closed_months_calls_its_figures_stay(bench: &UsageBench) {
    let mut ids = BTreeMap::new();
    for (n, state) in (1..).zip(CallState::ALL) {
        ids.insert(n, bench.bench.bring(n, state).await.id);
    }
    let kept = bench.bench.store(picture(50)).await;
    bench.at("2027-02-03T12:00:00Z");
    let before = bench.between("2026-11-01", "2026-11-30").await;
    // The process was gone for months: what was open is settled by the next one.
    bench.recover().await;
    bench.bench.ledger.lose(&kept).await.expect("the ledger can be written");
    bench.at("2027-03-04T12:00:00Z");
    let unknown_call = ids[&8];
    bench.bench.book(unknown_call, answer(unknown_call)).await;
    bench.bench.book(unknown_call, Booking::Unfetchable { reason: "gone".to_owned() }).await;
    // It was `sent` until the recovery.
    bench.bench.book(ids[&3], refused()).await;
    assert_eq!(bench.between("2026-11-01", "2026-11-30").await, before);
    let later = bench.between("2026-12-01", "2027-12-31").await;
    let adjusted: Vec<_> = later.into_iter().map(|(key, figures)| (key.0, figures.adjusted)).collect();
    // Of the one that was reserved, and the one that was sent and refused in the end.
    assert_eq!(adjusted, [("2027-02-03".to_owned(), -3), ("2027-03-04".to_owned(), -3)]);
}

pub(crate) async fn a_change_before_the_month_is_closed_is_no_adjustment(bench: &UsageBench) {
    let calls_before = bench.bench.bring(1, CallState::Unknown).await;
    bench.at("2026-12-01T12:00:00Z");
    bench.bench.book(calls_before.id, failed()).await;
    assert_eq!(
        bench.all().await,
        BTreeMap::from([(key("2026-11-22", "press"), calls(&[(CallState::Failed, 1)]))])
    );
}

pub(crate) async fn an_illegal_booking_adjusts_nothing(bench: &UsageBench) {
    let call = bench.bench.bring(1, CallState::Stored).await;
    bench.at("2027-01-15T12:00:00Z");
    let before = bench.all().await;
    bench.bench.ledger.book(call.id, released()).await.expect_err("it was sent");
    assert_eq!(bench.all().await, before);
}

pub(crate) async fn the_month_is_the_sum_of_its_days(bench: &UsageBench) {
    let late = bench.bench.bring(1, CallState::Unknown).await;
    bench.bench.store(of("web", 2)).await;
    bench
        .serve(Uuid::new_v4(), 1, vec![served("2026-11-22", "web", SavingCause::HitMemory, Payer::Own, 9)])
        .await;
    bench.at("2026-12-31T12:00:00Z");
    bench.bench.book(late.id, failed()).await;
    bench.bench.store(of("web", 3)).await;
    bench.bench.store(of("app", 4)).await;
    bench.bench.bring(5, CallState::Released).await;
    let hits = served("2026-12-31", "app", SavingCause::HitMemory, Payer::Other, 2);
    bench.serve(Uuid::new_v4(), 1, vec![hits]).await;
    let month = bench.book.month().await.expect("the ledger can be asked");
    let of = |team: &str, spent, saved| TeamMonth { team: team.to_owned(), spent, saved };
    assert_eq!(month, [of("app", 3, 6), of("press", -3, 0), of("web", 3, 0)]);
}

/// One step of a random life.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Reserve a key for a team.
    Reserve(usize, u32),
    /// Take a call one step on: the number chooses the call and the booking.
    Move(usize, usize),
    /// Book what was served, some days ago; perhaps twice.
    Serve(usize, i64, usize, u64, bool),
    /// The process dies, and another one settles what is open.
    Recover,
    /// Time passes, in hours.
    Turn(i64),
}

pub(crate) fn lives() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..2_usize, 0..40_u32).prop_map(|(team, key)| Step::Reserve(team, key)),
        8 => (0..1000_usize, 0..1000_usize).prop_map(|(call, booking)| Step::Move(call, booking)),
        3 => (0..2_usize, 0..3_i64, 0..10_usize, 1..9_u64, any::<bool>())
            .prop_map(|(team, ago, place, number, twice)| Step::Serve(team, ago, place, number, twice)),
        1 => Just(Step::Recover),
        3 => (1..300_i64).prop_map(Step::Turn),
    ];
    proptest::collection::vec(step, 1..60)
}

/// What a life is held against: nothing but the rules.
#[derive(Default)]
struct Model {
    calls: Vec<ModelCall>,
    adjusted: BTreeMap<(String, String), i64>,
    served: BTreeMap<(String, String), Figures>,
}

struct ModelCall {
    id: CallId,
    bought: Reservation,
    generation: u64,
    day: String,
    state: CallState,
    /// What it was when its month was closed.
    closed: Option<CallState>,
}

impl Model {
    fn close(&mut self, today: &str) {
        for call in self.calls.iter_mut().filter(|call| rules::is_closed(&call.day[..7], today)) {
            call.closed.get_or_insert(call.state);
        }
    }

    fn becomes(&mut self, index: usize, state: CallState, today: &str) {
        let call = &mut self.calls[index];
        if call.closed.is_some() && call.state.counts_credits() && !state.counts_credits() {
            *self.adjusted.entry(key(today, &call.bought.team)).or_default() -= 3;
        }
        call.state = state;
    }

    fn usage(&self) -> BTreeMap<(String, String), Figures> {
        let mut all = self.served.clone();
        for call in &self.calls {
            let state = call.closed.unwrap_or(call.state);
            let figures = all.entry(key(&call.day, &call.bought.team)).or_default();
            *figures.calls_mut(state) += Count { number: 1, credits: 3 };
        }
        for (place, credits) in &self.adjusted {
            all.entry(place.clone()).or_default().adjusted += credits;
        }
        all
    }
}

/// Lives a life and compares every figure with the model after each step.
pub(crate) async fn live(life: Vec<Step>, bench: &UsageBench) {
    let teams = ["web", "app"];
    let process = Uuid::new_v4();
    let (mut model, mut batches) = (Model::default(), 0);
    for step in life {
        let now = bench.bench.clock.now();
        let local = now.to_zoned_datetime(zone()).date();
        let today = local.to_string();
        model.close(&today);
        match step {
            Step::Reserve(team, n) => {
                let bought = of(teams[team], n);
                if let crate::ledger::Reserved::Won(won) = bench.bench.reserve(bought.clone()).await {
                    let (day, generation) = (today.clone(), won.generation);
                    let state = CallState::Reserved;
                    model.calls.push(ModelCall { id: won.id, bought, generation, day, state, closed: None });
                }
            }
            Step::Move(call, booking) if !model.calls.is_empty() => {
                let index = call % model.calls.len();
                let ModelCall { id, bought, generation, state, .. } = &model.calls[index];
                if *state == CallState::Reserved && booking % 2 == 0 {
                    bench.bench.ledger.mark_sent(*id).await.expect("the ledger can be written");
                    model.becomes(index, CallState::Sent, &today);
                } else {
                    let won = crate::ledger::Won { id: *id, generation: *generation };
                    let record = record(bought, won, now);
                    let bookings = [
                        released(),
                        answer(*id),
                        stored(&record),
                        refused(),
                        failed(),
                        unknown(),
                        Booking::Unfetchable { reason: "gone".to_owned() },
                        Booking::Lost,
                    ];
                    let legal: Vec<_> = bookings.into_iter().filter(|next| next.may_follow(*state)).collect();
                    if !legal.is_empty() {
                        let next = legal[booking % legal.len()].clone();
                        let state = next.state();
                        bench.bench.book(*id, next).await;
                        model.becomes(index, state, &today);
                    }
                }
            }
            Step::Move(..) => {}
            Step::Serve(team, ago, place, number, twice) => {
                let day = local.checked_sub(jiff::Span::new().days(ago)).expect("a day").to_string();
                let (cause, payer) = (SavingCause::ALL[place / 2], Payer::ALL[place % 2]);
                batches += 1;
                for _ in 0..=usize::from(twice) {
                    bench
                        .serve(process, batches, vec![served(&day, teams[team], cause, payer, number)])
                        .await;
                }
                let booked_on = if rules::is_closed(&day[..7], &today) { &today } else { &day };
                let count = Count { number, credits: 3 * number };
                let figures = model.served.entry(key(booked_on, teams[team])).or_default();
                *figures.served_mut(cause, payer) += count;
            }
            Step::Recover => {
                bench.recover().await;
                for index in 0..model.calls.len() {
                    match model.calls[index].state {
                        CallState::Reserved => model.becomes(index, CallState::Released, &today),
                        CallState::Sent => model.becomes(index, CallState::Unknown, &today),
                        _ => {}
                    }
                }
            }
            Step::Turn(hours) => bench.bench.clock.turn(3600 * hours),
        }
        model.close(&bench.bench.clock.now().to_zoned_datetime(zone()).date().to_string());
        assert_eq!(bench.all().await, model.usage());
        check_month(bench, &model).await;
    }
}

/// The month is the sum of its days.
async fn check_month(bench: &UsageBench, model: &Model) {
    let now = bench.bench.clock.now().to_zoned_datetime(zone()).date().to_string();
    let mut expected: BTreeMap<String, (i64, u64)> = BTreeMap::new();
    for ((day, team), figures) in model.usage() {
        if day[..7] == now[..7] {
            let sum = expected.entry(team).or_default();
            sum.0 += figures.spent();
            sum.1 += figures.saved(Payer::Own).credits + figures.saved(Payer::Other).credits;
        }
    }
    let mut month = bench.book.month().await.expect("the ledger can be asked");
    month.retain(|team| (team.spent, team.saved) != (0, 0));
    expected.retain(|_, sums| *sums != (0, 0));
    let month: BTreeMap<_, _> = month.into_iter().map(|team| (team.team, (team.spent, team.saved))).collect();
    assert_eq!(month, expected);
}
