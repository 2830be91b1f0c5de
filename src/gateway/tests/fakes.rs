//! A world in memory: a ledger, a store, an upstream and its results, each of which counts its
//! calls, fails on command and can be held up.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use jiff::tz::TimeZone;
use tokio::sync::Semaphore;

use super::*;
use crate::base::archive::ArchiveId;
use crate::base::clock::Clock;
use crate::base::envelope::Answer;
use crate::base::key::CacheKey;
use crate::base::operation::IMAGE_CROPPING;
use crate::base::permits::{Permits, Sharing};
use crate::base::secret::Secret;
use crate::billing::metering::Meter;
use crate::cache::MemoryCache;
use crate::fill::FillConfig;
use crate::fill::slots::SlotsConfig;
use crate::gateway::keys::KeyAdmin;
use crate::ledger::guard::{ArchiveGuard, Standing};
use crate::ledger::spooling::{Spool, SpoolConfig};
use crate::ledger::{CallState, LedgerError, Permit};
use crate::metrics::Metrics;
use crate::request::Order;
use crate::request::uploads::UploadRoom;
use crate::store::{RecordPage, Store, StoreError};
use crate::teams::Teams;
use crate::teams::policy::{CurrentPolicy, PolicyConfig};
use crate::testing::memory_ledger::{Gate, MemoryLedger};
use crate::testing::memory_store::MemoryStore;
use crate::upstream::download::{FetchError, Fetched, ResultSource};
use crate::upstream::{HeldCall, NotSent, Opened, Reply, Upstream};

pub(super) const NAMESPACE: &str = "ailab-v1";
pub(super) const CREDITS: u64 = 3;

/// Counts calls by name, and says which of them fail.
#[derive(Default)]
pub(super) struct Switch {
    counts: Mutex<HashMap<&'static str, usize>>,
    failing: Mutex<Vec<&'static str>>,
    failing_once: Mutex<Option<&'static str>>,
    hanging: Mutex<Option<&'static str>>,
}

impl Switch {
    /// From now on these fail, and no others; `"all"` stands for every call.
    pub(super) fn fail(&self, names: &[&'static str]) {
        *self.failing.lock().unwrap() = names.to_vec();
    }

    /// The next call of this name fails.
    pub(super) fn fail_once(&self, name: &'static str) {
        *self.failing_once.lock().unwrap() = Some(name);
    }

    /// From now on this never returns.
    pub(super) fn hang(&self, name: &'static str) {
        *self.hanging.lock().unwrap() = Some(name);
    }

    async fn hangs(&self, name: &'static str) {
        let hangs = self.hanging.lock().unwrap().is_some_and(|hanging| hanging == name);
        if hangs {
            std::future::pending::<()>().await;
        }
    }

    /// How often this was called, whatever came of it.
    pub(super) fn count(&self, name: &str) -> usize {
        self.counts.lock().unwrap().get(name).copied().unwrap_or(0)
    }

    fn works(&self, name: &'static str) -> bool {
        *self.counts.lock().unwrap().entry(name).or_default() += 1;
        let fails_once = self.failing_once.lock().unwrap().take_if(|failing| *failing == name).is_some();
        let failing = self.failing.lock().unwrap();
        !fails_once && !failing.contains(&name) && !failing.contains(&"all")
    }
}

/// A ledger in memory that fails on command.
pub(super) struct FakeLedger {
    /// What is in it, for which no command holds.
    pub(super) ledger: MemoryLedger,
    /// What the program is given.
    pub(super) gated: Arc<MemoryLedger>,
    gate: Arc<LedgerGate>,
}

/// What is commanded to a [`FakeLedger`].
pub(super) struct LedgerGate {
    pub(super) switch: Switch,
    /// What the gate says; `None` for what the ledger does.
    pub(super) permit: Mutex<Option<Permit>>,
    /// Is it kept by several processes?
    pub(super) is_shared: AtomicBool,
    /// Does what it has in its spool, and what was purged, count for who asks the store?
    pub(super) is_spooled: AtomicBool,
    /// How many reservations may be made.
    reservations: Semaphore,
}

impl Default for FakeLedger {
    fn default() -> Self {
        let ledger = MemoryLedger::new(Clock::system(), TimeZone::UTC);
        let gate = Arc::new(LedgerGate {
            switch: Switch::default(),
            permit: Mutex::default(),
            is_shared: AtomicBool::new(false),
            is_spooled: AtomicBool::new(false),
            reservations: Semaphore::new(WIDE_OPEN),
        });
        Self { gated: Arc::new(ledger.clone().behind(gate.clone())), ledger, gate }
    }
}

impl std::ops::Deref for FakeLedger {
    type Target = LedgerGate;

    fn deref(&self) -> &LedgerGate {
        &self.gate
    }
}

impl FakeLedger {
    /// From now on reservations wait.
    pub(super) fn hold_reservations(&self) {
        self.reservations.forget_permits(WIDE_OPEN);
    }

    /// They wait no more.
    pub(super) fn release_reservations(&self) {
        self.reservations.add_permits(WIDE_OPEN);
    }

    /// The states of all rows, oldest first.
    pub(super) fn states(&self) -> Vec<CallState> {
        self.ledger.book().rows.iter().map(|row| row.state).collect()
    }
}

#[async_trait]
impl Gate for LedgerGate {
    async fn pass(&self, operation: &'static str) -> Result<(), LedgerError> {
        self.switch.hangs(operation).await;
        if !self.switch.works(operation) {
            return Err(LedgerError::Unavailable("planted".to_owned()));
        }
        match operation {
            "reserve" => drop(self.reservations.acquire().await),
            // A failure of its own: no answer at all.
            "is_spooled" if !self.switch.works("is_spooled_in_time") => std::future::pending().await,
            _ => {}
        }
        Ok(())
    }

    fn permit(&self) -> Option<Permit> {
        self.permit.lock().unwrap().clone()
    }

    fn has_leases(&self) -> bool {
        self.is_shared.load(Ordering::SeqCst)
    }
}

/// A store in memory that fails on command.
#[derive(Default)]
pub(super) struct FakeStore {
    pub(super) switch: Switch,
    /// Nothing has a turn.
    pub(super) is_busy: AtomicBool,
    pub(super) store: MemoryStore,
}

impl FakeStore {
    fn check(&self, name: &'static str) -> Result<&dyn Store, StoreError> {
        match (self.switch.works(name), self.is_busy.load(Ordering::SeqCst)) {
            (_, true) => Err(StoreError::Busy("planted".to_owned())),
            (true, false) => Ok(&self.store),
            (false, false) => Err(StoreError::Unavailable("planted".to_owned())),
        }
    }

    /// Takes all objects away, and leaves the records.
    pub(super) fn lose_objects(&self) {
        self.store.files().retain(|path, _| !path.starts_with("results/"));
    }
}

#[async_trait]
impl Store for FakeStore {
    async fn put_object(&self, name: ObjectName, bytes: Bytes) -> Result<(), StoreError> {
        self.switch.hangs("put_object").await;
        self.check("put_object")?.put_object(name, bytes).await
    }

    async fn object(&self, name: ObjectName, max: u64) -> Result<Option<Bytes>, StoreError> {
        self.check("object")?.object(name, max).await
    }

    async fn has_object(&self, name: ObjectName) -> Result<bool, StoreError> {
        self.switch.hangs("has_object").await;
        self.check("has_object")?.has_object(name).await
    }

    async fn put_record(&self, record: &Record) -> Result<Record, StoreError> {
        self.check("put_record")?.put_record(record).await
    }

    async fn record(&self, namespace: &str, key: CacheKey) -> Result<Option<Record>, StoreError> {
        self.switch.hangs("record").await;
        let store = self.check("record")?;
        // Failures of their own: it is not there yet, or it is there and cannot be read.
        if !self.switch.works("absent") {
            return Ok(None);
        }
        if !self.switch.works("damaged") {
            return Err(StoreError::Corrupt("planted".to_owned()));
        }
        store.record(namespace, key).await
    }

    async fn list_records(&self, after: Option<&str>, limit: usize) -> Result<RecordPage, StoreError> {
        self.check("list_records")?.list_records(after, limit).await
    }

    async fn forget_record(&self, namespace: &str, key: CacheKey, up_to: u64) -> Result<bool, StoreError> {
        self.check("forget_record")?.forget_record(namespace, key, up_to).await
    }

    async fn prove(&self) -> Result<(), StoreError> {
        self.check_room().await
    }

    async fn check_room(&self) -> Result<(), StoreError> {
        self.check("check_room")?.check_room().await
    }

    async fn archive(&self) -> Result<Option<ArchiveId>, StoreError> {
        self.check("archive")?.archive().await
    }

    async fn mark_archive(&self, archive: ArchiveId) -> Result<ArchiveId, StoreError> {
        self.check("mark_archive")?.mark_archive(archive).await
    }
}

/// Sells a different result each time.
pub(super) struct FakeUpstream {
    pub(super) switch: Arc<Switch>,
    /// How many calls may be answered.
    pub(super) gate: Arc<Semaphore>,
    /// What is answered instead of a result.
    pub(super) reply: Mutex<Option<MakeReply>>,
    /// What the account holds, if it says so.
    pub(super) credits: Mutex<Option<u64>>,
    sent: Arc<AtomicUsize>,
    held: Arc<()>,
}

pub(super) type MakeReply = Arc<dyn Fn() -> Reply + Send + Sync>;

/// The gate of a ledger or an upstream that answers at once.
const WIDE_OPEN: usize = 1000;

impl Default for FakeUpstream {
    fn default() -> Self {
        Self {
            switch: Arc::default(),
            gate: Arc::new(Semaphore::new(WIDE_OPEN)),
            reply: Mutex::default(),
            credits: Mutex::default(),
            sent: Arc::default(),
            held: Arc::default(),
        }
    }
}

impl FakeUpstream {
    /// From now on no call is answered.
    pub(super) fn hold(&self) {
        self.gate.forget_permits(WIDE_OPEN);
    }

    /// Answers all calls again.
    pub(super) fn release(&self) {
        self.gate.add_permits(WIDE_OPEN);
    }

    pub(super) fn reply(&self, reply: impl Fn() -> Reply + Send + Sync + 'static) {
        *self.reply.lock().unwrap() = Some(Arc::new(reply));
    }

    /// Calls whose tail is held back or whose answer is awaited.
    pub(super) fn held(&self) -> usize {
        Arc::strong_count(&self.held) - 1
    }

    /// Tails that went out: each may have cost credits.
    pub(super) fn paid(&self) -> usize {
        self.sent.load(Ordering::SeqCst)
    }
}

struct FakeCall {
    gate: Arc<Semaphore>,
    reply: Option<MakeReply>,
    sent: Arc<AtomicUsize>,
    _held: Arc<()>,
}

/// An answer that names the result of this number.
pub(super) fn answer_text(number: usize) -> String {
    format!(
        r#"{{"request_id":"R{number}","log_id":"L{number}","data":{{"url":"https://results.example/{number}"}}}}"#
    )
}

/// The result of this number.
pub(super) fn result_bytes(number: usize) -> Bytes {
    format!("BM result {number}").into()
}

#[async_trait]
impl Upstream for FakeUpstream {
    async fn open(&self, _: Arc<Order>) -> Result<Opened, NotSent> {
        if !self.switch.works("open") {
            return Err(NotSent::Connect("planted".to_owned()));
        }
        let reply = self.reply.lock().unwrap().clone();
        let (gate, sent) = (self.gate.clone(), self.sent.clone());
        Ok(Opened::Held(Box::new(FakeCall { gate, reply, sent, _held: self.held.clone() })))
    }

    async fn credits_left(&self) -> Option<u64> {
        self.switch.works("credits_left");
        *self.credits.lock().unwrap()
    }
}

#[async_trait]
impl HeldCall for FakeCall {
    async fn send(self: Box<Self>) -> Reply {
        let number = self.sent.fetch_add(1, Ordering::SeqCst) + 1;
        self.gate.acquire().await.unwrap().forget();
        match &self.reply {
            Some(reply) => reply(),
            None => Reply::Answered(Answer::read(&answer_text(number), &IMAGE_CROPPING).unwrap()),
        }
    }
}

#[derive(Default)]
pub(super) struct FakeResults {
    pub(super) switch: Switch,
}

#[async_trait]
impl ResultSource for FakeResults {
    async fn fetch(&self, url: &Secret) -> Result<Fetched, FetchError> {
        if !self.switch.works("fetch") {
            return Err(FetchError::Transient("planted".to_owned()));
        }
        // A failure of its own: the URL does not serve it any more.
        if !self.switch.works("dead") {
            return Err(FetchError::Dead("planted".to_owned()));
        }
        let number = url.expose().rsplit('/').next().unwrap().parse().unwrap();
        let bytes = result_bytes(number);
        Ok(Fetched { name: ObjectName::of(&bytes).unwrap(), bytes })
    }
}

/// The teams `local`, without limits, and `other`, unless they are given as others; and what all may
/// spend together.
pub(super) fn terms(given: &[Arc<Team>]) -> PolicyConfig {
    let usual = ["local", "other"].map(|name| Team { name: name.to_owned(), ..Team::local() });
    let is_given = |team: &Team| given.iter().any(|given| given.name == team.name);
    let teams =
        usual.into_iter().filter(|team| !is_given(team)).chain(given.iter().map(|team| (**team).clone()));
    PolicyConfig {
        teams: Teams::new(teams.map(|team| (team, Vec::new()))),
        daily_credits: Some(1000),
        monthly_credits: Some(10_000),
        origins: Vec::new(),
    }
}

/// A gateway and what is around it.
pub(super) struct World {
    pub(super) ledger: Arc<FakeLedger>,
    pub(super) store: Arc<FakeStore>,
    pub(super) upstream: Arc<FakeUpstream>,
    pub(super) results: Arc<FakeResults>,
    pub(super) policy: CurrentPolicy,
    pub(super) metrics: Arc<Metrics>,
    pub(super) filler: Filler,
    pub(super) gateway: Arc<Gateway>,
    pub(super) desk: KeyAdmin,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(4, &[])
    }

    /// With so many calls at once, and these teams beside those of [`terms`].
    pub(super) fn with(concurrency: usize, teams: &[Arc<Team>]) -> Self {
        Self::around(Arc::default(), Arc::default(), Arc::default(), concurrency, teams)
    }

    /// A new process on the same ledger and store: its memory is empty.
    pub(super) fn restarted(&self) -> Self {
        Self::around(self.ledger.clone(), self.store.clone(), self.upstream.clone(), 4, &[])
    }

    /// With a spool around the store.
    pub(super) fn with_spool(is_shared: bool) -> Self {
        let ledger = Arc::<FakeLedger>::default();
        ledger.is_spooled.store(true, Ordering::SeqCst);
        ledger.is_shared.store(is_shared, Ordering::SeqCst);
        Self::around(ledger, Arc::default(), Arc::default(), 4, &[])
    }

    /// The same, but the ledger is lost.
    pub(super) fn with_a_fresh_ledger(&self) -> Self {
        let ledger = Arc::<FakeLedger>::default();
        ledger.is_spooled.store(self.ledger.is_spooled.load(Ordering::SeqCst), Ordering::SeqCst);
        Self::around(ledger, self.store.clone(), self.upstream.clone(), 4, &[])
    }

    /// The same, but the store is lost.
    pub(super) fn with_a_fresh_store(&self) -> Self {
        Self::around(self.ledger.clone(), Arc::default(), self.upstream.clone(), 4, &[])
    }

    fn around(
        ledger: Arc<FakeLedger>,
        store: Arc<FakeStore>,
        upstream: Arc<FakeUpstream>,
        concurrency: usize,
        teams: &[Arc<Team>],
    ) -> Self {
        let results = Arc::new(FakeResults::default());
        let metrics = Arc::new(Metrics::new(["local"].into_iter()));
        let room = Permits::new(1 << 30, Sharing::Whole);
        let cache = Arc::new(MemoryCache::new(1 << 20, room, metrics.clone()));
        let clock = Clock::system();
        let policy = CurrentPolicy::new(terms(teams));
        let guard = Arc::new(ArchiveGuard::new(ledger.gated.clone(), store.clone()));
        let config = SpoolConfig { disk: None, max_bytes: 1 << 20, result_max_bytes: 1, is_remote: false };
        let spool: Arc<dyn Store> = Spool::new(store.clone(), ledger.gated.clone(), guard.clone(), config);
        // Where ledger and store do not know each other, the operator has looked.
        if !matches!(guard.look().now_or_never(), Some(Standing::Open(_))) {
            guard.adopt().now_or_never().expect("nothing here waits").expect("both can be asked");
        }
        // Of a store with records the import has not begun.
        if store.store.files().keys().all(|path| !path.starts_with("records")) {
            guard.import_page().now_or_never().expect("nothing here waits");
        }
        let is_spooled = ledger.is_spooled.load(Ordering::SeqCst);
        let core = Core {
            ledger: ledger.gated.clone(),
            store: if is_spooled { spool } else { store.clone() },
            cache,
            metrics: metrics.clone(),
            guard,
            policy: policy.clone(),
            clock: clock.clone(),
        };
        let config = FillConfig {
            least_credits: CREDITS,
            slots: SlotsConfig { concurrency, max_concurrency: concurrency, queue: 256 },
            result_url_ttl: Duration::from_secs(84_600),
            hard_stop: Duration::from_secs(180),
        };
        let filler = Filler::new(Arc::new(core), upstream.clone(), results.clone(), config);
        let meter = Arc::new(Meter::new(clock, TimeZone::UTC));
        let uploads = UploadRoom::in_memory(1 << 30);
        let root = "https://granary.example".to_owned();
        let gateway = Gateway::new(filler.clone(), meter, uploads, root);
        let (core, admin) = (filler.core().clone(), ledger.gated.clone());
        let desk = KeyAdmin::new(core, admin, gateway.freshness(), NAMESPACE.to_owned());
        Self { ledger, store, upstream, results, policy, metrics, filler, gateway: Arc::new(gateway), desk }
    }

    /// Waits until no fill is under way.
    pub(super) async fn rest(&self) {
        while self.filler.load().0 > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits until so many callers wait for fills.
    pub(super) async fn until_waiting(&self, callers: usize) {
        while self.filler.load().1 < callers {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits until so many tails have gone.
    pub(super) async fn until_paid(&self, calls: usize) {
        while self.upstream.paid() < calls {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
