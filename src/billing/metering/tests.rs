//! Counting and booking against a book that fails before, after and for ever.

use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use proptest::prelude::*;

use super::*;
use crate::ledger::usage::{DayUsage, TeamMonth};

/// A book that keeps the sums, and does as it is told.
#[derive(Default)]
struct FakeBook(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    last: HashMap<Uuid, u64>,
    /// By day, team, cause and payer.
    sums: HashMap<(Date, String, SavingCause, Payer), Count>,
    next: VecDeque<Answer>,
}

impl std::hash::Hash for Payer {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    Book,
    /// It is not done.
    Fail,
    /// It is done, and nobody hears of it.
    LoseTheOutcome,
}

impl FakeBook {
    fn kept(&self) -> parking_lot::MutexGuard<'_, Kept> {
        self.0.lock()
    }

    fn answer_next(&self, answer: Answer) {
        self.kept().next.push_back(answer);
    }

    fn sum(&self) -> Count {
        let mut sum = Count::default();
        for count in self.kept().sums.values() {
            sum += *count;
        }
        sum
    }
}

fn away() -> LedgerError {
    LedgerError::Unavailable("the test says so".to_owned())
}

#[async_trait]
impl UsageBook for FakeBook {
    async fn book_served(&self, batch: ServedBatch) -> Result<(), LedgerError> {
        let mut kept = self.kept();
        let answer = kept.next.pop_front().unwrap_or(Answer::Book);
        if matches!(answer, Answer::Fail) {
            return Err(away());
        }
        let last = kept.last.entry(batch.process).or_default();
        if *last < batch.number {
            assert_eq!(*last + 1, batch.number, "no number is left out");
            *last = batch.number;
            for Served { day, team, cause, payer, count } in batch.served {
                *kept.sums.entry((day, team, cause, payer)).or_default() += count;
            }
        }
        if matches!(answer, Answer::LoseTheOutcome) { Err(away()) } else { Ok(()) }
    }

    async fn usage(&self, _: Date, _: Date) -> Result<Vec<DayUsage>, LedgerError> {
        Err(away())
    }

    async fn month(&self) -> Result<Vec<TeamMonth>, LedgerError> {
        Err(away())
    }
}

fn berlin() -> TimeZone {
    TimeZone::get("Europe/Berlin").unwrap()
}

/// A meter and the hand of its clock, in seconds from 2026-11-30T22:00:00Z, an hour before December.
fn meter() -> (Meter, Arc<AtomicI64>) {
    let hand = Arc::new(AtomicI64::new(0));
    let (begin, moved): (Timestamp, _) = ("2026-11-30T22:00:00Z".parse().unwrap(), hand.clone());
    let clock = Clock::from_fn(move || begin + SignedDuration::from_secs(moved.load(Ordering::SeqCst)));
    (Meter::new(clock, berlin()), hand)
}

fn date(text: &str) -> Date {
    text.parse().unwrap()
}

#[tokio::test]
async fn what_is_served_is_booked_by_day_team_cause_and_payer() {
    let (meter, hand) = meter();
    let book = FakeBook::default();
    meter.served("web", SavingCause::HitMemory, Payer::Own, 3);
    meter.served("web", SavingCause::HitMemory, Payer::Own, 3);
    meter.served("web", SavingCause::HashFirst, Payer::Other, 7);
    hand.store(3599, Ordering::SeqCst);
    meter.served("app", SavingCause::Coalesced, Payer::Other, 3);
    hand.store(3600, Ordering::SeqCst);
    meter.served("app", SavingCause::Coalesced, Payer::Other, 3);
    // The clock was set back: the day is looked up again.
    hand.store(1800, Ordering::SeqCst);
    meter.served("app", SavingCause::HitLedger, Payer::Own, 3);
    assert_eq!(meter.unbooked(), 6);
    meter.flush(&book).await.unwrap();
    assert_eq!(meter.unbooked(), 0);
    let expected = [
        ("2026-11-30", "web", SavingCause::HitMemory, Payer::Own, 2, 6),
        ("2026-11-30", "web", SavingCause::HashFirst, Payer::Other, 1, 7),
        ("2026-11-30", "app", SavingCause::Coalesced, Payer::Other, 1, 3),
        ("2026-12-01", "app", SavingCause::Coalesced, Payer::Other, 1, 3),
        ("2026-11-30", "app", SavingCause::HitLedger, Payer::Own, 1, 3),
    ];
    let expected: HashMap<_, _> = expected
        .into_iter()
        .map(|(day, team, cause, payer, number, credits)| {
            ((date(day), team.to_owned(), cause, payer), Count { number, credits })
        })
        .collect();
    assert_eq!(book.kept().sums, expected);
    // Nothing is left, and no empty batch is booked.
    meter.flush(&book).await.unwrap();
    assert_eq!(book.kept().last.values().collect::<Vec<_>>(), [&1]);
}

#[tokio::test]
async fn a_batch_whose_outcome_was_lost_is_booked_once() {
    let (meter, _) = meter();
    let book = FakeBook::default();
    meter.served("web", SavingCause::HitMemory, Payer::Own, 3);
    book.answer_next(Answer::LoseTheOutcome);
    meter.flush(&book).await.unwrap_err();
    // Not in the batch that is under way.
    meter.served("web", SavingCause::HitMemory, Payer::Own, 3);
    assert_eq!((meter.unbooked(), book.sum().number), (2, 1));
    meter.flush(&book).await.unwrap();
    assert_eq!((meter.unbooked(), book.sum()), (0, Count { number: 2, credits: 6 }));
}

#[tokio::test(start_paused = true)]
async fn a_ledger_that_hangs_keeps_nobody_waiting_for_ever() {
    struct Hangs;
    #[async_trait]
    impl UsageBook for Hangs {
        async fn book_served(&self, _: ServedBatch) -> Result<(), LedgerError> {
            std::future::pending().await
        }
        async fn usage(&self, _: Date, _: Date) -> Result<Vec<DayUsage>, LedgerError> {
            Err(away())
        }
        async fn month(&self) -> Result<Vec<TeamMonth>, LedgerError> {
            Err(away())
        }
    }
    let (meter, _) = meter();
    meter.served("web", SavingCause::HitMemory, Payer::Own, 3);
    assert!(matches!(meter.flush(&Hangs).await, Err(LedgerError::Unavailable(_))));
    let book = FakeBook::default();
    meter.flush(&book).await.unwrap();
    assert_eq!(book.sum().number, 1);
}

#[tokio::test]
async fn while_the_ledger_is_away_the_counts_do_not_grow_with_time() {
    let (meter, hand) = meter();
    for day in 0..1000 {
        hand.store(day * 86_400, Ordering::SeqCst);
        meter.served("web", SavingCause::HitStore, Payer::Own, 3);
    }
    assert_eq!(meter.counts.lock().days.len(), MOST_DAYS);
    let book = FakeBook::default();
    meter.flush(&book).await.unwrap();
    assert_eq!(book.sum(), Count { number: 1000, credits: 3000 });
}

#[derive(Clone, Debug)]
enum Step {
    Serve(usize, usize, usize, u64),
    Turn(i64),
    Flush(Answer),
    Restart,
    Kill,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let answer = prop_oneof![Just(Answer::Book), Just(Answer::Fail), Just(Answer::LoseTheOutcome)];
    let step = prop_oneof![
        12 => (0..3_usize, 0..5_usize, 0..2_usize, 1..9_u64).prop_map(|(t, c, p, n)| Step::Serve(t, c, p, n)),
        2 => (-90_000..90_000_i64).prop_map(Step::Turn),
        5 => answer.prop_map(Step::Flush),
        1 => Just(Step::Restart),
        1 => Just(Step::Kill),
    ];
    proptest::collection::vec(step, 0..120)
}

proptest! {
    /// However bookings fail, whatever the clock does and whenever the process ends in good order, each
    /// answer is booked once; a kill takes at most what was not booked by then.
    #[test]
    fn every_answer_is_booked_once(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let book = FakeBook::default();
            let (mut meter, mut hand) = meter();
            let (mut served, mut lost) = (Count::default(), 0);
            for step in steps {
                match step {
                    Step::Serve(team, cause, payer, credits) => {
                        let team = ["web", "app", "batch"][team];
                        meter.served(team, SavingCause::ALL[cause], Payer::ALL[payer], credits);
                        served += Count { number: 1, credits };
                    }
                    Step::Turn(seconds) => {
                        hand.fetch_add(seconds, Ordering::SeqCst);
                    }
                    Step::Flush(answer) => {
                        book.answer_next(answer);
                        let _ = meter.flush(&book).await;
                        book.kept().next.clear();
                    }
                    Step::Restart => {
                        meter.close(&book).await;
                        (meter, hand) = super::tests::meter();
                    }
                    Step::Kill => {
                        lost += meter.unbooked();
                        (meter, hand) = super::tests::meter();
                    }
                }
                let booked = book.sum().number;
                prop_assert!(booked + lost + meter.unbooked() >= served.number);
                prop_assert!(booked <= served.number);
            }
            meter.close(&book).await;
            let booked = book.sum();
            prop_assert!(booked.number + lost >= served.number && booked.number <= served.number);
            if lost == 0 {
                prop_assert_eq!(booked, served);
            }
            Ok(())
        })?;
    }
}
