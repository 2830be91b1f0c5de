//! What the real binary keeps across a restart, how it refuses to start, and how it stops.

use std::path::Path;
use std::time::Duration;

use granary_kit::ailab::{Behaviour, FakeAilab, ODD_RETAIN_LOCATION};
use granary_kit::client::{self, Answer, CROP_PATH};
use granary_kit::form::Form;
use granary_kit::images;
use granary_kit::process::{Finished, GranaryBuilder, GranaryProcess};
use image::GenericImageView;
use serde_json::Value;

use crate::harness::{adopt, bytes_of, cache_status, metric, real, real_ailab, until, upstream_section};

/// Longer than any of these processes has a reason to take.
const PATIENCE: Duration = Duration::from_secs(30);

async fn crop(granary: &GranaryProcess, image: &[u8], width: u32, height: u32) -> Answer {
    client::post_form(&granary.public_url(), None, &Form::curl(image, width, height)).await.unwrap()
}

/// The one file there must be below a folder, however deep.
fn only_file(folder: &Path) -> std::path::PathBuf {
    let mut entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    let only = entries.pop().unwrap_or_else(|| panic!("nothing in {}", folder.display()));
    assert!(entries.is_empty(), "more than one in {}: {entries:?}", folder.display());
    if only.is_dir() { only_file(&only) } else { only }
}

/// Crops once, and asks for the same again in ever harder circumstances: at once, after an orderly
/// stop, and after the ledger is gone.
async fn outlives_everything(builder: GranaryBuilder) {
    let mut granary = builder.start().await.unwrap();
    let first = crop(&granary, images::photo_jpeg(), 400, 400).await;
    assert_eq!(first.status, 200, "{}", first.text());
    assert_eq!(cache_status(&first), "granary; fwd=uri-miss; fwd-status=200; stored");
    let (url, json) = (first.result_url(), first.json());
    assert!(url.starts_with(&format!("{}/results/", granary.public_url())), "{url}");
    for side in ["width", "height", "x", "y"] {
        assert!(json["data"]["retain_location"][side].is_i64(), "{json}");
    }
    let picture = bytes_of(&url).await;
    assert_eq!(image::guess_format(&picture).unwrap(), image::ImageFormat::Jpeg);
    assert_eq!(image::load_from_memory(&picture).unwrap().dimensions(), (400, 400));

    let is_the_same = async |granary: &GranaryProcess, status: &str| {
        let again = crop(granary, images::photo_jpeg(), 400, 400).await;
        assert_eq!(cache_status(&again), status);
        assert_eq!(again.text(), first.text());
        assert_eq!(again.header("granary-credits-charged"), Some("0"));
        assert!(bytes_of(&url).await == picture, "other bytes under the same URL");
    };
    is_the_same(&granary, "granary; hit; detail=memory").await;

    granary.terminate();
    assert_eq!(granary.wait_exit(PATIENCE).await.unwrap().code(), Some(0), "{}", granary.stderr_text());
    let mut granary = builder.start().await.unwrap();
    is_the_same(&granary, "granary; hit; detail=ledger").await;
    is_the_same(&granary, "granary; hit; detail=memory").await;

    granary.kill().await;
    let state = builder.home().join("granary-data/state");
    let mut removed = 0;
    for entry in std::fs::read_dir(&state).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().contains("sqlite") {
            std::fs::remove_file(path).unwrap();
            removed += 1;
        }
    }
    assert!(removed > 0, "no ledger in {}", state.display());
    let mut granary = builder.start().await.unwrap();
    is_the_same(&granary, "granary; hit; detail=store").await;
    // Once somebody has said that it is meant so, it is the ledger's; and was not paid for through this one.
    adopt(&granary.admin_url()).await;
    granary.kill().await;
    let mut granary = builder.start().await.unwrap();
    is_the_same(&granary, "granary; hit; detail=ledger").await;
    for state in ["reserved", "sent", "answered", "stored", "unknown"] {
        let series = format!("granary_ledger_credits{{state=\"{state}\"}}");
        assert_eq!(metric(&granary.admin_url(), &series).await, 0.0, "{state}");
    }
    assert_eq!(metric(&granary.admin_url(), "granary_upstream_attempts_total{outcome=\"ok\"}").await, 0.0);
    granary.kill().await;
    let granary = builder.start().await.unwrap();
    is_the_same(&granary, "granary; hit; detail=ledger").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_any_configuration_a_crop_outlives_restarts_and_the_loss_of_the_ledger() {
    outlives_everything(real()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crop_that_was_paid_for_is_never_paid_for_again() {
    let upstream = FakeAilab::start().await;
    outlives_everything(real_ailab(&upstream)).await;
    assert_eq!((upstream.charges(), upstream.attempts(), upstream.fetches()), (1, 1, 1));
}

/// The one sentence a refused start ends with.
fn sentence(finished: &Finished, code: i32) -> &str {
    assert_eq!(finished.status.code(), Some(code), "{}", finished.stderr);
    assert_eq!(finished.stdout, "");
    let mut said = finished.stderr.lines().filter(|line| serde_json::from_str::<Value>(line).is_err());
    let sentence = said.next().unwrap_or_else(|| panic!("it said nothing: {}", finished.stderr));
    assert_eq!(said.next(), None, "more than one sentence");
    sentence
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_is_refused_says_why_in_one_sentence() {
    let builder = real();
    let granary = builder.start().await.unwrap();
    let here = builder.home().display().to_string();

    // The same directory, at other addresses.
    let second = builder.clone().env("GRANARY_SERVER_LISTEN", "127.0.0.1:0").run(PATIENCE).await;
    let said = sentence(&second, 1);
    assert!(said.starts_with("granary: ") && said.contains("in use by another granary"), "{said}");
    assert!(said.contains("state.path"), "{said}");

    // Another directory, at the same address.
    let taken = granary.public_url().strip_prefix("http://").unwrap().to_owned();
    let said = sentence(&real().env("GRANARY_SERVER_LISTEN", &taken).run(PATIENCE).await, 1).to_owned();
    assert!(said.contains("server.listen") && said.contains(&taken), "{said}");
    assert!(said.contains("choose another address"), "{said}");

    for (toml, names) in [
        ("[server]\nlisen = \"127.0.0.1:0\"\n", "server.lisen"),
        ("[upstream]\nkind = \"ailab\"\n", "upstream.api_key"),
        (
            "[server]\nlisten = \"0.0.0.0:8080\"\npublic_url = \"https://granary.example.com\"\n",
            "server.listen",
        ),
    ] {
        let builder = real().without_env("GRANARY_SERVER_LISTEN").config_text(toml);
        let said = sentence(&builder.run(PATIENCE).await, 3).to_owned();
        assert!(said.contains(names), "{said}");
    }
    let said = sentence(&real().env("GRANARY_CACHE_MEMORY", "plenty").run(PATIENCE).await, 3).to_owned();
    assert!(said.contains("GRANARY_CACHE_MEMORY") || said.contains("cache.memory"), "{said}");

    // None of them disturbed the one that runs.
    assert_eq!(client::get(&format!("{}/readyz", granary.admin_url())).await.unwrap().status, 200);
    assert!(Path::new(&here).join("granary-data/state/lock").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn told_to_stop_it_serves_on_a_little_and_answers_whoever_waits_for_a_paid_call() {
    let upstream = FakeAilab::start().await;
    let builder = real().config_text(upstream_section(&upstream, ""));
    let mut granary = builder.start().await.unwrap();
    let kept = crop(&granary, images::photo_jpeg(), 100, 100).await;
    assert_eq!(kept.status, 200, "{}", kept.text());
    upstream.always(Behaviour::Hold);
    let waiting = tokio::spawn({
        let url = granary.public_url();
        async move { client::post_form(&url, None, &Form::curl(images::photo_jpeg(), 200, 200)).await.unwrap() }
    });
    upstream.wait_for_held(1).await;

    granary.terminate();
    let readyz = format!("{}/readyz", granary.admin_url());
    assert!(granary.wait_for_line(PATIENCE, |line| line.to_string().contains("stopping")).await.is_some());
    let unready = client::get(&readyz).await.unwrap();
    assert_eq!((unready.status, &unready.json()["ready"]), (503, &Value::Bool(false)));
    let hit = crop(&granary, images::photo_jpeg(), 100, 100).await;
    assert_eq!(cache_status(&hit), "granary; hit; detail=memory");
    assert_eq!(bytes_of(&kept.result_url()).await, upstream.result_bytes(1));

    // Now the listener closes; the call goes on, and so does whoever waits for it.
    let public = granary.public_url();
    until("the listener to close", async || client::get(&public).await.is_err()).await;
    assert!(!granary.has_exited() && !waiting.is_finished());
    upstream.release();
    let answer = waiting.await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(cache_status(&answer), "granary; fwd=uri-miss; fwd-status=200; stored");
    assert_eq!(granary.wait_exit(PATIENCE).await.unwrap().code(), Some(0), "{}", granary.stderr_text());

    let granary = builder.start().await.unwrap();
    assert_eq!(metric(&granary.admin_url(), "granary_ledger_credits{state=\"stored\"}").await, 6.0);
    assert_eq!(bytes_of(&answer.result_url()).await, upstream.result_bytes(2));
    let again = crop(&granary, images::photo_jpeg(), 200, 200).await;
    assert_eq!((cache_status(&again), again.text()), ("granary; hit; detail=ledger".into(), answer.text()));
    assert_eq!((upstream.charges(), upstream.attempts()), (2, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queued_miss_is_told_of_the_stop_and_costs_nothing() {
    let upstream = FakeAilab::start().await;
    upstream.always(Behaviour::Hold);
    let config = upstream_section(&upstream, "concurrency = 1");
    let builder = real_ailab(&upstream).config_text(config);
    let mut granary = builder.start().await.unwrap();
    let ask = |size| {
        let url = granary.public_url();
        let form = Form::curl(images::photo_jpeg(), size, size);
        tokio::spawn(async move { client::post_form(&url, None, &form).await.unwrap() })
    };
    let paid = ask(100);
    upstream.wait_for_held(1).await;
    let queued = ask(200);
    let admin = granary.admin_url();
    until("the second to queue", async || {
        metric(&admin, "granary_upstream_queue_depth{team=\"local\"}").await == 1.0
    })
    .await;
    granary.terminate();
    let public = granary.public_url();
    until("the listener to close", async || client::get(&public).await.is_err()).await;
    upstream.release();
    assert_eq!(paid.await.unwrap().status, 200);
    let queued = queued.await.unwrap();
    assert_eq!((queued.status, queued.header("granary-reason")), (503, Some("draining")));
    assert_eq!(granary.wait_exit(PATIENCE).await.unwrap().code(), Some(0));
    assert_eq!((upstream.charges(), upstream.attempts()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_object_is_bought_again_under_a_higher_generation() {
    let upstream = FakeAilab::start().await;
    let builder = real_ailab(&upstream);
    let store = builder.home().join("granary-data/store");
    let mut granary = builder.start().await.unwrap();
    let old = crop(&granary, images::photo_jpeg(), 100, 100).await.result_url();
    granary.kill().await;
    std::fs::remove_file(only_file(&store.join("results"))).unwrap();

    let mut granary = builder.start().await.unwrap();
    let bought = crop(&granary, images::photo_jpeg(), 100, 100).await;
    assert_eq!(cache_status(&bought), "granary; fwd=uri-miss; fwd-status=200; stored");
    let new = bought.result_url();
    assert_ne!(new, old);
    assert_eq!(bytes_of(&new).await, upstream.result_bytes(2));
    let credits = async |granary: &GranaryProcess, state: &str| {
        metric(&granary.admin_url(), &format!("granary_ledger_credits{{state=\"{state}\"}}")).await
    };
    assert_eq!((credits(&granary, "lost").await, credits(&granary, "stored").await), (3.0, 3.0));
    let record: Value =
        serde_json::from_slice(&std::fs::read(only_file(&store.join("records"))).unwrap()).unwrap();
    assert_eq!(record["generation"], 1, "{record}");

    granary.kill().await;
    let mut granary = builder.start().await.unwrap();
    let again = crop(&granary, images::photo_jpeg(), 100, 100).await;
    assert_eq!(
        (cache_status(&again), again.result_url()),
        ("granary; hit; detail=ledger".into(), new.clone())
    );
    // A ledger that knows nothing believes the record that stands.
    granary.kill().await;
    std::fs::remove_dir_all(builder.home().join("granary-data/state")).unwrap();
    let granary = builder.start().await.unwrap();
    let again = crop(&granary, images::photo_jpeg(), 100, 100).await;
    assert_eq!((cache_status(&again), again.result_url()), ("granary; hit; detail=store".into(), new));
    assert_eq!(upstream.charges(), 2);
}

/// JSON without the blanks between its tokens.
fn packed(text: &str) -> String {
    let (mut packed, mut in_string, mut escaped) = (String::new(), false, false);
    for letter in text.chars() {
        if in_string || !letter.is_ascii_whitespace() {
            packed.push(letter);
        }
        in_string = if escaped { in_string } else { in_string != (letter == '"') };
        escaped = in_string && !escaped && letter == '\\';
    }
    packed
}

/// The answers to one request from memory, ledger and store, which must be the same to the byte.
async fn from_every_tier(upstream: &FakeAilab) -> Answer {
    let builder = real_ailab(upstream);
    let mut granary = builder.start().await.unwrap();
    let bought = crop(&granary, images::photo_png(), 123, 77).await;
    assert_eq!(bought.status, 200, "{}", bought.text());
    let same = async |granary: &GranaryProcess, status: &str| {
        let again = crop(granary, images::photo_png(), 123, 77).await;
        assert_eq!((cache_status(&again).as_str(), again.text()), (status, bought.text()));
        let key = bought.header("granary-key").unwrap();
        let url = format!("{}{CROP_PATH}/{key}", granary.public_url());
        assert_eq!(client::get(&url).await.unwrap().text(), bought.text());
    };
    same(&granary, "granary; hit; detail=memory").await;
    granary.kill().await;
    let mut granary = builder.start().await.unwrap();
    same(&granary, "granary; hit; detail=ledger").await;
    granary.kill().await;
    std::fs::remove_dir_all(builder.home().join("granary-data/state")).unwrap();
    let granary = builder.start().await.unwrap();
    same(&granary, "granary; hit; detail=store").await;
    let leaked = bought.text().contains(&upstream.last_signature().unwrap());
    assert!(!leaked, "the upstream's own URL is in the answer");
    assert_eq!(upstream.charges(), 1);
    bought
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_replayed_as_it_was_spelled() {
    let upstream = FakeAilab::start().await;
    upstream.always(Behaviour::ExtraFields);
    let answer = from_every_tier(&upstream).await;
    let (text, json) = (answer.text(), answer.json());
    // Numbers no float keeps, escapes, blanks and order, inside every field of the upstream's.
    for piece in [
        format!("\"retain_location\":{ODD_RETAIN_LOCATION}"),
        r#""trace":{"z":1,"a":[1,2 ,3]}"#.to_owned(),
        r#""big":12345678901234567890123"#.to_owned(),
        r#""model":"crop-\u00e9""#.to_owned(),
        r#"{"message":"","code":"","status_code":200,"code_message":""}"#.to_owned(),
    ] {
        assert!(text.contains(&piece), "{piece} is not in {text}");
    }
    let expected = format!(
        r#"{{"trace":{{"z":1,"a":[1,2,3]}},"request_id":{},"error_code":0,"big":12345678901234567890123,"data":{{"model":"crop-\u00e9","retain_location":{},"url":{},"mask":null}},"error_detail":{{"message":"","code":"","status_code":200,"code_message":""}},"error_msg":"","log_id":{},"usage":{{"credits":3}}}}"#,
        json["request_id"],
        packed(ODD_RETAIN_LOCATION),
        json["data"]["url"],
        json["log_id"],
    );
    assert_eq!(packed(&text), expected);
    assert_eq!(json["data"]["retain_location"]["x"], -156);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_newer_upstream_leaves_out_is_added() {
    let upstream = FakeAilab::start().await;
    upstream.always(Behaviour::NewEnvelope);
    let answer = from_every_tier(&upstream).await;
    let json = answer.json();
    assert_eq!((&json["error_code"], &json["error_msg"]), (&Value::from(0), &Value::from("")));
    assert_eq!(json["error_detail"]["status_code"], 200);
    assert!(answer.text().contains(r#""error_code":0"#), "an integer, spelled as one: {}", answer.text());
    assert_eq!(json["data"]["retain_location"].to_string(), r#"{"height":77,"width":123,"x":0,"y":0}"#);
    // What the upstream did send stands first, in its order.
    let place =
        |name: &str| answer.text().find(&format!("\"{name}\":")).unwrap_or_else(|| panic!("no {name}"));
    let order = ["request_id", "log_id", "error_detail", "data", "error_code", "error_msg"];
    assert!(order.windows(2).all(|pair| place(pair[0]) < place(pair[1])), "{}", answer.text());
}
