//! Whole lives in no time: the gateway, its fills and its state machine as they are in service,
//! between a ledger, a store, an upstream and a clock that are not, and that fail in every way.
//!
//! One seed is one world. Everything in it is drawn from the seed: who asks for what, how long
//! things take, what fails before it is done and after, when a process dies, what it had told
//! nobody yet, who takes over. Nothing waits for real, and nothing is left to chance, so a seed is
//! the same life every time. After each step the promises are checked ([`promises`]).
//!
//! | | |
//! |---|---|
//! | `make simulate SEEDS=100000` | that many worlds, with figures |
//! | `make simulate SEED=4711` | one world, told step by step |
//!
//! [`world`] is what outlives processes, [`process`] a process and its death, [`faults`] what may
//! happen between the two, [`lines`] and [`sales`] what a process works with, [`clients`] who asks,
//! [`events`] what happens.

mod clients;
mod events;
mod faults;
mod lines;
mod process;
mod promises;
mod sales;
mod world;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use granary_kit::dice::Dice;

use self::world::{Outcome, World};
use crate::base::random;

/// Where everything is filed.
const NAMESPACE: &str = "ailab-v1";
/// Worlds of a run that does not ask for more.
const SHORT: u64 = 500;
/// Within so many worlds a planted mistake must be found.
const FOUND_WITHIN: u64 = 10_000;

/// A mistake that can be planted, to see that it would be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    /// `answered` is written after the reply.
    AnsweredAfterReply,
    /// The winner does not look up once more.
    NoSecondLookUp,
    /// A ledger that does not know all records of the store decides that a key is absent.
    IncompleteDecides,
    /// The fence is applied to booking: what somebody else has settled is not booked any more.
    FencedBooking,
    /// A store that was not asked for lack of a turn counts as one that cannot be asked.
    BusyIsAway,
}

/// Lives the world of a seed.
fn run(seed: u64, bug: Option<Bug>, traced: bool) -> Outcome {
    run_with(seed, bug, traced, Duration::ZERO)
}

/// The same; each event takes `real_time` of the machine's clock, as under load.
fn run_with(seed: u64, bug: Option<Bug>, traced: bool, real_time: Duration) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    random::dice::put(Some(Dice::new(!seed)));
    let outcome = runtime.block_on(async {
        let world = World::new(seed, bug, traced, real_time);
        events::live(&world).await;
        world.end()
    });
    drop(runtime);
    random::dice::put(None);
    outcome
}

/// What many worlds came to.
#[derive(Default)]
struct Summary {
    figures: BTreeMap<String, u64>,
    /// The first seed whose world broke a promise.
    broken: Option<u64>,
}

/// Lives the worlds of these seeds on all cores, up to the first that breaks a promise.
fn run_all(seeds: std::ops::Range<u64>, bug: Option<Bug>) -> Summary {
    let (next, stop) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let summary = Mutex::new(Summary::default());
    let work = || {
        let mut figures: BTreeMap<String, u64> = BTreeMap::new();
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                break;
            }
            let outcome = run(seed, bug, false);
            for (what, count) in outcome.figures {
                *figures.entry(what).or_default() += count;
            }
            if outcome.violation.is_some() {
                stop.store(true, Ordering::Relaxed);
                let mut summary = summary.lock().unwrap();
                summary.broken = Some(summary.broken.map_or(seed, |first| first.min(seed)));
            }
        }
        let mut summary = summary.lock().unwrap();
        for (what, count) in figures {
            *summary.figures.entry(what).or_default() += count;
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    summary.into_inner().unwrap()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn no_promise_is_broken_in_any_world() {
    if let Some(seed) = number("SIM_SEED") {
        let outcome = run(seed, None, true);
        println!("{}", outcome.trace.join("\n"));
        assert_eq!(outcome.violation, None, "SIM_SEED={seed}");
        return;
    }
    let (first, count) = (number("SIM_START").unwrap_or(0), number("SIM_SEEDS").unwrap_or(SHORT));
    let since = Instant::now();
    let summary = run_all(first..first + count, None);
    for (what, count) in &summary.figures {
        println!("{count:>12}  {what}");
    }
    println!("seeds {first} to {}, in {:?}", first + count - 1, since.elapsed());
    if let Some(seed) = summary.broken {
        let outcome = run(seed, None, true);
        println!("{}", outcome.trace.join("\n"));
        panic!("{}: SIM_SEED={seed} tells it again", outcome.violation.unwrap_or_default());
    }
}

#[test]
fn a_seed_is_the_same_life_every_time() {
    for seed in 0..30 {
        let (once, again) = (run(seed, None, true), run(seed, None, true));
        assert_eq!(once.trace, again.trace, "seed {seed}");
        assert_eq!(once.figures, again.figures, "seed {seed}");
        assert_eq!(run(seed, None, false).figures, once.figures, "seed {seed}, untold");
    }
    assert_ne!(run(1, None, true).trace, run(2, None, true).trace);
}

#[test]
fn life_does_not_depend_on_the_machines_clock() {
    for seed in 20..30 {
        let (once, slowly) = (run(seed, None, true), run_with(seed, None, true, Duration::from_millis(2)));
        assert_eq!(once.trace, slowly.trace, "seed {seed}");
    }
}

/// Asserts that a planted mistake is found.
fn assert_found(bug: Bug) {
    let summary = run_all(0..FOUND_WITHIN, Some(bug));
    let seed = summary.broken.unwrap_or_else(|| panic!("{bug:?} was not found in {FOUND_WITHIN} worlds"));
    let outcome = run(seed, Some(bug), true);
    println!("{bug:?} found in world {seed}: {}", outcome.violation.unwrap_or_default());
    assert_eq!(run(seed, None, false).violation, None, "it is the mistake that was found, in world {seed}");
}

#[test]
fn an_answer_written_after_the_reply_would_be_found() {
    assert_found(Bug::AnsweredAfterReply);
}

#[test]
fn a_winner_who_does_not_look_again_would_be_found() {
    assert_found(Bug::NoSecondLookUp);
}

#[test]
fn congestion_taken_for_an_outage_is_found() {
    assert_found(Bug::BusyIsAway);
}

#[test]
fn a_booking_behind_the_fence_would_be_found() {
    assert_found(Bug::FencedBooking);
}

#[test]
fn a_ledger_that_decides_although_it_is_incomplete_would_be_found() {
    assert_found(Bug::IncompleteDecides);
}
