//! Purged keys: who sees the purge, when, and what is kept of the result nevertheless.

use super::*;
use crate::gateway::keys::{PurgeError, Purged};
use crate::ledger::admin::{Actor, LedgerAdmin};
use crate::store::{Store, StoreError};

impl World {
    /// Another process beside this one, on the same ledger and store.
    fn beside(&self) -> Self {
        self.restarted()
    }

    /// Follows the ledger's changes, as a process does while it serves.
    fn follow(&self) {
        let freshness = self.gateway.freshness();
        tokio::spawn(async move { freshness.follow().await });
    }

    async fn purge(&self, tag: u8) -> Result<Purged, PurgeError> {
        self.desk.purge(key(tag), &Actor::loopback()).await
    }

    async fn found(&self, tag: u8) -> String {
        ended(
            &self
                .gateway
                .look_up_key(&Team::local(), &identity(key(tag)), &mut RequestTiming::default())
                .await,
        )
    }

    async fn record_in_store(&self, tag: u8) -> Option<Record> {
        Store::record(&self.store.store, NAMESPACE, key(tag)).await.unwrap()
    }
}

async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

/// Two processes, both of which have the answer of picture 1 in memory.
async fn fleet() -> (World, World) {
    let one = World::with_spool(true);
    let other = one.beside();
    one.follow();
    other.follow();
    seconds(1).await;
    one.ask(1).await.unwrap();
    assert_eq!(other.found(1).await, "hit_ledger");
    for world in [&one, &other] {
        assert_eq!(world.found(1).await, "hit_memory");
    }
    (one, other)
}

#[tokio::test]
async fn a_purged_key_is_bought_again_and_the_old_url_goes_on_serving() {
    let world = World::with_spool(false);
    world.ask(1).await.unwrap();
    let first = ObjectName::of(&result_bytes(1)).unwrap();
    assert_eq!(world.purge(1).await.unwrap(), Purged { generation: 0, is_new: true });
    assert_eq!(world.found(1).await, "KeyNotFound");
    assert_eq!(world.record_in_store(1).await, None);
    assert_eq!(world.gateway.result(first, &Party::new("client")).await.unwrap(), result_bytes(1));
    assert_eq!(world.with_a_fresh_ledger().found(1).await, "KeyNotFound");

    let again = world.ask(1).await.unwrap();
    assert_eq!((again.status, again.charged, again.record.generation), (CacheStatus::Miss, CREDITS, 1));
    assert_eq!(world.upstream.paid(), 2);
    assert_eq!(world.found(1).await, "hit_memory");
    assert_eq!(world.with_a_fresh_ledger().found(1).await, "hit_store");
    for number in [1, 2] {
        let name = ObjectName::of(&result_bytes(number)).unwrap();
        assert_eq!(world.gateway.result(name, &Party::new("client")).await.unwrap(), result_bytes(number));
    }
}

#[tokio::test]
async fn purging_is_repeated_without_harm_and_nothing_cannot_be_purged() {
    let world = World::with_spool(false);
    assert!(matches!(world.purge(1).await, Err(PurgeError::Nothing)));
    world.ask(1).await.unwrap();
    for is_new in [true, false, false] {
        assert_eq!(world.purge(1).await.unwrap(), Purged { generation: 0, is_new });
    }
    world.ask(1).await.unwrap();
    assert_eq!(world.purge(1).await.unwrap(), Purged { generation: 1, is_new: true });
}

#[tokio::test]
async fn what_only_the_store_knows_is_purged_too() {
    let world = World::with_spool(false);
    world.ask(1).await.unwrap();
    let fresh = world.with_a_fresh_ledger();
    assert_eq!(fresh.purge(1).await.unwrap(), Purged { generation: 0, is_new: true });
    assert_eq!(fresh.found(1).await, "KeyNotFound");
    assert_eq!(fresh.record_in_store(1).await, None);
    assert_eq!(fresh.ask(1).await.unwrap().record.generation, 1);
}

#[tokio::test]
async fn a_purge_says_what_kept_it_and_may_be_repeated() {
    let world = World::with_spool(false);
    world.ask(1).await.unwrap();
    world.ledger.switch.fail(&["purge"]);
    assert!(matches!(world.purge(1).await, Err(PurgeError::Ledger(_))));
    assert_eq!(world.found(1).await, "hit_memory");
    world.ledger.switch.fail(&[]);
    // Whether there is anything to purge cannot be said.
    world.store.switch.fail(&["record"]);
    assert!(matches!(world.purge(2).await, Err(PurgeError::Store(_))));

    world.store.switch.fail(&["forget_record"]);
    assert!(matches!(world.purge(1).await, Err(PurgeError::RecordStays(_))));
    assert!(world.record_in_store(1).await.is_some());
    // It counts as absent all the same, for this process and for others.
    assert_eq!(world.found(1).await, "KeyNotFound");
    assert_eq!(world.restarted().found(1).await, "KeyNotFound");
    world.store.switch.fail(&[]);
    assert_eq!(world.purge(1).await.unwrap(), Purged { generation: 0, is_new: false });
    assert_eq!(world.record_in_store(1).await, None);
}

#[tokio::test]
async fn a_record_that_a_purge_left_behind_goes_at_the_next_look() {
    let world = World::with_spool(false);
    world.ask(1).await.unwrap();
    world.store.switch.fail(&["forget_record"]);
    assert!(matches!(world.purge(1).await, Err(PurgeError::RecordStays(_))));
    world.store.switch.fail(&[]);
    assert_eq!(world.found(1).await, "KeyNotFound");
    assert_eq!(world.record_in_store(1).await, None);
}

#[tokio::test]
async fn a_damaged_record_is_not_purged_and_says_so() {
    let world = World::with_spool(false);
    world.ask(1).await.unwrap();
    world.store.switch.fail(&["damaged"]);
    world.store.store.files().insert(Record::path(NAMESPACE, key(1)), "{}".into());
    assert!(matches!(world.purge(1).await, Err(PurgeError::RecordStays(StoreError::Corrupt(_)))));
}

#[tokio::test]
async fn a_refresh_under_way_during_a_purge_brings_the_new_result() {
    let world = World::with_spool(false);
    world.ask(1).await.unwrap();
    world.upstream.hold();
    let gateway = world.gateway.clone();
    let refresh = tokio::spawn(async move { ask_as(&gateway, &refresher(), 1).await });
    world.until_paid(2).await;
    assert_eq!(world.purge(1).await.unwrap(), Purged { generation: 0, is_new: true });
    assert_eq!(world.found(1).await, "KeyNotFound");
    world.upstream.release();
    let refreshed = refresh.await.unwrap().unwrap();
    assert_eq!(refreshed.record.generation, 1);
    let found = world
        .restarted()
        .gateway
        .look_up_key(&Team::local(), &identity(key(1)), &mut RequestTiming::default())
        .await
        .unwrap();
    assert_eq!(found.record, refreshed.record);
    assert_eq!(world.record_in_store(1).await.as_ref(), Some(&*refreshed.record));
    assert_eq!(world.ask(1).await.unwrap().record, refreshed.record);
    assert_eq!(world.upstream.paid(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_purge_is_seen_by_every_process_within_two_seconds() {
    let (one, other) = fleet().await;
    one.purge(1).await.unwrap();
    assert_eq!(one.found(1).await, "KeyNotFound");
    seconds(2).await;
    assert_eq!(other.found(1).await, "KeyNotFound");
    // The other buys it, and the one finds that.
    let bought = other.ask(1).await.unwrap();
    assert_eq!(ended(&Ok(bought)), "miss");
    assert_eq!(one.found(1).await, "hit_ledger");
    assert_eq!(one.upstream.paid(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_is_seen_by_every_process_within_two_seconds() {
    let (one, other) = fleet().await;
    let refreshed = ask_as(&one.gateway, &refresher(), 1).await.unwrap();
    seconds(2).await;
    let found = other
        .gateway
        .look_up_key(&Team::local(), &identity(key(1)), &mut RequestTiming::default())
        .await
        .unwrap();
    assert_eq!((found.status, found.record), (CacheStatus::HitLedger, refreshed.record));
    assert_eq!(other.found(1).await, "hit_memory");
}

#[tokio::test(start_paused = true)]
async fn who_cannot_learn_of_changes_asks_the_ledger_before_memory() {
    let (one, other) = fleet().await;
    for (trouble, tag) in [("fails", 1), ("hangs", 2)] {
        one.ask(tag).await.unwrap();
        other.found(tag).await;
        assert_eq!(other.found(tag).await, "hit_memory", "{trouble}");
        match trouble {
            "fails" => one.ledger.switch.fail(&["changes"]),
            _ => one.ledger.switch.hang("changes"),
        }
        seconds(3).await;
        assert_eq!(other.found(tag).await, "hit_ledger", "{trouble}: it still stands");
        one.purge(tag).await.unwrap();
        assert_eq!(other.found(tag).await, "KeyNotFound", "{trouble}");
        // What the ledger has said is not forgotten when it is away next.
        one.ledger.switch.fail(&["all"]);
        assert_ne!(other.found(tag).await, "hit_memory", "{trouble}");
        one.ledger.switch.fail(&[]);
        seconds(3).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_cut_off_serves_from_memory_until_the_ledger_can_be_asked_again() {
    let (one, other) = fleet().await;
    one.ledger.switch.fail(&["all"]);
    seconds(600).await;
    assert_eq!(other.found(1).await, "hit_memory");
    one.ledger.switch.hang("look_up");
    assert_eq!(other.found(1).await, "hit_memory", "nor is it waited for");
    one.ledger.switch.hang("nothing");
    // Somebody purges it in a part of the network that reaches the ledger.
    LedgerAdmin::purge(&one.ledger.ledger, NAMESPACE, key(1), &Actor::loopback()).await.unwrap();
    assert_eq!(other.found(1).await, "hit_memory", "it cannot know");
    one.ledger.switch.fail(&["changes"]);
    assert_eq!(other.found(1).await, "KeyNotFound", "now it can");
}

#[tokio::test(start_paused = true)]
async fn what_the_store_alone_has_said_is_not_believed_when_the_ledger_can_be_asked_again() {
    let (one, other) = fleet().await;
    one.store.switch.fail(&["forget_record"]);
    assert!(matches!(one.purge(1).await, Err(PurgeError::RecordStays(_))));
    seconds(2).await;
    assert_eq!(other.found(1).await, "KeyNotFound");
    one.ledger.switch.fail(&["all"]);
    seconds(3).await;
    for _ in 0..2 {
        assert_eq!(other.found(1).await, "hit_store", "nobody can say that it was purged");
    }
    one.ledger.switch.fail(&[]);
    seconds(3).await;
    assert_eq!(other.found(1).await, "KeyNotFound");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_kept_in_memory_before_changes_are_followed() {
    let world = World::with_spool(true);
    world.ask(1).await.unwrap();
    for _ in 0..2 {
        assert_eq!(world.found(1).await, "hit_ledger");
    }
    world.follow();
    seconds(1).await;
    assert_eq!(world.found(1).await, "hit_ledger");
    assert_eq!(world.found(1).await, "hit_memory");
}

#[tokio::test(start_paused = true)]
async fn a_result_that_was_bought_before_the_purge_and_comes_after_it_is_not_kept_in_memory() {
    let world = World::with_spool(false);
    let recovery = unfinished(&world, &[(1, &answer_text(1))]);
    // Another result came first, and was purged.
    let theirs = crate::testing::store_contract::record(NAMESPACE, key(1), 0, "web");
    crate::ledger::ArchiveIndex::import_record(&world.ledger.ledger, &Record { generation: 4, ..theirs })
        .await
        .unwrap();
    assert_eq!(world.purge(1).await.unwrap(), Purged { generation: 4, is_new: true });
    world.filler.resume(recovery);
    world.rest().await;
    assert_eq!(world.found(1).await, "KeyNotFound");
    assert_eq!(world.record_in_store(1).await, None);
    let name = ObjectName::of(&result_bytes(1)).unwrap();
    assert_eq!(
        world.gateway.result(name, &Party::new("client")).await.unwrap(),
        result_bytes(1),
        "its URL serves"
    );
    assert_eq!(world.ask(1).await.unwrap().record.generation, 5);
}
