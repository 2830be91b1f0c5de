//! The archive guard on the real program: what belongs to another world is never bought anew, until
//! a person has looked and said so.

use std::time::Duration;

use granary::base::key::CacheKey;
use granary_kit::ailab::{FakeAilab, ResultBehaviour};
use granary_kit::client::{self, Answer, Call};
use granary_kit::form::Form;
use granary_kit::images;
use granary_kit::postgres::Postgres;
use granary_kit::process::{GranaryBuilder, GranaryProcess};
use granary_kit::s3::{Fault, Operation, S3Server};
use tempfile::TempDir;

use crate::harness::{bucket_section, cache_status, metric, real, until, upstream_section};

const PREFIX: &str = "granary/test";
const PATIENCE: Duration = Duration::from_secs(20);
const GUARD: &str = "granary_purchases_blocked{cause=\"archive_guard\"}";

/// The real program in front of a fake AILab and a bucket, each of which outlives it.
struct World {
    upstream: FakeAilab,
    bucket: S3Server,
    folder: TempDir,
    builder: GranaryBuilder,
}

impl World {
    async fn new() -> Self {
        let (upstream, bucket) = (FakeAilab::start().await, S3Server::start().await);
        let (folder, builder) = (TempDir::new().unwrap(), real());
        let world = Self { upstream, bucket, folder, builder };
        Self { builder: world.with_prefix(PREFIX), ..world }
    }

    /// The same program, configured to look elsewhere in the bucket.
    fn with_prefix(&self, prefix: &str) -> GranaryBuilder {
        let config =
            upstream_section(&self.upstream, "") + &bucket_section(&self.bucket, &self.folder, prefix);
        self.builder.clone().config_text(config).env("GRANARY_SERVER_DRAIN_GRACE", "0s")
    }

    async fn start(&self) -> GranaryProcess {
        self.builder.start().await.unwrap()
    }

    fn charges(&self) -> u64 {
        self.upstream.charges()
    }

    /// `granary adopt` beside a running process, or alone; what it printed.
    async fn adopt(&self, running: Option<&GranaryProcess>) -> String {
        let builder = self.builder.clone().args(["adopt"]);
        let builder = match running {
            Some(process) => {
                let address = process.admin_url().replace("http://", "");
                builder.env("GRANARY_SERVER_ADMIN_LISTEN", address)
            }
            None => builder,
        };
        let finished = builder.run(Duration::from_secs(60)).await;
        assert!(finished.status.success(), "{finished:?}");
        finished.stdout
    }
}

async fn crop(process: &GranaryProcess, side: u32) -> Answer {
    client::post_form(&process.public_url(), None, &Form::curl(images::photo_jpeg(), side, side))
        .await
        .unwrap()
}

async fn is_refused(process: &GranaryProcess, side: u32) {
    let refused = crop(process, side).await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "ERROR_RESOURCE_UNAVAILABLE"));
    assert_eq!(refused.header("granary-reason"), Some("archive_guard"));
    assert!(refused.header("retry-after").is_some());
    assert_eq!(metric(&process.admin_url(), GUARD).await, 1.0);
    let ready = client::get(&format!("{}/readyz", process.admin_url())).await.unwrap();
    assert_eq!(ready.status, 200, "hits are served");
    assert!(ready.text().contains("\"paying\":false"), "{}", ready.text());
    let alarm = |line: &serde_json::Value| line.to_string().contains("\"archive_guard\"");
    assert!(process.wait_for_line(Duration::from_secs(20), alarm).await.is_some(), "an alarm in the log");
}

/// Buys `side` now that this is allowed again, and nothing else.
async fn buys(world: &World, process: &GranaryProcess, side: u32) {
    let before = world.charges();
    let bought = crop(process, side).await;
    assert_eq!(cache_status(&bought), "granary; fwd=uri-miss; fwd-status=200; stored", "{}", bought.text());
    assert_eq!(world.charges(), before + 1);
    assert_eq!(metric(&process.admin_url(), GUARD).await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_an_emptied_bucket_nothing_is_bought_until_it_is_adopted() {
    let world = World::new().await;
    let mut process = world.start().await;
    let url = crop(&process, 100).await.result_url();
    assert_eq!(client::get(&url).await.unwrap().status, 200);
    let second = crop(&process, 101).await.result_url();
    world.bucket.empty();

    // At a restart it is noticed at once. What only the bucket had is not known to be absent.
    process.kill().await;
    let process = world.start().await;
    is_refused(&process, 100).await;
    is_refused(&process, 200).await;
    assert_eq!(client::get(&second).await.unwrap().status, 503, "never 404: nothing is known to be absent");
    assert_eq!(world.charges(), 2);

    let said = world.adopt(Some(&process)).await;
    assert!(said.contains("the store has no marker") && said.contains("bought again"), "{said}");
    // Now the operator has said that it is gone.
    buys(&world, &process, 100).await;
    buys(&world, &process, 200).await;
    assert_eq!(client::get(&second).await.unwrap().status, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_is_emptied_under_a_running_process_is_noticed_by_what_is_missing() {
    let world = World::new().await;
    let process = world.start().await;
    let url = crop(&process, 100).await.result_url();
    world.bucket.empty();
    // Within the moment in which it has just been looked, absence is still believed.
    until("the guard to close", async || {
        let _ = client::get(&url).await.unwrap();
        metric(&process.admin_url(), GUARD).await == 1.0
    })
    .await;
    is_refused(&process, 200).await;
    assert_eq!(client::get(&url).await.unwrap().status, 503);
    let hit = crop(&process, 100).await;
    assert_eq!(cache_status(&hit), "granary; hit; detail=memory", "an answer that is at hand");
    assert_eq!(world.charges(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_mistyped_prefix_nothing_is_bought_and_corrected_it_goes_on() {
    let world = World::new().await;
    let mut process = world.start().await;
    let url = crop(&process, 100).await.result_url();
    process.kill().await;

    let mut process = world.with_prefix("granary/tset").start().await.unwrap();
    is_refused(&process, 100).await;
    is_refused(&process, 200).await;
    assert_eq!(client::get(&url).await.unwrap().status, 503);
    assert_eq!(world.charges(), 1);
    let check = world.with_prefix("granary/tset").args(["check", "--live"]);
    process.kill().await;
    let checked = check.run(Duration::from_secs(60)).await;
    assert_eq!(checked.status.code(), Some(1));
    assert!(checked.stderr.contains("store.prefix or store.path is mistyped"), "{}", checked.stderr);

    let process = world.start().await;
    assert_eq!(client::get(&url).await.unwrap().status, 200);
    assert_eq!(cache_status(&crop(&process, 100).await), "granary; hit; detail=ledger");
    buys(&world, &process, 200).await;
    assert!(world.adopt(Some(&process)).await.contains("found: ledger and store belong together"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_replaced_ledger_hits_go_on_and_misses_wait_for_the_adoption() {
    let world = World::new().await;
    let mut process = world.start().await;
    let url = crop(&process, 100).await.result_url();
    process.kill().await;
    let state = world.folder.path().join("other state");
    let builder = world.builder.clone().state_dir(&state);
    let world = World { builder, ..world };

    let mut process = world.start().await;
    assert_eq!(cache_status(&crop(&process, 100).await), "granary; hit; detail=store");
    assert_eq!(client::get(&url).await.unwrap().status, 200);
    is_refused(&process, 200).await;
    process.kill().await;

    // With nobody running, the verb does it by itself; and once is enough.
    assert!(world.adopt(None).await.contains("the ledger is a new one"));
    assert!(world.adopt(None).await.contains("ledger and store belong together"));
    let process = world.start().await;
    buys(&world, &process, 200).await;
    until("the import to be complete", async || import(&process).await == "complete").await;
    assert_eq!(cache_status(&crop(&process, 100).await), "granary; hit; detail=ledger");
    let rows = metric(&process.admin_url(), "granary_ledger_credits{state=\"stored\"}").await;
    assert_eq!(rows, 3.0, "what was imported was paid through another ledger");
    assert_eq!(world.charges(), 2);
}

/// What `/readyz` says of the import.
async fn import(process: &GranaryProcess) -> String {
    let ready = client::get(&format!("{}/readyz", process.admin_url())).await.unwrap();
    ready.json()["import"].as_str().unwrap().to_owned()
}

impl World {
    /// The same archive, adopted by a ledger of this state folder that has never seen it.
    async fn with_a_fresh_ledger(self, more: &[(&str, String)]) -> Self {
        let mut builder = self.builder.clone().state_dir(self.folder.path().join("fresh state"));
        for (name, value) in more {
            builder = builder.env(*name, value);
        }
        let world = Self { builder, ..self };
        assert!(world.adopt(None).await.contains("the ledger is a new one"));
        world
    }

    /// Copies a record of the bucket under so many other keys.
    fn copy_record(&self, copies: usize) {
        let is_record = |name: &String| name.contains("/records/");
        let name = self.bucket.names().into_iter().find(is_record).unwrap();
        let mut record: serde_json::Value =
            serde_json::from_slice(&self.bucket.object(&name).unwrap().bytes).unwrap();
        for copy in 0..copies {
            let key = blake3::hash(&copy.to_le_bytes()).to_hex().to_string();
            record["key"] = key.as_str().into();
            let name = format!("{PREFIX}/records/ailab-v1/{}/{key}.json", &key[..2]);
            self.bucket.set(&name, serde_json::to_vec(&record).unwrap());
        }
    }
}

/// Asserts that a crop is neither bought nor said to be absent.
async fn is_not_decided(process: &GranaryProcess, side: u32) {
    let refused = crop(process, side).await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "ERROR_RESOURCE_UNAVAILABLE"));
    assert_eq!(refused.header("granary-reason"), Some("ledger_incomplete"), "{}", refused.text());
    assert!(refused.header("retry-after").is_some());
    let key = CacheKey::of(images::photo_jpeg(), side, side);
    let url = format!("{}/api/image/editing/image-cropping/{key}", process.public_url());
    let looked_up = client::get(&url).await.unwrap();
    assert_eq!(looked_up.status, 503, "{}", looked_up.text());
}

async fn nothing_is_bought_again_over_a_full_bucket(more: &[(&str, String)]) {
    let world = World::new().await;
    let mut process = world.start().await;
    for side in 100..103 {
        crop(&process, side).await.result_url();
    }
    process.kill().await;
    let mut world = world.with_a_fresh_ledger(more).await;
    // Lists are refused, so the import waits; the rest of the bucket works, and decides.
    world.bucket.fail_always_of(Operation::List, Fault::Forbidden);
    let mut process = world.start().await;
    buys(&world, &process, 200).await;
    assert_eq!(import(&process).await, "not begun");
    world.bucket.go_down().await;
    for side in [100, 101, 300] {
        is_not_decided(&process, side).await;
    }
    process.kill().await;
    let process = world.start().await;
    for side in [100, 300] {
        is_not_decided(&process, side).await;
    }
    assert_eq!(world.charges(), 4);

    world.bucket.heal();
    world.bucket.come_back().await;
    until("the import to be complete", async || import(&process).await == "complete").await;
    world.bucket.go_down().await;
    for side in [100, 101, 102, 200] {
        assert_eq!(cache_status(&crop(&process, side).await), "granary; hit; detail=ledger");
    }
    let bought = crop(&process, 300).await;
    assert_eq!(bought.status, 200, "the ledger alone decides: {}", bought.text());
    assert_eq!(world.charges(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fresh_file_ledger_over_a_full_bucket_buys_nothing_again_while_bucket_is_away() {
    nothing_is_bought_again_over_a_full_bucket(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fresh_database_over_a_full_bucket_buys_nothing_again_while_bucket_is_away() {
    let database = Postgres::start();
    let url = database.url("postgres");
    nothing_is_bought_again_over_a_full_bucket(&[("GRANARY_STATE_DATABASE_URL", url)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn import_goes_on_after_a_kill_and_says_how_far_it_is() {
    const RECORDS: u64 = 351;
    let world = World::new().await;
    let mut process = world.start().await;
    crop(&process, 100).await.result_url();
    process.kill().await;
    world.copy_record(350);
    let world = world.with_a_fresh_ledger(&[]).await;
    let mut process = world.start().await;
    until("some of it to be imported", async || import(&process).await.ends_with("records so far")).await;
    assert!(
        process
            .wait_for_log("record import begins: the ledger does not know the whole archive", PATIENCE)
            .await
            .is_some()
    );
    process.kill().await;

    let process = world.start().await;
    until("the import to be complete", async || import(&process).await == "complete").await;
    let end =
        process.wait_for_log("record import complete: the ledger knows the whole archive", PATIENCE).await;
    let records = end.unwrap()["records"].as_u64().unwrap();
    assert!((1..=RECORDS - 100).contains(&records), "it went on: {records}");
    let ledger = rusqlite::Connection::open(world.folder.path().join("fresh state/ledger.sqlite")).unwrap();
    let sql = "SELECT count(*) FROM calls WHERE state = 'stored' AND adopted = 1";
    let rows: u64 = ledger.query_row(sql, [], |row| row.get(0)).unwrap();
    assert_eq!((rows, world.charges()), (RECORDS, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_paid_for_is_not_put_where_it_would_never_be_found() {
    let world = World::new().await;
    let mut process = world.start().await;
    world.upstream.on_next_result(ResultBehaviour::Hang);
    let call = Call::crop(&process.public_url(), None, &Form::curl(images::photo_jpeg(), 100, 100));
    let _asked = call.send_part(call.body_len()).await.unwrap();
    world.upstream.wait_for_fetches(1).await;
    process.kill().await;

    // The answer is in the ledger; the result is fetched now, and the bucket is another's.
    let mut process = world.with_prefix("granary/tset").start().await.unwrap();
    until("the result to wait in the ledger", async || {
        metric(&process.admin_url(), "granary_space_used_bytes{space=\"spool\"}").await > 0.0
    })
    .await;
    let url = crop(&process, 100).await.result_url();
    assert_eq!(client::get(&url).await.unwrap().status, 200, "it is served from there");
    process.kill().await;
    assert!(!world.bucket.names().iter().any(|name| name.contains("tset/results")));

    let process = world.start().await;
    until("the result to come where it belongs", async || {
        metric(&process.admin_url(), "granary_space_used_bytes{space=\"spool\"}").await == 0.0
    })
    .await;
    assert_eq!(client::get(&url).await.unwrap().status, 200);
    assert!(world.bucket.names().iter().any(|name| name.starts_with("granary/test/results/")));
    assert_eq!(world.charges(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_the_bucket_is_not_brought_to_another_that_comes_in_its_place() {
    let mut world = World::new().await;
    let process = world.start().await;
    let kept = crop(&process, 100).await.result_url();
    world.bucket.go_down().await;
    let waiting = crop(&process, 101).await.result_url();
    assert!(metric(&process.admin_url(), "granary_space_used_bytes{space=\"spool\"}").await > 0.0);

    // Somebody makes a new bucket of that name; the right one comes back later.
    let names = world.bucket.names();
    let all: Vec<_> = names.iter().map(|name| (name, world.bucket.object(name).unwrap().bytes)).collect();
    world.bucket.empty();
    world.bucket.come_back().await;
    until("the guard to close", async || metric(&process.admin_url(), GUARD).await == 1.0).await;
    assert_eq!(client::get(&waiting).await.unwrap().status, 200, "it waits on, and is served");
    assert!(metric(&process.admin_url(), "granary_space_used_bytes{space=\"spool\"}").await > 0.0);
    assert!(world.bucket.names().iter().all(|name| !name.contains("/results/")), "nothing was brought there");
    assert_eq!(client::get(&kept).await.unwrap().status, 503, "and nothing is believed to be lost");

    for (name, bytes) in all {
        world.bucket.set(name, bytes);
    }
    until("the result to come where it belongs", async || {
        metric(&process.admin_url(), "granary_space_used_bytes{space=\"spool\"}").await == 0.0
    })
    .await;
    assert_eq!(metric(&process.admin_url(), GUARD).await, 0.0);
    for url in [&kept, &waiting] {
        assert_eq!(client::get(url).await.unwrap().status, 200);
    }
    assert_eq!(world.charges(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_marker_that_is_not_ours_nothing_is_believed_to_be_lost() {
    let world = World::new().await;
    let mut process = world.start().await;
    let url = crop(&process, 100).await.result_url();
    process.kill().await;

    world.bucket.set("granary/tset/archive", "tar");
    let mut process = world.with_prefix("granary/tset").start().await.unwrap();
    assert_eq!(client::get(&url).await.unwrap().status, 503);
    is_refused(&process, 100).await;
    let adopt = world.with_prefix("granary/tset").args(["adopt"]);
    process.kill().await;
    let adopted = adopt.run(Duration::from_secs(60)).await;
    assert_eq!(adopted.status.code(), Some(1));
    assert!(adopted.stderr.contains("marker archive"), "{}", adopted.stderr);

    let process = world.start().await;
    assert_eq!(
        cache_status(&crop(&process, 100).await),
        "granary; hit; detail=ledger",
        "nothing was booked as lost"
    );
    assert_eq!((client::get(&url).await.unwrap().status, world.charges()), (200, 1));
}
