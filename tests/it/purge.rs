//! What operators change, with the real binary and its verbs: purged keys are bought again and never
//! come back, a freeze outlives restarts, and unknown calls are settled.

use std::time::Duration;

use granary_kit::ailab::{Behaviour, FakeAilab};
use granary_kit::client::{self, Answer, CROP_PATH, Call};
use granary_kit::form::Form;
use granary_kit::images;
use granary_kit::process::{GranaryBuilder, GranaryProcess};
use granary_kit::s3::S3Server;
use tempfile::TempDir;

use crate::harness::{
    adopt, bucket_section, bytes_of, cache_status, metric, real, real_ailab, team, until, upstream_section,
};

const PATIENCE: Duration = Duration::from_secs(30);

async fn crop(granary: &GranaryProcess, width: u32) -> Answer {
    client::post_form(&granary.public_url(), None, &Form::curl(images::photo_jpeg(), width, 300))
        .await
        .unwrap()
}

async fn look_up(granary: &GranaryProcess, key: &str) -> u16 {
    client::get(&format!("{}{CROP_PATH}/{key}", granary.public_url())).await.unwrap().status
}

/// Runs a verb against a running process; returns what it printed.
pub(crate) async fn verb(granary: &GranaryProcess, arguments: &[&str]) -> String {
    let admin = granary.admin_url();
    let builder = GranaryProcess::builder(env!("CARGO_BIN_EXE_granary")).args(arguments.iter().copied());
    let done = builder.args(["--admin-url", &admin]).run(PATIENCE).await;
    assert_eq!(done.status.code(), Some(0), "{arguments:?}: {}", done.stderr);
    assert_eq!(done.stderr, "", "{arguments:?}");
    done.stdout
}

/// The same for one that must fail; returns what it said.
pub(crate) async fn failing_verb(granary: &GranaryProcess, arguments: &[&str]) -> String {
    let admin = granary.admin_url();
    let builder = GranaryProcess::builder(env!("CARGO_BIN_EXE_granary")).args(arguments.iter().copied());
    let done = builder.args(["--admin-url", &admin]).run(PATIENCE).await;
    assert_eq!((done.status.code(), done.stdout.as_str()), (Some(1), ""), "{arguments:?}");
    done.stderr
}

async fn restarted(builder: &GranaryBuilder, mut granary: GranaryProcess) -> GranaryProcess {
    granary.terminate();
    assert_eq!(granary.wait_exit(PATIENCE).await.unwrap().code(), Some(0), "{}", granary.stderr_text());
    builder.start().await.unwrap()
}

/// As on a new machine: the ledger is gone, and an operator says that it is meant so.
async fn restarted_without_ledger(builder: &GranaryBuilder, mut granary: GranaryProcess) -> GranaryProcess {
    granary.kill().await;
    std::fs::remove_dir_all(builder.home().join("granary-data/state")).unwrap();
    let granary = builder.start().await.unwrap();
    adopt(&granary.admin_url()).await;
    granary
}

async fn a_purge_is_for_ever(upstream: &FakeAilab, builder: GranaryBuilder) {
    let granary = builder.start().await.unwrap();
    let first = crop(&granary, 400).await;
    let key = first.header("granary-key").unwrap().to_owned();
    let kept = crop(&granary, 401).await;
    let picture = bytes_of(&first.result_url()).await;
    assert_eq!(upstream.charges(), 2);

    assert!(verb(&granary, &["purge", &key]).await.starts_with("purged: "));
    assert!(verb(&granary, &["purge", &key]).await.starts_with("nothing changed"));
    let said = failing_verb(&granary, &["purge", &"0".repeat(64)]).await;
    assert!(said.contains("nothing is stored under this key"), "{said}");
    assert_eq!(look_up(&granary, &key).await, 404);
    assert_eq!(bytes_of(&first.result_url()).await, picture);

    let granary = restarted(&builder, granary).await;
    assert_eq!(look_up(&granary, &key).await, 404, "after a restart");
    let granary = restarted_without_ledger(&builder, granary).await;
    assert_eq!(look_up(&granary, &key).await, 404, "a new ledger over the old store");
    assert_eq!(bytes_of(&first.result_url()).await, picture);
    assert_eq!(
        cache_status(&crop(&granary, 401).await),
        "granary; hit; detail=store",
        "the other key is there"
    );

    let second = crop(&granary, 400).await;
    assert_eq!(cache_status(&second), "granary; fwd=uri-miss; fwd-status=200; stored");
    assert_eq!(upstream.charges(), 3);
    assert_ne!(second.result_url(), first.result_url());
    assert_eq!(look_up(&granary, &key).await, 200);
    let granary = restarted_without_ledger(&builder, granary).await;
    let again = crop(&granary, 400).await;
    assert_eq!((cache_status(&again).as_str(), again.text()), ("granary; hit; detail=store", second.text()));
    for (url, bytes) in
        [(first.result_url(), Some(picture)), (second.result_url(), None), (kept.result_url(), None)]
    {
        let served = bytes_of(&url).await;
        assert!(bytes.is_none_or(|bytes| bytes == served), "{url}");
    }
    assert_eq!(upstream.charges(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purged_key_is_bought_again_and_what_was_purged_never_comes_back() {
    let upstream = FakeAilab::start().await;
    a_purge_is_for_ever(&upstream, real_ailab(&upstream)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_does_it_come_back_from_a_bucket() {
    let (upstream, bucket) = (FakeAilab::start().await, S3Server::start().await);
    let folder = TempDir::new().unwrap();
    let config =
        format!("{}{}", upstream_section(&upstream, ""), bucket_section(&bucket, &folder, "granary/prod"));
    let builder = real().config_text(config).env("GRANARY_SERVER_DRAIN_GRACE", "0s");
    a_purge_is_for_ever(&upstream, builder).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_purged_while_its_result_waits_for_the_bucket_does_not_come_back_with_it() {
    let (upstream, mut bucket) = (FakeAilab::start().await, S3Server::start().await);
    let folder = TempDir::new().unwrap();
    let config = format!("{}{}", upstream_section(&upstream, ""), bucket_section(&bucket, &folder, ""));
    let builder = real().config_text(config).env("GRANARY_SERVER_DRAIN_GRACE", "0s");
    let granary = builder.start().await.unwrap();
    crop(&granary, 399).await;
    bucket.go_down().await;
    let first = crop(&granary, 400).await;
    assert_eq!(first.status, 200, "{}", first.text());
    let key = first.header("granary-key").unwrap().to_owned();
    let picture = bytes_of(&first.result_url()).await;
    // The ledger has it; the store cannot be asked to forget what it may have.
    let said = failing_verb(&granary, &["purge", &key]).await;
    assert!(said.contains("the key is purged"), "{said}");
    assert_eq!(bytes_of(&first.result_url()).await, picture);
    bucket.come_back().await;
    until("the spool to be empty", async || {
        metric(&granary.admin_url(), "granary_space_used_bytes{space=\"spool\"}").await == 0.0
    })
    .await;
    assert!(verb(&granary, &["purge", &key]).await.starts_with("nothing changed"));
    assert_eq!(look_up(&granary, &key).await, 404);
    let record = format!("records/ailab-v1/{}/{key}.json", &key[..2]);
    assert!(!bucket.names().contains(&record), "{:?}", bucket.names());
    assert!(bucket.names().iter().any(|name| first.result_url().ends_with(name)), "its bytes are there");
    let granary = restarted_without_ledger(&builder, granary).await;
    assert_eq!(look_up(&granary, &key).await, 404);
    assert_eq!(bytes_of(&first.result_url()).await, picture);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_freeze_outlives_a_restart_and_hits_go_on() {
    let upstream = FakeAilab::start().await;
    let builder = real_ailab(&upstream);
    let granary = builder.start().await.unwrap();
    crop(&granary, 400).await;
    assert_eq!(verb(&granary, &["freeze"]).await, "global: frozen, hits go on\n");
    assert!(verb(&granary, &["freeze"]).await.contains("nothing changed"));
    let granary = restarted(&builder, granary).await;
    let refused = crop(&granary, 401).await;
    assert_eq!((refused.status, refused.header("granary-reason")), (429, Some("frozen")));
    assert_eq!(crop(&granary, 400).await.status, 200);
    assert_eq!(metric(&granary.admin_url(), "granary_purchases_blocked{cause=\"frozen\"}").await, 1.0);
    assert_eq!(verb(&granary, &["thaw"]).await, "global: thawed\n");
    assert_eq!(crop(&granary, 401).await.status, 200);
    assert!(failing_verb(&granary, &["freeze", "--team", "nobody"]).await.contains("no such team"));
    assert_eq!(verb(&granary, &["freeze", "--team", "local"]).await, "team:local: frozen, hits go on\n");
    assert_eq!(crop(&granary, 402).await.status, 429);
    assert_eq!(upstream.charges(), 2);
    // A team that is configured no more can still be thawed.
    let (table, token) = team("web", "");
    let with_teams = builder.clone().config_text(format!("{}{table}", upstream_section(&upstream, "")));
    let granary = restarted(&with_teams, granary).await;
    let form = Form::curl(images::photo_jpeg(), 402, 300);
    let bought = client::post_form(&granary.public_url(), token.as_str(), &form).await.unwrap();
    assert_eq!(bought.status, 200, "{}", bought.text());
    assert_eq!(verb(&granary, &["thaw", "--team", "local"]).await, "team:local: thawed\n");
    let audit = client::get(&format!("{}/admin/v1/audit", granary.admin_url())).await.unwrap().json();
    let lines: Vec<String> = audit["lines"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| format!("{} {}", line["action"].as_str().unwrap(), line["subject"].as_str().unwrap()))
        .collect();
    assert_eq!(lines, ["thaw team:local", "freeze team:local", "thaw global", "freeze global"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_call_is_settled_and_its_credits_are_given_back() {
    let upstream = FakeAilab::start().await;
    let (table, token) = team("web", "daily_credits = 6");
    let builder = real_ailab(&upstream).config_text(format!("{}{table}", upstream_section(&upstream, "")));
    let granary = builder.start().await.unwrap();
    let buy = async |granary: &GranaryProcess, width: u32| {
        let form = Form::curl(images::photo_jpeg(), width, 300);
        client::post_form(&granary.public_url(), token.as_str(), &form).await.unwrap()
    };
    assert_eq!(verb(&granary, &["settle"]).await, "no call waits to be settled\n");
    for width in [400, 401] {
        upstream.on_next(Behaviour::CutBeforeAnswer);
        assert_eq!(buy(&granary, width).await.status, 502);
    }
    let unknown = || metric_of(&granary, "granary_unknown_credits");
    assert_eq!(unknown().await, 6.0);
    let refused = buy(&granary, 402).await;
    assert_eq!((refused.status, refused.header("granary-reason")), (429, Some("team_daily")));

    let listed = verb(&granary, &["settle"]).await;
    let ids: Vec<&str> = listed.lines().map(|line| line.split('\t').next().unwrap()).collect();
    assert_eq!(ids.len(), 2, "{listed}");
    assert!(listed.contains("\tweb\t3 credits\t"), "{listed}");
    assert!(verb(&granary, &["settle", ids[0], "charged"]).await.contains("stay counted"));
    assert_eq!(unknown().await, 3.0);
    assert_eq!(buy(&granary, 402).await.status, 429);
    assert!(verb(&granary, &["settle", ids[1], "free"]).await.contains("given back"));
    assert!(verb(&granary, &["settle", ids[1], "free"]).await.contains("nothing changed"));
    assert!(failing_verb(&granary, &["settle", ids[1], "charged"]).await.contains("settled as free before"));
    assert!(failing_verb(&granary, &["settle", "4711", "free"]).await.contains("there is no call 4711"));
    assert_eq!(unknown().await, 0.0);
    assert_eq!(verb(&granary, &["settle"]).await, "no call waits to be settled\n");
    let bought = buy(&granary, 402).await;
    assert_eq!(bought.status, 200, "{}", bought.text());
    assert_eq!(buy(&granary, 403).await.status, 429, "the budget is exact");
    let series = |state: &str| format!("granary_ledger_credits{{state=\"{state}\"}}");
    for (state, credits) in [("unknown", 3.0), ("failed", 3.0), ("stored", 3.0)] {
        assert_eq!(metric_of(&granary, &series(state)).await, credits, "{state}");
    }
}

async fn metric_of(granary: &GranaryProcess, series: &str) -> f64 {
    metric(&granary.admin_url(), series).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adopting_where_nothing_serves_is_in_the_audit_too() {
    let upstream = FakeAilab::start().await;
    let builder = real_ailab(&upstream);
    let mut granary = builder.start().await.unwrap();
    granary.terminate();
    granary.wait_exit(PATIENCE).await.unwrap();
    let adopted = builder.clone().args(["adopt"]).run(PATIENCE).await;
    assert_eq!(adopted.status.code(), Some(0), "{}", adopted.stderr);
    let granary = builder.start().await.unwrap();
    let call = Call::new("GET", &format!("{}/admin/v1/audit", granary.admin_url()));
    let audit = call.send().await.unwrap().json();
    let line = &audit["lines"][0];
    assert_eq!((&line["who"], &line["action"]), (&"command line".into(), &"adopt".into()));
}
