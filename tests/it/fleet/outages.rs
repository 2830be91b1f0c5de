//! The database stops, dies and comes back under load: hits go on, nothing is paid for without a booked reservation,
//! and nothing is lost.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use granary_kit::ailab::Behaviour;
use granary_kit::client;

use super::{Fleet, metric_of, picture};
use crate::harness::{number, until};

/// Keys that are there before anything goes wrong.
const KNOWN: u64 = 30;

/// What a client has seen.
#[derive(Default)]
struct Seen {
    hits: AtomicU64,
    misses: AtomicU64,
    refused: AtomicU64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_database_is_away_hits_go_on_and_nothing_is_paid_for_or_lost() {
    let away = Duration::from_secs(number("FLEET_OUTAGE_SECONDS").unwrap_or(8));
    let fleet = Fleet::new("", "", "").await;
    let replicas = fleet.start::<2>().await;
    for seed in 0..KNOWN {
        fleet.insist(&replicas[seed as usize % 2], seed).await;
    }
    fleet.upstream.always(Behaviour::Delay(Duration::from_millis(50)));
    let (seen, stop, next) =
        (Arc::new(Seen::default()), Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(1000)));
    let mut clients = Vec::new();
    for n in 0..6_usize {
        let (seen, stop, next) = (seen.clone(), stop.clone(), next.clone());
        let (url, token) = (replicas[n % 2].public_url(), fleet.token.clone());
        clients.push(tokio::spawn(async move {
            let mut paid = BTreeSet::new();
            let mut round = n as u64;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                // Two in three ask for what is there.
                let seed = if n % 3 == 0 { next.fetch_add(1, Ordering::Relaxed) } else { round % KNOWN };
                let answer = client::post_form(&url, token.as_str(), &picture(seed)).await.unwrap();
                match (answer.status, seed < KNOWN) {
                    (200, true) => seen.hits.fetch_add(1, Ordering::Relaxed),
                    (200, false) => {
                        paid.insert(seed);
                        seen.misses.fetch_add(1, Ordering::Relaxed)
                    }
                    (503 | 504, false) => {
                        assert!(answer.header("retry-after").is_some(), "{}", answer.text());
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        seen.refused.fetch_add(1, Ordering::Relaxed)
                    }
                    (status, _) => panic!("picture {seed}: {status}: {}", answer.text()),
                };
            }
            paid
        }));
    }
    let check_orders = |what: &str| {
        // Every order the upstream has ever had whole has its row.
        let rows: u64 = fleet.rows().iter().filter(|(state, _)| *state != "released").map(|(_, n)| n).sum();
        let orders = fleet.upstream.fully_received();
        assert!(orders <= rows, "{what}: {orders} orders, and {rows} rows");
    };
    let until_more_misses = async |what: &str| {
        let before = seen.misses.load(Ordering::Relaxed);
        until(what, async || seen.misses.load(Ordering::Relaxed) > before + 5).await;
    };
    until_more_misses("misses").await;
    // It stops answering, with all connections open.
    fleet.postgres.freeze();
    let (hits, begun) = (seen.hits.load(Ordering::Relaxed), tokio::time::Instant::now());
    tokio::time::sleep(away).await;
    let hits_in_it = seen.hits.load(Ordering::Relaxed) - hits;
    let refused = seen.refused.load(Ordering::Relaxed);
    assert!(hits_in_it > away.as_secs(), "{hits_in_it} hits in {:?}", begun.elapsed());
    assert!(refused > 0, "no miss was refused");
    fleet.postgres.thaw();
    until_more_misses("misses after it went on").await;
    check_orders("after it went on");
    // It is killed, and is away for a while.
    fleet.postgres.kill();
    let hits = seen.hits.load(Ordering::Relaxed);
    tokio::time::sleep(away / 2).await;
    assert!(seen.hits.load(Ordering::Relaxed) - hits > away.as_secs() / 2);
    fleet.postgres.restart();
    until_more_misses("misses after its restart").await;
    stop.store(true, Ordering::Relaxed);
    let mut paid = BTreeSet::new();
    for client in clients {
        paid.extend(client.await.unwrap());
    }
    until("rest", async || {
        let rows = fleet.rows();
        !["reserved", "sent", "answered"].iter().any(|state| rows.contains_key(*state))
    })
    .await;
    check_orders("at rest");
    for replica in &replicas {
        assert!(
            metric_of(replica, "granary_ledger_write_failures_total").await > 0.0,
            "a purchase was refused"
        );
    }
    // What was paid for is there, on both, and nothing was paid for twice.
    let bought = fleet.upstream.charges_by_key();
    assert!(bought.values().all(|&charges| charges == 1), "{bought:?}");
    let before = fleet.upstream.attempts();
    for &seed in &paid {
        for replica in &replicas {
            assert_eq!(fleet.ask(replica, seed).await.unwrap().unwrap().status, 200);
        }
    }
    assert_eq!(fleet.upstream.attempts(), before);
    let (rows, charges) = (fleet.rows(), fleet.upstream.charges());
    assert_eq!(rows.get("stored").copied(), Some(charges), "{rows:?}");
    fleet.check_counters();
    println!(
        "{away:?} stopped, {:?} dead: {hits_in_it} hits meanwhile, {refused} misses refused, {charges} charges, {rows:?}",
        away / 2
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_database_keeps_neither_a_load_balancer_nor_prometheus_waiting() {
    /// As `deploy/kubernetes` has it, and how long Prometheus waits by default.
    const PROBE: Duration = Duration::from_secs(2);
    const SCRAPE: Duration = Duration::from_secs(10);
    let fleet = Fleet::new("", "", "").await;
    let [replica] = fleet.start::<1>().await;
    assert_eq!(metric_of(&replica, "granary_ledger_up").await, 1.0);
    let ask = async |path: &str, patience: Duration| {
        let url = format!("{}/{path}", replica.admin_url());
        let answer = tokio::time::timeout(patience, client::get(&url)).await;
        answer.unwrap_or_else(|_| panic!("/{path} took longer than {patience:?}")).unwrap()
    };
    // It takes questions, and answers none.
    fleet.postgres.freeze();
    // From the first moment, in which nobody knows, to when everybody does.
    for _ in 0..4 {
        let ready = ask("readyz", PROBE).await;
        assert_eq!((ready.status, &ready.json()["ledger"]), (200, &"down".into()), "{}", ready.text());
        let scraped = ask("metrics", SCRAPE).await;
        assert!(
            scraped.text().lines().any(|line| line == "granary_ledger_up 0"),
            "it is not said to be away"
        );
    }
    fleet.postgres.thaw();
    until("the ledger", async || metric_of(&replica, "granary_ledger_up").await == 1.0).await;
}
