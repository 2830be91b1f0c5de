//! The guard over a real ledger and a real store, which may be swapped for others between two looks.

use tempfile::TempDir;

use super::*;
use crate::clock::Clock;
use crate::ledger::sqlite::SqliteLedger;
use crate::store::local::LocalStore;

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
    let settled = Some(Membership { archive, is_settled: true });
    assert_eq!(place.ledger("b").archive().await.unwrap(), settled);
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
