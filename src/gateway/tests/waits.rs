//! A store that has no turn for us, and parts that hang: what is said of a key, and how long it takes.

use std::sync::atomic::Ordering;

use super::*;
use crate::ledger::guard::Standing;

/// How long a hit may take whatever hangs.
const HIT: Duration = Duration::from_secs(1);

async fn look_up(world: &World, tag: u8) -> Result<CropReply, GatewayError> {
    world.gateway.look_up_key(&Team::local(), &identity(key(tag)), &mut RequestTiming::default()).await
}

#[tokio::test(start_paused = true)]
async fn a_busy_store_is_neither_bought_over_nor_said_to_have_nothing() {
    let world = World::new();
    world.ask(1).await.unwrap();
    for elsewhere in [world.with_a_fresh_ledger(), world.with_a_fresh_store()] {
        let bought = elsewhere.upstream.paid();
        elsewhere.store.is_busy.store(true, Ordering::SeqCst);
        for tag in [1, 2] {
            if elsewhere.ledger.states().is_empty() || tag == 2 {
                assert_eq!(ended(&elsewhere.ask(tag).await), "StoreBusy");
                assert_eq!(ended(&look_up(&elsewhere, tag).await), "StoreBusy");
            } else {
                assert_eq!(ended(&elsewhere.ask(tag).await), "hit_ledger");
            }
        }
        let name = ObjectName::of(&result_bytes(1)).unwrap();
        assert_eq!(
            elsewhere.gateway.result(name, &Party::new("client")).await.unwrap_err().response().status,
            503
        );
        assert_eq!(elsewhere.upstream.paid(), bought);
        elsewhere.store.is_busy.store(false, Ordering::SeqCst);
        assert_eq!(ended(&look_up(&elsewhere, 3).await), "KeyNotFound");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hit_takes_less_than_a_second_whichever_part_hangs() {
    let world = World::with_spool(false);
    world.ask(1).await.unwrap();
    let hung_store = world.restarted();
    hung_store.store.switch.hang("has_object");
    let begun = Instant::now();
    assert_eq!(ended(&hung_store.ask(1).await), "hit_ledger");
    assert!(begun.elapsed() < HIT, "{:?}", begun.elapsed());
    let hung_ledger = world.restarted();
    hung_ledger.store.switch.hang("nothing");
    hung_ledger.ledger.switch.hang("look_up");
    let begun = Instant::now();
    assert_eq!(ended(&hung_ledger.ask(1).await), "hit_store");
    assert!(begun.elapsed() < HIT, "{:?}", begun.elapsed());
    assert_eq!(world.upstream.paid(), 1);
}

#[tokio::test(start_paused = true)]
async fn result_of_the_ledger_is_refused_while_a_store_of_another_archive_hangs() {
    let world = World::new();
    world.ask(1).await.unwrap();
    let world = world.restarted();
    world.store.store.files().clear();
    assert!(matches!(world.gateway.core.guard.look().await, Standing::Closed(_)));
    world.store.switch.hang("has_object");
    assert_eq!(ended(&world.ask(1).await), "ArchiveGuard");
    world.store.switch.hang("nothing");
    assert_eq!(ended(&world.ask(1).await), "ArchiveGuard");
    assert_eq!(world.upstream.paid(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_five_seconds_for_a_store_that_hangs_and_then_uses_the_spool() {
    let world = World::with_spool(false);
    world.store.switch.hang("put_object");
    let begun = Instant::now();
    assert_eq!(ended(&world.ask(1).await), "miss");
    assert_eq!((begun.elapsed().as_secs(), world.ledger.states()), (5, vec![CallState::Stored]));
    let name = ObjectName::of(&result_bytes(1)).unwrap();
    assert_eq!(world.gateway.result(name, &Party::new("client")).await.unwrap(), result_bytes(1));
    // Whether there is a record cannot be said, nor whose fault that is.
    world.store.switch.hang("record");
    let begun = Instant::now();
    assert_eq!(ended(&world.ask(2).await), "StoreBusy");
    assert_eq!((begun.elapsed().as_secs(), world.upstream.paid()), (5, 1));
}
