//! Whose URL an answer names while a result is in the spool, in the store, or cannot be asked for.

use super::*;
use crate::base::archive::ArchiveId;
use crate::ledger::{ArchiveIndex, SpoolTable};

const STORE_ROOT: &str = "https://cdn.example/granary";
const OUR_ROOT: &str = "https://granary.example";

impl World {
    /// Somebody else serves the store's objects.
    fn published(self) -> Self {
        let gateway = Arc::into_inner(self.gateway).unwrap().with_store_root(Some(STORE_ROOT.to_owned()));
        Self { gateway: Arc::new(gateway), ..self }
    }

    /// What `data.url` begins with, in the answer to a request.
    async fn root_in_answer(&self, tag: u8) -> &'static str {
        root_of(&self.ask(tag).await.unwrap())
    }

    fn asked(&self) -> usize {
        self.ledger.switch.count("is_spooled")
    }

    /// The store takes nothing until it is healed.
    fn store_is_away(&self) {
        self.store.switch.fail(&["put_object", "put_record"]);
    }

    /// The work of a copier.
    async fn drain_spool(&self) {
        for spooled in self.ledger.ledger.spooled(0, 100).await.unwrap() {
            let name = spooled.record.object().unwrap();
            let bytes = self.ledger.ledger.spooled_object(name).await.unwrap().unwrap();
            self.store.put_object(name, bytes).await.unwrap();
            let standing = self.store.put_record(&spooled.record).await.unwrap();
            self.ledger.ledger.unspool(spooled.id, &standing).await.unwrap();
        }
    }
}

fn root_of(reply: &CropReply) -> &'static str {
    let object = reply.record.object().unwrap();
    let names = |root: &str| text(reply).contains(&format!("\"url\":\"{root}/{}\"", object.path()));
    match (names(STORE_ROOT), names(OUR_ROOT)) {
        (true, false) => STORE_ROOT,
        (false, true) => OUR_ROOT,
        _ => panic!("{:?}", reply.body),
    }
}

#[tokio::test]
async fn what_the_store_has_is_named_there_and_asked_for_once() {
    let world = World::new().published();
    let bought = world.ask(1).await.unwrap();
    assert_eq!((bought.status, root_of(&bought)), (CacheStatus::Miss, STORE_ROOT));
    assert_eq!(world.asked(), 1);
    // Memory knows, and needs nothing else.
    world.ledger.switch.fail(&["all"]);
    assert_eq!(world.root_in_answer(1).await, STORE_ROOT);
    assert_eq!(
        root_of(
            &world
                .gateway
                .look_up_key(&Team::local(), &identity(key(1)), &mut RequestTiming::default())
                .await
                .unwrap()
        ),
        STORE_ROOT
    );
    assert_eq!(world.asked(), 1);
    world.ledger.switch.fail(&[]);
    for (world, status) in [
        (world.restarted().published(), CacheStatus::HitLedger),
        (world.with_a_fresh_ledger().published(), CacheStatus::HitStore),
    ] {
        let before = world.asked();
        let hit = world.ask(1).await.unwrap();
        assert_eq!((hit.status, root_of(&hit), world.asked() - before), (status, STORE_ROOT, 1));
    }
    // Ours goes on serving it.
    let name = bought.record.object().unwrap();
    assert_eq!(world.gateway.result(name, &Party::new("client")).await.unwrap(), result_bytes(1));
}

#[tokio::test]
async fn nobody_is_asked_where_nobody_else_serves_the_store() {
    let world = World::new();
    world.store_is_away();
    assert_eq!(world.root_in_answer(1).await, OUR_ROOT);
    world.store.switch.fail(&[]);
    for tag in [1, 2, 2] {
        assert_eq!(world.root_in_answer(tag).await, OUR_ROOT);
    }
    assert_eq!(world.asked(), 0);
}

#[tokio::test]
async fn what_waits_in_the_spool_is_named_here_until_the_store_has_it() {
    let world = World::new().published();
    world.store_is_away();
    let bought = world.ask(1).await.unwrap();
    assert_eq!((bought.status, root_of(&bought)), (CacheStatus::Miss, OUR_ROOT));
    world.store.switch.fail(&[]);
    // That it waits is no lasting knowledge.
    for asked in 2..4 {
        assert_eq!((world.root_in_answer(1).await, world.asked()), (OUR_ROOT, asked));
    }
    let restarted = world.restarted().published();
    restarted.store.switch.fail(&["has_object"]);
    let hit = restarted.ask(1).await.unwrap();
    assert_eq!((hit.status, root_of(&hit)), (CacheStatus::HitLedger, OUR_ROOT));
    restarted.store.switch.fail(&[]);

    world.drain_spool().await;
    for world in [world, restarted] {
        let before = world.asked();
        for _ in 0..2 {
            let hit = world.ask(1).await.unwrap();
            assert_eq!((hit.status, root_of(&hit)), (CacheStatus::HitMemory, STORE_ROOT));
        }
        assert_eq!(world.asked() - before, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_asked_for_is_named_here() {
    for fault in ["is_spooled", "is_spooled_in_time"] {
        let world = World::new().published();
        world.ledger.switch.fail(&[fault]);
        let started = Instant::now();
        assert_eq!(world.root_in_answer(1).await, OUR_ROOT, "{fault}");
        assert_eq!(world.root_in_answer(1).await, OUR_ROOT, "{fault}");
        assert!(started.elapsed() < Duration::from_secs(4), "clients do not wait longer");
        world.ledger.switch.fail(&[]);
        assert_eq!(world.root_in_answer(1).await, STORE_ROOT, "{fault}");
    }
}

#[tokio::test]
async fn all_who_wait_for_a_result_are_told_where_it_is() {
    for (is_away, root) in [(false, STORE_ROOT), (true, OUR_ROOT)] {
        let world = World::new().published();
        world.upstream.hold();
        let asking: Vec<_> = (0..20).map(|_| world.ask_meanwhile(1)).collect();
        world.until_waiting(20).await;
        if is_away {
            world.store_is_away();
        }
        world.upstream.release();
        for asked in asking {
            assert_eq!(root_of(&asked.await.unwrap().unwrap()), root);
        }
        assert_eq!(world.upstream.paid(), 1);
    }
}

#[tokio::test]
async fn a_refreshed_result_is_not_where_the_old_one_is() {
    let world = World::new().published();
    let old = world.ask(1).await.unwrap();
    assert_eq!(root_of(&old), STORE_ROOT);
    world.store_is_away();
    let team = Arc::new(Team { may_refresh: true, ..Team::local() });
    let new = ask_as(&world.gateway, &Caller { team, ..refresher() }, 1).await.unwrap();
    assert_eq!((new.status, root_of(&new)), (CacheStatus::Refresh, OUR_ROOT));
    assert_eq!(world.root_in_answer(1).await, OUR_ROOT);
    world.store.switch.fail(&[]);
    world.drain_spool().await;
    assert_eq!(world.root_in_answer(1).await, STORE_ROOT);
}

#[tokio::test]
async fn a_result_that_was_lost_and_bought_again_is_named_here_while_it_waits() {
    let world = World::new().published();
    // The same bytes under the same name, each time.
    world.upstream.reply(|| {
        Reply::Answered(crate::base::envelope::Answer::read(&answer_text(7), &IMAGE_CROPPING).unwrap())
    });
    let record = world.ask(1).await.unwrap().record;
    world.store.store.files().retain(|path, _| path == "archive");
    world.ledger.gated.lose(&record).await.unwrap();
    world.gateway.core.cache.forget_answer(&identity(key(1)));
    world.store_is_away();
    let again = world.ask(1).await.unwrap();
    assert_eq!((again.status, root_of(&again)), (CacheStatus::Miss, OUR_ROOT));
    assert_eq!(again.record.digest, record.digest);
    assert_eq!(world.root_in_answer(1).await, OUR_ROOT);
}

#[tokio::test]
async fn another_archive_than_the_ledgers_does_not_have_what_the_ledger_knows() {
    let world = World::new().published();
    assert_eq!(world.root_in_answer(1).await, STORE_ROOT);
    let other = ArchiveId::random().to_marker();
    let ours = world.store.store.files().insert("archive".to_owned(), other.into()).unwrap();
    world.gateway.core.guard.look().await;
    assert_eq!(world.root_in_answer(1).await, OUR_ROOT);
    world.store.store.files().insert("archive".to_owned(), ours);
    world.gateway.core.guard.look().await;
    assert_eq!(world.root_in_answer(1).await, STORE_ROOT);
}
