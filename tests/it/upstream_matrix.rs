//! What the vendor's documents leave open, as a matrix of fakes: Granary works with each of them, and
//! `granary check --live --spend --report FILE` says which one a real upstream is.
//!
//! Plain http on a vendor's suffix, tried as https first, is in the downloader's own tests: it takes a resolver that
//! can be told what to say.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use granary_kit::ailab::{Behaviour, Coding, FakeAilab, Mutation};
use granary_kit::images;
use granary_kit::process::GranaryProcess;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Granary, bytes_of, cache_status, upstream_section};

const PATIENCE: Duration = Duration::from_secs(60);

/// The answer of today's page of the endpoint.
const LEGACY: &str = r#"{"request_id":"A6697900-DAA5-510F-BF1E-12F51DAD40D1","log_id":"77496025","error_code":0,"error_msg":"","error_detail":{"status_code":200,"code":"","code_message":"","message":""},"data":{"url":"{url}","retain_location":{"width":{width},"height":{height},"y":0,"x":0}}}"#;
/// The same as the newer pages have it.
const NEWER: &str = r#"{"request_id":"R","log_id":"1","error_detail":{"code":"","code_message":"","message":""},"data":{"url":"{url}","retain_location":{"width":{width},"height":{height},"y":0,"x":0}}}"#;

/// One upstream that might be the real one.
struct Row {
    what: &'static str,
    template: String,
    mutation: Mutation,
    prepare: fn(&FakeAilab),
    /// What the report says of it: JSON pointers and values.
    report: Vec<(&'static str, Value)>,
}

fn row(what: &'static str, template: impl Into<String>, report: Vec<(&'static str, Value)>) -> Row {
    Row { what, template: template.into(), mutation: Mutation::default(), prepare: |_| {}, report }
}

fn with_place(place: &str) -> String {
    LEGACY.replace(r#"{"width":{width},"height":{height},"y":0,"x":0}"#, place)
}

/// The picture of the check has 640 by 427 pixels, and 320 by 320 are ordered.
fn rows() -> Vec<Row> {
    let reading = |reading: &str| vec![("/retain_location/reading", json!(reading))];
    vec![
        row(
            "the page's envelope",
            LEGACY,
            vec![
                ("/envelope/generation", json!("legacy")),
                ("/envelope/error_msg", json!(true)),
                ("/envelope/status_code", json!(true)),
                ("/envelope/error_code_str", json!(false)),
                ("/result_url/scheme", json!("http")),
                ("/result_url/host", json!("127.0.0.1")),
                ("/result_url/signed", json!(true)),
                ("/result/size_as_ordered", json!(true)),
                ("/result/bytes_after_end", json!(0)),
                ("/retain_location/reading", json!("visible_area")),
                ("/wrong_key/status", json!(401)),
                ("/wrong_key/code", json!("ERROR_USER_NOT_EXISTS")),
                ("/wrong_key/error_code_str", json!(true)),
                ("/refusal", Value::Null),
                ("/outcome", json!("bought and kept")),
            ],
        ),
        row(
            "no error_code, no error_msg",
            NEWER,
            vec![
                ("/envelope/generation", json!("new")),
                ("/envelope/error_msg", json!(false)),
                ("/envelope/status_code", json!(false)),
            ],
        ),
        row(
            "error_code without error_msg, data first",
            r#"{"data":{"url":"{url}","retain_location":{"x":0,"y":0,"width":{width},"height":{height}}},"error_code":0,"error_detail":{"status_code":200,"code":"","code_message":"","message":""},"log_id":"77496025","request_id":"A669"}"#,
            vec![
                ("/envelope/generation", json!("legacy")),
                ("/envelope/error_msg", json!(false)),
                ("/envelope/fields", json!(["data", "error_code", "error_detail", "log_id", "request_id"])),
            ],
        ),
        row(
            "an empty error_code_str",
            LEGACY.replace(r#""error_msg""#, r#""error_code_str":"","error_msg""#),
            vec![("/envelope/error_code_str", json!(true))],
        ),
        row(
            "the whole scaled original",
            with_place(r#"{"width":480,"height":320,"y":0,"x":-80}"#),
            reading("whole_original"),
        ),
        row(
            "the window that is kept",
            with_place(r#"{"width":427,"height":427,"y":0,"x":106}"#),
            reading("kept_window"),
        ),
        row(
            "a place that fits nothing",
            with_place(r#"{"width":298,"height":224,"y":0,"x":0}"#),
            reading("other"),
        ),
        row("a place in words", with_place(r#"{"width":"320","x":null}"#), reading("not_numbers")),
        row(
            "no place",
            LEGACY.replace(r#","retain_location":{"width":{width},"height":{height},"y":0,"x":0}"#, ""),
            reading("absent"),
        ),
        Row {
            prepare: FakeAilab::sell_png,
            ..row(
                "a PNG for a JPEG",
                LEGACY,
                vec![("/result/sent", json!("image/jpeg")), ("/result/received", json!("image/png"))],
            )
        },
        row(
            "a JPEG for a JPEG",
            LEGACY,
            vec![("/result/sent", json!("image/jpeg")), ("/result/received", json!("image/jpeg"))],
        ),
        Row {
            prepare: |upstream| upstream.sell_urls_for(Duration::from_secs(1800)),
            ..row("a URL that lives for half an hour", LEGACY, vec![])
        },
        Row {
            prepare: FakeAilab::sell_the_same_again,
            ..row("the same again", LEGACY, vec![("/repeat", json!("same"))])
        },
        row("another picture each time", LEGACY, vec![("/repeat", json!("different"))]),
        Row {
            mutation: Mutation {
                before: b"\xEF\xBB\xBF".to_vec(),
                headers: "Content-Encoding: \r\nX-Cache : HIT\r\n".to_owned(),
                ..Mutation::default()
            },
            ..row(
                "a byte order mark and sloppy lines",
                LEGACY,
                vec![("/envelope/generation", json!("legacy"))],
            )
        },
        Row {
            mutation: Mutation { coding: Coding::Gzip, ..Mutation::default() },
            ..row("gzip that was not asked for", LEGACY, vec![("/envelope/generation", json!("legacy"))])
        },
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_upstream_that_may_be_the_real_one_is_served_and_paid_once() {
    for Row { what, template, mutation, prepare, .. } in rows() {
        let upstream = FakeAilab::start().await;
        prepare(&upstream);
        upstream.always(Behaviour::Mutated(template.clone(), mutation));
        let granary = Granary::ailab(&upstream, "").await;
        let answer = granary.crop(None, images::photo_jpeg(), 320, 240).await;
        assert_eq!(answer.status, 200, "{what}: {}", answer.text());
        let body = answer.json();
        for (pointer, value) in [
            ("/error_code", json!(0)),
            ("/error_msg", json!("")),
            ("/error_detail/status_code", json!(200)),
            ("/error_detail/code", json!("")),
        ] {
            assert_eq!(body.pointer(pointer), Some(&value), "{what}: {}", answer.text());
        }
        let sold = template.replace("{width}", "320").replace("{height}", "240").replace("{url}", "u");
        let sold: Value = serde_json::from_str(&sold).unwrap();
        assert_eq!(body.pointer("/data/retain_location"), sold.pointer("/data/retain_location"), "{what}");
        let url = answer.result_url();
        assert!(url.starts_with(&granary.url()), "{what}: {url}");
        assert_eq!(bytes_of(&url).await, upstream.result_bytes(1), "{what}");
        let hit = granary.crop(None, images::photo_jpeg(), 320, 240).await;
        assert!(cache_status(&hit).starts_with("granary; hit") && hit.text() == answer.text(), "{what}");
        assert_eq!((upstream.charges(), upstream.attempts(), upstream.fetches()), (1, 1, 1), "{what}");
    }
}

/// Runs the check with a report; returns what it printed and wrote.
async fn checked(upstream: &FakeAilab, folder: &TempDir) -> (String, String) {
    let report = folder.path().join("report.json");
    let builder = GranaryProcess::builder(env!("CARGO_BIN_EXE_granary"))
        .config_text(upstream_section(upstream, ""))
        .env("GRANARY_STORE_PATH", folder.path().join("store").display().to_string())
        .env("GRANARY_STATE_PATH", folder.path().join("state").display().to_string())
        .args(["check", "--live", "--spend", "--report", report.to_str().unwrap()]);
    let done = builder.run(PATIENCE).await;
    let mode = std::fs::metadata(&report).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    (format!("{}{}", done.stdout, done.stderr), std::fs::read_to_string(&report).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn report_of_a_purchase_says_which_upstream_it_is_and_no_secret() {
    for Row { what, template, mutation, prepare, report: expected } in rows() {
        let upstream = FakeAilab::start().await;
        let folder = TempDir::new().unwrap();
        prepare(&upstream);
        upstream.always(Behaviour::Mutated(template, mutation));
        let (mut printed, mut report) = checked(&upstream, &folder).await;
        let repeats = expected.iter().any(|(pointer, _)| *pointer == "/repeat");
        let first: Value =
            serde_json::from_str(&report).unwrap_or_else(|error| panic!("{what}: {error}\n{printed}"));
        assert_eq!(first.pointer("/repeat"), Some(&json!("unknown")), "{what}");
        if repeats {
            (printed, report) = checked(&upstream, &folder).await;
        }
        let said: Value = serde_json::from_str(&report).unwrap();
        for (pointer, value) in expected {
            assert_eq!(said.pointer(pointer), Some(&value), "{what}: {pointer} in {report}\n{printed}");
        }
        if what.contains("half an hour") {
            let life = said.pointer("/result_url/life_seconds").and_then(Value::as_i64).unwrap();
            assert!((1700..=1800).contains(&life), "{life}");
        }
        // No order goes out with a wrong key.
        assert_eq!(upstream.charges(), upstream.attempts(), "{what}");
        for purchase in upstream.purchases() {
            let path = purchase.url.splitn(4, '/').nth(3).unwrap();
            for text in [&printed, &report] {
                assert!(!text.contains(&purchase.signature) && !text.contains(path), "{what}: {text}");
            }
        }
        assert!(!report.contains(&upstream.api_key()) && !printed.contains(&upstream.api_key()), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn report_of_a_refused_purchase_says_how_it_was_refused() {
    let upstream = FakeAilab::start().await;
    let folder = TempDir::new().unwrap();
    upstream.always(Behaviour::refuse(422, "ERROR_LOW_RESOLUTION"));
    let (printed, report) = checked(&upstream, &folder).await;
    let said: Value = serde_json::from_str(&report).unwrap();
    for (pointer, value) in [
        ("/refusal/status", json!(422)),
        ("/refusal/code", json!("ERROR_LOW_RESOLUTION")),
        ("/refusal/envelope", json!(true)),
        ("/envelope", Value::Null),
        ("/result", Value::Null),
    ] {
        assert_eq!(said.pointer(pointer), Some(&value), "{pointer} in {report}\n{printed}");
    }
    // A file that cannot be written is found out before anything is bought.
    let builder = GranaryProcess::builder(env!("CARGO_BIN_EXE_granary"))
        .config_text(upstream_section(&upstream, ""))
        .args(["check", "--live", "--spend", "--report", "/nowhere/report.json"]);
    let attempts = upstream.attempts();
    let done = builder.run(PATIENCE).await;
    assert_eq!((done.status.code(), upstream.attempts()), (Some(1), attempts), "{}", done.stderr);
    assert!(done.stderr.contains("/nowhere/report.json"), "{}", done.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_documented_error_envelope_passes_through_byte_for_byte() {
    let upstream = FakeAilab::start().await;
    let granary = Granary::ailab(&upstream, "").await;
    for (number, (status, body)) in (0_u32..).zip([
        (422, r#"{"request_id":"R","log_id":"1","error_code":422,"error_detail":{"status_code":422,"code":"ERROR_NO_FACE_IN_FILE","code_message":"No face detected in the file.","message":"pic not has face"},"error_code_str":"FILE_CONTENT_NON_COMPLIANCE","error_msg":"File content - 222202 - pic not has face"}"#),
        (422, r#"{"request_id":"R","log_id":"1","error_detail":{"code":"ERROR_NO_FACE_IN_FILE","code_message":"No face detected in the file.","message":"pic not has face"}}"#),
        (400, r#"{"error_code":400,"error_code_str":"UNSUPPORTED_PARAMETER_VALUES","error_detail":{"status_code":400,"code":"UNSUPPORTED_PARAMETER_VALUES","code_message":"Invalid parameter values.","message":"Invalid parameter values. - person_image: Cannot be empty."},"error_msg":"Invalid parameter values. - person_image: Cannot be empty."}"#),
        (413, r#"{"error_code":413,"error_code_str":"FILE_SIZE_EXCEEDS_LIMIT","error_detail":{"status_code":413,"code":"FILE_SIZE_EXCEEDS_LIMIT","code_message":"File size exceeds limit.","message":"the size of image ranges from 5kb to 5mb"}}"#),
        (415, r#"{"error_code":415,"error_code_str":"UNSUPPORTED_FILE_TYPES"}"#),
        (502, r#"{"error_code":502,"error_detail":{"code":"AI_SERVICE_INTERNAL_ERROR"},"error_msg":"AI service internal error. - 500 - File type not supported"}"#),
    ]) {
        upstream.on_next(Behaviour::raw(status, "application/json", body));
        let answer = granary.crop(None, images::photo_jpeg(), 100 + number, 100).await;
        assert_eq!((answer.status, answer.text().as_str()), (status, body));
    }
    assert_eq!(upstream.charges(), 0);
}
