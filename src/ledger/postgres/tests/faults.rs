//! A server that dies, comes back, is silent, or holds somebody up; and callers that go away.

use std::time::{Duration, Instant};

use super::super::pool::CHANGE;
use super::super::query::key_lock;
use super::*;
use crate::ledger::admin::Actor;
use crate::ledger::budget::Scope;
use crate::ledger::sql::{Lock, Query as _};
use crate::ledger::{Booking, CallId, LedgerError, Reservation, Reserved};
use crate::testing::ledger_contract::{Bench, answer, picture, record, stored};

/// What a caller may wait for who asks a server that is known to be away.
const AT_ONCE: Duration = Duration::from_millis(200);
/// What he may wait for otherwise, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn bench(server: &Postgres) -> Bench {
    let clock = TurnableClock::at("2026-11-22T09:00:00Z");
    let config = config(&server.socket_url("postgres"), clock.clock(), zone());
    Bench { ledger: Arc::new(PostgresLedger::new(config)), clock }
}

/// Asks until it is answered.
async fn comes_back(bench: &Bench) {
    let asked = tokio::time::timeout(PATIENCE, async {
        while bench.ledger.look_up("ailab-v1", picture(1).key).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    asked.await.expect("it comes back");
}

/// Fails until the ledger has understood, and then at once.
async fn fails_at_once(bench: &Bench) {
    let begun = Instant::now();
    loop {
        let asked = Instant::now();
        let refused = bench.ledger.reserve(picture(2)).await;
        assert!(matches!(refused, Err(LedgerError::Unavailable(_))), "{refused:?}");
        if asked.elapsed() < AT_ONCE {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "each caller waits");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_server_costs_milliseconds_and_is_used_again_when_it_is_back() {
    let server = Postgres::start();
    let bench = bench(&server);
    let kept = bench.store(picture(1)).await;
    let won = bench.answered(picture(3)).await;
    // Idle connections that nobody knows to be dead.
    server.kill();
    server.restart();
    assert_eq!(bench.look_up(&picture(1)).await, Some(kept.clone()), "a dead connection is replaced");
    server.kill();
    fails_at_once(&bench).await;
    let refused = bench.ledger.book(won.id, stored(&record(&picture(3), won, bench.clock.now()))).await;
    assert!(matches!(refused, Err(LedgerError::Unavailable(_))), "{refused:?}");
    server.restart();
    comes_back(&bench).await;
    assert_eq!(bench.look_up(&picture(1)).await, Some(kept));
    assert_eq!(bench.reserve(picture(3)).await, Reserved::Held(won.id));
    bench.store(picture(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_holds_up_nobody_for_long_and_nothing_is_lost() {
    let server = Postgres::start();
    let bench = bench(&server);
    let kept = bench.store(picture(1)).await;
    server.freeze();
    let begun = Instant::now();
    let looked = bench.ledger.look_up("ailab-v1", picture(1).key).await;
    assert!(looked.is_err() && begun.elapsed() < PATIENCE, "{looked:?} after {:?}", begun.elapsed());
    fails_at_once(&bench).await;
    server.thaw();
    comes_back(&bench).await;
    assert_eq!(bench.look_up(&picture(1)).await, Some(kept));
    // Whatever the frozen server was asked for, one call of the key is the most that came of it.
    match bench.reserve(picture(2)).await {
        Reserved::Won(won) => bench.book(won.id, crate::testing::ledger_contract::released()).await,
        Reserved::Held(orphan) => {
            let seen = bench.ledger.foreign_calls(Vec::new()).await.unwrap();
            assert!(seen.iter().any(|call| call.id == orphan), "nobody would ever release it");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_caller_that_goes_away_leaves_no_reply_for_the_next_one() {
    let server = Postgres::start();
    let bench = bench(&server);
    let mut kept = Vec::new();
    for n in 0..20 {
        kept.push(bench.store(picture(n)).await);
    }
    for round in 0..300_u64 {
        let n = u32::try_from(round % 20).unwrap();
        let cut = bench.clone();
        let asked = async move {
            let _ = cut.look_up(&picture(n)).await;
            let _ = cut.reserve(Reservation { refresh: true, ..picture(n) }).await;
        };
        // From nothing to longer than it takes.
        let _ = tokio::time::timeout(Duration::from_micros(round * 20), asked).await;
        let other = (n + 7) % 20;
        assert_eq!(bench.look_up(&picture(other)).await.as_ref(), Some(&kept[other as usize]));
    }
    assert_counters_are_the_sum_of_the_rows(&server);
}

/// A process that is stopped in the middle of a transaction, with the locks that everyone needs.
#[test]
fn a_process_that_stands_still_in_a_transaction_stops_the_others_for_seconds_only() {
    let server = Postgres::start();
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (here, there) = (runtime(), runtime());
    let (one, other) = (bench(&server), bench(&server));
    here.block_on(one.store(picture(1)));
    let stopped = PostgresLedger::new(config(
        &server.socket_url("postgres"),
        TurnableClock::at("2026-11-22T09:00:00Z").clock(),
        zone(),
    ));
    let (holds, held) = std::sync::mpsc::channel();
    there.spawn(async move {
        let pool = stopped.pool.clone();
        let _ = pool
            .run(Some(CHANGE), &[Lock::Freeze.exclusive()], move |tx| {
                let holds = holds.clone();
                async move {
                    tx.execute("UPDATE granary.spent SET credits = credits", &[]).await?;
                    let _ = holds.send(());
                    // As under SIGSTOP: not one of its timers runs.
                    std::thread::sleep(PATIENCE * 4);
                    Ok(())
                }
            })
            .await;
    });
    held.recv().unwrap();
    let begun = Instant::now();
    here.block_on(async {
        while !matches!(other.ledger.reserve(picture(2)).await, Ok(Reserved::Won(_))) {
            assert!(begun.elapsed() < PATIENCE, "the locks are still held");
        }
    });
    there.shutdown_background();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_url_is_erased_from_the_tables_files_when_its_state_ends() {
    let server = Postgres::start_with(&["autovacuum_naptime=1s"]);
    let bench = bench(&server);
    let mut ended = Vec::new();
    for n in 0..30 {
        let won = bench.send(picture(n)).await;
        // Every other one is too long for its page, and of nothing that could be made shorter.
        let chain = (0..60 * (n % 2)).map(|link| blake3::hash(&(n * 1000 + link).to_le_bytes()).to_hex());
        let long: String = chain.map(|hash| hash.to_string()).collect();
        let text = format!("https://results.example/{n}.png?Signature=signed-{n}-signed&{long}");
        let (request_id, log_id) = (String::new(), String::new());
        bench.book(won.id, Booking::Answered { text: Secret::new(text), request_id, log_id }).await;
        ended.push(won);
    }
    let found = || {
        server.sql("postgres", "CHECKPOINT");
        let base = server.data_folder().join("base");
        let found =
            std::process::Command::new("grep").args(["-rlac", "-e", "-signed"]).arg(base).output().unwrap();
        String::from_utf8(found.stdout).unwrap()
    };
    assert_ne!(found(), "", "the control: they rest there");
    for (n, won) in (0..).zip(ended) {
        let kept = record(&picture(n), won, bench.clock.now());
        bench.book(won.id, stored(&kept)).await;
    }
    assert_eq!(server.sql("postgres", "SELECT count(*) FROM granary.answers"), "0");
    let begun = Instant::now();
    while !found().is_empty() {
        assert!(begun.elapsed() < PATIENCE * 2, "they are still there");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_two_owners_are_given_the_same_room_in_the_spool() {
    let server = Postgres::start();
    let (one, other) = (bench(&server), bench(&server));
    for bench in [&one, &other] {
        bench.ledger.keep_room(Some(SPOOL_MAX / 4));
    }
    let mut asking = tokio::task::JoinSet::new();
    for n in 0..20 {
        let ledger = if n % 2 == 0 { one.ledger.clone() } else { other.ledger.clone() };
        asking.spawn(async move { ledger.reserve(picture(n)).await });
    }
    let outcomes = asking.join_all().await;
    let won = outcomes.iter().filter(|outcome| matches!(outcome, Ok(Reserved::Won(_)))).count();
    let full =
        outcomes.iter().filter(|outcome| matches!(outcome, Err(LedgerError::SpoolFull { .. }))).count();
    assert_eq!((won, full), (4, 16));
    assert_counters_are_the_sum_of_the_rows(&server);
    for ledger in [&one.ledger, &other.ledger] {
        ledger.keep_room(None);
    }
    one.win(picture(100)).await;
}

/// Held by a transaction, until the returned end is dropped.
async fn hold(server: &Postgres, lock: String) -> tokio::sync::oneshot::Sender<()> {
    let clock = TurnableClock::at("2026-11-22T09:00:00Z");
    let pool =
        PostgresLedger::new(config(&server.socket_url("postgres"), clock.clock(), zone())).pool.clone();
    let (holds, held) = tokio::sync::oneshot::channel::<()>();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let ends = Arc::new(tokio::sync::Mutex::new(Some((holds, ended))));
    tokio::spawn(async move {
        let locks = [lock];
        let held = pool.run(Some(CHANGE), &locks, move |_| {
            let ends = Arc::clone(&ends);
            async move {
                let (holds, ended) = ends.lock().await.take().expect("it is tried once");
                let _ = holds.send(());
                let _ = ended.await;
                Ok(())
            }
        });
        let _ = held.await;
    });
    held.await.unwrap();
    end
}

/// Asserts that something ends only after a lock was given up.
pub(super) async fn waits_for<T: Send + 'static>(
    what: &str,
    server: &Postgres,
    lock: String,
    work: impl Future<Output = T> + Send + 'static,
) -> T {
    let end = hold(server, lock).await;
    let mut work = tokio::spawn(work);
    let early = tokio::time::timeout(Duration::from_millis(400), &mut work).await;
    assert!(early.is_err(), "{what} did not wait");
    drop(end);
    work.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_needs_a_lock_waits_for_who_has_it() {
    let server = Postgres::start();
    let bench = bench(&server);
    let ledger = || Arc::clone(&bench.ledger);
    let (to_send, to_spool) = (bench.win(picture(1)).await, bench.answered(picture(2)).await);
    bench.store(picture(3)).await;
    let refresh = bench.answered(Reservation { refresh: true, ..picture(3) }).await;

    // A freeze waits for all who spend, and who wants to spend for a freeze.
    let freezing = {
        let ledger = ledger();
        async move { ledger.freeze(Scope::Global, false, &Actor::loopback()).await }
    };
    waits_for("a freeze", &server, Lock::Freeze.shared(), freezing).await.unwrap();
    let sending = {
        let ledger = ledger();
        async move { ledger.mark_sent(to_send.id).await }
    };
    waits_for("sending", &server, Lock::Freeze.exclusive(), sending).await.unwrap();
    let reserving = {
        let ledger = ledger();
        async move { ledger.reserve(picture(4)).await }
    };
    waits_for("reserving", &server, Lock::Freeze.exclusive(), reserving).await.unwrap();
    // Two who want to spend do not wait for each other, but for a key.
    let end = hold(&server, Lock::Freeze.shared()).await;
    bench.win(picture(5)).await;
    drop(end);
    let reserving = {
        let ledger = ledger();
        async move { ledger.reserve(picture(6)).await }
    };
    waits_for("reserving a key", &server, key_lock(&picture(6).key), reserving).await.unwrap();
    let end = hold(&server, key_lock(&picture(8).key)).await;
    bench.win(picture(7)).await;
    drop(end);

    let kept = record(&picture(2), to_spool, bench.clock.now());
    let spooled = Booking::Spooled { record: Box::new(kept), bytes: bytes::Bytes::from_static(b"x") };
    let booking = {
        let ledger = ledger();
        async move { ledger.book(to_spool.id, spooled).await }
    };
    waits_for("the spool", &server, Lock::Spool.exclusive(), booking).await.unwrap();
    bench.ledger.keep_room(Some(1));
    let reserving = {
        let ledger = ledger();
        async move { ledger.reserve(picture(9)).await }
    };
    waits_for("room in the spool", &server, Lock::Spool.exclusive(), reserving).await.unwrap();
    let kept = stored(&record(&picture(3), refresh, bench.clock.now()));
    let booking = {
        let ledger = ledger();
        async move { ledger.book(refresh.id, kept).await }
    };
    waits_for("the feed of changes", &server, Lock::Changes.exclusive(), booking).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_is_not_there_is_an_error_and_no_contradiction() {
    let server = Postgres::start();
    let bench = bench(&server);
    for refused in [
        bench.ledger.mark_sent(CallId(4711)).await.map(drop),
        bench.ledger.book(CallId(4711), answer(CallId(4711))).await,
    ] {
        assert!(matches!(refused, Err(LedgerError::Unavailable(_))), "{refused:?}");
    }
    let absurd = Reservation { credits: u64::MAX, ..picture(1) };
    assert!(bench.ledger.reserve(absurd).await.is_err());
    bench.store(picture(1)).await;
    assert_counters_are_the_sum_of_the_rows(&server);
}
