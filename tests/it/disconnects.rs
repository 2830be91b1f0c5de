//! Clients that hang up at any moment of a miss: nothing is left open, nothing is paid for twice, nothing paid for is lost.
//!
//! `DISCONNECTS` says how many (default 1,000; 10,000 takes some two minutes), `DISCONNECT_SEED` gives the dice of a
//! former run again: it is printed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use granary::base::key::CacheKey;
use granary_kit::ailab::{Behaviour, FakeAilab};
use granary_kit::client::{Call, RawConnection};
use granary_kit::dice::Dice;
use granary_kit::form::Form;
use granary_kit::images;

use crate::harness::{Granary, bytes_of, cache_status, number, team, until, upstream_section};

/// Clients at once.
const CLIENTS: u64 = 16;
/// How long a paid call takes.
const CALL: Duration = Duration::from_millis(5);
/// How large a picture is: several segments, so that it can be half way.
const PICTURE: usize = 24 * 1024;
const CREDITS: f64 = 3.0;

/// When a client hangs up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    InTheHead,
    WhileUploading,
    JustAfter,
    WhileWaiting,
}

/// What the clients have done together.
#[derive(Default)]
struct Done {
    left: AtomicU64,
    pictures: AtomicU64,
    moments: Mutex<BTreeMap<Moment, u64>>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_hang_up_at_any_moment_leave_nothing_open_and_nothing_paid_twice() {
    let clients = number("DISCONNECTS").unwrap_or(1000);
    let seed = number("DISCONNECT_SEED").unwrap_or_else(|| u64::from(getrandom::u32().unwrap()));
    println!("{clients} clients hang up, DISCONNECT_SEED={seed}");

    let upstream = FakeAilab::start().await;
    upstream.keep_bodies(false);
    upstream.always(Behaviour::Delay(CALL));
    let (table, token) = team("web", "");
    // A little tighter than what is asked for, so that some leave the queue.
    let granary =
        Granary::builtin(&format!("{}\n{table}", upstream_section(&upstream, "concurrency = 8"))).await;
    let done = Arc::new(Done { left: clients.into(), ..Done::default() });
    let tasks: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let dice = Dice::new(seed ^ client.wrapping_mul(0x2545_f491_4f6c_dd1d));
            tokio::spawn(hang_up(granary.url(), token.clone(), dice, Arc::clone(&done)))
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let gauges = [
        "granary_coalesce_groups_in_flight",
        "granary_coalesce_followers",
        "granary_upstream_in_flight",
        "granary_upstream_queue_depth{team=\"web\"}",
        "granary_ledger_credits{state=\"reserved\"}",
        "granary_ledger_credits{state=\"sent\"}",
        "granary_ledger_credits{state=\"answered\"}",
    ];
    for gauge in gauges {
        until(&format!("{gauge} to be 0"), async || granary.metric(gauge).await == 0.0).await;
    }
    let stats = upstream.wait_for_idle().await;
    let by_key = upstream.charges_by_key();
    assert!(by_key.values().all(|&charges| charges == 1), "one charge per key, DISCONNECT_SEED={seed}");
    assert_eq!((stats.charges, stats.fully_received), (by_key.len() as u64, by_key.len() as u64));
    let stored = granary.metric("granary_ledger_credits{state=\"stored\"}").await;
    let spent = granary.metric("granary_credits_spent_total{team=\"web\"}").await;
    assert_eq!((stored, spent), (by_key.len() as f64 * CREDITS, stored), "DISCONNECT_SEED={seed}");
    assert_eq!(granary.metric("granary_ledger_credits{state=\"unknown\"}").await, 0.0);

    // Whatever was bought is a hit, and whatever was not can still be had.
    let pictures = done.pictures.load(Ordering::SeqCst);
    let mut never_bought = 0;
    for seed in 0..pictures {
        let (image, form) = order(seed);
        let answer = Call::crop(&granary.url(), &*token, &form).send().await.unwrap();
        assert_eq!(answer.status, 200, "picture {seed}: {}", answer.text());
        match by_key.contains_key(&CacheKey::of(&image, 20, 20).to_string()) {
            true => assert_eq!(cache_status(&answer), "granary; hit; detail=memory", "picture {seed}"),
            false => never_bought += 1,
        }
        if seed % 16 == 0 {
            bytes_of(&answer.result_url()).await;
        }
    }
    assert_eq!(upstream.charges(), pictures, "every picture once");
    println!(
        "{pictures} pictures, {} of them bought for who had left, {never_bought} not; {:?}",
        by_key.len(),
        done.moments.lock().unwrap()
    );
    assert!(by_key.len() as u64 > pictures / 50, "hardly anybody hung up late enough to test anything");
}

fn order(seed: u64) -> (Vec<u8>, Form) {
    let image = images::padded(&images::tiny_png(8, 8, seed), PICTURE);
    let form = Form::browser(&image, 20, 20);
    (image, form)
}

/// Starts requests and leaves them, until enough have been left by all.
async fn hang_up(url: String, token: String, mut dice: Dice, done: Arc<Done>) {
    while done.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
        // Mostly a new picture, sometimes one that others have asked for just now.
        let known = done.pictures.load(Ordering::SeqCst);
        let is_new = known == 0 || dice.below(3) > 0;
        let seed = if is_new {
            done.pictures.fetch_add(1, Ordering::SeqCst)
        } else {
            known - 1 - dice.below(known.min(8))
        };
        let call = Call::crop(&url, &*token, &order(seed).1);
        let bytes = call.to_bytes();
        let head = bytes.len() - call.body_len();
        let (moment, part) = match dice.below(10) {
            0 => (Moment::InTheHead, dice.below(head as u64)),
            1..4 => (Moment::WhileUploading, head as u64 + dice.below(call.body_len() as u64)),
            4..6 => (Moment::JustAfter, bytes.len() as u64),
            _ => (Moment::WhileWaiting, bytes.len() as u64),
        };
        let mut connection = RawConnection::open(&url).await.unwrap();
        connection.send(&bytes[..usize::try_from(part).unwrap()]).await.unwrap();
        if moment == Moment::WhileWaiting {
            // Some for so long that even a busy machine has begun to pay.
            let longest = if dice.below(4) == 0 { 200_000 } else { 30_000 };
            tokio::time::sleep(Duration::from_micros(dice.below(longest))).await;
        }
        match dice.below(2) {
            0 => connection.reset(),
            _ => drop(connection),
        }
        *done.moments.lock().unwrap().entry(moment).or_default() += 1;
    }
}
