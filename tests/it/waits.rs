//! A dependency that hangs, refuses or resets costs each request a bounded time, and no money.
//!
//! Bounds are those of the contract. What the machine adds is measured: the same load is put on a healthy
//! Granary first, and its slowest request is the slack of all that come later.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use granary_kit::ailab::FakeAilab;
use granary_kit::client::{self, Answer, Call};
use granary_kit::form::Form;
use granary_kit::images;
use granary_kit::postgres::Postgres;
use granary_kit::process::GranaryProcess;
use granary_kit::proxy::{Ending, Fault, FaultProxy, Plan};
use granary_kit::s3::S3Server;
use tempfile::TempDir;

use crate::bucket::{path_of, store_section};
use crate::harness::{adopt, bytes_of, metric, real_ailab, until, upstream_section, within};

/// Requests for stored crops, and for new ones, in flight at the same time.
const EACH: u64 = 50;
/// New crops asked for one after the other.
const ONE_BY_ONE: u64 = 5;
/// Within this time after its return a dependency is used again.
const HEALS: Duration = Duration::from_secs(5);

/// How a dependency fails.
#[derive(Clone, Copy, Debug)]
enum Failure {
    Hung,
    Refused,
    Reset,
}

const FAILURES: [Failure; 3] = [Failure::Hung, Failure::Refused, Failure::Reset];

/// Lets everything that passes a proxy fail.
async fn fail(way: &mut FaultProxy, failure: Failure) {
    match failure {
        Failure::Hung => way.hold(true),
        Failure::Refused => way.go_down().await,
        Failure::Reset => {
            way.always(Plan::clean().to_server(Fault::Reset(0)));
            way.end_all(Ending::Reset);
        }
    }
}

async fn mend(way: &mut FaultProxy, failure: Failure) {
    match failure {
        Failure::Hung => way.hold(false),
        Failure::Refused => way.come_back().await,
        Failure::Reset => way.always(Plan::clean()),
    }
}

/// A Granary whose bucket and database are real and behind proxies.
struct World {
    upstream: FakeAilab,
    bucket: S3Server,
    to_bucket: FaultProxy,
    postgres: Postgres,
    to_postgres: FaultProxy,
    granary: GranaryProcess,
    next: u64,
    _folder: TempDir,
}

/// The slowest requests of a load.
#[derive(Clone, Copy, Debug)]
struct Slowest {
    hit: Duration,
    miss: Duration,
}

impl World {
    async fn start() -> Self {
        let (upstream, bucket) = (FakeAilab::start().await, S3Server::start().await);
        let folder = TempDir::new().unwrap();
        let postgres = Postgres::start();
        postgres.create_database("granary");
        let to_bucket = FaultProxy::start(&bucket.endpoint()).await;
        let to_postgres = FaultProxy::start(&format!("127.0.0.1:{}", postgres.port())).await;
        let by_proxy = to_postgres.url().replace("http://", "");
        let database = postgres.url("granary").replace(&format!("127.0.0.1:{}", postgres.port()), &by_proxy);
        let store = store_section(&bucket, &folder).replace(&bucket.endpoint(), &to_bucket.url());
        // Little memory, so that hits come from every tier.
        let config = format!(
            "{}\n{store}\n[state]\ndatabase_url = \"{database}\"\n[cache]\nmemory = \"16KiB\"\n",
            upstream_section(&upstream, "concurrency = 16\nmax_concurrency = 16"),
        );
        let granary = real_ailab(&upstream).config_text(config).start().await.unwrap();
        let world =
            Self { upstream, bucket, to_bucket, postgres, to_postgres, granary, next: 1000, _folder: folder };
        until("a Granary that pays", async || {
            let ready = client::get(&format!("{}/readyz", world.granary.admin_url())).await.unwrap();
            ready.json()["paying"] == true
        })
        .await;
        for seed in 0..EACH {
            assert_eq!(world.crop(seed).await.0.status, 200);
        }
        world
    }

    /// Asks for a crop; returns how long it took, too.
    async fn crop(&self, seed: u64) -> (Answer, Duration) {
        timed_crop(self.granary.public_url(), seed).await
    }

    async fn new_crop(&mut self) -> (Answer, Duration) {
        self.next += 1;
        self.crop(self.next).await
    }

    /// Puts all of the load on it at once; every stored crop is a hit, and every new one ends so.
    async fn load(&mut self, new_ends: u16) -> Slowest {
        let mut asked = Vec::new();
        for n in 0..EACH {
            self.next += 1;
            for (seed, is_hit) in [(n, true), (self.next, false)] {
                let crop = tokio::spawn(timed_crop(self.granary.public_url(), seed));
                asked.push((is_hit, crop));
            }
        }
        let mut slowest = Slowest { hit: Duration::ZERO, miss: Duration::ZERO };
        for (is_hit, asked) in asked {
            let (answer, took) = asked.await.unwrap();
            assert_eq!(answer.status, if is_hit { 200 } else { new_ends }, "{}", answer.text());
            let of = if is_hit { &mut slowest.hit } else { &mut slowest.miss };
            *of = (*of).max(took);
        }
        slowest
    }

    /// The middle one of new crops that are asked for one after the other.
    async fn one_by_one(&mut self, new_ends: u16) -> Duration {
        let mut took = Vec::new();
        for _ in 0..ONE_BY_ONE {
            let (answer, time) = self.new_crop().await;
            assert_eq!(answer.status, new_ends, "{}", answer.text());
            took.push(time);
        }
        took.sort_unstable();
        took[took.len() / 2]
    }

    fn assert_nothing_was_bought_twice(&self) {
        let by_key = self.upstream.charges_by_key();
        assert!(by_key.values().all(|&charges| charges == 1), "{by_key:?}");
        assert_eq!(self.upstream.attempts(), self.upstream.charges());
    }

    /// Everything that was paid for is booked, in the bucket, and served.
    async fn assert_all_is_kept(&self) {
        let admin = self.granary.admin_url();
        until("the spool to be empty", async || {
            metric(&admin, "granary_space_used_bytes{space=\"spool\"}").await == 0.0
        })
        .await;
        // A reservation whose confirmation was lost is released when its lease is over.
        let expected = format!("stored|{}", self.upstream.charges());
        until("every call to be settled", async || {
            let sql = "SELECT state, count(*) FROM granary.calls WHERE state <> 'released' GROUP BY state";
            self.postgres.sql("granary", sql) == expected
        })
        .await;
        for purchase in self.upstream.purchases() {
            let record =
                format!("granary/test/records/ailab-v1/{}/{}.json", &purchase.key[..2], purchase.key);
            let record = self.bucket.object(&record).unwrap_or_else(|| panic!("no {record}"));
            let record: serde_json::Value = serde_json::from_slice(&record.bytes).unwrap();
            let path = record["answer"].as_str().unwrap();
            let answer: serde_json::Value = serde_json::from_str(path).unwrap();
            let url = format!("/{}", answer["data"]["url"].as_str().unwrap().trim_start_matches('/'));
            let bytes = bytes_of(&format!("{}{}", self.granary.public_url(), path_of(&url))).await;
            assert!(bytes == self.upstream.result_bytes(purchase.number), "{url}");
        }
    }
}

async fn timed_crop(url: String, seed: u64) -> (Answer, Duration) {
    let form = Form::curl(images::tiny_png(16, 16, seed), 64, 64);
    let begun = Instant::now();
    let answer = client::post_form(&url, None, &form).await.unwrap();
    (answer, begun.elapsed())
}

fn assert_bounded(what: &str, took: Duration, bound: Duration, slack: Duration) {
    assert!(took <= bound + slack, "{what} took {took:?}, more than {bound:?} and {slack:?} of slack");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_hangs_refuses_or_resets_delays_one_miss_and_loses_nothing() {
    let mut world = World::start().await;
    let healthy = world.load(200).await;
    let slack = healthy.hit.max(healthy.miss);
    let alone = world.one_by_one(200).await;
    for failure in FAILURES {
        fail(&mut world.to_bucket, failure).await;
        let (first, took) = world.new_crop().await;
        assert_eq!(first.status, 200, "{failure:?}: {}", first.text());
        assert_bounded("the first miss", took, Duration::from_secs(8), slack);
        let known = world.load(200).await;
        assert_bounded("a hit", known.hit, Duration::from_secs(1), slack);
        assert_bounded("a miss", known.miss, Duration::from_secs(8), slack);
        let later = world.one_by_one(200).await;
        assert_bounded("a later miss", later, Duration::from_millis(100), 3 * alone);

        mend(&mut world.to_bucket, failure).await;
        let back = Instant::now();
        let admin = world.granary.admin_url();
        within("the bucket to be used again", async {
            while metric(&admin, "granary_space_used_bytes{space=\"spool\"}").await > 0.0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        let healed = back.elapsed();
        // The backlog goes through the same busy machine as the load before.
        assert_bounded("healing", healed, HEALS, 2 * slack);
        println!(
            "bucket, {failure:?}: first {took:?}, then {known:?}, one by one {later:?}, healed {healed:?}"
        );
    }
    println!("healthy: {healthy:?}, one by one {alone:?}");
    world.assert_nothing_was_bought_twice();
    world.assert_all_is_kept().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_meets_a_bucket_just_hung_has_every_hit_and_miss_in_time() {
    let mut world = World::start().await;
    let healthy = world.load(200).await;
    let slack = healthy.hit.max(healthy.miss);
    fail(&mut world.to_bucket, Failure::Hung).await;
    let met = world.load(200).await;
    assert_bounded("a hit", met.hit, Duration::from_secs(1), slack);
    assert_bounded("a miss", met.miss, Duration::from_secs(8), slack);
    mend(&mut world.to_bucket, Failure::Hung).await;
    println!("healthy {healthy:?}, just hung {met:?}");
    world.assert_nothing_was_bought_twice();
    world.assert_all_is_kept().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_hangs_refuses_or_resets_delays_no_hit_and_refuses_misses_before_paying() {
    let mut world = World::start().await;
    let healthy = world.load(200).await;
    let slack = healthy.hit.max(healthy.miss);
    let alone = world.one_by_one(200).await;
    for failure in FAILURES {
        let bought = world.upstream.attempts();
        match failure {
            Failure::Hung => world.postgres.freeze(),
            failure => fail(&mut world.to_postgres, failure).await,
        }
        let met = world.load(503).await;
        assert_bounded("a hit", met.hit, Duration::from_secs(1), slack);
        assert_bounded("a miss", met.miss, Duration::from_secs(8), slack);
        let known = world.load(503).await;
        assert_bounded("a later hit", known.hit, Duration::from_secs(1), slack);
        let later = world.one_by_one(503).await;
        assert_bounded("a later miss", later, Duration::from_millis(100), 3 * alone);
        assert_eq!(world.upstream.attempts(), bought, "{failure:?}: refused before paying");

        match failure {
            Failure::Hung => world.postgres.thaw(),
            failure => mend(&mut world.to_postgres, failure).await,
        }
        let back = Instant::now();
        within("a miss to be bought again", async {
            while world.new_crop().await.0.status != 200 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        let healed = back.elapsed();
        assert_bounded("healing", healed, HEALS, slack);
        println!("database, {failure:?}: {met:?}, then {known:?}, one by one {later:?}, healed {healed:?}");
    }
    println!("healthy: {healthy:?}, one by one {alone:?}");
    world.assert_nothing_was_bought_twice();
    world.assert_all_is_kept().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lookups_that_flood_a_slow_bucket_under_a_fresh_ledger_buy_nothing_and_say_no_404() {
    const STORED: u64 = 40;
    const ROUNDS: u64 = 8;
    let (upstream, bucket, folder) =
        (FakeAilab::start().await, S3Server::start().await, TempDir::new().unwrap());
    let to_bucket = FaultProxy::start(&bucket.endpoint()).await;
    let store = store_section(&bucket, &folder).replace(&bucket.endpoint(), &to_bucket.url());
    let config = format!("{}\n{store}\n[cache]\nmemory = \"16KiB\"\n", upstream_section(&upstream, ""));
    let process = |state: &str| {
        let state = folder.path().join(state);
        real_ailab(&upstream).config_text(config.clone()).state_dir(state)
    };
    let mut first = process("first").start().await.unwrap();
    let mut keys = Vec::new();
    for seed in 0..STORED {
        let (answer, _) = timed_crop(first.public_url(), seed).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        keys.push(answer.header("granary-key").unwrap().to_owned());
    }
    first.kill().await;
    let granary = process("second").start().await.unwrap();
    adopt(&granary.admin_url()).await;
    let bought = upstream.attempts();

    // Each answer comes in time, and all of them take longer than the turns there are get through.
    to_bucket.always(Plan::clean().to_client(Fault::Delay(Duration::from_millis(250))));
    to_bucket.end_all(Ending::Cut);
    let mut asked: Vec<tokio::task::JoinHandle<Answer>> = Vec::new();
    for _ in 0..ROUNDS {
        for (seed, key) in (0..STORED).zip(&keys) {
            let url = format!("{}/api/image/editing/image-cropping/{key}", granary.public_url());
            let look_up = Call::new("GET", &url);
            asked.push(tokio::spawn(async move { look_up.send().await.unwrap() }));
            let url = granary.public_url();
            asked.push(tokio::spawn(async move { timed_crop(url, seed).await.0 }));
        }
    }
    let mut ends: BTreeMap<(u16, Option<String>), u64> = BTreeMap::new();
    for asked in asked {
        let answer = asked.await.unwrap();
        if answer.status != 200 {
            assert_eq!(answer.status, 503, "{}", answer.text());
            assert!(answer.header("retry-after").is_some(), "{}", answer.text());
        }
        let reason = answer.header("granary-reason").map(str::to_owned);
        *ends.entry((answer.status, reason)).or_default() += 1;
    }
    assert_eq!(upstream.attempts(), bought, "{ends:?}");
    println!("{ends:?}");

    to_bucket.always(Plan::clean());
    to_bucket.end_all(Ending::Cut);
    let granary = Arc::new(granary);
    for seed in 0..STORED {
        until("a stored crop to be a hit", async || {
            timed_crop(granary.public_url(), seed).await.0.status == 200
        })
        .await;
    }
    assert_eq!(upstream.attempts(), bought);
}
