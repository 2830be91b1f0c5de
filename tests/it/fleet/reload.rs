//! The file changes on every replica: what it says holds within five seconds, and nobody else notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use granary_kit::client;
use granary_kit::process::{GranaryBuilder, GranaryProcess};

use super::{Fleet, picture};
use crate::harness::{team, until};

/// How soon a change holds.
const SOON: Duration = Duration::from_secs(5);

/// Asks all replicas again and again for what is there until each answers so; says how long that took.
async fn all_answer(replicas: &[GranaryProcess], token: &str, wanted: u16) -> Duration {
    all_answer_for(replicas, token, wanted, &AtomicU64::new(1), 0).await
}

/// The same for pictures that nobody has asked for before.
async fn all_answer_for(
    replicas: &[GranaryProcess],
    token: &str,
    wanted: u16,
    next: &AtomicU64,
    step: u64,
) -> Duration {
    let begun = Instant::now();
    for replica in replicas {
        until(&format!("{wanted}"), async || {
            let (url, seed) = (replica.public_url(), next.fetch_add(step, Ordering::Relaxed));
            client::post_form(&url, token, &picture(seed)).await.unwrap().status == wanted
        })
        .await;
    }
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_token_and_a_changed_budget_hold_on_every_replica_within_five_seconds() {
    let (other, other_token) = team("green", "");
    let fleet = Fleet::new("", "", "").await;
    let with_other = format!("{}\n{other}", fleet.config);
    let builders: [GranaryBuilder; 3] = std::array::from_fn(|_| fleet.replica().config_text(&*with_other));
    let write = |config: &str| {
        for builder in &builders {
            // As an editor does, and a mounted secret: another file in its place.
            let (new, file) = (builder.home().join("new.toml"), builder.home().join("granary.toml"));
            std::fs::write(&new, config).unwrap();
            std::fs::rename(&new, &file).unwrap();
        }
    };
    let mut replicas = Vec::new();
    for builder in &builders {
        replicas.push(builder.start().await.unwrap());
    }
    for replica in &replicas {
        fleet.insist(replica, 1).await;
    }
    // Somebody else's hits and misses, without a pause.
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load: Vec<_> = (0..3)
        .map(|n| {
            let (stop, served) = (stop.clone(), served.clone());
            let (url, token) = (replicas[n].public_url(), fleet.token.clone());
            tokio::spawn(async move {
                for round in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let seed = if round % 10 == 0 { 10_000 * (n as u64 + 1) + round } else { 1 };
                    let answer = client::post_form(&url, token.as_str(), &picture(seed)).await.unwrap();
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    all_answer(&replicas, &other_token, 200).await;

    let mut took = Vec::new();
    write(&fleet.config);
    took.push(all_answer(&replicas, &other_token, 401).await);
    write(&with_other);
    took.push(all_answer(&replicas, &other_token, 200).await);
    // Nothing left for it; hits go on.
    let with_budget = |credits: u64| {
        let table =
            other.replace("name = \"green\"", &format!("name = \"green\"\ndaily_credits = {credits}"));
        format!("{}\n{table}", fleet.config)
    };
    write(&with_budget(2));
    let next = AtomicU64::new(500_000);
    took.push(all_answer_for(&replicas, &other_token, 429, &next, 1).await);
    all_answer(&replicas, &other_token, 200).await;
    write(&with_budget(1_000_000));
    took.push(all_answer_for(&replicas, &other_token, 200, &next, 1).await);

    // What is broken, or needs a restart, changes nothing and says so.
    let restart =
        with_other.replace("public_url = \"http://granary.test\"", "public_url = \"http://elsewhere.test\"");
    for config in ["[[team]]\nname = ", &restart] {
        let rejected = |replica: &GranaryProcess| {
            let lines = replica.log_lines();
            lines
                .iter()
                .filter(|line| line["level"] == "ERROR" && line.to_string().contains("configuration"))
                .count()
        };
        let before: Vec<usize> = replicas.iter().map(rejected).collect();
        write(config);
        for (replica, before) in replicas.iter().zip(before) {
            until("a rejection", async || rejected(replica) > before).await;
        }
        all_answer(&replicas, &other_token, 200).await;
    }
    stop.store(true, Ordering::Relaxed);
    for client in load {
        client.await.unwrap();
    }
    assert!(took.iter().all(|took| *took < SOON), "{took:?}");
    println!(
        "changes held after {took:?}; {} requests of others, none failed",
        served.load(Ordering::Relaxed)
    );
}
