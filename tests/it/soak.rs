//! A long mixture of everything, with restarts, counted to the credit: `make soak`.
//!
//! Ignored by default. `SOAK_SECONDS` says how long, `SOAK_SEED` gives the dice of a former run again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use granary::base::key::{CacheKey, Digest};
use granary_kit::ailab::FakeAilab;
use granary_kit::client::{self, Call};
use granary_kit::dice::Dice;
use granary_kit::form::Form;
use granary_kit::images;

use crate::harness::{Granary, number, team};

/// Clients at once.
const CLIENTS: u64 = 8;
/// From one restart to the next.
const ROUND: Duration = Duration::from_secs(10);
/// What the fake charges, and the configuration says.
const CREDITS: u64 = 3;

/// What all clients together know.
#[derive(Default)]
struct World {
    /// Pictures that have been asked for: 0 up to here.
    pictures: u64,
    /// The URL of each crop that was answered: it must never change.
    urls: BTreeMap<u64, String>,
    counts: BTreeMap<&'static str, u64>,
}

impl World {
    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long; make soak runs it"]
async fn everything_adds_up_after_a_long_time() {
    let seconds = number("SOAK_SECONDS").unwrap_or(60);
    let seed = number("SOAK_SEED").unwrap_or_else(|| u64::from(getrandom::u32().unwrap()));
    println!("soak: {seconds} s, seed {seed}");
    let end = Instant::now() + Duration::from_secs(seconds);

    let upstream = FakeAilab::start().await;
    upstream.keep_bodies(false);
    let (table, token) = team("soak", "");
    let token: Arc<str> = token.into();
    let mut granary = Granary::ailab(&upstream, &table).await;
    let world = Arc::new(Mutex::new(World::default()));
    let mut spent = 0.0;
    for round in 0.. {
        let until = (Instant::now() + ROUND).min(end);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let dice = Dice::new(seed ^ (round * CLIENTS + client).wrapping_mul(0x2545_f491_4f6c_dd1d));
                tokio::spawn(run_client(granary.url(), token.clone(), dice, world.clone(), until))
            })
            .collect();
        for client in clients {
            client.await.unwrap();
        }
        spent += settled(&granary, &upstream, spent).await;
        println!("soak: {} keys bought, {}", upstream.charges(), resident());
        if Instant::now() >= end {
            break;
        }
        granary = granary.restart().await;
    }
    let by_key = upstream.charges_by_key();
    assert!(by_key.values().all(|&charges| charges == 1), "one charge per key: {by_key:?}");
    let urls = world.lock().unwrap().urls.clone();
    for url in urls.values() {
        check_url(&granary.url(), url).await;
    }
    println!("soak: {:?}", world.lock().unwrap().counts);
    println!("soak: {} URLs serve their bytes after the last restart", urls.len());
}

/// What this process has spent, once it agrees with the ledger and the upstream: what hung up last
/// may still be bought.
async fn settled(granary: &Granary, upstream: &FakeAilab, before: f64) -> f64 {
    let patience = Instant::now() + Duration::from_secs(20);
    loop {
        let charged = (upstream.charges() * CREDITS) as f64;
        let spent = granary.metric("granary_credits_spent_total{team=\"soak\"}").await;
        let stored = granary.metric("granary_ledger_credits{state=\"stored\"}").await;
        if before + spent == charged && stored == charged {
            return spent;
        }
        assert!(
            Instant::now() < patience,
            "the upstream charged {charged}, the metrics say {before} + {spent}, the ledger {stored}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn run_client(url: String, token: Arc<str>, mut dice: Dice, world: Arc<Mutex<World>>, until: Instant) {
    while Instant::now() < until {
        let picture = {
            let mut world = world.lock().unwrap();
            let is_new = world.pictures == 0 || dice.below(20) == 0;
            world.pictures += u64::from(is_new);
            // Another one may be asking for the newest at this moment: that is the point.
            if is_new { world.pictures - 1 } else { dice.below(world.pictures) }
        };
        let image = images::tiny_png(16, 16, picture);
        let form = Form::browser(&image, 20, 20);
        match dice.below(100) {
            0..4 => {
                // All of it or a part, and gone.
                let call = Call::crop(&url, &*token, &form);
                let part = dice.below(call.body_len() as u64 + 1);
                if let Ok(connection) = call.send_part(usize::try_from(part).unwrap()).await {
                    connection.reset();
                }
                world.lock().unwrap().count("hung up");
            }
            4..6 => {
                let answer =
                    client::post_form(&url, &*token, &Form::browser(&image, "wide", 20)).await.unwrap();
                assert_eq!((answer.status, answer.code().as_str()), (400, "ERROR_INVALID_PARAMETER"));
                world.lock().unwrap().count("refused");
            }
            6..10 => {
                let key = CacheKey::of(&image, 20, 20);
                let path = format!("{url}/api/image/editing/image-cropping/{key}");
                let answer = Call::new("GET", &path).header("ailabapi-api-key", &token).send().await.unwrap();
                assert!([200, 404].contains(&answer.status), "{answer:?}");
                world.lock().unwrap().count("looked up");
            }
            10..14 => {
                let known = world.lock().unwrap().urls.get(&picture).cloned();
                if let Some(known) = known {
                    check_url(&url, &known).await;
                    world.lock().unwrap().count("results read");
                }
            }
            _ => {
                let answer = client::post_form(&url, &*token, &form).await.unwrap();
                assert_eq!(answer.status, 200, "picture {picture}: {}", answer.text());
                let result = path_of(&answer.result_url());
                let mut world = world.lock().unwrap();
                let first = world.urls.entry(picture).or_insert_with(|| result.clone());
                assert_eq!(*first, result, "picture {picture} has one URL for ever");
                world.count("crops");
            }
        }
    }
}

/// The URL without the address, which changes with each restart here.
fn path_of(url: &str) -> String {
    let at = url.find("/results/").unwrap_or_else(|| panic!("{url}"));
    url[at..].to_owned()
}

/// A result is the bytes that its name says.
async fn check_url(base: &str, path: &str) {
    let answer = client::get(&format!("{base}{path}")).await.unwrap();
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    assert!(path.contains(&Digest::of(&answer.body).to_string()), "{path}");
}

/// What this process takes, the fake included.
fn resident() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or("VmRSS: unknown");
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}
