//! Budgets over several processes: not a credit more than there is, whoever asks where and whoever dies.

use std::time::Duration;

use granary_kit::process::GranaryProcess;
use jiff::Timestamp;

use super::Fleet;
use crate::harness::until;

/// Distinct misses at once.
const MISSES: u64 = 500;

/// Asks for many distinct pictures at once, spread over the replicas; returns with which status each came back.
async fn storm(fleet: &Fleet, replicas: &[GranaryProcess], first: u64, misses: u64) -> Vec<u16> {
    let asked: Vec<_> =
        (0..misses).map(|n| fleet.ask(&replicas[n as usize % replicas.len()], first + n)).collect();
    let mut statuses = Vec::new();
    for asked in asked {
        statuses.push(asked.await.unwrap().map_or(0, |answer| answer.status));
    }
    statuses
}

fn count(statuses: &[u16], status: u16) -> usize {
    statuses.iter().filter(|&&is| is == status).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_crops_left_are_ten_calls_of_five_hundred_misses_over_three_processes() {
    let fleet = Fleet::new("", "daily_credits = 32", "").await;
    let replicas = fleet.start::<3>().await;
    let statuses = storm(&fleet, &replicas, 0, MISSES).await;
    assert_eq!((fleet.upstream.attempts(), fleet.upstream.charges()), (10, 10), "{statuses:?}");
    assert_eq!(count(&statuses, 200), 10);
    assert!(count(&statuses, 429) > 0 && count(&statuses, 0) == 0, "{statuses:?}");
    fleet.check_counters();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_dead_replicas_had_reserved_comes_back_and_is_not_spent_twice() {
    let fleet = Fleet::new("", "daily_credits = 30", "").await;
    // One dies with a row reserved, one with a row sent: nine crops are left, and another one later.
    for (seed, point) in [(9001, "CP5"), (9002, "CP8")] {
        let mut doomed = fleet.replica().env("GRANARY_CRASH_AT", point).start().await.unwrap();
        assert!(fleet.ask(&doomed, seed).await.unwrap().is_err());
        doomed.kill().await;
        assert_eq!(doomed.died_by_signal(), Some(9));
    }
    let replicas = fleet.start::<3>().await;
    storm(&fleet, &replicas, 0, MISSES).await;
    let spent = fleet.upstream.charges();
    assert!(spent <= 10, "{spent}");
    until("the reservation to come back", async || !fleet.rows().contains_key("reserved")).await;
    storm(&fleet, &replicas, 1000, MISSES).await;
    // 10 crops: the one that was sent, and nine more.
    assert_eq!((fleet.upstream.attempts(), fleet.upstream.charges()), (10, 10), "{:?}", fleet.rows());
    until("the call in doubt to be settled", async || fleet.rows().get("unknown") == Some(&1)).await;
    storm(&fleet, &replicas, 2000, MISSES).await;
    assert_eq!(fleet.upstream.charges(), 10);
    fleet.check_counters();
}

/// Ten crops fit into what is left, before an instant and after it; `calls` is how many are made in all. Returns what was
/// spent, in words.
async fn across(instant: &str, limits: &str, calls: u64) -> String {
    let instant: Timestamp = instant.parse().unwrap();
    let ahead = instant.duration_since(Timestamp::now()).as_secs() - 25;
    let fleet = Fleet::new("", limits, "[budget]\ntime_zone = \"Europe/Berlin\"").await;
    let replicas =
        fleet.start_as::<3>(|replica| replica.env("GRANARY_CLOCK_OFFSET", ahead.to_string())).await;
    storm(&fleet, &replicas, 0, 100).await;
    let now = || Timestamp::now() + jiff::SignedDuration::from_secs(ahead);
    while now() < instant + jiff::SignedDuration::from_secs(2) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let before = fleet.upstream.charges();
    assert!(before >= 10, "{before}");
    storm(&fleet, &replicas, 1000, 100).await;
    assert_eq!((fleet.upstream.attempts(), fleet.upstream.charges()), (calls, calls), "{before} before");
    let spent = fleet.sql("SELECT period, credits FROM granary.spent WHERE scope = 'team:web' ORDER BY 1");
    fleet.check_counters();
    format!("{instant}: {before} calls before, {calls} in all:\n{spent}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_ends_for_all_at_once() {
    println!("{}", across("2026-11-22T23:00:00Z", "daily_credits = 30", 20).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_month_ends_for_all_at_once() {
    println!("{}", across("2026-11-30T23:00:00Z", "monthly_credits = 30", 20).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_of_twenty_three_hours_ends_after_them() {
    println!("{}", across("2027-03-28T22:00:00Z", "daily_credits = 30", 20).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_does_not_end_when_the_clocks_are_put_back() {
    println!("{}", across("2026-10-25T01:00:00Z", "daily_credits = 30", 10).await);
}
