//! What may go wrong between a process and what it works with: time, failure before and after the
//! deed, silence, and death.

use std::sync::Arc;
use std::time::Duration;

use granary_kit::dice::Dice;

use super::process::Life;
use super::world::World;

/// What a process works with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Ledger,
    Store,
    Upstream,
    Results,
}

impl Place {
    pub(super) const ALL: [Self; 4] = [Self::Ledger, Self::Store, Self::Upstream, Self::Results];
}

/// How often things go wrong in one world; drawn with it, so that some worlds are rough, others
/// have one kind of trouble only, and some have none. All chances are out of ten thousand.
pub(super) struct Plan {
    /// Death before or after any deed.
    pub(super) crash: u64,
    rates: [Rates; 4],
    pub(super) sales: Sales,
    /// Do results of one key have equal bytes, however often they are bought?
    pub(super) same_bytes: bool,
    /// Do most paid calls take minutes?
    pub(super) long_calls: bool,
    /// Does no process die, and is none thought to be dead?
    pub(super) is_deathless: bool,
    /// Do processes keep their ledger at the same time, by leases?
    pub(super) is_fleet: bool,
}

#[derive(Clone, Copy)]
struct Rates {
    fail_before: u64,
    fail_after: u64,
    slow: u64,
    hang: u64,
    /// In a store: no turn among the process's own reads.
    busy: u64,
}

/// What becomes of paid calls.
pub(super) struct Sales {
    pub(super) not_opened: u64,
    pub(super) early: u64,
    pub(super) not_sent: u64,
    pub(super) refused: u64,
    pub(super) failed: u64,
    pub(super) unknown: u64,
    /// Results whose URL is dead for a while, and for ever.
    pub(super) dead: u64,
    pub(super) dead_for_ever: u64,
}

impl Plan {
    pub(super) fn draw(dice: &mut Dice) -> Self {
        let mut one_of = |chances: &[u64]| chances[dice.below(chances.len() as u64) as usize];
        let rates = [(); 4].map(|()| Rates {
            fail_before: one_of(&[0, 0, 30, 100, 500, 2000]),
            fail_after: one_of(&[0, 0, 30, 100, 400, 1500]),
            slow: one_of(&[0, 0, 50, 400]),
            hang: one_of(&[0, 0, 0, 0, 20]),
            busy: one_of(&[0, 0, 300, 3000]),
        });
        let is_deathless = one_of(&[0, 0, 0, 1]) == 1;
        let is_fleet = one_of(&[0, 1]) == 1;
        Self {
            crash: if is_deathless { 0 } else { one_of(&[0, 0, 10, 40, 100]) },
            rates,
            sales: Sales {
                not_opened: one_of(&[0, 0, 300, 2000]),
                early: one_of(&[0, 0, 300, 1000]),
                not_sent: one_of(&[0, 0, 300, 1000]),
                refused: one_of(&[0, 0, 500, 2000]),
                failed: one_of(&[0, 0, 300, 1500]),
                unknown: one_of(&[0, 500, 2500]),
                dead: one_of(&[0, 500, 3000]),
                dead_for_ever: one_of(&[0, 300, 1000]),
            },
            same_bytes: one_of(&[0, 1]) == 1,
            long_calls: one_of(&[0, 0, 1]) == 1,
            is_deathless,
            is_fleet,
        }
    }

    fn rates(&self, place: Place) -> Rates {
        self.rates[place as usize]
    }
}

/// It did not happen, or it did and the word of it was lost, or it had no turn in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Before,
    After,
    Busy,
}

/// A process's way to one of its places.
#[derive(Clone)]
pub(super) struct Line {
    pub(super) world: Arc<World>,
    pub(super) life: Arc<Life>,
    pub(super) place: Place,
}

impl Line {
    /// Does something at the other end, with all that may happen on the way. Once begun it is done
    /// even if nobody waits for it any more.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        what: &'static str,
        deed: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Fault> {
        let line = self.clone();
        let work = tokio::spawn(async move { line.work(what, deed).await });
        match work.await {
            Ok(done) => done,
            Err(error) => {
                if error.is_panic() {
                    self.world.violate(format!("{what} panicked"));
                }
                std::future::pending().await
            }
        }
    }

    async fn work<T>(&self, what: &'static str, deed: impl FnOnce() -> T) -> Result<T, Fault> {
        let (world, rates) = (&self.world, self.world.plan.rates(self.place));
        self.may_die(what);
        self.awake().await;
        let since = self.life.is_dead();
        self.pass_time(rates).await;
        if self.life.is_dead() {
            // What had left the process before it died may still arrive at the bucket.
            if !since && self.place == Place::Store && world.chance(5000) {
                world.count("store: done after death");
                deed();
                world.check();
            }
            return std::future::pending().await;
        }
        if self.place == Place::Store && world.strikes(rates.busy) {
            world.count_fault(self.place, Fault::Busy);
            world.note(|| format!("{} {what}: no turn", self.life.name()));
            return Err(Fault::Busy);
        }
        if world.is_away(self.place) || world.strikes(rates.fail_before) {
            world.count_fault(self.place, Fault::Before);
            world.note(|| format!("{} {what}: not done", self.life.name()));
            return Err(Fault::Before);
        }
        let done = deed();
        world.check();
        self.may_die(what);
        self.live().await;
        if world.strikes(2500) {
            self.pass_time(rates).await;
            self.live().await;
        }
        if world.strikes(rates.fail_after) {
            world.count_fault(self.place, Fault::After);
            world.note(|| format!("{} {what}: done, but the word of it is lost", self.life.name()));
            return Err(Fault::After);
        }
        Ok(done)
    }

    /// Goes on only while the process is not stopped.
    async fn awake(&self) {
        while let Some(until) = self.life.stopped_until() {
            tokio::time::sleep_until(until).await;
        }
    }

    /// Goes on only while the process lives, and is not stopped.
    pub(super) async fn live(&self) {
        self.awake().await;
        if self.life.is_dead() {
            std::future::pending::<()>().await;
        }
    }

    /// A process may die at any step.
    pub(super) fn may_die(&self, what: &'static str) {
        if !self.life.is_dead() && self.world.strikes(self.world.plan.crash) {
            self.world.count("crashes at a step");
            self.world.note(|| format!("{} dies at {what}", self.life.name()));
            self.life.die();
        }
    }

    async fn pass_time(&self, rates: Rates) {
        let world = &self.world;
        if world.strikes(rates.hang) {
            world.count("calls that hang");
            world.note(|| format!("{} hangs at {:?}", self.life.name(), self.place));
            // What comes over HTTP has a time limit of its own.
            let is_limited = self.place == Place::Results;
            let limit = Duration::from_secs(if is_limited { 30 } else { 3 * 86_400 });
            let _ = tokio::time::timeout(limit, world.calm.cancelled()).await;
            return;
        }
        if world.strikes(rates.slow) {
            world.count("slow calls");
            tokio::time::sleep(world.between(1000, 9000)).await;
            return;
        }
        let time = match world.below(100) {
            0..50 => return,
            50..85 => world.between(1, 5),
            85..98 => world.between(5, 120),
            _ => world.between(120, 1000),
        };
        tokio::time::sleep(time).await;
    }
}

/// Milliseconds.
pub(super) fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}
