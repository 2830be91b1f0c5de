//! A replica is stopped at a named point for longer than its lease, and goes on: it sends nothing that is no longer
//! its own, and what it learns late is booked.

use std::time::Duration;

use granary_kit::process::{GranaryProcess, Signal};

use super::{Fleet, LEASE, SENT_LEASE};
use crate::harness::{until, within};

/// Where it stops, and how often the key is charged in all.
const POINTS: [(&str, u64); 20] = [
    // Another has paid meanwhile, and it does not.
    ("CP1", 1),
    ("CP2", 1),
    ("CP3", 1),
    ("CP4", 1),
    ("CP5", 1),
    ("CP6", 1),
    // Its row is `unknown` by then, and it sends nothing.
    ("CP7", 0),
    // The upstream has the order; the answer is there when it wakes, or too late for the hard stop.
    ("CP8", 1),
    ("CP10", 1),
    // The answer was in hand, and is booked late.
    ("CP12", 1),
    ("CP13", 1),
    // Another has finished meanwhile what it had begun.
    ("CP14", 1),
    ("CP15", 1),
    ("CP22", 1),
    ("CP23", 1),
    ("CP24", 1),
    ("CP25", 1),
    ("CP26", 1),
    ("CP27", 1),
    ("CP28", 1),
];

/// Where its row is `sent` meanwhile, so that nobody acts but to call it `unknown`.
const IN_DOUBT: [&str; 5] = ["CP7", "CP8", "CP10", "CP12", "CP13"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_slept_past_its_lease_sends_nothing_and_books_what_it_learns() {
    let fleet = Fleet::new("", "", "").await;
    let [other] = fleet.start::<1>().await;
    let mut sleepers: Vec<(GranaryProcess, _)> = Vec::new();
    for (seed, (point, _)) in POINTS.into_iter().enumerate() {
        let sleeper = fleet.replica().env("GRANARY_STOP_AT", point).start().await.unwrap();
        let asked = fleet.ask(&sleeper, seed as u64);
        within(point, async {
            while !sleeper.stderr_text().contains(&format!("stopped at {point}")) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        sleepers.push((sleeper, asked));
    }
    // The other one sees all of them silent for a full lease.
    within("takeovers", async {
        tokio::time::sleep(LEASE.max(SENT_LEASE)).await;
        while fleet.rows().contains_key("sent") || fleet.rows().contains_key("reserved") {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
    let unknown = fleet.rows()["unknown"];
    assert_eq!(unknown, IN_DOUBT.len() as u64, "{:?}", fleet.rows());
    for (seed, (point, _)) in POINTS.into_iter().enumerate() {
        if !IN_DOUBT.contains(&point) {
            fleet.insist(&other, seed as u64).await;
        }
    }
    let before = fleet.upstream.fully_received();
    for (sleeper, _) in &mut sleepers {
        sleeper.signal(Signal::CONT);
    }
    for ((point, _), (_, asked)) in POINTS.into_iter().zip(&mut sleepers) {
        // Its client may have been answered late, or not at all; what counts is below.
        let answer = within(point, asked).await.unwrap();
        println!("{point}: {:?}", answer.map(|answer| (answer.status, answer.code())));
    }
    // The late answers are booked. What was never sent stays `unknown`, and what came after the hard stop may.
    let state_of = |seed: usize| {
        let key =
            granary::base::key::CacheKey::of(&granary_kit::images::tiny_png(16, 16, seed as u64), 64, 64);
        fleet.sql(&format!("SELECT state FROM granary.calls WHERE encode(key, 'hex') = '{key}'"))
    };
    let booked_late = |point: &str| POINTS.iter().position(|(other, _)| *other == point).unwrap();
    for point in ["CP12", "CP13"] {
        until("a late answer", async || state_of(booked_late(point)) == "stored").await;
    }
    assert_eq!(state_of(booked_late("CP7")), "unknown");
    until("rest", async || !fleet.rows().contains_key("answered")).await;
    let received = fleet.upstream.fully_received();
    assert_eq!(received, before, "somebody sent what was no longer its own");
    for (seed, (point, charges)) in POINTS.into_iter().enumerate() {
        let key =
            granary::base::key::CacheKey::of(&granary_kit::images::tiny_png(16, 16, seed as u64), 64, 64);
        let charged = fleet.upstream.charges_by_key().get(&key.to_string()).copied().unwrap_or(0);
        assert_eq!(charged, charges, "{point}");
    }
    fleet.check_counters();
}
