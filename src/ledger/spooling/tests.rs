//! The store around a store and its copier, with the real ledger, the real stores and their faults.

use std::sync::Mutex;
use std::time::Instant;

use granary_kit::s3::{Fault, Operation, S3Server};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::base::clock::Clock;
use crate::base::key::Digest;
use crate::base::secret::Secret;
use crate::ledger::admin::{Actor, LedgerAdmin, Purge};
use crate::ledger::budget::Scope;
use crate::ledger::sqlite::SqliteLedger;
use crate::ledger::{Booking, CallId, Calls, Permit, Queries, Reservation, Reserved, SpoolTable};
use crate::store::local::LocalStore;
use crate::store::s3::{S3Limits, S3Store, S3StoreConfig};

const MIB: u64 = 1 << 20;

/// What a test's store refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refuses {
    Nothing,
    Objects,
    Records,
    Everything,
}

/// Files, away when a test says so.
struct Shaky {
    files: LocalStore,
    refuses: Mutex<Refuses>,
    /// Refused although the store is there.
    unwanted: Mutex<Vec<ObjectName>>,
    /// Not answered before the test ends.
    silent: Mutex<Vec<ObjectName>>,
}

impl Shaky {
    fn refuse(&self, what: Refuses) {
        *self.refuses.lock().unwrap() = what;
    }

    fn check(&self, what: Refuses) -> Result<(), StoreError> {
        let refuses = *self.refuses.lock().unwrap();
        if refuses == what || refuses == Refuses::Everything {
            return Err(StoreError::Unavailable("planted".to_owned()));
        }
        Ok(())
    }
}

#[async_trait]
impl Store for Shaky {
    async fn put_object(&self, name: ObjectName, bytes: Bytes) -> Result<(), StoreError> {
        self.check(Refuses::Objects)?;
        if self.silent.lock().unwrap().contains(&name) {
            tokio::time::sleep(Duration::from_secs(2)).await;
            return Err(StoreError::Unavailable("it did not answer in time".to_owned()));
        }
        if self.unwanted.lock().unwrap().contains(&name) {
            return Err(StoreError::Unavailable("it answered 403 AccessDenied".to_owned()));
        }
        self.files.put_object(name, bytes).await
    }

    async fn object(&self, name: ObjectName, max: u64) -> Result<Option<Bytes>, StoreError> {
        self.check(Refuses::Everything)?;
        self.files.object(name, max).await
    }

    async fn has_object(&self, name: ObjectName) -> Result<bool, StoreError> {
        self.check(Refuses::Everything)?;
        self.files.has_object(name).await
    }

    async fn put_record(&self, record: &Record) -> Result<Record, StoreError> {
        self.check(Refuses::Records)?;
        self.files.put_record(record).await
    }

    async fn record(&self, namespace: &str, key: CacheKey) -> Result<Option<Record>, StoreError> {
        self.check(Refuses::Everything)?;
        self.files.record(namespace, key).await
    }

    async fn list_records(&self, after: Option<&str>, limit: usize) -> Result<RecordPage, StoreError> {
        self.check(Refuses::Everything)?;
        self.files.list_records(after, limit).await
    }

    async fn forget_record(&self, namespace: &str, key: CacheKey, up_to: u64) -> Result<bool, StoreError> {
        self.check(Refuses::Records)?;
        self.files.forget_record(namespace, key, up_to).await
    }

    async fn check_room(&self) -> Result<(), StoreError> {
        self.check(Refuses::Everything)
    }

    async fn prove(&self) -> Result<(), StoreError> {
        self.check(Refuses::Everything)
    }

    async fn archive(&self) -> Result<Option<ArchiveId>, StoreError> {
        self.files.archive().await
    }

    async fn mark_archive(&self, archive: ArchiveId) -> Result<ArchiveId, StoreError> {
        self.files.mark_archive(archive).await
    }
}

#[async_trait]
impl ArchiveCheck for AtomicBool {
    async fn is_ours(&self) -> bool {
        self.load(Ordering::Relaxed)
    }
}

/// It is never another store.
struct Always;

#[async_trait]
impl ArchiveCheck for Always {
    async fn is_ours(&self) -> bool {
        true
    }
}

/// A spool between a real ledger and a store.
struct Rig<S> {
    spool: Arc<Spool>,
    ledger: Arc<SqliteLedger>,
    store: Arc<S>,
    folder: TempDir,
}

impl Rig<Shaky> {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = LocalStore::open(folder.path().join("store")).unwrap();
        Self::around(
            Shaky {
                files,
                refuses: Mutex::new(Refuses::Nothing),
                unwanted: Mutex::default(),
                silent: Mutex::default(),
            },
            folder,
        )
    }
}

impl<S: Store + 'static> Rig<S> {
    fn around(store: S, folder: TempDir) -> Self {
        let config = SpoolConfig {
            disk: Some(folder.path().to_owned()),
            max_bytes: 10 * MIB,
            result_max_bytes: MIB,
            is_remote: true,
        };
        Self::with(store, folder, config)
    }

    fn with(store: S, folder: TempDir, config: SpoolConfig) -> Self {
        let file = folder.path().join("ledger.db");
        let ledger = SqliteLedger::open(&file, Clock::system(), TimeZone::UTC).unwrap();
        let ledger = Arc::new(ledger.with_spool_max(config.max_bytes));
        let store = Arc::new(store);
        Self {
            spool: Spool::new(store.clone(), ledger.clone(), Arc::new(Always), config),
            ledger,
            store,
            folder,
        }
    }

    async fn reserve(&self, n: u32) -> CallId {
        let Reserved::Won(won) = self.ledger.reserve(picture(n)).await.unwrap() else {
            panic!("it was free")
        };
        won.id
    }

    /// A call whose result waits in the spool.
    async fn spooled(&self, n: u32) -> (CallId, Record) {
        let id = self.reserve(n).await;
        assert_eq!(self.ledger.mark_sent(id).await.unwrap(), Permit::Granted);
        let (request_id, log_id) = (format!("R{n}"), "L".to_owned());
        let answered = Booking::Answered { text: Secret::new("{}"), request_id, log_id };
        self.ledger.book(id, answered).await.unwrap();
        let record = record(n);
        let booking = Booking::Spooled { record: Box::new(record.clone()), bytes: result(n) };
        self.ledger.book(id, booking).await.unwrap();
        (id, record)
    }

    async fn waiting(&self) -> Vec<CallId> {
        self.ledger.spooled(0, 100).await.unwrap().into_iter().map(|spooled| spooled.id).collect()
    }

    async fn until_empty(&self) {
        eventually("the spool is empty", async || self.waiting().await.is_empty()).await;
    }

    fn take_ledger_away(&self) {
        let beside = Connection::open(self.folder.path().join("ledger.db")).unwrap();
        beside.execute_batch("ALTER TABLE spool RENAME TO hidden").unwrap();
    }
}

async fn eventually(what: &str, is_so: impl AsyncFn() -> bool) {
    for _ in 0..6000 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("still not: {what}");
}

fn picture(n: u32) -> Reservation {
    Reservation {
        namespace: "ailab-v1".to_owned(),
        key: CacheKey::of(b"picture", n, 1),
        refresh: false,
        team: "web".to_owned(),
        credits: 3,
        budgets: Vec::new(),
        image: Digest::of(b"picture"),
        width: n + 1,
        height: 1,
    }
}

fn result(n: u32) -> Bytes {
    format!("BM result {n}").into()
}

fn record(n: u32) -> Record {
    let Reservation { namespace, key, team, credits, image, width, height, .. } = picture(n);
    Record {
        version: Record::VERSION,
        namespace,
        key,
        generation: 0,
        answer: format!(r#"{{"data":{{"url":"{}"}}}}"#, name(n).path()),
        digest: Digest::of(&result(n)),
        extension: "bmp".to_owned(),
        bytes: result(n).len() as u64,
        team,
        credits,
        stored_at: Timestamp::from_second(1_795_000_000).unwrap(),
        upstream_request_id: format!("R{n}"),
        upstream_log_id: "L".to_owned(),
        image,
        width,
        height,
    }
}

fn name(n: u32) -> ObjectName {
    ObjectName::of(&result(n)).unwrap()
}

fn is_away<T>(result: Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Unavailable(_)))
}

#[tokio::test]
async fn a_reader_is_answered_by_the_spool_or_by_the_store() {
    let rig = Rig::new();
    rig.spooled(1).await;
    rig.store.put_object(name(2), result(2)).await.unwrap();
    for (n, expected) in [(1, Some(result(1))), (2, Some(result(2))), (3, None)] {
        assert_eq!(rig.spool.object(name(n), u64::MAX).await.unwrap(), expected, "{n}");
        assert_eq!(rig.spool.has_object(name(n)).await.unwrap(), expected.is_some(), "{n}");
    }
    rig.store.refuse(Refuses::Everything);
    assert_eq!(rig.spool.object(name(1), u64::MAX).await.unwrap(), Some(result(1)));
    assert!(rig.spool.has_object(name(1)).await.unwrap());
    for n in [2, 3] {
        assert!(
            is_away(rig.spool.object(name(n), u64::MAX).await)
                && is_away(rig.spool.has_object(name(n)).await)
        );
    }
}

#[tokio::test]
async fn what_the_store_does_not_have_is_not_absent_while_the_ledger_cannot_be_asked() {
    let rig = Rig::new();
    rig.store.put_object(name(1), result(1)).await.unwrap();
    rig.take_ledger_away();
    assert_eq!(rig.spool.object(name(1), u64::MAX).await.unwrap(), Some(result(1)));
    assert!(rig.spool.has_object(name(1)).await.unwrap());
    assert!(
        is_away(rig.spool.object(name(2), u64::MAX).await) && is_away(rig.spool.has_object(name(2)).await)
    );
}

#[tokio::test]
async fn damaged_bytes_in_the_spool_are_never_served() {
    let rig = Rig::new();
    rig.spooled(1).await;
    let beside = Connection::open(rig.folder.path().join("ledger.db")).unwrap();
    beside.execute("UPDATE spool SET data = CAST('BM result 7' AS BLOB)", []).unwrap();
    assert!(matches!(rig.spool.object(name(1), u64::MAX).await, Err(StoreError::Corrupt(_))));
    rig.store.put_object(name(1), result(1)).await.unwrap();
    assert_eq!(rig.spool.object(name(1), u64::MAX).await.unwrap(), Some(result(1)));
}

#[tokio::test]
async fn what_waits_at_the_start_and_what_comes_is_brought_to_the_store() {
    let rig = Rig::new();
    for n in 0..10 {
        rig.spooled(n).await;
    }
    rig.spool.prove().await.unwrap();
    let copier = Copier::start(rig.spool.clone());
    rig.until_empty().await;
    // Somebody is refused, and spools.
    rig.store.refuse(Refuses::Records);
    assert!(is_away(rig.spool.put_record(&record(10)).await));
    rig.store.refuse(Refuses::Nothing);
    let begun = Instant::now();
    rig.spooled(10).await;
    rig.until_empty().await;
    assert!(begun.elapsed() < Duration::from_secs(4), "it was told, and did not find it by chance");
    // And somebody else does.
    rig.spooled(11).await;
    rig.until_empty().await;
    copier.stop().await;
    for n in 0..12 {
        assert_eq!(rig.store.object(name(n), u64::MAX).await.unwrap(), Some(result(n)));
        assert_eq!(rig.store.record("ailab-v1", picture(n).key).await.unwrap(), Some(record(n)));
        assert_eq!(rig.ledger.look_up("ailab-v1", picture(n).key).await.unwrap(), Some(record(n)));
        assert_eq!(rig.spool.object(name(n), u64::MAX).await.unwrap(), Some(result(n)));
    }
}

#[tokio::test]
async fn only_what_the_store_has_confirmed_leaves_the_spool() {
    for refuses in [Refuses::Objects, Refuses::Records, Refuses::Everything] {
        let rig = Rig::new();
        let mut ids = Vec::new();
        for n in 0..6 {
            ids.push(rig.spooled(n).await.0);
        }
        rig.spool.prove().await.unwrap();
        rig.store.refuse(refuses);
        let copier = Copier::start(rig.spool.clone());
        // A store that fails its proof too is not tried by those who write.
        let is_expected = |is_away: bool| is_away == (refuses == Refuses::Everything);
        eventually("it has been tried", async || is_expected(is_away(rig.spool.check_not_away()))).await;
        tokio::time::sleep(2 * Duration::from_millis(200)).await;
        assert_eq!(rig.waiting().await, ids, "{refuses:?}");
        assert_eq!(is_away(rig.spool.put_object(name(0), result(0)).await), refuses != Refuses::Records);
        assert_eq!(is_away(rig.spool.put_record(&record(0)).await), refuses != Refuses::Objects);
        rig.store.refuse(Refuses::Nothing);
        rig.until_empty().await;
        eventually("it is not away any more", async || rig.spool.check_not_away().is_ok()).await;
        rig.spool.put_object(name(7), result(7)).await.unwrap();
        copier.stop().await;
    }
}

#[tokio::test]
async fn a_result_that_cannot_be_kept_waits_and_keeps_no_other_from_it() {
    let rig = Rig::new();
    let (stuck, _) = rig.spooled(0).await;
    for n in 1..9 {
        rig.spooled(n).await;
    }
    let path = rig.folder.path().join("store").join(Record::path("ailab-v1", picture(0).key));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, b"no record").unwrap();
    rig.spool.prove().await.unwrap();
    let copier = Copier::start(rig.spool.clone());
    eventually("the others are kept", async || rig.waiting().await == [stuck]).await;
    // The store is not away for that.
    eventually("it may be written", async || rig.spool.check_not_away().is_ok()).await;
    rig.spool.put_object(name(20), result(20)).await.unwrap();
    assert_eq!(rig.spool.object(name(0), u64::MAX).await.unwrap(), Some(result(0)));
    std::fs::remove_file(&path).unwrap();
    rig.until_empty().await;
    copier.stop().await;
    assert_eq!(rig.store.record("ailab-v1", picture(0).key).await.unwrap(), Some(record(0)));
}

#[tokio::test]
async fn results_the_store_refuses_or_never_takes_stall_no_other() {
    // Alone, oldest of many, and as many as are tried at once.
    for (bad, all) in [(1, 1), (1, 30), (5, 30)] {
        let rig = Rig::new();
        let mut stuck = Vec::new();
        for n in 0..all {
            let (id, _) = rig.spooled(n).await;
            if n < bad {
                stuck.push(id);
                let list = if n == 0 { &rig.store.silent } else { &rig.store.unwanted };
                list.lock().unwrap().push(name(n));
            }
        }
        rig.spool.prove().await.unwrap();
        let copier = Copier::start(rig.spool.clone());
        eventually("the others are kept", async || rig.waiting().await == stuck).await;
        tokio::time::sleep(Duration::from_millis(2500)).await;
        // Whoever writes is not sent away, however often the stuck ones have been tried.
        for n in 0..20 {
            rig.spool.put_object(name(100 + n), result(100 + n)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(rig.waiting().await, stuck);
        rig.store.silent.lock().unwrap().clear();
        rig.store.unwanted.lock().unwrap().clear();
        rig.until_empty().await;
        copier.stop().await;
    }
}

#[tokio::test]
async fn copies_in_flight_are_finished_when_the_store_goes_away() {
    let rig = Rig::new();
    rig.store.silent.lock().unwrap().push(name(0));
    rig.spooled(0).await;
    rig.spool.prove().await.unwrap();
    let copier = Copier::start(rig.spool.clone());
    tokio::time::sleep(Duration::from_millis(500)).await;
    rig.store.refuse(Refuses::Everything);
    assert!(rig.spool.check_not_away().is_ok(), "its only copy is under way");
    eventually("the store is away", async || is_away(rig.spool.check_not_away())).await;
    rig.store.silent.lock().unwrap().clear();
    rig.store.refuse(Refuses::Nothing);
    rig.until_empty().await;
    eventually("it is not away any more", async || rig.spool.check_not_away().is_ok()).await;
    copier.stop().await;
}

#[tokio::test]
async fn a_store_that_is_not_known_to_be_ours_is_not_away_and_gets_all_soon_after_it_is() {
    let Rig { store, folder, .. } = Rig::new();
    let mut rig = Rig::around(Arc::into_inner(store).unwrap_or_else(|| panic!("the rig is gone")), folder);
    let is_ours = Arc::new(AtomicBool::new(false));
    let config = SpoolConfig { disk: None, max_bytes: 10 * MIB, result_max_bytes: MIB, is_remote: false };
    let asked = is_ours.clone();
    rig.spool = Spool::new(rig.store.clone(), rig.ledger.clone(), asked, config);
    let (id, _) = rig.spooled(1).await;
    let copier = Copier::start(rig.spool.clone());
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        rig.spool.check_room().await.unwrap();
    }
    assert_eq!(rig.waiting().await, [id]);
    is_ours.store(true, Ordering::Relaxed);
    rig.until_empty().await;
    copier.stop().await;
}

#[tokio::test]
async fn a_result_that_comes_second_is_kept_and_leaves_the_key_to_the_first() {
    let rig = Rig::new();
    let theirs = Record { team: "batch".to_owned(), upstream_request_id: "R0".to_owned(), ..record(1) };
    let theirs = Record {
        digest: Digest::of(&result(9)),
        bytes: result(9).len() as u64,
        answer: record(9).answer,
        ..theirs
    };
    rig.store.put_object(name(9), result(9)).await.unwrap();
    rig.store.put_record(&theirs).await.unwrap();
    rig.spooled(1).await;
    rig.spool.prove().await.unwrap();
    let copier = Copier::start(rig.spool.clone());
    rig.until_empty().await;
    copier.stop().await;
    for n in [1, 9] {
        assert_eq!(rig.spool.object(name(n), u64::MAX).await.unwrap(), Some(result(n)), "both URLs serve");
    }
    assert_eq!(rig.ledger.look_up("ailab-v1", picture(1).key).await.unwrap(), Some(theirs));
}

#[tokio::test]
async fn nothing_is_brought_to_a_store_that_is_not_proved() {
    let rig = Rig::new();
    let (id, _) = rig.spooled(1).await;
    let copier = Copier::start(rig.spool.clone());
    eventually("it has been found", async || is_away(rig.spool.check_not_away())).await;
    assert_eq!(rig.waiting().await, [id]);
    assert_eq!(rig.store.object(name(1), u64::MAX).await.unwrap(), None);
    rig.spool.prove().await.unwrap();
    rig.until_empty().await;
    copier.stop().await;
}

#[tokio::test]
async fn nothing_is_bought_for_the_spool_before_the_store_is_proved() {
    let rig = Rig::new();
    rig.store.refuse(Refuses::Everything);
    assert!(is_away(rig.spool.check_room().await));
    rig.store.refuse(Refuses::Nothing);
    rig.spool.prove().await.unwrap();
    rig.store.refuse(Refuses::Everything);
    rig.spool.check_room().await.unwrap();

    // By room in it, as good.
    let rig = Rig::new();
    rig.spool.check_room().await.unwrap();
    rig.store.refuse(Refuses::Everything);
    rig.spool.check_room().await.unwrap();
}

#[tokio::test]
async fn files_are_bought_for_only_while_they_can_be_written() {
    let Rig { store, folder, .. } = Rig::new();
    let store = Arc::into_inner(store).unwrap_or_else(|| panic!("the rig is gone"));
    let config = SpoolConfig {
        disk: Some(folder.path().to_owned()),
        max_bytes: 10 * MIB,
        result_max_bytes: 1,
        is_remote: false,
    };
    let rig = Rig::with(store, folder, config);
    rig.spool.prove().await.unwrap();
    rig.spool.check_room().await.unwrap();
    rig.store.refuse(Refuses::Everything);
    assert!(is_away(rig.spool.check_room().await));
}

#[tokio::test]
async fn the_spool_takes_every_call_under_way_and_one_more() {
    let rig = Rig::new();
    rig.spool.prove().await.unwrap();
    rig.store.refuse(Refuses::Everything);
    let mut open = Vec::new();
    for n in 0..10 {
        rig.spool.check_room().await.unwrap_or_else(|error| panic!("{n}: {error}"));
        open.push(rig.reserve(n).await);
    }
    let Err(StoreError::Full(why)) = rig.spool.check_room().await else {
        panic!("ten results fit, not eleven")
    };
    assert!(why.contains("planted") && why.contains("the spool has 0 of 10485760 bytes"), "{why}");
    // Whose row has ended needs no room, and whose store is back needs none here.
    rig.ledger.book(open[0], Booking::Released { reason: String::new() }).await.unwrap();
    rig.spool.check_room().await.unwrap();
    rig.reserve(10).await;
    assert!(rig.spool.check_room().await.is_err());
    rig.store.refuse(Refuses::Nothing);
    rig.spool.check_room().await.unwrap();
}

#[tokio::test]
async fn of_many_at_once_as_many_are_reserved_as_the_spool_can_take() {
    let rig = Rig::new();
    rig.spool.prove().await.unwrap();
    rig.spool.set_away(true, false);
    let asked: Vec<_> = (0..30)
        .map(|n| {
            let (spool, ledger) = (rig.spool.clone(), rig.ledger.clone());
            tokio::spawn(async move {
                spool.check_room().await.is_ok()
                    && matches!(ledger.reserve(picture(n)).await, Ok(Reserved::Won(_)))
            })
        })
        .collect();
    let mut won = 0;
    for asked in asked {
        won += u32::from(asked.await.unwrap());
    }
    assert_eq!(won, 10);
    let refused = rig.ledger.reserve(picture(99)).await;
    let Err(LedgerError::SpoolFull { wanted, used, max }) = refused else { panic!("{refused:?}") };
    assert_eq!((wanted, used, max), (MIB, 10 * MIB, 10 * MIB));
    assert_eq!(rig.ledger.totals().await.unwrap().iter().map(|total| total.calls).sum::<u64>(), 10);
    // A store that is there takes what comes.
    rig.spool.set_away(false, false);
    rig.reserve(99).await;
}

#[tokio::test]
async fn whoever_asks_for_room_and_reserves_nothing_takes_none() {
    let rig = Rig::new();
    rig.spool.prove().await.unwrap();
    rig.store.refuse(Refuses::Everything);
    rig.spool.set_away(true, false);
    let frozen = Scope::Team("web".to_owned());
    rig.ledger.freeze(frozen.clone(), true, &Actor::loopback()).await.unwrap();
    for n in 0..40 {
        rig.spool.check_room().await.unwrap();
        // Some are refused by their circuit, others by the ledger.
        if n % 2 == 0 {
            assert_eq!(rig.ledger.reserve(picture(n)).await.unwrap(), Reserved::Frozen(frozen.clone()));
        }
    }
    let others = Reservation { team: "batch".to_owned(), ..picture(1) };
    assert!(matches!(rig.ledger.reserve(others).await.unwrap(), Reserved::Won(_)));
    rig.spool.check_room().await.unwrap();
}

#[tokio::test]
async fn a_disk_that_cannot_take_it_is_no_room() {
    let Rig { store, folder, .. } = Rig::new();
    let store = Arc::into_inner(store).unwrap_or_else(|| panic!("the rig is gone"));
    let config = SpoolConfig {
        disk: Some(folder.path().to_owned()),
        max_bytes: u64::MAX,
        result_max_bytes: u64::MAX / 8,
        is_remote: true,
    };
    let rig = Rig::with(store, folder, config);
    rig.spool.prove().await.unwrap();
    rig.store.refuse(Refuses::Everything);
    let Err(StoreError::Full(why)) = rig.spool.check_room().await else { panic!("no disk is so large") };
    assert!(why.contains("the ledger's disk has no room"), "{why}");
}

/// A bucket that is waited for as long as these limits say.
async fn bucket(server: &S3Server, folder: &TempDir, limit: Duration) -> S3Store {
    let file = folder.path().join("credentials");
    server.write_credentials(&file).unwrap();
    S3Store::open(S3StoreConfig {
        region: Some("eu-north-1".to_owned()),
        endpoint: Some(server.endpoint()),
        path_style: true,
        credentials_file: Some(file),
        limits: S3Limits { metadata: limit, object: limit, ..S3Limits::default() },
        bucket: server.bucket().to_owned(),
        ..S3StoreConfig::default()
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_fails_in_every_way_gets_each_result_in_the_end() {
    let (server, folder) = (S3Server::start().await, tempfile::tempdir().unwrap());
    let store = bucket(&server, &folder, Duration::from_millis(500)).await;
    let rig = Rig::around(store, folder);
    rig.spool.prove().await.unwrap();
    let faults = [Fault::DropAnswer, Fault::SlowDown, Fault::Conflict, Fault::CutBody, Fault::Forbidden];
    for fault in faults {
        server.fail_next(7, fault);
        server.fail_next_of(Operation::Put, 3, fault);
    }
    for n in 0..20 {
        rig.spooled(n).await;
    }
    let copier = Copier::start(rig.spool.clone());
    rig.until_empty().await;
    copier.stop().await;
    for n in 0..20 {
        let kept = server.object(&name(n).path()).unwrap();
        assert_eq!((kept.bytes, kept.content_type.as_deref()), (result(n), Some("image/bmp")));
        assert_eq!(rig.store.record("ailab-v1", picture(n).key).await.unwrap(), Some(record(n)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_a_silent_bucket_while_the_spool_has_room() {
    let (server, folder) = (S3Server::start().await, tempfile::tempdir().unwrap());
    // Each call to it would take minutes.
    let store = bucket(&server, &folder, Duration::from_secs(60)).await;
    let rig = Rig::around(store, folder);
    rig.spool.prove().await.unwrap();
    server.fail_always(Fault::Hang);
    let begun = Instant::now();
    for n in 0..5 {
        rig.spool.check_room().await.unwrap();
        rig.spooled(n).await;
        assert_eq!(rig.spool.object(name(n), u64::MAX).await.unwrap(), Some(result(n)));
    }
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    // A copier in the middle of such a call can be stopped, and what it had in hand waits on.
    let copier = Copier::start(rig.spool.clone());
    let seen = server.requests();
    eventually("it has asked", async || server.requests() > seen).await;
    copier.stop().await;
    assert_eq!(rig.waiting().await.len(), 5);
}

async fn purge(rig: &Rig<Shaky>, n: u32) {
    let purge = rig.ledger.purge("ailab-v1", picture(n).key, &Actor::loopback()).await.unwrap();
    assert_eq!(purge, Purge::Done { generation: 0 });
}

#[tokio::test]
async fn a_purged_result_goes_to_the_store_without_its_record() {
    let rig = Rig::new();
    rig.spooled(1).await;
    rig.spooled(2).await;
    purge(&rig, 1).await;
    // A copier died when it had written the record and not yet told the ledger.
    rig.spooled(3).await;
    rig.store.put_record(&record(3)).await.unwrap();
    purge(&rig, 3).await;
    rig.spool.prove().await.unwrap();
    let copier = Copier::start(rig.spool.clone());
    rig.until_empty().await;
    copier.stop().await;
    for n in 1..=3 {
        assert_eq!(rig.store.object(name(n), u64::MAX).await.unwrap(), Some(result(n)));
    }
    for (n, there) in [(1, false), (2, true), (3, false)] {
        assert_eq!(rig.store.record("ailab-v1", picture(n).key).await.unwrap().is_some(), there, "{n}");
    }
}

#[tokio::test]
async fn a_purged_result_waits_until_its_record_can_be_removed() {
    let rig = Rig::new();
    rig.spooled(1).await;
    rig.store.put_record(&record(1)).await.unwrap();
    purge(&rig, 1).await;
    rig.spool.prove().await.unwrap();
    rig.store.refuse(Refuses::Records);
    let copier = Copier::start(rig.spool.clone());
    eventually("its object is there", async || rig.store.object(name(1), u64::MAX).await.unwrap().is_some())
        .await;
    assert_eq!(rig.waiting().await.len(), 1);
    rig.store.refuse(Refuses::Nothing);
    rig.until_empty().await;
    copier.stop().await;
    assert_eq!(rig.store.record("ailab-v1", picture(1).key).await.unwrap(), None);
}

#[tokio::test]
async fn a_record_that_is_written_after_the_purge_does_not_stay() {
    let rig = Rig::new();
    rig.spooled(1).await;
    purge(&rig, 1).await;
    let key = picture(1).key;
    assert_eq!(rig.spool.put_record(&record(1)).await.unwrap(), record(1));
    assert_eq!(rig.store.record("ailab-v1", key).await.unwrap(), None);
    // One that could not be removed is not found, and removed at the next look.
    rig.store.put_record(&record(1)).await.unwrap();
    rig.store.refuse(Refuses::Records);
    assert_eq!(rig.spool.record("ailab-v1", key).await.unwrap(), None);
    assert!(rig.spool.put_record(&record(1)).await.is_err(), "it is still there");
    rig.store.refuse(Refuses::Nothing);
    assert_eq!(rig.spool.record("ailab-v1", key).await.unwrap(), None);
    assert_eq!(rig.store.record("ailab-v1", key).await.unwrap(), None);
    // The next generation is none of those that were purged.
    let next = Record { generation: 1, ..record(1) };
    rig.spool.put_record(&next).await.unwrap();
    assert_eq!(rig.spool.record("ailab-v1", key).await.unwrap(), Some(next));
}

#[tokio::test]
async fn nothing_is_removed_from_a_store_that_is_not_the_ledgers() {
    let rig = Rig::new();
    rig.spooled(1).await;
    purge(&rig, 1).await;
    rig.store.put_record(&record(1)).await.unwrap();
    let is_ours = Arc::new(AtomicBool::new(false));
    let config = SpoolConfig { disk: None, max_bytes: MIB, result_max_bytes: MIB, is_remote: true };
    let elsewhere = Spool::new(rig.store.clone(), rig.ledger.clone(), is_ours.clone(), config);
    let key = picture(1).key;
    assert_eq!(elsewhere.record("ailab-v1", key).await.unwrap(), None);
    assert!(is_away(elsewhere.forget_record("ailab-v1", key, 9).await));
    assert!(rig.store.record("ailab-v1", key).await.unwrap().is_some());
    is_ours.store(true, Ordering::Relaxed);
    assert!(elsewhere.forget_record("ailab-v1", key, 9).await.unwrap());
}
