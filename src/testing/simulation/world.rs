//! One world: its dice, its clock, what outlives processes, and what is known of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use granary_kit::dice::Dice;
use granary_kit::model::Archive;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Bug;
use super::clients::Teams;
use super::faults::{Fault, Place, Plan};
use super::process::Process;
use super::sales::Sale;
use crate::base::clock::Clock;
use crate::base::key::CacheKey;
use crate::ledger::CallId;
use crate::metrics::Metrics;
use crate::testing::memory_ledger::MemoryLedger;
use crate::testing::memory_store::MemoryStore;

/// See the module.
pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) teams: Teams,
    /// The mistake that is planted in it.
    pub(super) bug: Option<Bug>,
    pub(super) store: Arc<MemoryStore>,
    /// Of all its processes.
    pub(super) metrics: Arc<Metrics>,
    /// From then on nothing goes wrong any more.
    pub(super) calm: CancellationToken,
    start: Instant,
    epoch: Timestamp,
    skew_seconds: AtomicI64,
    dice: Mutex<Dice>,
    traced: bool,
    /// Of the machine's clock, for each line of the trace.
    real_time: Duration,
    state: Mutex<State>,
}

/// What changes.
#[derive(Default)]
pub(super) struct State {
    /// One for each line of processes that know nothing of the others but the store.
    pub(super) ledgers: Vec<Arc<MemoryLedger>>,
    pub(super) processes: Vec<Arc<Process>>,
    processes_begun: usize,
    /// Ledgers of processes that have not come up yet.
    pub(super) starting: Vec<usize>,
    /// Tails that went out, by number.
    pub(super) sales: Vec<Sale>,
    /// Objects the world took away, and rows that were `unknown` once.
    pub(super) taken: BTreeSet<String>,
    pub(super) doubted: BTreeSet<(usize, CallId)>,
    /// Since when a key's record stands, and the ledger that paid for it.
    pub(super) permanent_since: BTreeMap<CacheKey, (Instant, usize)>,
    /// When a ledger's import listed its first page.
    pub(super) import_began: BTreeMap<usize, Instant>,
    /// Which process reserved a row, while it knows.
    pub(super) owners: BTreeMap<(usize, CallId), usize>,
    /// What clients were told.
    pub(super) archive: Archive,
    /// Clients whose answer is awaited.
    pub(super) clients: usize,
    away_until: [Option<Instant>; 4],
    /// The version of each ledger that was checked last, and how many sales there were then.
    pub(super) checked: Vec<(u64, usize)>,
    figures: BTreeMap<String, u64>,
    trace: Vec<String>,
    violation: Option<String>,
}

/// What came of a world.
pub(super) struct Outcome {
    /// The first promise that was broken.
    pub(super) violation: Option<String>,
    /// What happened, when it was asked for.
    pub(super) trace: Vec<String>,
    /// How often what happened.
    pub(super) figures: BTreeMap<String, u64>,
}

impl World {
    pub(super) fn new(seed: u64, bug: Option<Bug>, traced: bool, real_time: Duration) -> Arc<Self> {
        let mut dice = Dice::new(seed);
        let plan = Plan::draw(&mut dice);
        let teams = Teams::draw(&mut dice);
        // The last days of a month, so that windows end.
        let epoch: Timestamp = "2026-11-29T00:00:00Z".parse().expect("a timestamp");
        let epoch = epoch + SignedDuration::from_secs(dice.below(2 * 86_400) as i64);
        let metrics = Arc::new(Metrics::new(teams.names()));
        Arc::new(Self {
            plan,
            metrics,
            teams,
            bug,
            store: Arc::default(),
            calm: CancellationToken::new(),
            start: Instant::now(),
            epoch,
            skew_seconds: AtomicI64::new(0),
            dice: Mutex::new(dice),
            traced,
            real_time,
            state: Mutex::default(),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn below(&self, limit: u64) -> u64 {
        self.dice.lock().unwrap_or_else(PoisonError::into_inner).below(limit)
    }

    /// So many times in ten thousand.
    pub(super) fn chance(&self, of_ten_thousand: u64) -> bool {
        of_ten_thousand > 0 && self.below(10_000) < of_ten_thousand
    }

    /// As [`chance`](Self::chance), while things go wrong at all.
    pub(super) fn strikes(&self, of_ten_thousand: u64) -> bool {
        !self.calm.is_cancelled() && self.chance(of_ten_thousand)
    }

    /// Some time from `least` milliseconds up to `most`.
    pub(super) fn between(&self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.below(most - least + 1))
    }

    /// The wall clock, which somebody may turn.
    pub(super) fn wall(&self) -> Timestamp {
        let skew = SignedDuration::from_secs(self.skew_seconds.load(Ordering::Relaxed));
        let elapsed = SignedDuration::try_from(self.start.elapsed()).unwrap_or_default();
        self.epoch + elapsed + skew
    }

    pub(super) fn turn_wall_clock(&self, seconds: i64) {
        self.skew_seconds.fetch_add(seconds, Ordering::Relaxed);
    }

    pub(super) fn clock(self: &Arc<Self>) -> Clock {
        let world = Arc::downgrade(self);
        Clock::from_fn(move || world.upgrade().map_or(Timestamp::UNIX_EPOCH, |world| world.wall()))
    }

    /// Adds an empty ledger.
    pub(super) fn add_ledger(self: &Arc<Self>) -> usize {
        let ledger = Arc::new(MemoryLedger::new(self.clock(), TimeZone::UTC));
        let mut state = self.state();
        state.ledgers.push(ledger);
        state.checked.push((0, 0));
        state.ledgers.len() - 1
    }

    pub(super) fn ledger(&self, number: usize) -> Arc<MemoryLedger> {
        self.state().ledgers[number].clone()
    }

    pub(super) fn ledgers(&self) -> Vec<Arc<MemoryLedger>> {
        self.state().ledgers.clone()
    }

    /// Processes that have not died, oldest first.
    pub(super) fn alive(&self) -> Vec<Arc<Process>> {
        self.state().processes.iter().filter(|process| !process.life.is_dead()).cloned().collect()
    }

    pub(super) fn number_of_a_process(&self) -> usize {
        let mut state = self.state();
        state.processes_begun += 1;
        state.processes_begun
    }

    pub(super) fn take_away(&self, place: Place, time: Duration) {
        self.state().away_until[place as usize] = Some(Instant::now() + time);
    }

    pub(super) fn is_away(&self, place: Place) -> bool {
        let until = self.state().away_until[place as usize];
        !self.calm.is_cancelled() && until.is_some_and(|until| Instant::now() < until)
    }

    /// From now on nothing goes wrong.
    pub(super) fn heal(&self) {
        self.note(|| "from here on nothing goes wrong any more".to_owned());
        self.calm.cancel();
    }

    pub(super) fn count(&self, what: &str) {
        let mut state = self.state();
        match state.figures.get_mut(what) {
            Some(count) => *count += 1,
            None => drop(state.figures.insert(what.to_owned(), 1)),
        }
    }

    /// How often that was counted.
    pub(super) fn counted(&self, what: &str) -> u64 {
        self.state().figures.get(what).copied().unwrap_or(0)
    }

    pub(super) fn count_fault(&self, place: Place, fault: Fault) {
        self.count(match (place, fault) {
            (Place::Ledger, Fault::Before) => "ledger: failed before the deed",
            (Place::Ledger, Fault::After) => "ledger: failed after the deed",
            (Place::Store, Fault::Before) => "store: failed before the deed",
            (Place::Store, Fault::After) => "store: failed after the deed",
            (_, Fault::Busy) => "store: no turn to ask",
            (Place::Upstream, _) => "upstream: not reached",
            (Place::Results, _) => "results: failed",
        });
    }

    /// Writes a line into the trace, if there is to be one.
    pub(super) fn note(&self, line: impl FnOnce() -> String) {
        if self.traced {
            let line = format!("{:>12.3} s  {}", self.start.elapsed().as_secs_f64(), line());
            self.state().trace.push(line);
            std::thread::sleep(self.real_time);
        }
    }

    /// A promise was broken. The first one counts.
    pub(super) fn violate(&self, what: String) {
        self.note(|| format!("VIOLATION: {what}"));
        self.state().violation.get_or_insert(what);
    }

    pub(super) fn expect(&self, outcome: Result<(), String>) {
        if let Err(what) = outcome {
            self.violate(what);
        }
    }

    pub(super) fn is_broken(&self) -> bool {
        self.state().violation.is_some()
    }

    /// The end of the world. Whoever still refers to it is let go.
    pub(super) fn end(&self) -> Outcome {
        self.count("worlds");
        let state = std::mem::take(&mut *self.state());
        Outcome { violation: state.violation, trace: state.trace, figures: state.figures }
    }
}
