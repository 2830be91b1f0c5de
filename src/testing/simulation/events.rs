//! What happens in a world, from its first process to its last.

use std::sync::Arc;
use std::time::Duration;

use super::NAMESPACE;
use super::faults::{Place, ms};
use super::process::Process;
use super::world::World;
use crate::base::identity::Identity;
use crate::base::picture::ObjectName;
use crate::ledger::budget::Scope;

/// The longest rest at the end: a result's URL may live for a day.
const LONGEST_REST: Duration = Duration::from_secs(30 * 3600);

/// Lives the world of a seed to its end, or to the first promise that is broken.
pub(super) async fn live(world: &Arc<World>) {
    world.add_ledger();
    let steps = 10 + world.below(60);
    for _ in 0..steps {
        let gap = match world.below(100) {
            0..25 => ms(0),
            25..75 => world.between(1, 1500),
            75..90 => world.between(1500, 20_000),
            90..99 => world.between(20_000, 100_000),
            _ => world.between(200_000, 10_000_000),
        };
        tokio::time::sleep(gap).await;
        world.staff();
        world.happen();
        world.count("events");
        world.check();
        if world.is_broken() {
            return;
        }
    }
    rest(world).await;
}

impl World {
    /// Where nobody serves a ledger, a process is started, sooner or later.
    fn staff(self: &Arc<Self>) {
        let alive = self.alive();
        for ledger in 0..self.ledgers().len() {
            let is_staffed =
                alive.iter().any(|process| process.life.ledger == ledger && !process.is_draining());
            let is_starting = self.state().starting.contains(&ledger);
            if !is_staffed && !is_starting && self.chance(9500) {
                self.start(ledger);
            }
        }
    }

    fn start(self: &Arc<Self>, ledger: usize) {
        let world = self.clone();
        self.state().starting.push(ledger);
        tokio::spawn(async move {
            Process::start(&world, ledger).await;
            let mut state = world.state();
            let began = state.starting.iter().position(|&starting| starting == ledger);
            began.map(|at| state.starting.swap_remove(at));
        });
    }

    pub(super) fn any_process(&self) -> Option<Arc<Process>> {
        let alive = self.alive();
        let chosen = self.below(alive.len().max(1) as u64) as usize;
        alive.into_iter().nth(chosen)
    }

    /// One thing of all that may happen.
    fn happen(self: &Arc<Self>) {
        let Some(process) = self.any_process() else { return self.count("events without a process") };
        match self.below(100) {
            0..46 => {
                let ask = self.draw_ask();
                self.send_client(process, ask);
            }
            46..54 => self.burst(),
            54..58 => {
                let keys = self.teams.keys();
                self.send_look_up(process, keys[self.below(keys.len() as u64) as usize]);
            }
            58..65 => self.read_something(process),
            88..92 if self.plan.is_fleet => {
                self.count("replicas started");
                self.start(process.life.ledger);
            }
            65..70 | 88..92 if self.plan.is_deathless => self.count("deaths that do not happen"),
            65..70 => {
                self.count("crashes from outside");
                self.note(|| format!("{} is killed", process.life.name()));
                process.life.die();
            }
            70..73 => self.freeze_or_thaw(),
            73..80 => self.outage(),
            80..83 => self.lose_an_object(),
            83..85 => {
                let world = self.clone();
                tokio::spawn(async move { process.stop(&world).await });
            }
            85..88 => {
                let keys = self.teams.keys();
                let key = keys[self.below(keys.len() as u64) as usize];
                self.count("answers forgotten by memory");
                process.cache.forget_answer(&Identity::new(NAMESPACE, key));
            }
            88..92 => {
                self.count("takeovers");
                self.note(|| format!("{} is declared dead", process.life.name()));
                self.start(process.life.ledger);
            }
            92..95 => self.elsewhere(),
            95 => {
                let time =
                    [self.between(50, 9000), self.between(9000, 40_000), self.between(40_000, 400_000)]
                        [self.below(3) as usize];
                self.count("processes stopped for a while");
                self.note(|| format!("{} is stopped for {time:?}", process.life.name()));
                process.life.stop_for(time);
            }
            96 => {
                let seconds = [-3600, -30, 90, 700, 3600, 90_000][self.below(6) as usize];
                self.count("turns of the wall clock");
                self.note(|| format!("the wall clock is turned by {seconds} s"));
                self.turn_wall_clock(seconds);
            }
            _ => self.count("quiet"),
        }
    }

    /// Many ask for one thing at once.
    fn burst(self: &Arc<Self>) {
        let one = self.draw_ask();
        self.count("bursts");
        for _ in 0..2 + self.below(7) {
            let (Some(process), another) = (self.any_process(), self.draw_ask()) else { return };
            let ask = super::clients::Ask { picture: one.picture, refresh: false, ..another };
            self.send_client(process, ask);
        }
    }

    fn read_something(self: &Arc<Self>, process: Arc<Process>) {
        let told: Vec<String> = self.state().archive.standing().map(|(_, url, _)| url.to_owned()).collect();
        if told.is_empty() {
            return;
        }
        let url = &told[self.below(told.len() as u64) as usize];
        if let Some(object) = url.strip_prefix("results/").and_then(ObjectName::parse) {
            self.send_reader(process, object);
        }
    }

    fn freeze_or_thaw(&self) {
        let ledgers = self.ledgers();
        let ledger = &ledgers[self.below(ledgers.len() as u64) as usize];
        let scope = match self.below(3) {
            0 => Scope::Global,
            _ => Scope::Team(self.draw_ask().team.name.clone()),
        };
        let frozen = self.chance(4000);
        self.count(if frozen { "freezes" } else { "thaws" });
        self.note(|| format!("{scope} is frozen: {frozen}"));
        ledger.freeze(&scope, frozen);
    }

    fn outage(&self) {
        let place = Place::ALL[self.below(4) as usize];
        let time = if self.chance(3000) { self.between(30_000, 600_000) } else { self.between(50, 30_000) };
        self.count(match place {
            Place::Ledger => "outages of the ledger",
            Place::Store => "outages of the store",
            Place::Upstream => "outages of the upstream",
            Place::Results => "outages of the results",
        });
        self.note(|| format!("{place:?} is away for {time:?}"));
        self.take_away(place, time);
    }

    /// Somebody deletes a result in the bucket.
    fn lose_an_object(&self) {
        let mut files = self.store.files();
        let objects: Vec<String> =
            files.keys().filter(|path| path.starts_with("results/")).cloned().collect();
        if objects.is_empty() {
            return;
        }
        let path = &objects[self.below(objects.len() as u64) as usize];
        files.remove(path);
        drop(files);
        self.count("objects lost");
        self.note(|| format!("somebody deletes {path}"));
        let mut state = self.state();
        state.archive.lost(path);
        state.taken.insert(path.clone());
    }

    /// Another process with a database of its own on the same bucket.
    fn elsewhere(self: &Arc<Self>) {
        if self.ledgers().len() < 3 {
            let ledger = self.add_ledger();
            self.count("fresh ledgers over the same store");
            self.start(ledger);
        }
    }
}

/// Lets everything come to rest with nothing going wrong any more, and checks what must then hold;
/// then starts a last process on every ledger, and checks once more.
async fn rest(world: &Arc<World>) {
    world.heal();
    for ledger in world.ledgers() {
        for scope in world.teams.all.iter().map(|team| Scope::Team(team.name.clone())) {
            ledger.freeze(&scope, false);
        }
        ledger.freeze(&Scope::Global, false);
    }
    idle(world).await;
    world.check_delivered();
    for process in world.alive() {
        process.stop(world).await;
    }
    for ledger in 0..world.ledgers().len() {
        let started = Process::start(world, ledger).await;
        if started.is_none() {
            world
                .violate(format!("no process comes up on ledger {ledger}, though nothing is wrong any more"));
        }
    }
    idle(world).await;
    let settled = async {
        let is_open = || {
            world.ledgers().iter().any(|ledger| {
                let book = ledger.book();
                !book.spool.is_empty() || book.rows.iter().any(|row| row.state.is_open())
            })
        };
        // A row is closed a step before its fill ends.
        let is_busy = || world.alive().iter().any(|process| process.filler.load().0 > 0);
        while is_open() || is_busy() || !world.orphans_with_a_record().is_empty() {
            tokio::time::sleep(ms(5000)).await;
        }
    };
    // What is still open then is found by the check.
    let _ = tokio::time::timeout(LONGEST_REST, settled).await;
    world.check();
    world.check_at_rest();
    world.check_metrics();
    for process in world.alive() {
        world.check_hits(&process).await;
        world.expect(process.check_idle());
    }
    world.check();
}

/// Waits until no client waits and no fill is under way.
async fn idle(world: &Arc<World>) {
    let rest = async {
        loop {
            let clients = world.state().clients;
            let alive = world.alive();
            let busy = alive.iter().any(|process| process.filler.load().0 > 0 || process.is_draining());
            // A booking that is repeated has no callers any more, and comes to rest by itself.
            if clients == 0 && !busy && world.open_rows_of_the_living().is_empty() {
                return;
            }
            tokio::time::sleep(ms(5000)).await;
        }
    };
    if tokio::time::timeout(LONGEST_REST, rest).await.is_err() {
        let loads: Vec<_> = world.alive().iter().map(|process| process.filler.load()).collect();
        world.violate(format!("a world does not come to rest: {loads:?}, {} clients", world.state().clients));
    }
}
