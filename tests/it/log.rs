//! The log: a line for each request, with fields that stay, and nobody who waits for it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use granary_kit::ailab::{Behaviour, FakeAilab};
use granary_kit::client::{self, Call, RawConnection};
use granary_kit::form::Form;
use granary_kit::images::tiny_png;
use granary_kit::process::GranaryProcess;
use serde_json::Value;

use crate::harness::{metric, number, real, team, until, upstream_section};

const PATIENCE: Duration = Duration::from_secs(60);
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// The line of the request that was answered with this.
async fn line_of(granary: &GranaryProcess, answer: &client::Answer) -> Value {
    let id = answer.header("x-request-id").unwrap();
    granary.wait_for_line(PATIENCE, |line| line["request_id"] == id).await.expect("each request has its line")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_requests_line_has_the_fields_of_the_readme_and_no_others() {
    let upstream = FakeAilab::start().await;
    let (table, token) = team("web", "");
    let config = format!("{}\n{table}", upstream_section(&upstream, ""));
    let granary = real().config_text(config).env("GRANARY_SERVER_DRAIN_GRACE", "0s").start().await.unwrap();
    let form = Form::curl(tiny_png(40, 30, 1), 20, 20);
    let crop = Call::crop(&granary.public_url(), token.as_str(), &form);
    upstream.on_next(Behaviour::Delay(Duration::from_millis(50)));
    let answer = crop.clone().header("traceparent", &format!("00-{TRACE}-{PARENT}-01")).send().await.unwrap();
    let miss = line_of(&granary, &answer).await;
    for (field, value) in [
        ("level", Value::from("INFO")),
        ("message", "request".into()),
        ("trace_id", TRACE.into()),
        ("parent_id", PARENT.into()),
        ("method", "POST".into()),
        ("route", "crop".into()),
        ("status", 200.into()),
        ("team", "web".into()),
        ("cache", "miss".into()),
        ("key", answer.header("granary-key").unwrap().into()),
        ("credits_charged", 3.into()),
        ("credits_saved", 0.into()),
        ("bytes_in", crop.body_len().into()),
        ("bytes_out", answer.body.len().into()),
        ("upstream_status", 200.into()),
    ] {
        assert_eq!(miss[field], value, "{field} in {miss}");
    }
    let time = |field: &str| miss[field].as_f64().unwrap_or_else(|| panic!("{field} in {miss}"));
    assert!(time("upstream_ms") >= 50.0 && time("waited_ms") >= time("upstream_ms"), "{miss}");
    assert!(time("duration_ms") >= time("waited_ms") - 2.0, "{miss}");

    // Not valid, so it is not there, and its text neither.
    let answer = crop.clone().header("traceparent", "00-evil\\u001b-01").send().await.unwrap();
    let hit = line_of(&granary, &answer).await;
    assert_eq!((&hit["cache"], &hit["credits_saved"]), (&"hit_memory".into(), &3.into()), "{hit}");
    for absent in ["trace_id", "parent_id", "upstream_status", "upstream_ms", "code", "reason"] {
        assert!(hit.get(absent).is_none(), "{absent} in {hit}");
    }
    assert!(!granary.stderr_text().contains("evil"));

    let only_if_cached =
        Call::crop(&granary.public_url(), token.as_str(), &Form::curl(tiny_png(40, 30, 2), 20, 20));
    let answer = only_if_cached.header("Cache-Control", "only-if-cached").send().await.unwrap();
    let refused = line_of(&granary, &answer).await;
    assert_eq!(
        (&refused["status"], &refused["code"], &refused["reason"]),
        (&504.into(), &"AI_SERVICE_TIMEOUT".into(), &"only_if_cached".into()),
        "{refused}"
    );

    let seen: BTreeSet<&str> = [&miss, &hit, &refused]
        .iter()
        .flat_map(|line| line.as_object().unwrap().keys().map(String::as_str))
        .collect();
    let readme = include_str!("../../README.md");
    let rows = readme.lines().skip_while(|line| *line != "| field of a request's line | meaning |").skip(2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    let fields = rows.flat_map(|row| row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2));
    assert_eq!(seen, fields.collect(), "left: the lines; right: the README");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_nobody_reads_holds_up_no_request_and_what_is_lost_is_counted() {
    /// More than wait for the reader, and than fit into a pipe.
    const MORE_THAN_WAIT: u64 = 8000;
    let requests = number("STUCK_LOG").unwrap_or(MORE_THAN_WAIT);
    let mut granary = real().env("GRANARY_SERVER_DRAIN_GRACE", "0s").start().await.unwrap();
    let lost = "granary_log_lines_dropped_total";
    assert_eq!(metric(&granary.admin_url(), lost).await, 0.0);
    granary.stop_reading_stderr();
    // Lines about refusals would be sampled.
    let credits = Call::new("GET", &format!("{}/api/common/query-credits", granary.public_url()));
    let mut connection = RawConnection::open(&granary.public_url()).await.unwrap();
    let mut slowest = Duration::ZERO;
    for _ in 0..requests {
        let begun = Instant::now();
        assert_eq!(connection.call(&credits).await.unwrap().status, 200);
        slowest = slowest.max(begun.elapsed());
    }
    // A purchase, with its four bookings, is made as well.
    let form = Form::curl(tiny_png(40, 30, 1), 20, 20);
    let crop = client::post_form(&granary.public_url(), None, &form).await.unwrap();
    assert_eq!(crop.status, 200, "{}", crop.text());
    assert!(slowest < Duration::from_secs(5), "a request took {slowest:?}");
    let dropped = metric(&granary.admin_url(), lost).await;
    assert!(dropped > 0.0 && dropped < requests as f64, "{dropped}");
    println!("{requests} requests, the slowest took {slowest:?}, {dropped} lines lost");

    let read = granary.log_lines().len();
    granary.read_stderr_again();
    until("the lines that waited", async || granary.log_lines().len() > read + 1000).await;
    line_of(&granary, &client::get(&format!("{}/nowhere", granary.public_url())).await.unwrap()).await;

    // Nor does it hold up the end.
    granary.stop_reading_stderr();
    for _ in 0..requests / 4 {
        connection.call(&credits).await.unwrap();
    }
    granary.terminate();
    let begun = Instant::now();
    until("the end", async || granary.has_exited()).await;
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(granary.wait_exit(PATIENCE).await.unwrap().code(), Some(0));
}
