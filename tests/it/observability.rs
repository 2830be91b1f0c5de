//! Boards, rules and alerts against a real Prometheus that scrapes the real program under load with faults: each
//! question of each board is answered, and no alert fires without a cause.
//!
//! Grafana itself cannot be had on every machine: what it would send is taken from the boards' files, variables
//! filled in, and asked for by the same HTTP API.

#![expect(clippy::print_stdout, reason = "the figures are what is shown of a run")]

mod boards;
mod documents;
mod load;
mod promql;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, SystemTime};

use granary_kit::prometheus::{Prometheus, promtool};
use serde_json::Value;

use self::boards::boards;
use self::load::World;
use self::promql::{names, selectors};
use crate::harness::until;

/// What is below the repository's root.
fn path(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Pieces of queries to which nothing is the right answer in this run, and why.
const MAY_BE_EMPTY: [(&str, &str); 5] = [
    ("ALERTS{", "no alert fires"),
    ("granary_tls_certificate_expiry_timestamp_seconds > 0", "there is no certificate"),
    ("used_up_timestamp_seconds:forecast{id=~\".*|global\"} <", "every budget lasts"),
    ("granary_connections_closed_total", "there is room for every client, and none is slow"),
    ("fleet:granary_ledger_drift_credits:1d", "it compares moments five minutes apart"),
];

/// Alerts whose cause is in this run, or in a machine that is busy with something else: they may be pending, and the
/// cause is over before they fire.
const MAY_BE_PENDING: [(&str, &str); 10] = [
    ("GranaryOutcomeUnknown", "an answer is cut"),
    ("GranaryUpstreamErrorRatioHigh", "some calls fail"),
    ("GranaryErrorRatioHigh", "and their callers are told so"),
    ("GranaryFlowControl", "AILab throttles once"),
    ("GranaryStoreErrors", "the bucket is away for a moment"),
    ("GranaryStoreDown", "the bucket is away for a moment"),
    ("GranaryBreakerOpen", "it may open when calls fail"),
    ("GranaryHitsSlow", "a busy machine"),
    ("GranaryUpstreamSlow", "a busy machine"),
    ("GranaryQueueSlow", "a busy machine"),
];

/// Alerts whose cause is in this run, and that are to be seen for it.
const MUST_FIRE: [(&str, &str); 1] =
    [("GranaryBudgetUsedUp", "a team asks for three crops, and has credits for two and two thirds")];

/// The example, made for this run: what is scraped, and how often.
fn configuration(target: &str) -> String {
    let mut text = read("deploy/prometheus/prometheus.yaml");
    for (given, ours) in [
        ("scrape_interval: 15s", "scrape_interval: 1s"),
        ("evaluation_interval: 15s", "evaluation_interval: 2s"),
        ("granary:9090", target),
    ] {
        assert!(text.contains(given), "the example has no {given}");
        text = text.replace(given, ours);
    }
    // Nobody is to be woken.
    text[..text.find("alerting:").expect("the example sends alerts")].to_owned()
}

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Waits until everything has been scraped after this moment, and every rule evaluated after that, and again for
/// those that build on others.
async fn seen_all(prometheus: &Prometheus) {
    let asked = now();
    until("a scrape", async || {
        let scraped = prometheus.query("min(timestamp(up))").await.unwrap();
        scraped.first().is_some_and(|sample| sample.value > asked)
    })
    .await;
    for _ in 0..2 {
        let scraped = jiff::Timestamp::now();
        until("the rules to be evaluated", async || {
            let groups = prometheus.api("rules").await;
            let groups = groups["groups"].as_array().unwrap();
            let done = |group: &Value| {
                let at = group["lastEvaluation"].as_str().and_then(|at| at.parse::<jiff::Timestamp>().ok());
                at.is_some_and(|at| at > scraped)
            };
            !groups.is_empty() && groups.iter().all(done)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_question_of_the_boards_is_answered_and_no_alert_fires_without_cause() {
    let mut world = World::start().await;
    let target = world.granary.admin_url().replace("http://", "");
    let prometheus = Prometheus::start(&configuration(&target), &path("deploy/prometheus")).await;
    // Counters are seen at zero first.
    seen_all(&prometheus).await;
    world.load(&prometheus).await;
    world.settle().await;
    seen_all(&prometheus).await;

    let mut wrong = Vec::new();
    questions_are_answered(&prometheus, &mut wrong).await;
    rules_are_well(&prometheus, &mut wrong).await;
    selectors_find_something(&prometheus, &mut wrong).await;
    let exposition = world.exposition().await;
    names_are_exposed(&exposition, &mut wrong);
    let lint = promtool(&["check", "metrics"], exposition.as_bytes());
    if !lint.status.success() {
        wrong.push(format!("promtool check metrics: {}", String::from_utf8_lossy(&lint.stderr)));
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), prometheus.log());
    world.agrees(&prometheus).await;
}

async fn questions_are_answered(prometheus: &Prometheus, wrong: &mut Vec<String>) {
    let mut asked = 0;
    for board in boards() {
        for (question, expression) in board.questions() {
            asked += 1;
            let answer = match prometheus.query(&expression).await {
                Ok(answer) => answer,
                Err(error) => {
                    wrong.push(format!("{}: {question} {expression}: {error}", board.name));
                    continue;
                }
            };
            let is_answered = answer.iter().any(|sample| !sample.value.is_nan());
            if !is_answered && !MAY_BE_EMPTY.iter().any(|(piece, _)| expression.contains(piece)) {
                wrong.push(format!("{}: {question} has no answer: {expression}", board.name));
            }
        }
    }
    println!("observability: {asked} queries of the boards");
    assert!(asked > 100, "{asked}");
}

async fn rules_are_well(prometheus: &Prometheus, wrong: &mut Vec<String>) {
    let rules = prometheus.api("rules").await;
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for rule in
        rules["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap())
    {
        let (name, kind) = (rule["name"].as_str().unwrap(), rule["type"].as_str().unwrap());
        *seen.entry(kind).or_default() += 1;
        if rule["health"] != "ok" {
            wrong.push(format!("{name}: {} {}", rule["health"], rule["lastError"]));
        }
        if kind == "recording" {
            let recorded = prometheus.query(name).await.unwrap();
            let may_be_empty = MAY_BE_EMPTY.iter().any(|(piece, _)| *piece == name);
            if !may_be_empty && !recorded.iter().any(|sample| !sample.value.is_nan()) {
                wrong.push(format!("{name} records nothing: {}", rule["query"]));
            }
        } else {
            let must_fire = MUST_FIRE.iter().any(|(alert, _)| *alert == name);
            let is_expected = match rule["state"].as_str() {
                Some("inactive") => !must_fire,
                Some("pending") => MAY_BE_PENDING.iter().any(|(alert, _)| *alert == name),
                Some("firing") => must_fire,
                _ => false,
            };
            if !is_expected {
                wrong.push(format!("{name} is {}: {}", rule["state"], rule["alerts"]));
            }
        }
    }
    println!("observability: {seen:?} rules");
    assert!(seen["alerting"] > 40 && seen["recording"] > 15, "{seen:?}");
}

/// A label's value that nothing has makes an alert that never fires, and a panel that is empty for ever.
async fn selectors_find_something(prometheus: &Prometheus, wrong: &mut Vec<String>) {
    let rules = prometheus.api("rules").await;
    let rules =
        rules["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap());
    let mut expressions: Vec<String> = rules.map(|rule| rule["query"].as_str().unwrap().to_owned()).collect();
    for board in boards() {
        expressions.extend(board.questions().into_iter().map(|(_, expression)| expression));
    }
    let all: BTreeSet<String> = expressions.iter().flat_map(|expression| selectors(expression)).collect();
    for selector in all.iter().filter(|selector| !selector.starts_with("ALERTS{")) {
        if prometheus.query(&format!("count({selector})")).await.unwrap().is_empty() {
            wrong.push(format!("no series is {selector}"));
        }
    }
    println!("observability: {} selectors", all.len());
    assert!(all.len() > 50, "{all:#?}");
}

/// What the boards, the rules, their tests and the runbook name is told by the program.
fn names_are_exposed(exposition: &str, wrong: &mut Vec<String>) {
    let types = exposition.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let exposed: BTreeSet<String> = types
        .flat_map(|(family, kind)| match kind {
            "histogram" => ["_bucket", "_sum", "_count"].map(|part| format!("{family}{part}")).to_vec(),
            _ => vec![family.to_owned()],
        })
        .collect();
    let recorded: BTreeSet<String> = read("deploy/prometheus/rules/recording.yaml")
        .lines()
        .filter_map(|line| Some(line.trim().strip_prefix("- record: ")?.to_owned()))
        .collect();
    for (file, text) in documents::texts() {
        for name in names(&text) {
            if !exposed.contains(&name) && !recorded.contains(&name) {
                wrong.push(format!("{file} names {name}, which does not exist"));
            }
        }
    }
}

/// How long anything outside of us may take.
const PATIENCE: Duration = Duration::from_secs(60);
