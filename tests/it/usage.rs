//! Who paid, who was served, what that saved, and whether it agrees with the upstream's account: told by
//! `granary usage`, the admin API and the metrics alike, to the unit.

use std::collections::BTreeMap;
use std::time::Duration;

use granary::http::routes::usage::{UsageReport, UsageRow};
use granary_kit::ailab::{Behaviour, CREDITS_PER_CROP, FakeAilab};
use granary_kit::client::{self, Answer, CROP_PATH, Call};
use granary_kit::form::Form;
use granary_kit::images::tiny_png;
use granary_kit::process::{Finished, GranaryProcess};

use crate::harness::{Granary, metric, real, team, until, upstream_section};

const PATIENCE: Duration = Duration::from_secs(60);
const PRICE: &str = "credit_price = 0.003\nbalance_interval = \"1s\"";

async fn crop(granary: &GranaryProcess, token: &str, n: u64) -> Answer {
    let form = Form::curl(tiny_png(40, 30, n), 20, 20);
    client::post_form(&granary.public_url(), token, &form).await.unwrap()
}

/// The key of what must be a crop.
async fn crops(granary: &GranaryProcess, token: &str, n: u64) -> String {
    let answer = crop(granary, token, n).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.header("granary-key").unwrap().to_owned()
}

/// `granary usage`, for a running process.
async fn usage_verb(granary: &GranaryProcess, arguments: &[&str]) -> String {
    let Finished { status, stdout, stderr } = verb(&granary.admin_url(), arguments).await;
    assert!(status.success() && stderr.is_empty(), "{status} {stderr}");
    stdout
}

async fn verb(admin: &str, arguments: &[&str]) -> Finished {
    let builder = GranaryProcess::builder(env!("CARGO_BIN_EXE_granary"));
    builder.args(["usage", "--admin-url", admin]).args(arguments.iter().copied()).run(PATIENCE).await
}

async fn report(granary: &GranaryProcess) -> UsageReport {
    serde_json::from_str(&usage_verb(granary, &["--json"]).await).unwrap()
}

fn row<'a>(report: &'a UsageReport, team: &str) -> &'a UsageRow {
    report.rows.iter().find(|row| row.team.as_deref() == Some(team)).unwrap()
}

/// What is not 0.
fn counts(all: &BTreeMap<String, u64>) -> Vec<(&str, u64)> {
    all.iter().filter(|(_, count)| **count > 0).map(|(word, count)| (word.as_str(), *count)).collect()
}

/// Ledger, metrics and the upstream's own count are the same; the process has not been started again.
async fn agrees(granary: &GranaryProcess, upstream: &FakeAilab, report: &UsageReport) {
    let charged = i64::try_from(upstream.charges()).unwrap() * CREDITS_PER_CROP;
    assert_eq!(report.total.spent_credits, charged);
    assert_eq!(report.rows.iter().map(|row| row.spent_credits).sum::<i64>(), charged);
    let admin = granary.admin_url();
    for row in &report.rows {
        let name = row.team.as_deref().unwrap();
        let of = |family: &str| format!("{family}{{team=\"{name}\"}}");
        assert_eq!(metric(&admin, &of("granary_credits_spent_total")).await, row.spent_credits as f64);
        assert_eq!(metric(&admin, &of("granary_month_credits")).await, row.spent_credits as f64);
        assert_eq!(metric(&admin, &of("granary_month_saved_credits")).await, row.saved_credits as f64);
        let mut saved = 0.0;
        for (cause, requests) in &row.served {
            let series = format!("granary_credits_saved_total{{cause=\"{cause}\",team=\"{name}\"}}");
            let credits = metric(&admin, &series).await;
            // Of lookups only the first of a key and day saves anything.
            let most = (3 * requests) as f64;
            let is_right = if cause == "hash_first" { credits <= most } else { credits == most };
            assert!(is_right, "{series}: {credits} for {requests} requests");
            saved += credits;
        }
        assert_eq!(saved, row.saved_credits as f64, "{name}");
        for outcome in ["hit_memory", "hit_ledger", "hit_store", "coalesced"] {
            let series = format!("granary_requests_total{{outcome=\"{outcome}\",team=\"{name}\"}}");
            assert_eq!(metric(&admin, &series).await, row.served[outcome] as f64, "{series}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_agrees_with_the_upstream_and_the_metrics_to_the_unit() {
    let upstream = FakeAilab::start().await;
    let (web, web_token) = team("web", "daily_credits = 1500\nmonthly_credits = 6000");
    let (app, app_token) = team("app", "");
    let config =
        format!("{}\n[budget]\nmonthly_credits = 30000\n{web}\n{app}", upstream_section(&upstream, PRICE));
    let builder = real().config_text(config).env("GRANARY_SERVER_DRAIN_GRACE", "0s");
    let mut granary = builder.start().await.unwrap();

    let first = crops(&granary, &web_token, 1).await;
    crops(&granary, &web_token, 2).await;
    crops(&granary, &app_token, 3).await;
    for _ in 0..2 {
        crops(&granary, &web_token, 1).await;
    }
    crops(&granary, &app_token, 1).await;
    crops(&granary, &web_token, 3).await;
    let look_up = format!("{}{CROP_PATH}/{first}", granary.public_url());
    for (method, token) in [("GET", &app_token), ("HEAD", &app_token), ("GET", &web_token)] {
        let answer =
            Call::new(method, &look_up).header("ailabapi-api-key", token.as_str()).send().await.unwrap();
        assert_eq!(answer.status, 200);
    }
    upstream.on_next(Behaviour::refuse(400, "ERROR_PARAMETERS"));
    assert_eq!(crop(&granary, &app_token, 4).await.status, 400);
    // The first one pays, and the others wait for it.
    upstream.on_next(Behaviour::Hold);
    let leader = crops(&granary, &web_token, 5);
    let followers = async {
        upstream.wait_for_held(1).await;
        let release = async {
            let admin = granary.admin_url();
            until("three to wait", async || metric(&admin, "granary_coalesce_followers").await == 3.0).await;
            upstream.release();
        };
        tokio::join!(crops(&granary, &app_token, 5), crops(&granary, &web_token, 5), release)
    };
    tokio::join!(leader, followers);

    let found = report(&granary).await;
    agrees(&granary, &upstream, &found).await;
    let (web, app) = (row(&found, "web"), row(&found, "app"));
    assert_eq!((web.spent_credits, web.bought, web.spent_money.as_deref()), (9, 3, Some("0.027")));
    assert_eq!((app.spent_credits, app.bought), (3, 1));
    assert_eq!(counts(&app.calls), [("refused", 1), ("stored", 1)]);
    assert_eq!(counts(&web.served), [("coalesced", 1), ("hash_first", 1), ("hit_memory", 3)]);
    assert_eq!(counts(&app.served), [("coalesced", 1), ("hash_first", 2), ("hit_memory", 1)]);
    assert_eq!((web.saved_within_credits, web.saved_from_others_credits), (12, 3));
    // Its HEAD would have been no POST.
    assert_eq!((app.saved_within_credits, app.saved_from_others_credits), (0, 9));
    let left: Vec<_> = found.month.teams[1].budgets.iter().map(|budget| budget.left_credits).collect();
    assert_eq!(left, [1491, 5991]);
    assert_eq!(found.month.total.budgets[0].left_credits, 30_000 - 12);
    assert!(found.month.total.forecast_credits >= 12, "{:?}", found.month);

    // The same figures, written differently.
    let csv = usage_verb(&granary, &["--csv", "--by", "team,day"]).await;
    let lines: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    let column =
        |name: &str, line: usize| lines[line][lines[0].iter().position(|column| *column == name).unwrap()];
    let sum =
        |name: &str| (1..lines.len()).map(|line| column(name, line).parse::<i64>().unwrap()).sum::<i64>();
    assert_eq!((sum("spent_credits"), sum("calls_refused"), sum("served_hash_first")), (12, 1, 3));
    assert_eq!((sum("saved_within_credits"), sum("saved_from_others_credits")), (12, 12));
    assert_eq!(column("team", 1), "app");
    let table = usage_verb(&granary, &[]).await;
    let cells = |first: &str| {
        let line = table.lines().find(|line| line.starts_with(first)).unwrap_or_else(|| panic!("{table}"));
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(cells("team")[..5], ["team", "bought", "spent", "cost", "served"]);
    assert_eq!(cells("web"), ["web", "3", "9", "0.027", "5", "15", "12", "3", "0.045"]);
    assert_eq!(cells("total"), ["total", "4", "12", "0.036", "9", "24", "12", "12", "0.072"]);
    assert!(table.contains("1491 of 1500 daily") && table.contains("29988 of 30000 monthly"), "{table}");
    assert!(usage_verb(&granary, &["--by", "day"]).await.contains("\nday "), "a day is no team");

    // What was served a moment before the end is in a batch of its own.
    crops(&granary, &web_token, 1).await;
    granary.terminate();
    assert_eq!(granary.wait_exit(PATIENCE).await.unwrap().code(), Some(0), "{}", granary.stderr_text());
    let mut granary = builder.start().await.unwrap();
    crops(&granary, &web_token, 1).await;
    let again = report(&granary).await;
    let web = row(&again, "web");
    assert_eq!(
        counts(&web.served),
        [("coalesced", 1), ("hash_first", 1), ("hit_ledger", 1), ("hit_memory", 4)]
    );
    assert_eq!((again.total.spent_credits, again.total.saved_credits), (12, 30));

    // A kill takes what was served last, and no money.
    crops(&granary, &app_token, 6).await;
    crops(&granary, &app_token, 6).await;
    granary.kill().await;
    let granary = builder.start().await.unwrap();
    let last = report(&granary).await;
    assert_eq!(last.total.spent_credits, i64::try_from(upstream.charges()).unwrap() * CREDITS_PER_CROP);
    assert!((30..=33).contains(&last.total.saved_credits), "{:?}", last.total);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_balance_is_polled_and_limits_what_a_team_may_still_spend() {
    let upstream = FakeAilab::start().await;
    upstream.set_balance(1000, 0);
    let (web, token) = team("web", "monthly_credits = 600");
    let config = format!("{}\n{web}", upstream_section(&upstream, PRICE));
    let builder = real().config_text(config).env("GRANARY_SERVER_DRAIN_GRACE", "0s");
    let granary = builder.start().await.unwrap();
    let admin = granary.admin_url();
    let balance = async || metric(&admin, "granary_upstream_balance_credits").await;
    until("the first balance", async || balance().await == 1000.0).await;

    for n in 1..=3 {
        crops(&granary, &token, n).await;
    }
    until("the balance to fall", async || balance().await == 991.0).await;
    let charged = metric(&admin, "granary_ledger_credits{state=\"stored\"}").await;
    assert_eq!(charged, 1000.0 - balance().await, "what left the account is in the ledger");

    // Somebody else has the key.
    upstream.set_balance(938, 0);
    until("the balance to fall", async || balance().await == 938.0).await;
    let account = report(&granary).await.account.unwrap();
    assert_eq!((account.balance_credits, account.balance_money.as_deref()), (938, Some("2.814")));
    let table = usage_verb(&granary, &[]).await;
    assert!(table.contains("account: 938 credits left at "), "{table}");

    // Less is left in the account than in the budget.
    let credits = async || {
        let call = Call::new("GET", &format!("{}/api/common/query-credits", granary.public_url()));
        let answer = call.header("ailabapi-api-key", &token).send().await.unwrap().json();
        let pool = &answer["data"][0];
        (pool["balance"].as_u64().unwrap(), pool["total"].as_u64().unwrap())
    };
    assert_eq!(credits().await, (591, 600));
    upstream.set_balance(500, 0);
    until("the balance to be the least", async || credits().await == (500, 600)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hits_are_counted_while_the_ledger_cannot_be_written() {
    let granary = Granary::builtin("").await;
    let crop = async || assert_eq!(granary.crop(None, &tiny_png(40, 30, 1), 20, 20).await.status, 200);
    let report = async || -> UsageReport {
        let answer = client::get(&format!("{}/admin/v1/usage", granary.admin())).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        serde_json::from_slice(&answer.body).unwrap()
    };
    crop().await;
    crop().await;
    assert_eq!((report().await.total.saved_credits, report().await.unbooked_requests), (3, 0));
    let other = granary.ledger_file();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    for _ in 0..5 {
        crop().await;
    }
    let found = report().await;
    assert_eq!((found.total.saved_credits, found.unbooked_requests), (3, 5));
    assert_eq!(granary.metric("granary_usage_unbooked_requests").await, 5.0);
    crop().await;
    other.execute_batch("ROLLBACK").unwrap();
    until("the hits to be booked", async || report().await.unbooked_requests == 0).await;
    assert_eq!(report().await.total.saved_credits, 3 * 7);
    assert_eq!(report().await.total.served["hit_memory"], 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_is_about_the_days_it_was_asked_for() {
    let granary = Granary::builtin("[budget]\ntime_zone = \"Europe/Berlin\"").await;
    let today = || {
        let now = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(granary.clock().ahead());
        now.in_tz("Europe/Berlin").unwrap().date()
    };
    let ask =
        async |query: &str| client::get(&format!("{}/admin/v1/usage{query}", granary.admin())).await.unwrap();
    let first = today();
    granary.crop(None, &tiny_png(40, 30, 1), 20, 20).await;
    granary.clock().turn(40 * 86_400);
    granary.crop(None, &tiny_png(40, 30, 2), 20, 20).await;
    granary.crop(None, &tiny_png(40, 30, 1), 20, 20).await;
    let second = today();

    let days = async |query: &str| {
        let report: UsageReport = serde_json::from_slice(&ask(query).await.body).unwrap();
        report.rows.iter().map(|row| (row.day, row.spent_credits, row.saved_credits)).collect::<Vec<_>>()
    };
    let all = days(&format!("?by=day&from={first}&to={second}")).await;
    assert_eq!(all, [(Some(first), 3, 0), (Some(second), 3, 3)]);
    assert_eq!(days(&format!("?by=team&from={first}&to={second}")).await, [(None, 6, 3)]);
    // The present month.
    assert_eq!(days("?by=team,day").await, [(Some(second), 3, 3)]);
    // The month of the last day.
    assert_eq!(days(&format!("?by=day&to={first}")).await, [(Some(first), 3, 0)]);
    let csv = ask("?format=csv").await;
    assert_eq!(csv.header("content-type"), Some("text/csv; charset=utf-8"));
    assert_eq!(csv.text().lines().count(), 2);

    for (query, expected) in [
        (format!("?from={second}&to={first}"), "before it begins"),
        ("?from=2000-01-01".to_owned(), "ten years"),
        ("?from=yesterday".to_owned(), "cannot be understood"),
        ("?by=colour".to_owned(), "cannot be understood"),
        ("?format=xml".to_owned(), "cannot be understood"),
        ("?team=web".to_owned(), "cannot be understood"),
    ] {
        let answer = ask(&query).await;
        let error = answer.json()["error"].as_str().unwrap_or_default().to_owned();
        assert!(answer.status == 400 && error.contains(expected), "{query}: {} {error}", answer.status);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_granary_that_is_not_there_is_a_failure_at_work() {
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let Finished { status, stdout, stderr } = verb(&format!("http://{nobody}"), &["--json"]).await;
    assert_eq!((status.code(), stdout.as_str()), (Some(1), ""), "{stderr}");
    assert!(
        stderr.starts_with(&format!("granary: the granary at http://{nobody} cannot be asked")),
        "{stderr}"
    );
    let Finished { status, stderr, .. } = verb("http://127.0.0.1:9", &["--json", "--csv"]).await;
    assert_eq!(status.code(), Some(2), "{stderr}");
}
