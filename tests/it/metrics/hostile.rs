//! Requests made to break something: whatever clients write, the series stay the same, and the log
//! stays lines of JSON in which nothing of it stands.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use granary_kit::ailab::FakeAilab;
use granary_kit::client::{CROP_PATH, Call, RawConnection};
use granary_kit::dice::Dice;
use granary_kit::form::Form;
use granary_kit::images::tiny_png;

use super::names;
use crate::harness::{metric, number, real, team, until, upstream_section};

/// Clients at once.
const CLIENTS: u64 = 8;
/// Stands in everything that is hostile.
const MARK: &str = "h0stile-MARK";

/// One of a list.
fn pick<'a>(dice: &mut Dice, list: &[&'a str]) -> &'a str {
    list[dice.below(list.len() as u64) as usize]
}

/// A word that has not been seen before.
fn word(dice: &mut Dice) -> String {
    format!("{MARK}-{:x}", dice.below(u64::MAX))
}

fn path(dice: &mut Dice) -> String {
    let word = word(dice);
    match dice.below(9) {
        0 => CROP_PATH.to_owned(),
        1 => format!("{CROP_PATH}/{word}"),
        2 => format!("{CROP_PATH}?{word}={word}&api_key={word}"),
        3 => format!("/results/{word}.png"),
        4 => format!("/results/%00%0a%1b[31m{word}"),
        5 => "/api/common/query-credits".to_owned(),
        6 => format!("/{word}/../../etc/passwd?{word}"),
        7 => format!("//{word}@example.com/{{}}%22%0d%0aX:%20{word}"),
        _ => "/".to_owned(),
    }
}

fn request(url: &str, dice: &mut Dice, good_token: &str) -> Call {
    let method = match dice.below(3) {
        0 => word(dice).to_uppercase(),
        _ => pick(dice, &["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"]).to_owned(),
    };
    let target = path(dice);
    if target == CROP_PATH && dice.chance(5000) {
        // A form, of which something is wrong or nothing.
        let width = pick(dice, &["20", "0", "-1", "99999999999999999999", MARK, "2e1"]);
        let form = Form::curl(tiny_png(40, 30, dice.below(4)), width, 20).field(&word(dice), word(dice));
        let token = if dice.chance(5000) { good_token.to_owned() } else { word(dice) };
        return Call::crop(url, token.as_str(), &form).header("traceparent", &word(dice));
    }
    let mut call = Call::new(&method, &format!("{url}{target}"));
    for _ in 0..dice.below(6) {
        let name = pick(
            dice,
            &[
                "User-Agent",
                "Authorization",
                "ailabapi-api-key",
                "Cookie",
                "Origin",
                "traceparent",
                "tracestate",
                "X-Request-Id",
                "Accept",
                "Range",
                "If-None-Match",
                "Expect",
                "Access-Control-Request-Method",
                "Granary-Refresh",
                "Cache-Control",
                "X-Forwarded-For",
                "Content-Type",
                "Referer",
            ],
        );
        let value = match dice.below(5) {
            0 => format!("Bearer granary_{}", word(dice)),
            1 => format!("{{\"{}\":\"\\u001b[31m\"}}", word(dice)),
            2 => word(dice).repeat(40),
            3 => format!("00-{}-01\u{e9}", word(dice)),
            _ => word(dice),
        };
        call = call.header(name, &value);
    }
    if dice.chance(2000) {
        call = call.header("Host", &format!("{}.example.com", word(dice)));
    }
    if dice.chance(2000) { call.body(word(dice).repeat(1 + dice.below(50) as usize)) } else { call }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_requests_leave_the_series_as_they_are_and_no_mark_in_the_log() {
    let requests = number("HOSTILE").unwrap_or(1000);
    let seed = number("HOSTILE_SEED").unwrap_or_else(|| u64::from(getrandom::u32().unwrap()));
    println!("{requests} hostile requests, HOSTILE_SEED={seed}");
    let upstream = FakeAilab::start().await;
    let (table, token) = team("web", "daily_credits = 300\nmonthly_credits = 3000");
    let config = format!("{}\n{table}[log]\nlevel = \"trace\"\n", upstream_section(&upstream, ""));
    let granary = real().config_text(config).env("GRANARY_SERVER_DRAIN_GRACE", "0s").start().await.unwrap();
    let exposition = async || {
        let url = format!("{}/metrics", granary.admin_url());
        granary_kit::client::get(&url).await.unwrap().text()
    };
    let before = exposition().await;

    let (left, answered) = (Arc::new(AtomicU64::new(requests)), Arc::new(AtomicU64::new(0)));
    let clients = (0..CLIENTS).map(|client| {
        let (left, answered) = (left.clone(), answered.clone());
        let (url, token) = (granary.public_url(), token.clone());
        tokio::spawn(async move {
            let mut dice = Dice::new(seed.wrapping_add(client));
            while left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
                let call = request(&url, &mut dice, &token);
                let mut connection = RawConnection::open(&url).await.unwrap();
                // Some are no HTTP at all, and then the connection may end without a word.
                if connection.send(&call.to_bytes()).await.is_ok() && connection.read_status().await.is_some()
                {
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    let answered = answered.load(Ordering::SeqCst);
    assert!(answered > requests * 8 / 10, "only {answered} of {requests} were answered at all");

    let after = exposition().await;
    let (before, after) = (names(&before), names(&after));
    let new: Vec<_> = after.difference(&before).collect();
    let gone: Vec<_> = before.difference(&after).collect();
    assert!(new.is_empty() && gone.is_empty(), "new: {new:#?}, gone: {gone:#?}");
    println!("{} series before and after", after.len());
    // Two figures of the same requests.
    let admin = granary.admin_url();
    let spent = metric(&admin, "granary_credits_spent_total{team=\"web\"}").await;
    assert_eq!(spent, (3 * upstream.charges()) as f64);

    // The control: each has a line, or is counted in one.
    let logged = || {
        let lines = granary.log_lines();
        lines.len() as u64 + lines.iter().filter_map(|line| line["left_out"].as_u64()).sum::<u64>()
    };
    until("the requests in the log", async || logged() > requests / 2).await;
    let log = granary.stderr_text();
    for line in log.lines() {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "no JSON: {line:?}");
        assert!(!line.chars().any(char::is_control), "{line:?}");
        assert!(!line.to_lowercase().contains(&MARK.to_lowercase()), "a client's words: {line}");
        assert!(line.len() < 2048, "{line}");
    }
}
