//! A world in memory: a ledger, a store, an upstream and its results, each of which counts its
//! calls, fails on command and can be held up.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use tokio::sync::Semaphore;

use super::*;
use crate::archive::{ArchiveId, Membership};
use crate::download::{FetchError, Fetched, ResultSource};
use crate::envelope::Answer;
use crate::fill::{FillConfig, FillParts};
use crate::ledger::budget::{Budget, Scope};
use crate::ledger::spool::{SpoolUsage, Spooled};
use crate::ledger::{
    Booking, CallFacts, CallId, CallState, LedgerError, Permit, Recovery, Reservation, Reserved, StateTotal,
    Won,
};
use crate::secret::Secret;
use crate::slots::SlotsConfig;
use crate::store::StoreError;
use crate::upstream::{HeldCall, NotSent, Opened, Order, Reply, Upstream};

pub(super) const NAMESPACE: &str = "ailab-v1";
pub(super) const CREDITS: u64 = 3;

/// Counts calls by name, and says which of them fail.
#[derive(Default)]
pub(super) struct Switch {
    counts: Mutex<HashMap<&'static str, usize>>,
    failing: Mutex<Vec<&'static str>>,
    failing_once: Mutex<Option<&'static str>>,
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

/// A row of the fake ledger.
#[derive(Clone)]
pub(super) struct FakeRow {
    pub(super) key: CacheKey,
    pub(super) generation: u64,
    pub(super) state: CallState,
    pub(super) is_late: bool,
    pub(super) record: Option<Record>,
}

#[derive(Default)]
pub(super) struct FakeLedger {
    pub(super) switch: Switch,
    pub(super) rows: Mutex<Vec<FakeRow>>,
    /// Results that wait for the store. Nobody takes them out: there is no copier here.
    pub(super) spool: Mutex<HashMap<CallId, (ObjectName, Bytes)>>,
    /// What the gate says; `None` for yes.
    pub(super) permit: Mutex<Option<Permit>>,
    pub(super) membership: Mutex<Option<Membership>>,
}

impl FakeLedger {
    fn check(&self, name: &'static str) -> Result<(), LedgerError> {
        if self.switch.works(name) { Ok(()) } else { Err(LedgerError::Unavailable("planted".to_owned())) }
    }

    /// The states of all rows, oldest first.
    pub(super) fn states(&self) -> Vec<CallState> {
        self.rows.lock().unwrap().iter().map(|row| row.state).collect()
    }
}

fn newest_stored(rows: &[FakeRow], key: CacheKey) -> Option<&FakeRow> {
    rows.iter()
        .filter(|row| row.key == key && row.state == CallState::Stored && !row.is_late)
        .max_by_key(|row| row.generation)
}

#[async_trait]
impl Ledger for FakeLedger {
    async fn look_up(&self, _: &str, key: CacheKey) -> Result<Option<Record>, LedgerError> {
        self.check("look_up")?;
        Ok(newest_stored(&self.rows.lock().unwrap(), key).and_then(|row| row.record.clone()))
    }

    async fn reserve(&self, wanted: Reservation) -> Result<Reserved, LedgerError> {
        self.check("reserve")?;
        let mut rows = self.rows.lock().unwrap();
        let of_key = |row: &&FakeRow| row.key == wanted.key && !row.is_late;
        if let Some(at) = rows.iter().position(|row| of_key(&row) && row.state.is_open()) {
            return Ok(Reserved::Held(CallId(at as i64)));
        }
        if let Some(stored) = newest_stored(&rows, wanted.key).filter(|_| !wanted.refresh) {
            return Ok(Reserved::Stored(Box::new(stored.record.clone().unwrap())));
        }
        let known = |row: &&FakeRow| matches!(row.state, CallState::Stored | CallState::Lost);
        let generation = rows.iter().filter(of_key).filter(known).map(|row| row.generation + 1).max();
        let generation = generation.unwrap_or(0);
        let state = CallState::Reserved;
        rows.push(FakeRow { key: wanted.key, generation, state, is_late: false, record: None });
        Ok(Reserved::Won(Won { id: CallId(rows.len() as i64 - 1), generation }))
    }

    async fn mark_sent(&self, id: CallId) -> Result<Permit, LedgerError> {
        self.check("mark_sent")?;
        if let Some(permit) = &*self.permit.lock().unwrap() {
            return Ok(permit.clone());
        }
        self.rows.lock().unwrap()[id.0 as usize].state = CallState::Sent;
        Ok(Permit::Granted)
    }

    async fn book(&self, id: CallId, booking: Booking) -> Result<(), LedgerError> {
        self.check("book")?;
        let row = &mut self.rows.lock().unwrap()[id.0 as usize];
        assert!(booking.may_follow(row.state), "{booking:?} after {:?}", row.state);
        row.state = booking.state();
        match booking {
            Booking::Stored { record, holds_key } => {
                row.record = Some(*record);
                row.is_late = !holds_key;
            }
            Booking::Spooled { record, bytes } => {
                let name = record.object().unwrap();
                row.record = Some(*record);
                self.spool.lock().unwrap().insert(id, (name, bytes));
            }
            _ => {}
        }
        Ok(())
    }

    async fn adopt(&self, record: &Record) -> Result<(), LedgerError> {
        self.check("adopt")?;
        let mut rows = self.rows.lock().unwrap();
        let holds = |row: &FakeRow| {
            row.key == record.key
                && row.generation == record.generation
                && row.state.holds_key()
                && !row.is_late
        };
        if !rows.iter().any(holds) {
            let (key, generation, state) = (record.key, record.generation, CallState::Stored);
            rows.push(FakeRow { key, generation, state, is_late: false, record: Some(record.clone()) });
        }
        Ok(())
    }

    async fn lose(&self, record: &Record) -> Result<(), LedgerError> {
        self.check("lose")?;
        let mut rows = self.rows.lock().unwrap();
        let is_it = |row: &FakeRow| row.state == CallState::Stored && row.record.as_ref() == Some(record);
        if let Some(row) = rows.iter_mut().find(|row| is_it(row)) {
            row.state = CallState::Lost;
        }
        Ok(())
    }

    async fn recover(&self) -> Result<Recovery, LedgerError> {
        Ok(Recovery::default())
    }

    async fn totals(&self) -> Result<Vec<StateTotal>, LedgerError> {
        Ok(Vec::new())
    }

    async fn used(&self, budgets: Vec<Budget>) -> Result<Vec<Used>, LedgerError> {
        self.check("used")?;
        Ok(budgets.into_iter().map(|budget| Used { budget, used: 0 }).collect())
    }

    async fn set_frozen(&self, _: Scope, _: bool) -> Result<(), LedgerError> {
        Ok(())
    }

    async fn archive(&self) -> Result<Option<Membership>, LedgerError> {
        Ok(*self.membership.lock().unwrap())
    }

    async fn begin_archive(&self, archive: ArchiveId) -> Result<Membership, LedgerError> {
        let begun = Membership { archive, is_settled: false };
        Ok(*self.membership.lock().unwrap().get_or_insert(begun))
    }

    async fn settle_archive(&self, archive: ArchiveId) -> Result<(), LedgerError> {
        *self.membership.lock().unwrap() = Some(Membership { archive, is_settled: true });
        Ok(())
    }

    async fn call(&self, _: CallId) -> Result<Option<CallFacts>, LedgerError> {
        Ok(None)
    }

    async fn spooled_object(&self, name: ObjectName) -> Result<Option<Bytes>, LedgerError> {
        let spool = self.spool.lock().unwrap();
        Ok(spool.values().find(|(spooled, _)| *spooled == name).map(|(_, bytes)| bytes.clone()))
    }

    async fn is_spooled(&self, name: ObjectName) -> Result<bool, LedgerError> {
        self.check("is_spooled")?;
        // A failure of its own: no answer at all.
        if !self.switch.works("is_spooled_in_time") {
            std::future::pending::<()>().await;
        }
        Ok(self.spooled_object(name).await?.is_some())
    }

    async fn spooled(&self, _: u64, _: usize) -> Result<Vec<Spooled>, LedgerError> {
        Ok(Vec::new())
    }

    async fn unspool(&self, id: CallId, _: &Record) -> Result<(), LedgerError> {
        self.spool.lock().unwrap().remove(&id);
        Ok(())
    }

    async fn spool_usage(&self) -> Result<SpoolUsage, LedgerError> {
        Ok(SpoolUsage::default())
    }
}

#[derive(Default)]
pub(super) struct FakeStore {
    pub(super) switch: Switch,
    pub(super) objects: Mutex<HashMap<ObjectName, Bytes>>,
    pub(super) records: Mutex<HashMap<CacheKey, Record>>,
    pub(super) marker: Mutex<Option<ArchiveId>>,
}

impl FakeStore {
    fn check(&self, name: &'static str) -> Result<(), StoreError> {
        if self.switch.works(name) { Ok(()) } else { Err(StoreError::Unavailable("planted".to_owned())) }
    }
}

#[async_trait]
impl Store for FakeStore {
    async fn put_object(&self, name: ObjectName, bytes: Bytes) -> Result<(), StoreError> {
        self.check("put_object")?;
        self.objects.lock().unwrap().insert(name, bytes);
        Ok(())
    }

    async fn object(&self, name: ObjectName) -> Result<Option<Bytes>, StoreError> {
        self.check("object")?;
        Ok(self.objects.lock().unwrap().get(&name).cloned())
    }

    async fn has_object(&self, name: ObjectName) -> Result<bool, StoreError> {
        self.check("has_object")?;
        Ok(self.objects.lock().unwrap().contains_key(&name))
    }

    async fn put_record(&self, record: &Record) -> Result<Record, StoreError> {
        self.check("put_record")?;
        let mut records = self.records.lock().unwrap();
        let standing = records.entry(record.key).or_insert_with(|| record.clone());
        if standing.generation < record.generation {
            *standing = record.clone();
        }
        Ok(standing.clone())
    }

    async fn record(&self, _: &str, key: CacheKey) -> Result<Option<Record>, StoreError> {
        self.check("record")?;
        // A failure of its own: something is there, and cannot be read.
        if !self.switch.works("damaged") {
            return Err(StoreError::Corrupt("planted".to_owned()));
        }
        Ok(self.records.lock().unwrap().get(&key).cloned())
    }

    async fn prove(&self) -> Result<(), StoreError> {
        self.check_room().await
    }

    async fn check_room(&self) -> Result<(), StoreError> {
        self.check("check_room")
    }

    async fn archive(&self) -> Result<Option<ArchiveId>, StoreError> {
        self.check("archive")?;
        Ok(*self.marker.lock().unwrap())
    }

    async fn mark_archive(&self, archive: ArchiveId) -> Result<ArchiveId, StoreError> {
        self.check("mark_archive")?;
        Ok(*self.marker.lock().unwrap().get_or_insert(archive))
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

/// The gate of an upstream that answers at once.
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
            None => Reply::Answered(Answer::read(&answer_text(number)).unwrap()),
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

/// A gateway and what is around it.
pub(super) struct World {
    pub(super) ledger: Arc<FakeLedger>,
    pub(super) store: Arc<FakeStore>,
    pub(super) upstream: Arc<FakeUpstream>,
    pub(super) results: Arc<FakeResults>,
    pub(super) filler: Filler,
    pub(super) gateway: Arc<Gateway>,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(4, &[])
    }

    /// With so many calls at once, and rate limits for these teams.
    pub(super) fn with(concurrency: usize, teams: &[Arc<Team>]) -> Self {
        Self::around(Arc::default(), Arc::default(), Arc::default(), concurrency, teams)
    }

    /// A new process on the same ledger and store: its memory is empty.
    pub(super) fn restarted(&self) -> Self {
        Self::around(self.ledger.clone(), self.store.clone(), self.upstream.clone(), 4, &[])
    }

    /// The same, but the ledger is lost.
    pub(super) fn with_a_fresh_ledger(&self) -> Self {
        Self::around(Arc::default(), self.store.clone(), self.upstream.clone(), 4, &[])
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
        let cache = Arc::new(MemoryCache::new(1 << 20));
        let metrics = Arc::new(Metrics::new(["local"].into_iter(), 1 << 20));
        let clock = Clock::system();
        let guard = Arc::new(ArchiveGuard::new(ledger.clone(), store.clone()));
        // Where ledger and store do not know each other, the operator has looked.
        guard.adopt().now_or_never().expect("nothing here waits").expect("both can be asked");
        let parts = FillParts {
            ledger: ledger.clone(),
            store: store.clone(),
            upstream: upstream.clone(),
            results: results.clone(),
            cache: cache.clone(),
            metrics: metrics.clone(),
            guard: guard.clone(),
            clock: clock.clone(),
        };
        let config = FillConfig {
            namespace: NAMESPACE.to_owned(),
            credits_per_call: CREDITS,
            slots: SlotsConfig { concurrency, max_concurrency: concurrency, queue: 256 },
            result_url_ttl: Duration::from_secs(84_600),
            daily_credits: Some(1000),
            monthly_credits: Some(10_000),
        };
        let filler = Filler::new(parts, config, teams);
        let parts = GatewayParts {
            cache,
            ledger: ledger.clone(),
            store: store.clone(),
            filler: filler.clone(),
            metrics,
            guard,
            clock,
        };
        let gateway = Gateway::new(parts, NAMESPACE.to_owned(), "https://granary.example".to_owned());
        Self { ledger, store, upstream, results, filler, gateway: Arc::new(gateway) }
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
