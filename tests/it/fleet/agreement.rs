//! After everything a fleet may meet but death, all who count agree to the unit: the ledger, the usage report, the
//! metrics of all replicas, what clients were told, and the upstream itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use granary_kit::ailab::{Behaviour, CREDITS_PER_CROP, ResultBehaviour};
use granary_kit::client::{self, Call};
use granary_kit::dice::Dice;
use granary_kit::process::GranaryProcess;
use granary_kit::s3::Fault;

use super::{Fleet, picture};
use crate::harness::{number, team, until};

/// Clients at the same time.
const CLIENTS: u64 = 24;
/// Pictures that are asked for again and again.
const POPULAR: u64 = 60;
/// What one costs.
const CREDITS: u64 = CREDITS_PER_CROP.unsigned_abs();

/// What clients were told.
#[derive(Default)]
struct LogContext {
    statuses: BTreeMap<u16, u64>,
    charged: u64,
    saved: u64,
}

/// One client's requests, until all have been made.
async fn client(seed: u64, urls: [String; 3], tokens: [String; 3], left: Arc<AtomicU64>) -> LogContext {
    let (mut dice, mut told) = (Dice::new(seed), LogContext::default());
    let header = |answer: &client::Answer, name| answer.header(name).map_or(0, |n| n.parse().unwrap());
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
        let (url, token) = (&urls[dice.below(3) as usize], &tokens[dice.below(3) as usize]);
        let seed = if dice.chance(8500) { dice.below(POPULAR) } else { 1000 + dice.below(1_000_000) };
        let kind = dice.below(100);
        let call = match kind {
            0..3 => Call::crop(url, token.as_str(), &picture(seed)).header("Granary-Refresh", "1"),
            3..8 => {
                let image = granary_kit::images::tiny_png(16, 16, seed);
                let key = granary::base::key::CacheKey::of(&image, 64, 64);
                Call::new("GET", &format!("{url}/api/image/editing/image-cropping/{key}"))
                    .header("ailabapi-api-key", token)
            }
            8..10 => Call::crop(url, token.as_str(), &picture(seed).without("width")),
            _ => Call::crop(url, token.as_str(), &picture(seed)),
        };
        let answer = call.send().await.unwrap();
        *told.statuses.entry(answer.status).or_default() += 1;
        told.charged += header(&answer, "granary-credits-charged");
        if !(3..8).contains(&kind) {
            told.saved += header(&answer, "granary-credits-saved");
        }
    }
    told
}

/// The sum over all replicas of all series of a family with this in their labels.
async fn sum(replicas: &[GranaryProcess], family: &str, label: &str) -> u64 {
    let mut sum = 0.0;
    for replica in replicas {
        let text = client::get(&format!("{}/metrics", replica.admin_url())).await.unwrap().text();
        let series = text.lines().filter(|line| line.starts_with(family) && line.contains(label));
        sum += series.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum::<f64>();
    }
    sum as u64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ledger_usage_metrics_clients_and_the_upstream_agree_to_the_unit() {
    let requests = number("FLEET_REQUESTS").unwrap_or(1200);
    let teams = ["app", "batch"].map(|name| team(name, "may_refresh = true"));
    let tables = format!("{}\n{}", teams[0].0, teams[1].0);
    let fleet = Fleet::new("max_concurrency = 8", "may_refresh = true", &tables).await;
    let tokens = [fleet.token.clone(), teams[0].1.clone(), teams[1].1.clone()];
    let replicas = fleet.start::<3>().await;
    let left = Arc::new(AtomicU64::new(requests));
    let urls: [String; 3] = std::array::from_fn(|n| replicas[n].public_url());
    let clients: Vec<_> = (0..CLIENTS)
        .map(|seed| tokio::spawn(client(seed, urls.clone(), tokens.clone(), left.clone())))
        .collect();
    // Everything but death, as long as anybody asks.
    let mut dice = Dice::new(4711);
    let (mut was_frozen, mut call_faults, mut fetch_faults) = (false, 0, 0);
    while !clients.iter().all(|client| client.is_finished()) {
        // No more faults than there are calls and fetches to meet them: what is left over at the end would keep the last
        // results away for as long as it lasts.
        let (calls, fetches) = (fleet.upstream.attempts(), fleet.upstream.fetches());
        match dice.below(12) {
            kind @ 0..8 if calls > 2 * call_faults => {
                call_faults += 1;
                fleet.upstream.on_next(match kind {
                    0..3 => Behaviour::refuse(422, "FILE_DECODING_FAILURE"),
                    3 => Behaviour::CutBeforeAnswer,
                    4 => Behaviour::FlowLimit { status: 429, retry_after: Some(1) },
                    5 => Behaviour::refuse(500, "PROCESSING_FAILURE"),
                    _ => Behaviour::Delay(Duration::from_millis(300)),
                });
            }
            kind @ 8..10 if fetches > 8 * fetch_faults => {
                fetch_faults += 1;
                let cut = kind == 8;
                let fault = if cut { ResultBehaviour::Truncate(20) } else { ResultBehaviour::Reset };
                fleet.upstream.on_next_result(fault);
            }
            10 => fleet.bucket.fail_next(3, Fault::SlowDown),
            11 if !was_frozen && left.load(Ordering::Relaxed) < requests / 2 => {
                was_frozen = true;
                fleet.postgres.freeze();
                tokio::time::sleep(Duration::from_secs(3)).await;
                fleet.postgres.thaw();
            }
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    let mut told = LogContext::default();
    for client in clients {
        let LogContext { statuses, charged, saved } = client.await.unwrap();
        statuses.into_iter().for_each(|(status, n)| *told.statuses.entry(status).or_default() += n);
        (told.charged, told.saved) = (told.charged + charged, told.saved + saved);
    }
    assert_eq!(told.statuses.values().sum::<u64>(), requests);
    let is_open = |state: &str| fleet.rows().contains_key(state);
    let at_rest = async {
        while ["reserved", "sent", "answered"].into_iter().any(is_open) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(100), at_rest).await.is_err() {
        let open = "SELECT id, state, beat, owner, reserved_at, sent_at, answered_at, now() FROM granary.calls \
                    WHERE state IN ('reserved', 'sent', 'answered')";
        let (open, logs) = (
            fleet.sql(open),
            replicas.each_ref().map(|replica| {
                let lines = replica.log_lines();
                let told = lines.iter().filter(|line| line["level"] != "INFO").rev().take(25);
                told.map(|line| format!("{line}\n")).collect::<String>()
            }),
        );
        panic!("not at rest:\n{open}\n{}", logs.join("\n\n"));
    }
    until("an empty spool", async || fleet.sql("SELECT count(*) FROM granary.spool") == "0").await;

    // The ledger and the upstream.
    fleet.check_counters();
    let rows = fleet.rows();
    let of = |state: &str| rows.get(state).copied().unwrap_or(0);
    let (booked, unknown) = (of("stored") + of("unfetchable") + of("lost"), of("unknown"));
    let charges = fleet.upstream.charges();
    assert_eq!(booked + unknown, charges, "{rows:?}: every call of unknown outcome was charged here");
    let credits: u64 = fleet
        .sql("SELECT coalesce(sum(credits), 0) FROM granary.spent WHERE scope = 'global' AND length(period) = 7")
        .parse()
        .unwrap();
    assert_eq!(credits, charges * CREDITS);
    // The metrics of all replicas together.
    let spent = sum(&replicas, "granary_credits_spent_total", "").await;
    assert_eq!(spent, booked * CREDITS);
    for (state, rows) in &rows {
        let fills = sum(&replicas, "granary_fills_total", &format!("state=\"{state}\"")).await;
        assert_eq!(fills, *rows, "{state}");
    }
    let saved = sum(&replicas, "granary_credits_saved_total", "").await;
    // A lookup that is repeated says what a POST would have cost, and saves it once.
    let looked_up = sum(&replicas, "granary_credits_saved_total", "cause=\"hash_first\"").await;
    assert_eq!(saved - looked_up, told.saved, "what POSTs were answered to have saved");
    // A caller who was told to come again, or another one, has bought for nobody: that is spent, and charged to no answer.
    assert!(told.charged <= spent, "{} charged to answers, {spent} spent", told.charged);
    // The usage report, whoever is asked; each books what it has served before it answers.
    let mut reports = Vec::new();
    for _ in 0..2 {
        for replica in &replicas {
            let answer = client::get(&format!("{}/admin/v1/usage", replica.admin_url())).await.unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
            reports.push(answer.json());
        }
    }
    for report in &reports[3..] {
        let total = &report["total"];
        assert_eq!(total["spent_credits"], charges * CREDITS, "{report}");
        assert_eq!(total["saved_credits"], saved, "{report}");
        let team =
            |team: &str| report["rows"].as_array().unwrap().iter().find(|row| row["team"] == team).cloned();
        for name in ["web", "app", "batch"] {
            let sql = format!(
                "SELECT coalesce(sum(credits), 0) FROM granary.calls WHERE team = '{name}' \
                               AND NOT adopted AND state NOT IN ('released', 'refused', 'failed')"
            );
            let spent: u64 = fleet.sql(&sql).parse().unwrap();
            let saved = sum(&replicas, "granary_credits_saved_total", &format!("team=\"{name}\"")).await;
            let row = team(name).unwrap();
            assert_eq!(
                (row["spent_credits"].as_u64(), row["saved_credits"].as_u64()),
                (Some(spent), Some(saved)),
                "{name}"
            );
        }
    }
    println!("{requests} requests: {:?}; {charges} charges, {rows:?}, {saved} credits saved", told.statuses);
}
