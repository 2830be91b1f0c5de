//! The bucket goes away, and nobody but the operator notices: every miss is answered with a URL that
//! serves its bytes, nothing is bought twice, and all of it is in the bucket once that is back. When
//! the ledger is away, the bucket has what was paid for, and the ledger learns of it later.
//!
//! `GRANARY_OUTAGE_SECONDS` makes the outage under load longer; the profile `soak` has the time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use granary_kit::ailab::{Behaviour, FakeAilab};
use granary_kit::client::{self, Answer};
use granary_kit::form::Form;
use granary_kit::images;
use granary_kit::leak::Secrets;
use granary_kit::process::{GranaryBuilder, GranaryProcess};
use granary_kit::s3::S3Server;
use rusqlite::Connection;
use tempfile::TempDir;

use crate::bucket::{path_of, store_section};
use crate::harness::{
    Granary, TurnedClock, bytes_of, cache_status, metric, real_ailab, until, upstream_section, within,
};

/// An upstream and a bucket, for a Granary in this process or a process of its own.
struct World {
    upstream: FakeAilab,
    bucket: S3Server,
    folder: Arc<TempDir>,
}

impl World {
    async fn new() -> Self {
        let (upstream, bucket) = (FakeAilab::start().await, S3Server::start().await);
        Self { upstream, bucket, folder: Arc::new(TempDir::new().unwrap()) }
    }

    fn config(&self, of_upstream: &str, more: &str) -> String {
        let upstream = upstream_section(&self.upstream, of_upstream);
        format!("{upstream}\n{}\n{more}", store_section(&self.bucket, &self.folder))
    }

    async fn granary(&self, of_upstream: &str, more: &str) -> Granary {
        Granary::start_in(self.folder.clone(), self.config(of_upstream, more), TurnedClock::default()).await
    }

    fn process(&self) -> GranaryBuilder {
        let state = self.folder.path().join("state");
        real_ailab(&self.upstream).config_text(self.config("", "")).state_dir(state)
    }

    fn ledger(&self) -> Connection {
        Connection::open(self.folder.path().join("state/ledger.sqlite")).unwrap()
    }

    /// Asserts that the bucket has exactly what was bought, as it must be.
    fn assert_all_is_in_the_bucket(&self) {
        let below = |folder: &str| -> BTreeMap<String, granary_kit::s3::StoredObject> {
            let prefix = format!("granary/test/{folder}/");
            let names = self.bucket.names().into_iter();
            let names = names.filter_map(|name| Some((name.strip_prefix(&prefix)?.to_owned(), name)));
            names.map(|(short, name)| (short, self.bucket.object(&name).unwrap())).collect()
        };
        let (objects, mut records) = (below("results"), below("records/ailab-v1"));
        let mut named = BTreeSet::new();
        for purchase in self.upstream.purchases() {
            let record = records.remove(&format!("{}/{}.json", &purchase.key[..2], purchase.key));
            let record = record.unwrap_or_else(|| panic!("no record of {purchase:?}"));
            assert_eq!(record.content_type.as_deref(), Some("application/json"));
            let json: serde_json::Value = serde_json::from_slice(&record.bytes).unwrap();
            let name =
                format!("{}.{}", json["digest"].as_str().unwrap(), json["extension"].as_str().unwrap());
            let object = objects.get(&name).unwrap_or_else(|| panic!("{name} is not in the bucket"));
            assert!(object.bytes == self.upstream.result_bytes(purchase.number), "{name}");
            assert!(object.checksummed && record.checksummed);
            let kind = if name.ends_with(".png") { "image/png" } else { "image/jpeg" };
            assert_eq!(object.content_type.as_deref(), Some(kind));
            named.insert(name);
        }
        assert_eq!(records.keys().collect::<Vec<_>>(), Vec::<&String>::new(), "records of nothing bought");
        assert_eq!(named.iter().collect::<Vec<_>>(), objects.keys().collect::<Vec<_>>());
    }

    /// Asserts that no signed URL is in any file, soon.
    async fn assert_no_signature_is_left(&self) {
        assert!(!self.upstream.signatures().is_empty(), "the control: something was signed");
        let named = self.upstream.signatures().into_iter().map(|signature| ("signature", signature));
        let secrets = Secrets::new(named.collect::<Vec<_>>());
        until("every signed URL to be erased", async || {
            secrets.scan_dir(self.folder.path()).unwrap().is_empty()
        })
        .await;
    }

    fn assert_nothing_was_bought_twice(&self) {
        let by_key = self.upstream.charges_by_key();
        assert!(by_key.values().all(|&charges| charges == 1), "{by_key:?}");
        assert_eq!(self.upstream.attempts(), self.upstream.charges());
    }
}

async fn crop(url: &str, seed: u64, size: u32) -> Answer {
    let form = Form::curl(images::tiny_png(24, 24, seed), size, size);
    client::post_form(url, None, &form).await.unwrap()
}

async fn spooled(admin: &str) -> f64 {
    metric(admin, "granary_space_used_bytes{space=\"spool\"}").await
}

/// What clients saw in an outage.
#[derive(Default)]
struct Seen {
    bought: Vec<Bought>,
    hits: BTreeMap<String, u64>,
    slowest: Duration,
    /// When the bucket went away.
    away_since: Option<Instant>,
    /// Reads of results that were in the bucket alone.
    unreadable: u64,
}

#[derive(Clone)]
struct Bought {
    key: String,
    url: String,
    begun: Instant,
}

/// Asks for new crops and for old ones, and reads what it is given, until told to stop.
async fn client(url: String, number: u64, seen: Arc<Mutex<Seen>>, stop: Arc<AtomicBool>) {
    let mut rounds = 0..;
    while let (Some(round), false) = (rounds.next(), stop.load(Ordering::Relaxed)) {
        let ask = async || {
            let begun = Instant::now();
            let answer = crop(&url, number * 1_000_000 + round, 40).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let key = answer.header("granary-key").unwrap().to_owned();
            (Bought { key, url: answer.result_url(), begun }, cache_status(&answer))
        };
        let (miss, status) = ask().await;
        assert_eq!(status, "granary; fwd=uri-miss; fwd-status=200; stored");
        {
            let mut seen = seen.lock().unwrap();
            seen.slowest = seen.slowest.max(miss.begun.elapsed());
            seen.bought.push(miss.clone());
        }
        read(&miss, &seen).await;
        let (hit, status) = ask().await;
        assert_eq!((hit.key, hit.url), (miss.key, miss.url));
        let old = {
            let mut seen = seen.lock().unwrap();
            *seen.hits.entry(status).or_default() += 1;
            let at = usize::try_from(round * 7 + number).unwrap() % seen.bought.len();
            seen.bought[at].clone()
        };
        read(&old, &seen).await;
    }
}

/// Reads a result. One that was bought while the bucket was there may be in the bucket alone; then
/// it must not seem gone.
async fn read(bought: &Bought, seen: &Mutex<Seen>) {
    let image = client::get(&bought.url).await.unwrap();
    let mut seen = seen.lock().unwrap();
    if image.status == 503 && seen.away_since.is_some_and(|since| bought.begun < since) {
        assert!(image.header("retry-after").is_some());
        seen.unreadable += 1;
        return;
    }
    assert_eq!(image.status, 200, "{}", image.text());
    assert!(is_named_by_its_bytes(&bought.url, &image.body), "{}", bought.url);
}

fn is_named_by_its_bytes(url: &str, bytes: &[u8]) -> bool {
    path_of(url).starts_with(&format!("/results/{}.", blake3::hash(bytes).to_hex()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_bucket_under_load_fails_no_miss_and_loses_nothing() {
    let seconds = std::env::var("GRANARY_OUTAGE_SECONDS").map_or(3, |seconds| seconds.parse().unwrap());
    let mut world = World::new().await;
    world.upstream.always(Behaviour::Delay(Duration::from_millis(50)));
    world.upstream.keep_bodies(false);
    // Too little memory to be of much help: hits come from ledger and spool.
    let granary = world.granary("", "[cache]\nmemory = \"16KiB\"").await;
    let (seen, stop) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> =
        (0..4).map(|n| tokio::spawn(client(granary.url(), n, seen.clone(), stop.clone()))).collect();
    let misses = || seen.lock().unwrap().bought.len();
    until("some misses before the outage", async || misses() >= 20).await;

    seen.lock().unwrap().away_since = Some(Instant::now());
    world.bucket.go_down().await;
    let before = misses();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    until("misses in the outage", async || misses() > before + 20).await;
    let (during, waiting) = (misses() - before, spooled(&granary.admin()).await);
    assert!(waiting > 0.0);
    until("the store to be seen away", async || granary.metric("granary_store_up").await == 0.0).await;
    until("time to be seen passing", async || {
        granary.metric("granary_spool_oldest_age_seconds").await >= 1.0
    })
    .await;
    world.bucket.come_back().await;
    let back = Instant::now();
    // A bucket, an upstream and their clients are in this process as well, and all go on.
    while spooled(&granary.admin()).await > 0.0 {
        assert!(back.elapsed() < Duration::from_secs(60 + 3 * seconds), "it does not become empty");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let drained = back.elapsed();
    let before = misses();
    until("misses after the outage", async || misses() > before + 20).await;
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        within("a client to stop", client).await.unwrap();
    }
    until("the last result to be in the bucket", async || spooled(&granary.admin()).await == 0.0).await;
    assert_eq!(granary.metric("granary_store_up").await, 1.0);

    world.assert_nothing_was_bought_twice();
    world.assert_all_is_in_the_bucket();
    world.assert_no_signature_is_left().await;
    let bought = std::mem::take(&mut seen.lock().unwrap().bought);
    assert_eq!(bought.len() as u64, world.upstream.charges());
    let numbers: BTreeMap<_, _> =
        world.upstream.purchases().into_iter().map(|bought| (bought.key, bought.number)).collect();
    for Bought { key, url, .. } in &bought {
        assert!(bytes_of(url).await == world.upstream.result_bytes(numbers[key]), "{url}");
    }
    assert_eq!(granary.metric("granary_spool_oldest_age_seconds").await, 0.0);
    assert_eq!(granary.metric("granary_ledger_credits{state=\"answered\"}").await, 0.0);
    let seen = seen.lock().unwrap();
    println!(
        "{seconds} s without the bucket: {during} misses in it ({waiting} bytes waited at its end), {} in all, hits {:?}, \
         slowest {:?}, {} reads of older results were 503, the spool was empty {drained:?} after the return",
        bought.len(),
        seen.hits,
        seen.slowest,
        seen.unreadable
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_spool_refuses_before_paying_and_hits_go_on() {
    let mut world = World::new().await;
    let sizes = "concurrency = 1\nresult_max_bytes = \"60KiB\"";
    let granary = world.granary(sizes, "[state]\nspool_max = \"64KiB\"").await;
    let url = granary.url();
    world.bucket.go_down().await;
    let mut bought = Vec::new();
    let refused = loop {
        assert!(bought.len() < 500, "4 KiB hold no end of results");
        let answer = crop(&url, bought.len() as u64, 40).await;
        if answer.status != 200 {
            break answer;
        }
        bought.push(answer.result_url());
    };
    assert!(!bought.is_empty());
    assert_eq!((refused.status, refused.code().as_str()), (503, "ERROR_RESOURCE_UNAVAILABLE"));
    assert_eq!(refused.header("granary-reason"), Some("no_room"));
    assert!(refused.header("retry-after").is_some());
    let attempts = world.upstream.attempts();
    assert_eq!(attempts, bought.len() as u64);
    for seed in 1000..1005 {
        assert_eq!(crop(&url, seed, 40).await.status, 503);
    }
    assert_eq!(world.upstream.attempts(), attempts, "refused before paying");
    for (seed, result) in bought.iter().enumerate() {
        let hit = crop(&url, seed as u64, 40).await;
        assert_eq!((hit.status, hit.result_url()), (200, result.clone()));
        assert!(is_named_by_its_bytes(result, &bytes_of(result).await));
    }

    world.bucket.come_back().await;
    until("misses to be bought again", async || crop(&url, 2000, 40).await.status == 200).await;
    until("the spool to be empty", async || spooled(&granary.admin()).await == 0.0).await;
    world.assert_nothing_was_bought_twice();
    world.assert_all_is_in_the_bucket();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_in_an_outage_serves_what_waits_and_buys_nothing_before_the_bucket_is_proved() {
    let mut world = World::new().await;
    let granary = world.granary("", "").await;
    let old = crop(&granary.url(), 1, 40).await.result_url();
    world.bucket.go_down().await;
    let new = crop(&granary.url(), 2, 40).await;
    assert_eq!(cache_status(&new), "granary; fwd=uri-miss; fwd-status=200; stored");
    let new = path_of(&new.result_url()).to_owned();

    let granary = granary.restart().await;
    assert!(spooled(&granary.admin()).await > 0.0);
    let hit = crop(&granary.url(), 2, 40).await;
    assert_eq!(
        (cache_status(&hit).as_str(), path_of(&hit.result_url())),
        ("granary; hit; detail=ledger", &*new)
    );
    assert!(bytes_of(&hit.result_url()).await == world.upstream.result_bytes(2));
    let old = format!("{}{}", granary.url(), path_of(&old));
    assert_eq!(client::get(&old).await.unwrap().status, 503, "only the bucket has it");
    assert_eq!(crop(&granary.url(), 3, 40).await.status, 503, "a bucket nobody has seen");
    assert_eq!(world.upstream.attempts(), 2);

    world.bucket.come_back().await;
    until("the spool to be empty", async || spooled(&granary.admin()).await == 0.0).await;
    until("the old one to be served", async || client::get(&old).await.unwrap().status == 200).await;
    assert!(bytes_of(&format!("{}{new}", granary.url())).await == world.upstream.result_bytes(2));
    world.assert_nothing_was_bought_twice();
    world.assert_all_is_in_the_bucket();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_with_a_full_spool_loses_nothing() {
    let mut world = World::new().await;
    let process = world.process();
    let mut granary = process.start().await.unwrap();
    world.bucket.go_down().await;
    let mut urls = Vec::new();
    for seed in 0..5 {
        let answer = crop(&granary.public_url(), seed, 40).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        urls.push(answer.result_url());
    }
    granary.kill().await;
    let mut granary = process.start().await.unwrap();
    for (number, url) in (1..).zip(&urls) {
        assert!(bytes_of(url).await == world.upstream.result_bytes(number));
    }
    // The next one finds what waits, and a bucket.
    granary.kill().await;
    world.bucket.come_back().await;
    let granary = process.start().await.unwrap();
    until("the spool to be empty", async || spooled(&granary.admin_url()).await == 0.0).await;
    for (number, url) in (1..).zip(&urls) {
        assert!(bytes_of(url).await == world.upstream.result_bytes(number));
    }
    world.assert_nothing_was_bought_twice();
    world.assert_all_is_in_the_bucket();
    world.assert_no_signature_is_left().await;
}

/// The steps of copying, some of them at a later passage.
#[cfg(feature = "crash-points")]
pub(crate) const COPY_POINTS: [&str; 8] =
    ["CP22", "CP23", "CP24:2", "CP25", "CP26:2", "CP40", "CP40:2", "CP40:5"];

#[cfg(feature = "crash-points")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_at_any_step_of_copying_is_made_good_by_the_next_process() {
    for point in COPY_POINTS {
        let mut world = World::new().await;
        let process = world.process();
        let mut granary = process.start().await.unwrap();
        world.bucket.go_down().await;
        for seed in 0..3 {
            assert_eq!(crop(&granary.public_url(), seed, 40).await.status, 200);
        }
        granary.kill().await;
        world.bucket.come_back().await;
        let mut doomed = process.clone().env("GRANARY_CRASH_AT", point).spawn();
        assert!(doomed.wait_exit(Duration::from_secs(30)).await.is_some(), "{point} was not reached");
        assert_eq!(doomed.died_by_signal(), Some(9), "{point}: {}", doomed.stderr_text());

        // What has left the spool is in the bucket, and the rest is served from the spool.
        let confirmed = world.bucket.names().into_iter().filter(|name| name.contains("/records/")).count();
        let waiting: usize =
            world.ledger().query_row("SELECT count(*) FROM spool", [], |row| row.get(0)).unwrap();
        assert!(confirmed + waiting >= 3, "{point}: {confirmed} and {waiting}");
        let granary = process.start().await.unwrap();
        for (number, seed) in (1..=3).zip(0..) {
            let hit = crop(&granary.public_url(), seed, 40).await;
            assert_eq!(cache_status(&hit), "granary; hit; detail=ledger", "{point}");
            assert!(bytes_of(&hit.result_url()).await == world.upstream.result_bytes(number), "{point}");
        }
        until("the spool to be empty", async || spooled(&granary.admin_url()).await == 0.0).await;
        world.assert_nothing_was_bought_twice();
        world.assert_all_is_in_the_bucket();
    }
}

/// Takes the ledger away from under a running Granary, and gives it back.
fn hide_ledger(ledger: &Connection, hide: bool) {
    let (from, to) = if hide { ("calls", "hidden") } else { ("hidden", "calls") };
    ledger.execute_batch(&format!("ALTER TABLE {from} RENAME TO {to}")).unwrap();
}

/// Asks for a crop and does not wait for it.
fn ask(granary: &GranaryProcess) -> tokio::task::JoinHandle<std::io::Result<Answer>> {
    let url = granary.public_url();
    let form = Form::curl(images::tiny_png(24, 24, 1), 40, 40);
    tokio::spawn(async move { client::post_form(&url, None, &form).await })
}

fn calls(ledger: &Connection, state: &str) -> u64 {
    let sql = "SELECT count(*) FROM calls WHERE state = ?1";
    ledger.query_row(sql, [state], |row| row.get(0)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn result_is_kept_and_served_while_ledger_cannot_book_its_answer() {
    for dies in [false, true] {
        let world = World::new().await;
        let process = world.process();
        let mut granary = process.start().await.unwrap();
        world.upstream.on_next(Behaviour::Hold);
        let asked = ask(&granary);
        world.upstream.wait_for_held(1).await;
        let ledger = world.ledger();
        hide_ledger(&ledger, true);
        world.upstream.release();
        let answer = asked.await.unwrap().unwrap();
        assert_eq!(cache_status(&answer), "granary; fwd=uri-miss; fwd-status=200; stored");
        assert!(bytes_of(&answer.result_url()).await == world.upstream.result_bytes(1), "it is served");
        world.assert_all_is_in_the_bucket();

        let granary = if dies {
            granary.kill().await;
            hide_ledger(&ledger, false);
            assert_eq!(calls(&ledger, "sent"), 1, "as far as the ledger knows");
            // From here on the result cannot be fetched any more.
            world.upstream.expire_all();
            process.start().await.unwrap()
        } else {
            hide_ledger(&ledger, false);
            granary
        };
        until("the call to be booked", async || calls(&ledger, "stored") == 1).await;
        let hit = ask(&granary).await.unwrap().unwrap();
        assert!(cache_status(&hit).starts_with("granary; hit"), "{hit:?}");
        assert_eq!(path_of(&hit.result_url()), path_of(&answer.result_url()));
        assert_eq!((calls(&ledger, "unknown"), world.upstream.attempts()), (0, 1));
        let spent = metric(&granary.admin_url(), "granary_ledger_credits{state=\"stored\"}").await;
        assert_eq!(spent, 3.0, "the call is paid for, and no record of another ledger's");
        world.assert_no_signature_is_left().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn result_that_neither_bucket_nor_ledger_takes_is_kept_by_the_first_that_is_back() {
    for bucket_is_first in [false, true] {
        let mut world = World::new().await;
        let granary = world.process().start().await.unwrap();
        world.upstream.on_next(Behaviour::Hold);
        let asked = ask(&granary);
        world.upstream.wait_for_held(1).await;
        let ledger = world.ledger();
        hide_ledger(&ledger, true);
        world.bucket.go_down().await;
        world.upstream.release();
        let is_tried = async || granary.stderr_text().contains("a paid result could not be kept yet");
        until("both to have refused the result", is_tried).await;
        if bucket_is_first {
            world.bucket.come_back().await;
        } else {
            hide_ledger(&ledger, false);
        }
        let answer = asked.await.unwrap().unwrap();
        assert_eq!(cache_status(&answer), "granary; fwd=uri-miss; fwd-status=200; stored");
        assert!(bytes_of(&answer.result_url()).await == world.upstream.result_bytes(1));
        if bucket_is_first {
            hide_ledger(&ledger, false);
        } else {
            assert!(spooled(&granary.admin_url()).await > 0.0);
            world.bucket.come_back().await;
        }
        until("the call to be booked", async || calls(&ledger, "stored") == 1).await;
        until("the spool to be empty", async || spooled(&granary.admin_url()).await == 0.0).await;
        assert_eq!(world.upstream.attempts(), 1);
        world.assert_all_is_in_the_bucket();
        world.assert_no_signature_is_left().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn call_whose_process_ends_while_bucket_and_ledger_are_away_is_unknown() {
    let mut world = World::new().await;
    let process = world.process();
    let mut granary = process.start().await.unwrap();
    world.upstream.on_next(Behaviour::Hold);
    let asked = ask(&granary);
    world.upstream.wait_for_held(1).await;
    let ledger = world.ledger();
    hide_ledger(&ledger, true);
    world.bucket.go_down().await;
    world.upstream.release();
    until("the answer to have been offered", async || granary.stderr_text().contains("answer not booked"))
        .await;
    granary.kill().await;
    asked.await.unwrap().unwrap_err();
    hide_ledger(&ledger, false);

    // The bucket may have its record, and cannot be asked.
    let granary = process.start().await.unwrap();
    let refused = ask(&granary).await.unwrap().unwrap();
    assert_eq!((refused.status, refused.header("granary-reason")), (503, Some("ledger_incomplete")));
    world.bucket.come_back().await;
    until("the bucket to be asked", async || {
        ask(&granary).await.unwrap().unwrap().header("granary-reason") == Some("hold")
    })
    .await;
    assert_eq!((calls(&ledger, "unknown"), world.upstream.attempts()), (1, 1));
}
