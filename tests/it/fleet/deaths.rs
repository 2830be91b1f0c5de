//! The payer is killed in every state, and the others finish what it began.

use std::collections::BTreeMap;
use std::time::Duration;

use granary_kit::process::GranaryProcess;

use super::{Fleet, SENT_LEASE};
use crate::harness::{number, within};

/// What is known when the payer has died at a point.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Left {
    /// Nothing was sent: whoever comes next pays.
    Unsent,
    /// The tail may have gone: nobody pays before the lease is over and the key has rested.
    InDoubt,
    /// The answer is durable: nobody pays again.
    Answered,
}

const POINTS: [(&str, Left); 8] = [
    ("CP4", Left::Unsent),
    ("CP5", Left::Unsent),
    ("CP7", Left::InDoubt),
    ("CP8", Left::InDoubt),
    ("CP12", Left::InDoubt),
    ("CP14", Left::Answered),
    ("CP24", Left::Answered),
    ("CP28", Left::Answered),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_payer_dies_of_the_others_finish_and_pay_at_most_once_more() {
    let fleet = Fleet::new("", "", "").await;
    let survivors = fleet.start::<2>().await;
    let kills = number("FLEET_KILLS").unwrap_or(1);
    let mut left: BTreeMap<u64, Left> = BTreeMap::new();
    let mut charged: BTreeMap<u64, u64> = BTreeMap::new();
    for kill in 0..kills {
        for (n, (point, what)) in POINTS.into_iter().enumerate() {
            let seed = kill * 100 + n as u64;
            let before = fleet.upstream.charges();
            let mut payer: GranaryProcess =
                fleet.replica().env("GRANARY_CRASH_AT", point).start().await.unwrap();
            // Whoever asked the dead one is told nothing.
            assert!(fleet.ask(&payer, seed).await.unwrap().is_err(), "{point}");
            within("a death", async { payer.wait_exit(Duration::from_secs(30)).await }).await;
            assert_eq!(payer.died_by_signal(), Some(9), "{point}");
            assert!(payer.stderr_text().contains(&format!("crash point {point}")), "{point}");
            left.insert(seed, what);
            charged.insert(seed, fleet.upstream.charges() - before);
        }
    }
    let doubtful = left.values().filter(|&&left| left == Left::InDoubt).count() as u64;
    // Those in doubt: within the lease nobody pays, and whoever waits is told to come again.
    let before = fleet.upstream.attempts();
    for (&seed, _) in left.iter().filter(|(_, left)| **left == Left::InDoubt) {
        for survivor in &survivors {
            let answer = fleet.ask(survivor, seed).await.unwrap().unwrap();
            assert!(matches!(answer.status, 504 | 503), "{seed}: {}", answer.text());
            assert!(answer.header("retry-after").is_some(), "{seed}: {}", answer.text());
        }
    }
    assert_eq!(fleet.upstream.attempts(), before, "a second call within the lease");
    // All others come to their result.
    for (&seed, &what) in left.iter().filter(|(_, left)| **left != Left::InDoubt) {
        let answer = fleet.insist(&survivors[seed as usize % 2], seed).await;
        let other = fleet.insist(&survivors[(seed as usize + 1) % 2], seed).await;
        assert_eq!(answer.result_url(), other.result_url(), "{seed}");
        let charges = fleet.upstream.charges_by_key()[answer.header("granary-key").unwrap()];
        assert_eq!(charges, 1, "{seed}, {what:?}");
        assert_eq!(charged[&seed], u64::from(what == Left::Answered), "{seed}, {what:?}");
    }
    // And when its lease is over, what is in doubt is `unknown`, and rests.
    within("calls in doubt to be settled", async {
        while fleet.rows().get("unknown").copied().unwrap_or(0) < doubtful {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
    for (&seed, _) in left.iter().filter(|(_, left)| **left == Left::InDoubt) {
        let answer = fleet.ask(&survivors[0], seed).await.unwrap().unwrap();
        assert_eq!(answer.status, 503, "{seed} rests: {}", answer.text());
    }
    let rows = fleet.rows();
    let open = ["reserved", "sent", "answered"].iter().filter_map(|state| rows.get(*state)).sum::<u64>();
    assert_eq!(open, 0, "{rows:?}");
    let booked = rows.get("stored").copied().unwrap_or(0);
    let charges = fleet.upstream.charges();
    assert!(booked <= charges && charges <= booked + doubtful, "{charges} charges, {rows:?}");
    fleet.check_counters();
    println!(
        "{} deaths, {charges} charges, {rows:?}, leases of {SENT_LEASE:?} at most",
        kills * POINTS.len() as u64
    );
}
