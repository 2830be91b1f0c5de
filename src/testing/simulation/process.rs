//! A process: the production gateway and filler, unchanged, on this world's places.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::tz::TimeZone;
use tokio::task::Id;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::clients::{CREDITS, ROOT};
use super::faults::{Line, Place, ms};
use super::lines::{LedgerLine, StoreLine};
use super::sales::{HARD_STOP, ResultsLine, UpstreamLine};
use super::world::World;
use crate::base::key::CacheKey;
use crate::base::permits::{Permits, Sharing};
use crate::billing::metering::Meter;
use crate::cache::MemoryCache;
use crate::fill::slots::SlotsConfig;
use crate::fill::{Core, FillConfig, Filler};
use crate::gateway::Gateway;
use crate::ledger::guard::{ArchiveGuard, Standing};
use crate::ledger::spooling::{Copier, Spool, SpoolConfig};
use crate::ledger::{CallId, Ledger, Reservation, Won};
use crate::request::uploads::UploadRoom;
use crate::store::Store;
use crate::teams::policy::CurrentPolicy;

/// How long a result's URL lives.
pub(super) const URL_TTL: Duration = Duration::from_secs(84_600);

/// How often an empty spool is looked at: nobody else fills it, and worlds last for days.
const COPIER_IDLE: Duration = Duration::from_secs(600);

/// How often a complete import is looked at, for the same reason.
const IMPORT_PERIOD: Duration = Duration::from_secs(300);

/// See the module.
pub(super) struct Process {
    pub(super) life: Arc<Life>,
    pub(super) filler: Filler,
    pub(super) gateway: Arc<Gateway>,
    pub(super) cache: Arc<MemoryCache>,
    copier: Mutex<Option<Copier>>,
    /// Clients it has not answered yet.
    pub(super) clients: AtomicUsize,
    is_draining: AtomicBool,
}

/// What the world knows of a process, and how it dies: its memory is gone in the same instant. Its
/// tasks are still there, but whatever they touch is out of reach for ever.
pub(super) struct Life {
    pub(super) number: usize,
    pub(super) ledger: usize,
    pub(super) dead: CancellationToken,
    /// What it is about to pay for, by key.
    purchases: Mutex<BTreeMap<CacheKey, Purchase>>,
    /// Tasks that could not ask the store for a record: what they say of it is the ledger's word.
    unasked: Mutex<HashSet<Option<Id>>>,
    /// Paid calls whose tail is in its hands or whose answer it awaits.
    pub(super) held: AtomicUsize,
    stopped_until: Mutex<Option<Instant>>,
    /// When the store last said that it has no record of a key.
    absent: Mutex<BTreeMap<CacheKey, Instant>>,
}

/// A reservation that was won, on its way to the upstream.
#[derive(Clone)]
pub(super) struct Purchase {
    pub(super) id: CallId,
    pub(super) generation: u64,
    /// The fill's task.
    task: Option<Id>,
    /// Was the key's result permanent when it was reserved?
    pub(super) was_permanent: bool,
    /// A refresh buys what is stored, unless the store says that it is newer by now.
    pub(super) is_refresh: bool,
    /// Could the store not be asked a second time?
    pub(super) is_excused: bool,
    /// Has the ledger let the tail go?
    pub(super) is_permitted: bool,
}

impl Life {
    pub(super) fn new(world: &World, ledger: usize) -> Arc<Self> {
        Arc::new(Self {
            number: world.number_of_a_process(),
            ledger,
            dead: CancellationToken::new(),
            purchases: Mutex::default(),
            unasked: Mutex::default(),
            held: AtomicUsize::new(0),
            stopped_until: Mutex::default(),
            absent: Mutex::default(),
        })
    }

    pub(super) fn name(&self) -> String {
        format!("p{}", self.number)
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.is_cancelled()
    }

    pub(super) fn die(&self) {
        self.dead.cancel();
    }

    /// Whatever it is about to do waits for so long, as under SIGSTOP.
    pub(super) fn stop_for(&self, time: Duration) {
        *self.stopped_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + time);
    }

    /// When it may go on, if it is stopped.
    pub(super) fn stopped_until(&self) -> Option<Instant> {
        let until = *self.stopped_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.filter(|&until| Instant::now() < until)
    }

    pub(super) fn was_absent(&self, key: CacheKey) {
        self.absent.lock().unwrap_or_else(PoisonError::into_inner).insert(key, Instant::now());
    }

    /// Has the store said that it has no record of the key, before this instant?
    pub(super) fn was_absent_before(&self, key: CacheKey, since: Instant) -> bool {
        let absent = self.absent.lock().unwrap_or_else(PoisonError::into_inner);
        absent.get(&key).is_some_and(|&at| at <= since)
    }

    fn purchases<T>(&self, with: impl FnOnce(&mut BTreeMap<CacheKey, Purchase>) -> T) -> T {
        with(&mut self.purchases.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn won(&self, wanted: &Reservation, won: Won, task: Option<Id>, was_permanent: bool) {
        let purchase = Purchase {
            id: won.id,
            generation: won.generation,
            task,
            was_permanent,
            is_refresh: wanted.refresh,
            is_excused: false,
            is_permitted: false,
        };
        self.purchases(|all| all.insert(wanted.key, purchase));
    }

    pub(super) fn permit(&self, id: CallId) {
        self.purchases(|all| {
            all.values_mut().filter(|purchase| purchase.id == id).for_each(|one| one.is_permitted = true);
        });
    }

    /// Is this task about to pay for the key?
    pub(super) fn is_buying(&self, key: CacheKey, task: Option<Id>) -> bool {
        self.purchases(|all| all.get(&key).is_some_and(|one| one.task == task && !one.is_permitted))
    }

    /// Could this task not ask the store for a record?
    pub(super) fn could_not_ask(&self, task: Option<Id>) -> bool {
        self.unasked.lock().unwrap_or_else(PoisonError::into_inner).contains(&task)
    }

    pub(super) fn excuse(&self, key: CacheKey, task: Option<Id>) {
        self.unasked.lock().unwrap_or_else(PoisonError::into_inner).insert(task);
        self.purchases(|all| {
            if let Some(purchase) = all.get_mut(&key).filter(|one| one.task == task) {
                purchase.is_excused = true;
            }
        });
    }

    /// What this task was about to pay for.
    pub(super) fn take_purchase_of(&self, key: CacheKey, task: Option<Id>) -> Option<Purchase> {
        self.is_buying(key, task).then(|| self.take_purchase(key)).flatten()
    }

    pub(super) fn take_purchase(&self, key: CacheKey) -> Option<Purchase> {
        self.purchases(|all| all.remove(&key))
    }
}

impl Process {
    /// Starts one on a ledger, settling what it finds there; `None` when it does not come up.
    pub(super) async fn start(world: &Arc<World>, ledger: usize) -> Option<Arc<Self>> {
        let life = Life::new(world, ledger);
        world.note(|| format!("{} starts on ledger {ledger}", life.name()));
        let line = |place| Line { world: world.clone(), life: life.clone(), place };
        let ledger: Arc<dyn Ledger> = Arc::new(LedgerLine::new(line(Place::Ledger)));
        let recovery = tokio::select! {
            biased;
            () = life.dead.cancelled() => return None,
            recovery = ledger.recover() => recovery,
        };
        let Ok(recovery) = recovery else {
            world.count("starts refused");
            world.note(|| format!("{} does not come up", life.name()));
            life.die();
            return None;
        };
        let is_beside = world.alive().iter().any(|process| process.life.ledger == life.ledger);
        if is_beside && !world.plan.is_fleet {
            world.count("starts beside a living process");
        }
        let room = Permits::new(1 << 30, Sharing::Whole);
        let cache = Arc::new(MemoryCache::new(1 << 30, room, world.metrics.clone()));
        let bare: Arc<dyn Store> = Arc::new(StoreLine(line(Place::Store)));
        let guard = Arc::new(ArchiveGuard::new(ledger.clone(), bare.clone()));
        let config =
            SpoolConfig { disk: None, max_bytes: 2 << 30, result_max_bytes: 32 << 20, is_remote: true };
        let spool = Spool::new(bare, ledger.clone(), guard.clone(), config);
        let store: Arc<dyn Store> = spool.clone();
        let importer = guard.clone();
        let import = async move { importer.import_records(IMPORT_PERIOD).await };
        tokio::spawn(life.dead.clone().run_until_cancelled_owned(import));
        let ready = Self::make_ready(guard.clone(), store.clone());
        tokio::spawn(life.dead.clone().run_until_cancelled_owned(ready));
        let core = Core {
            ledger,
            store,
            cache: cache.clone(),
            metrics: world.metrics.clone(),
            guard,
            policy: CurrentPolicy::new(world.teams.terms()),
            clock: world.clock(),
        };
        let config = FillConfig {
            least_credits: CREDITS,
            slots: SlotsConfig { concurrency: world.teams.concurrency, max_concurrency: 8, queue: 256 },
            result_url_ttl: URL_TTL,
            hard_stop: HARD_STOP,
        };
        let filler = Filler::new(
            Arc::new(core),
            Arc::new(UpstreamLine(line(Place::Upstream))),
            Arc::new(ResultsLine(line(Place::Results))),
            config,
        );
        world.count(if recovery.unfinished.is_empty() {
            "starts"
        } else {
            "starts that found a paid result"
        });
        filler.resume(recovery);
        let leases = filler.clone();
        let keep = async move { leases.keep_leases().await };
        tokio::spawn(life.dead.clone().run_until_cancelled_owned(keep));
        let copier = Copier::start_with(spool, COPIER_IDLE);
        let meter = Arc::new(Meter::new(world.clock(), TimeZone::UTC));
        let uploads = UploadRoom::in_memory(1 << 30);
        let gateway = Arc::new(Gateway::new(filler.clone(), meter, uploads, ROOT.to_owned()));
        let freshness = gateway.freshness();
        let follow = async move { freshness.follow().await };
        tokio::spawn(life.dead.clone().run_until_cancelled_owned(follow));
        let (clients, is_draining) = (AtomicUsize::new(0), AtomicBool::new(false));
        let copier = Mutex::new(Some(copier));
        let process = Arc::new(Self { life, filler, gateway, cache, copier, clients, is_draining });
        world.state().processes.push(process.clone());
        Some(process)
    }

    /// Proves the store and says, as an operator would, that it is the ledger's: another ledger over the
    /// same store is part of every world. Until then nothing is bought.
    async fn make_ready(guard: Arc<ArchiveGuard>, store: Arc<dyn Store>) {
        while !matches!(guard.look().await, Standing::Open(_)) && guard.adopt().await.is_err()
            || store.prove().await.is_err()
        {
            tokio::time::sleep(ms(1000)).await;
        }
    }

    pub(super) fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }

    /// Stops in good order: buys nothing more, answers its clients, settles its fills, and exits; at
    /// the latest after the hard stop of a paid call.
    pub(super) async fn stop(&self, world: &World) {
        if self.is_draining.swap(true, Ordering::Relaxed) {
            return;
        }
        world.note(|| format!("{} is told to stop", self.life.name()));
        if !world.calm.is_cancelled() {
            world.count("stops in times of trouble");
        }
        self.filler.drain();
        let latest = Instant::now() + Duration::from_secs(190);
        let settled = async {
            self.filler.settled().await;
            while self.clients.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(ms(100)).await;
            }
        };
        let in_order = tokio::select! {
            biased;
            () = self.life.dead.cancelled() => return,
            in_time = tokio::time::timeout_at(latest, settled) => in_time.is_ok(),
        };
        if in_order {
            world.expect(self.check_idle());
        }
        world.count(if in_order { "exits in good order" } else { "exits with open calls" });
        let copier = self.copier.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(copier) = copier {
            copier.stop().await;
        }
        world.note(|| format!("{} exits, in good order: {in_order}", self.life.name()));
        self.life.die();
    }

    /// Nothing is under way and nothing is left behind.
    pub(super) fn check_idle(&self) -> Result<(), String> {
        let load = self.filler.load();
        let held = self.life.held.load(Ordering::Relaxed);
        if load == (0, 0, 0, 0) && held == 0 {
            return Ok(());
        }
        Err(format!(
            "{} is idle, but has (fills, waiters, calls, queued) = {load:?} and {held} calls with the upstream",
            self.life.name()
        ))
    }
}
