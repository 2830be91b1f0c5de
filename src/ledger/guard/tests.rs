//! The guard over a real ledger and a real store, which may be swapped for others between two looks.

use tempfile::TempDir;

use super::*;
use crate::base::clock::Clock;
use crate::base::key::{CacheKey, Digest};
use crate::base::record::Record;
use crate::ledger::sqlite::SqliteLedger;
use crate::ledger::{Absence, Reservation, Reserved};
use crate::store::local::LocalStore;
use crate::testing::store_contract::record;

/// Ledgers and stores by name; each is made when it is first named.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    fn ledger(&self, name: &str) -> Arc<dyn Ledger> {
        let file = self.0.path().join(name);
        let zone = jiff::tz::TimeZone::UTC;
        Arc::new(SqliteLedger::open(&file, Clock::system(), zone).expect("a ledger"))
    }

    fn store(&self, name: &str) -> Arc<dyn Store> {
        Arc::new(LocalStore::open(self.0.path().join(name)).expect("a store"))
    }

    /// A process that begins with these.
    fn guard(&self, ledger: &str, store: &str) -> ArchiveGuard {
        ArchiveGuard::new(self.ledger(ledger), self.store(store))
    }

    fn unmark(&self, store: &str) {
        std::fs::remove_file(self.0.path().join(store).join("archive")).expect("there was a marker");
    }
}

async fn opened(guard: &ArchiveGuard) -> ArchiveId {
    match guard.look().await {
        Standing::Open(archive) => archive,
        other => panic!("not open: {other:?}"),
    }
}

#[tokio::test]
async fn what_is_new_is_paired_and_known_again() {
    let place = Place::new();
    let guard = place.guard("ledger", "store");
    assert_eq!((guard.standing(), guard.is_open()), (Standing::Unknown, false), "nothing is assumed");
    let archive = opened(&guard).await;
    assert_eq!(opened(&place.guard("ledger", "store")).await, archive);
    assert_eq!(compare(&*place.ledger("ledger"), &*place.store("store")).await.unwrap(), None);
}

#[tokio::test]
async fn a_pairing_that_broke_off_is_finished_wherever_it_broke() {
    let place = Place::new();
    let archive = ArchiveId::random();
    place.ledger("a").begin_archive(archive).await.unwrap();
    assert_eq!(opened(&place.guard("a", "store a")).await, archive);

    place.ledger("b").begin_archive(archive).await.unwrap();
    place.store("store b").mark_archive(archive).await.unwrap();
    assert_eq!(opened(&place.guard("b", "store b")).await, archive);
    let settled = Membership::new(archive, true);
    assert_eq!(place.ledger("b").archive().await.unwrap(), Some(settled));
}

#[tokio::test]
async fn an_emptied_store_closes_until_it_is_adopted() {
    let place = Place::new();
    let guard = place.guard("ledger", "store");
    let ledger = opened(&guard).await;
    place.unmark("store");
    let closed = Mismatch::StoreUnmarked { ledger };
    assert_eq!(guard.look().await, Standing::Closed(closed));
    assert!(!guard.is_open());
    assert_eq!(place.guard("ledger", "elsewhere").look().await, Standing::Closed(closed), "a mistyped place");
    assert_eq!(compare(&*place.ledger("ledger"), &*place.store("store")).await.unwrap(), Some(closed));

    let adoption = guard.adopt().await.unwrap();
    assert_eq!(adoption, Adoption { found: Some(closed), archive: ledger });
    assert!(guard.is_open(), "at once");
    assert_eq!(opened(&place.guard("ledger", "store")).await, ledger);
}

#[tokio::test]
async fn a_replaced_ledger_closes_until_it_is_adopted() {
    let place = Place::new();
    let store = opened(&place.guard("ledger", "store")).await;
    let guard = place.guard("new ledger", "store");
    let closed = Mismatch::LedgerUnmarked { store };
    assert_eq!(guard.look().await, Standing::Closed(closed));
    let adoption = guard.adopt().await.unwrap();
    assert_eq!(adoption, Adoption { found: Some(closed), archive: store }, "the store's id stands");
    assert_eq!(opened(&place.guard("new ledger", "store")).await, store);
    assert_eq!(opened(&place.guard("ledger", "store")).await, store, "a store is never marked anew");
}

#[tokio::test]
async fn a_ledger_of_another_world_closes_until_it_is_adopted() {
    let place = Place::new();
    let ledger = opened(&place.guard("ledger", "store")).await;
    let store = opened(&place.guard("other ledger", "other store")).await;
    let guard = place.guard("ledger", "other store");
    let closed = Mismatch::Different { ledger, store };
    assert_eq!(guard.look().await, Standing::Closed(closed));
    assert_eq!(guard.adopt().await.unwrap(), Adoption { found: Some(closed), archive: store });
    assert_eq!(opened(&place.guard("other ledger", "other store")).await, store);
}

#[tokio::test]
async fn what_comes_back_opens_by_itself_and_a_damaged_marker_closes() {
    let place = Place::new();
    let guard = place.guard("ledger", "store");
    let archive = opened(&guard).await;
    let marker = place.0.path().join("store/archive");
    let bytes = std::fs::read(&marker).unwrap();

    std::fs::write(&marker, "damaged").unwrap();
    let closed = Standing::Closed(Mismatch::StoreMarkedOtherwise);
    assert_eq!(guard.look().await, closed);
    assert!(guard.adopt().await.is_err(), "and nothing is made of it");
    let fresh = place.guard("ledger", "store");
    assert_eq!(fresh.look().await, closed);
    let compared = compare(&*place.ledger("ledger"), &*place.store("store")).await.unwrap();
    assert_eq!(compared, Some(Mismatch::StoreMarkedOtherwise));

    place.unmark("store");
    assert!(matches!(guard.look().await, Standing::Closed(_)));
    std::fs::write(&marker, bytes).unwrap();
    assert_eq!(opened(&guard).await, archive);
    assert_eq!(opened(&fresh).await, archive);
}

#[tokio::test]
async fn many_who_miss_something_share_a_look() {
    let place = Place::new();
    let guard = place.guard("ledger", "store");
    opened(&guard).await;
    tokio::time::pause();
    place.unmark("store");
    assert!(guard.confirm().await, "it has just been looked");
    tokio::time::advance(LOOK_PAUSE).await;
    assert!(!guard.confirm().await);
}

#[tokio::test]
async fn what_cannot_be_asked_is_not_known_though_it_was_before() {
    let place = Place::new();
    let guard = place.guard("ledger", "store");
    let archive = opened(&guard).await;
    tokio::time::pause();
    tokio::time::advance(LOOK_PAUSE).await;
    // As when a volume is not mounted any more: nothing can be said of the marker.
    let records = place.0.path().join("store/records");
    std::fs::rename(&records, place.0.path().join("elsewhere")).unwrap();
    std::fs::rename(place.0.path().join("store/archive"), place.0.path().join("marker")).unwrap();
    assert!(!guard.confirm().await, "nothing is written, and nothing believed to be absent");
    assert_eq!(guard.standing(), Standing::Open(archive), "and no alarm");
    std::fs::rename(place.0.path().join("elsewhere"), &records).unwrap();
    std::fs::rename(place.0.path().join("marker"), place.0.path().join("store/archive")).unwrap();
    tokio::time::advance(LOOK_PAUSE).await;
    assert!(guard.confirm().await);
}

#[tokio::test]
async fn store_is_confirmed_while_ledger_is_away_by_what_ledger_said_last() {
    let place = Place::new();
    let guard = place.guard("ledger", "store");
    let unknown = place.guard("ledger", "store");
    opened(&guard).await;
    tokio::time::pause();
    place.hide("ledger", true);
    tokio::time::advance(LOOK_PAUSE).await;
    assert!(guard.confirm().await, "what is paid for may be written to it");
    assert!(!unknown.confirm().await, "this process has never heard from the ledger");
    std::fs::write(place.0.path().join("store/archive"), ArchiveId::random().to_marker()).unwrap();
    tokio::time::advance(LOOK_PAUSE).await;
    assert!(!guard.confirm().await, "another store");
}

impl Place {
    /// Takes the ledger's table of the archive away, or gives it back.
    fn hide(&self, ledger: &str, hide: bool) {
        let (from, to) = if hide { ("archive", "hidden") } else { ("hidden", "archive") };
        let db = rusqlite::Connection::open(self.0.path().join(ledger)).unwrap();
        db.execute_batch(&format!("ALTER TABLE {from} RENAME TO {to}")).unwrap();
    }

    /// An archive of so many records, which a ledger has not created and has adopted.
    async fn adopted(&self, records: u32) -> Vec<Record> {
        opened(&self.guard("old ledger", "store")).await;
        let store = self.store("store");
        let mut put = Vec::new();
        for n in 0..records {
            let key = CacheKey::of(b"import", n, 1);
            put.push(
                store.put_record(&Record { credits: 3, ..record("ailab-v1", key, 0, "red") }).await.unwrap(),
            );
        }
        let guard = self.guard("ledger", "store");
        guard.look().await;
        guard.adopt().await.unwrap();
        put
    }
}

async fn known(ledger: &dyn Ledger, records: &[Record]) -> usize {
    let mut known = 0;
    for record in records {
        known += usize::from(ledger.look_up("ailab-v1", record.key).await.unwrap() == Some(record.clone()));
    }
    known
}

async fn knows_all(ledger: &dyn Ledger) -> bool {
    let absence = ledger.absence("ailab-v1", CacheKey::of(b"nothing", 1, 1)).await.unwrap();
    absence == Absence::Certain
}

#[tokio::test]
async fn ledger_of_a_new_store_is_complete_after_one_look() {
    let place = Place::new();
    let guard = place.guard("ledger", "store");
    assert!(!guard.import_page().await);
    assert_eq!(guard.import_status(), ImportStatus::NotBegun, "nothing is known of the store");
    opened(&guard).await;
    assert!(!guard.import_page().await);
    assert_eq!(guard.import_status(), ImportStatus::Complete);
    assert!(knows_all(&*place.ledger("ledger")).await);
}

#[tokio::test]
async fn import_begins_soon_after_the_adoption() {
    let place = Place::new();
    let records = place.adopted(2).await;
    let guard = place.guard("new ledger", "store");
    assert!(matches!(guard.look().await, Standing::Closed(_)));
    let ledger = place.ledger("new ledger");
    let adopted = async {
        tokio::task::yield_now().await;
        guard.adopt().await.unwrap();
        while !knows_all(&*ledger).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        biased;
        () = guard.import_records(Duration::from_hours(1)) => unreachable!("it goes on for ever"),
        () = adopted => {}
        () = tokio::time::sleep(Duration::from_secs(30)) => panic!("not imported"),
    }
    assert_eq!(known(&*ledger, &records).await, 2);
}

#[tokio::test]
async fn import_goes_on_where_another_process_ended() {
    let place = Place::new();
    let records = place.adopted(250).await;
    let ledger = place.ledger("ledger");
    assert!(!knows_all(&*ledger).await);
    let guard = place.guard("ledger", "store");
    opened(&guard).await;
    assert!(guard.import_page().await);
    assert_eq!(guard.import_status(), ImportStatus::Running(100));
    assert_eq!((known(&*ledger, &records).await, knows_all(&*ledger).await), (100, false));

    // Two processes at once.
    let (one, other) = (place.guard("ledger", "store"), place.guard("ledger", "store"));
    opened(&one).await;
    opened(&other).await;
    let more = tokio::join!(one.import_page(), other.import_page());
    while one.import_page().await {}
    assert!(more.0 || more.1, "100 of 150 at most");
    assert_eq!(one.import_status(), ImportStatus::Complete);
    assert_eq!((known(&*ledger, &records).await, knows_all(&*ledger).await), (250, true));
    assert!(!guard.import_page().await);
    assert_eq!(guard.import_status(), ImportStatus::Complete, "it hears of it");

    one.adopt().await.unwrap();
    assert!(!knows_all(&*ledger).await, "as after a restored backup");
}

#[tokio::test]
async fn import_passes_over_a_damaged_record_and_takes_all_others() {
    let place = Place::new();
    let records = place.adopted(20).await;
    let file = place.0.path().join("store").join(Record::path("ailab-v1", records[7].key));
    std::fs::write(&file, "{}").unwrap();
    let guard = place.guard("ledger", "store");
    opened(&guard).await;
    assert!(!guard.import_page().await);
    assert_eq!(known(&*place.ledger("ledger"), &records).await, 19);
    assert!(knows_all(&*place.ledger("ledger")).await);
}

#[tokio::test]
async fn call_whose_owner_died_is_stored_when_store_has_its_record() {
    let place = Place::new();
    let guard = place.guard("ledger", "store");
    opened(&guard).await;
    while guard.import_page().await {}
    let (ledger, store) = (place.ledger("ledger"), place.store("store"));
    let key = CacheKey::of(b"import", 1, 1);
    let wanted = Reservation {
        namespace: "ailab-v1".to_owned(),
        key,
        refresh: false,
        team: "red".to_owned(),
        credits: 3,
        budgets: Vec::new(),
        image: Digest::of(b"upload"),
        width: 65_535,
        height: 1,
    };
    let Reserved::Won(won) = ledger.reserve(wanted).await.unwrap() else { panic!("it is free") };
    ledger.mark_sent(won.id).await.unwrap();
    ledger.recover().await.unwrap();
    tokio::time::pause();
    guard.import_page().await;
    assert_eq!(ledger.orphans().await.unwrap().len(), 1, "the store has no record");
    assert_eq!(ledger.absence("ailab-v1", key).await.unwrap(), Absence::Uncertain);

    // The last write of the dead process arrives.
    let kept = Record { credits: 3, ..record("ailab-v1", key, 0, "red") };
    store.put_record(&kept).await.unwrap();
    tokio::time::advance(Duration::from_secs(31)).await;
    guard.import_page().await;
    assert_eq!(ledger.orphans().await.unwrap(), []);
    assert_eq!(ledger.look_up("ailab-v1", key).await.unwrap(), Some(kept));
    assert_eq!(ledger.absence("ailab-v1", key).await.unwrap(), Absence::Certain);
}
