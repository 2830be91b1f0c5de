//! The ledger in PostgreSQL, under the real program: what its restart and its death are to clients,
//! and which database is refused. Results are in a bucket, as they must be.

use std::path::PathBuf;
use std::time::Duration;

use granary_kit::ailab::{Behaviour, FakeAilab};
use granary_kit::client::{self, Answer};
use granary_kit::form::Form;
use granary_kit::images;
use granary_kit::leak::Secrets;
use granary_kit::postgres::{PASSWORD, Postgres};
use granary_kit::process::{GranaryBuilder, GranaryProcess};
use granary_kit::s3::S3Server;
use tempfile::TempDir;

use crate::bucket::{path_of, store_section};
use crate::harness::{bytes_of, cache_status, real_ailab, until, upstream_section, within};

/// An upstream, a bucket and a database, for processes of the real program.
struct World {
    upstream: FakeAilab,
    bucket: S3Server,
    database: Postgres,
    folder: TempDir,
}

impl World {
    async fn new() -> Self {
        Self::with(Postgres::start()).await
    }

    async fn with(database: Postgres) -> Self {
        let (upstream, bucket) = (FakeAilab::start().await, S3Server::start().await);
        Self { upstream, bucket, database, folder: TempDir::new().unwrap() }
    }

    fn replica(&self, name: &str) -> GranaryBuilder {
        let store = store_section(&self.bucket, &self.folder);
        real_ailab(&self.upstream)
            .config_text(format!("{}\n{store}", upstream_section(&self.upstream, "")))
            .env("GRANARY_STATE_DATABASE_URL", self.database.url("postgres"))
            .state_dir(self.state(name))
    }

    /// Calls by state.
    fn states(&self) -> String {
        let sql = "SELECT state, count(*) FROM granary.calls GROUP BY state ORDER BY state";
        self.database.sql("postgres", sql)
    }

    fn state(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

async fn crop(granary: &GranaryProcess, seed: u64) -> Answer {
    let form = Form::curl(images::tiny_png(24, 24, seed), 40, 40);
    client::post_form(&granary.public_url(), None, &form).await.unwrap()
}

/// Asks for a crop until it is bought.
async fn is_bought_again(granary: &GranaryProcess, seed: u64) {
    until("a miss to be bought", async || crop(granary, seed).await.status == 200).await;
}

/// Asks for a crop until memory has it: nothing is kept there before the ledger's changes are followed.
async fn is_in_memory(granary: &GranaryProcess, seed: u64) {
    until("a hit from memory", async || {
        cache_status(&crop(granary, seed).await) == "granary; hit; detail=memory"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_database_costs_misses_and_no_hit_and_no_money() {
    let world = World::new().await;
    let mut granary = within("a start", world.replica("one").start()).await.unwrap();
    let bought = crop(&granary, 1).await;
    assert_eq!(cache_status(&bought), "granary; fwd=uri-miss; fwd-status=200; stored");
    let bytes = bytes_of(&bought.result_url()).await;
    is_in_memory(&granary, 1).await;
    granary.kill().await;

    // A new process, on another machine for all it knows, finds it in the database.
    let replica = world.replica("two");
    let mut granary = replica.start().await.unwrap();
    let again = crop(&granary, 1).await;
    assert_eq!(cache_status(&again), "granary; hit; detail=ledger");
    let url = format!("{}{}", granary.public_url(), path_of(&bought.result_url()));
    assert_eq!(bytes_of(&url).await, bytes);
    is_in_memory(&granary, 1).await;

    world.database.kill();
    assert_eq!(cache_status(&crop(&granary, 1).await), "granary; hit; detail=memory");
    for seed in 2..12 {
        let refused = crop(&granary, seed).await;
        assert_eq!(refused.status, 503, "{}", refused.text());
        assert!(refused.header("retry-after").is_some());
    }
    granary.kill().await;
    let granary = within("a start without the database", replica.start()).await.unwrap();
    assert_eq!(cache_status(&crop(&granary, 1).await), "granary; hit; detail=store");
    assert_eq!(bytes_of(&url_on(&granary, &bought)).await, bytes);
    assert_eq!(crop(&granary, 2).await.status, 503);
    assert_eq!(world.upstream.attempts(), 1, "nothing was sent without a reservation");

    world.database.restart();
    is_bought_again(&granary, 2).await;
    is_in_memory(&granary, 2).await;
    assert_eq!((world.upstream.charges(), world.upstream.attempts()), (2, 2));
    let states = world.database.sql("postgres", "SELECT state, count(*) FROM granary.calls GROUP BY state");
    assert_eq!(states, "stored|2");
    assert_eq!(world.database.sql("postgres", "SELECT count(*) FROM granary.answers"), "0");
}

fn url_on(granary: &GranaryProcess, answer: &Answer) -> String {
    format!("{}{}", granary.public_url(), path_of(&answer.result_url()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn result_is_answered_while_database_is_dead_and_booked_when_it_is_back() {
    let world = World::new().await;
    let granary = within("a start", world.replica("one").start()).await.unwrap();
    is_bought_again(&granary, 1).await;
    is_in_memory(&granary, 1).await;
    world.upstream.on_next(Behaviour::Hold);
    let client = tokio::spawn({
        let url = granary.public_url();
        async move { client::post_form(&url, None, &Form::curl(images::tiny_png(24, 24, 2), 40, 40)).await }
    });
    world.upstream.wait_for_held(1).await;
    world.database.kill();
    world.upstream.release();
    let answer = within("an answer", client).await.unwrap().unwrap();
    assert_eq!(cache_status(&answer), "granary; fwd=uri-miss; fwd-status=200; stored");
    assert!(bytes_of(&answer.result_url()).await == world.upstream.result_bytes(2), "it is served");
    assert_eq!(crop(&granary, 3).await.status, 503);
    let hit = crop(&granary, 1).await;
    assert_eq!(cache_status(&hit), "granary; hit; detail=memory");

    world.database.restart();
    until("the call to be booked", async || world.states() == "stored|2").await;
    assert_eq!((world.upstream.charges(), world.upstream.attempts()), (2, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn result_whose_process_was_killed_while_database_was_dead_is_booked_by_another_replica() {
    let world = World::new().await;
    // A sent call is taken over after `hard_stop` + 20 s.
    let replica = |name| world.replica(name).env("GRANARY_UPSTREAM_HARD_STOP", "2s");
    let mut granary = within("a start", replica("one").start()).await.unwrap();
    is_bought_again(&granary, 1).await;
    world.upstream.on_next(Behaviour::Hold);
    let client = tokio::spawn({
        let url = granary.public_url();
        async move { client::post_form(&url, None, &Form::curl(images::tiny_png(24, 24, 2), 40, 40)).await }
    });
    world.upstream.wait_for_held(1).await;
    world.database.kill();
    world.upstream.release();
    let answer = within("an answer", client).await.unwrap().unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    granary.kill().await;
    world.upstream.expire_all();
    world.database.restart();
    assert_eq!(world.states(), "sent|1\nstored|1", "as far as the ledger knows");

    let granary = within("a start", replica("two").start()).await.unwrap();
    until("a hit", async || crop(&granary, 2).await.status == 200).await;
    assert_eq!(path_of(&crop(&granary, 2).await.result_url()), path_of(&answer.result_url()));
    let booked = tokio::time::timeout(Duration::from_secs(60), async {
        while world.states() != "stored|2" {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    booked.await.unwrap_or_else(|_| panic!("after a lease of 22 s: {}", world.states()));
    let adopted = world.database.sql("postgres", "SELECT count(*) FROM granary.calls WHERE adopted");
    assert_eq!((adopted.as_str(), world.upstream.attempts()), ("0", 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_databases_address_is_in_no_line_of_the_log_and_in_no_answer() {
    let world = World::new().await;
    let mut granary =
        within("a start", world.replica("one").env("GRANARY_LOG_LEVEL", "trace").start()).await.unwrap();
    is_bought_again(&granary, 1).await;
    let metrics = client::get(&format!("{}/metrics", granary.admin_url())).await.unwrap().text();
    world.database.kill();
    let refused = crop(&granary, 2).await.text();
    let ready = client::get(&format!("{}/readyz", granary.admin_url())).await.unwrap().text();
    assert!(ready.contains("\"ledger\":\"down\""), "{ready}");
    granary.kill().await;
    let secrets = Secrets::new([("password", PASSWORD.to_owned())]);
    let said = [
        ("stderr", granary.stderr_text()),
        ("stdout", granary.stdout_text()),
        ("metrics", metrics),
        ("answer", refused),
        ("readyz", ready),
    ];
    assert_eq!(secrets.find_leaks(said), []);
    assert!(granary.stderr_text().contains("the ledger's database is connected"), "the control: it logs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_tells_of_the_database_and_of_one_that_is_away() {
    let world = World::new().await;
    let check = world.replica("one").args(["check", "--live"]);
    let found = check.run(Duration::from_secs(60)).await;
    assert!(format!("{found:?}").contains("the database can be used, and has 0 calls"), "{found:?}");
    world.database.kill();
    let found = check.run(Duration::from_secs(60)).await;
    let said = format!("{found:?}");
    assert!(said.contains("state.database_url") && !said.contains(PASSWORD), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_may_lose_what_it_confirmed_is_refused() {
    let world = World::with(Postgres::start_with(&["synchronous_commit=off"])).await;
    let Err(refused) = world.replica("one").start().await else { panic!("it started") };
    let said = format!("{refused:?}");
    assert!(said.contains("synchronous_commit"), "{said}");
    let tables = "SELECT count(*) FROM information_schema.schemata WHERE schema_name = 'granary'";
    assert_eq!(world.database.sql("postgres", tables), "0", "and left untouched");
}
