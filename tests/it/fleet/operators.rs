//! What an operator does through one replica holds on all of them: what is purged leaves the memory of each, also of one
//! that was cut off from the database meanwhile; and whoever settles, freezes or reads the audit may ask any of them.

use std::time::Duration;

use granary::base::key::CacheKey;
use granary_kit::ailab::Behaviour;
use granary_kit::client::{Answer, CROP_PATH, Call};
use granary_kit::images;
use granary_kit::process::GranaryProcess;
use granary_kit::proxy::FaultProxy;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Fleet, picture};
use crate::bucket::path_of;
use crate::harness::{bytes_of, cache_status, metric, until, within};
use crate::purge::{failing_verb, verb};

/// How long memory may serve what another replica has purged.
const SEEN_WITHIN: Duration = Duration::from_secs(2);
/// How long the cut lasts: longer than memory is believed, and than the database is waited for.
const CUT: Duration = Duration::from_secs(8);
const FROM_MEMORY: &str = "granary; hit; detail=memory";

fn key(seed: u64) -> String {
    CacheKey::of(&images::tiny_png(16, 16, seed), 64, 64).to_string()
}

impl Fleet {
    /// What a replica has under a key; never spends a credit.
    async fn look_up(&self, replica: &GranaryProcess, seed: u64) -> Answer {
        let url = format!("{}{CROP_PATH}/{}", replica.public_url(), key(seed));
        Call::new("GET", &url).header("ailabapi-api-key", &self.token).send().await.unwrap()
    }

    /// Asks until the answer comes from memory.
    async fn until_in_memory(&self, replica: &GranaryProcess, seed: u64) {
        until("an answer from memory", async || {
            cache_status(&self.look_up(replica, seed).await) == FROM_MEMORY
        })
        .await;
    }
}

async fn admin(method: &str, replica: &GranaryProcess, what: &str) -> Answer {
    Call::new(method, &format!("{}/admin/v1/{what}", replica.admin_url())).send().await.unwrap()
}

async fn purge(replica: &GranaryProcess, seed: u64) -> Value {
    let answer = admin("POST", replica, &format!("keys/{}/purge", key(seed))).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

async fn audit(replica: &GranaryProcess) -> Vec<Value> {
    let answer = admin("GET", replica, "audit").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["lines"].as_array().unwrap().clone()
}

/// The bytes of a result, as a replica serves them.
async fn result(replica: &GranaryProcess, answer: &Answer) -> Vec<u8> {
    bytes_of(&format!("{}{}", replica.public_url(), path_of(&answer.result_url()))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_through_one_replica_is_seen_by_the_other_within_two_seconds() {
    let fleet = Fleet::new("", "", "").await;
    let replicas = fleet.start::<2>().await;
    let [one, other] = &replicas;
    let (first, kept) = (fleet.insist(one, 1).await, fleet.insist(one, 2).await);
    let bytes = result(one, &first).await;
    for seed in [1, 2] {
        fleet.until_in_memory(other, seed).await;
    }

    let purged = purge(one, 1).await;
    assert_eq!((&purged["changed"], &purged["generation"]), (&json!(true), &json!(0)));
    let told = Instant::now();
    assert_eq!(fleet.look_up(one, 1).await.status, 404);
    let seen = within("the other one to see it", async {
        loop {
            let asked = told.elapsed();
            let answer = fleet.look_up(other, 1).await;
            if answer.status == 404 {
                return asked;
            }
            assert_eq!((answer.status, answer.text()), (200, first.text()));
            assert!(asked < SEEN_WITHIN, "asked {asked:?} later, and answered from memory");
        }
    })
    .await;
    println!("seen {seen:?} later");
    let explained = admin("GET", other, &format!("keys/{}", key(1))).await.json();
    for (field, expected) in [
        ("answer", Value::Null),
        ("memory", Value::Null),
        ("record", Value::Null),
        ("purged_up_to", json!(0)),
    ] {
        assert_eq!(explained[field], expected, "{field}: {explained}");
    }
    assert_eq!((explained["calls"].as_array().unwrap().len(), &explained["problems"]), (1, &json!([])));
    assert_eq!(purge(other, 1).await["changed"], false);
    assert_eq!(fleet.upstream.charges(), 2);

    // The next request buys anew, and both answer with that from then on.
    let second = fleet.insist(other, 1).await;
    assert_eq!(cache_status(&second), "granary; fwd=uri-miss; fwd-status=200; stored");
    assert_ne!(second.result_url(), first.result_url());
    for replica in &replicas {
        let hit = fleet.insist(replica, 1).await;
        assert!(cache_status(&hit).starts_with("granary; hit"), "{}", cache_status(&hit));
        assert_eq!(path_of(&hit.result_url()), path_of(&second.result_url()));
        assert_eq!(result(replica, &first).await, bytes, "the old URL");
        assert_ne!(result(replica, &second).await, bytes);
        assert_eq!(fleet.insist(replica, 2).await.text(), kept.text(), "the other key");
    }
    assert_eq!((fleet.upstream.attempts(), fleet.upstream.charges()), (3, 3));
    let lines = audit(one).await;
    assert_eq!(lines, audit(other).await);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!((&lines[0]["action"], &lines[0]["subject"]), (&json!("purge"), &json!(key(1))));
    fleet.check_counters();
}

/// How the way to the database is cut.
#[derive(Clone, Copy)]
enum Cut {
    /// Connections end, and none is taken any more.
    Refused,
    /// They stay open, and nothing comes over them.
    Silent,
}

async fn cut_off_it_goes_on_and_then_believes_no_memory(cut: Cut) {
    let (purged, refreshed, kept, unasked, miss) = (1, 2, 3, 4, 5);
    let fleet = Fleet::new("", "may_refresh = true", "").await;
    let port = fleet.postgres.port();
    let mut way = FaultProxy::start(&format!("127.0.0.1:{port}")).await;
    let database = fleet.postgres.url("granary");
    let through = database.replace(&format!("127.0.0.1:{port}"), way.url().strip_prefix("http://").unwrap());
    assert_ne!(through, database);
    let [one] = fleet.start::<1>().await;
    let [other] = fleet.start_as::<1>(|replica| replica.env("GRANARY_STATE_DATABASE_URL", &through)).await;
    assert!(way.connections() > 0);
    let mut old = Vec::new();
    for seed in [purged, refreshed, kept, unasked] {
        old.push((seed, fleet.insist(&one, seed).await.text()));
        fleet.until_in_memory(&other, seed).await;
    }

    match cut {
        Cut::Refused => way.go_down().await,
        Cut::Silent => way.hold(true),
    }
    let begun = Instant::now();
    for seed in [purged, unasked] {
        assert_eq!(purge(&one, seed).await["changed"], true);
    }
    let refresh = Call::crop(&one.public_url(), fleet.token.as_str(), &picture(refreshed));
    let fresh = refresh.header("Granary-Refresh", "1").send().await.unwrap();
    assert_eq!(fresh.status, 200, "{}", fresh.text());
    assert_eq!(fleet.upstream.charges(), 5);

    // It cannot know, and hits go on; nothing is bought.
    while begun.elapsed() < CUT {
        for (seed, text) in &old {
            let hit = fleet.ask(&other, *seed).await.unwrap().unwrap();
            assert_eq!((hit.status, cache_status(&hit).as_str()), (200, FROM_MEMORY), "{}", hit.text());
            assert_eq!(hit.text(), *text);
        }
    }
    let refused = fleet.ask(&other, miss).await.unwrap().unwrap();
    assert!(matches!(refused.status, 503 | 504), "{}: {}", refused.status, refused.text());
    assert_eq!(fleet.upstream.charges(), 5);

    match cut {
        Cut::Refused => way.come_back().await,
        Cut::Silent => way.hold(false),
    }
    let (back, mut is_known) = (Instant::now(), [false; 2]);
    let (mut is_reached, mut is_believed, mut rounds_since) = (false, false, 0);
    within("memory to be believed again", async {
        // Once it has reached the ledger, what is out of date is never served again.
        while rounds_since < 20 {
            is_believed = is_believed || other.stderr_text().contains("memory is believed");
            is_reached |= is_believed
                || cache_status(&fleet.look_up(&other, kept).await) == "granary; hit; detail=ledger";
            let [gone, newer] = [fleet.look_up(&other, purged).await, fleet.look_up(&other, refreshed).await];
            for (n, (is_old, is_new)) in [
                (gone.status == 200 && gone.text() == old[0].1, gone.status == 404),
                (newer.text() == old[1].1, newer.status == 200 && newer.text() == fresh.text()),
            ]
            .into_iter()
            .enumerate()
            {
                // On a busy machine a question may have no answer in time; that says nothing out of date.
                let is_refused = [&gone, &newer][n].status == 503;
                assert!(is_old || is_new || is_refused, "{}: {}, {}", gone.status, gone.text(), newer.text());
                if is_refused {
                    continue;
                }
                assert!(
                    is_new || !(is_known[n] || is_reached),
                    "{n}: out of date, {:?} later",
                    back.elapsed()
                );
                is_known[n] |= is_new;
            }
            rounds_since += usize::from(is_believed);
        }
    })
    .await;
    // What nobody asked for in between has left its memory all the same.
    assert_eq!(fleet.look_up(&other, unasked).await.status, 404);
    assert_eq!(cache_status(&fleet.look_up(&other, refreshed).await), FROM_MEMORY, "it keeps things again");
    assert_eq!(fleet.look_up(&other, kept).await.text(), old[2].1);
    let anew = fleet.insist(&other, purged).await;
    assert_eq!(cache_status(&anew), "granary; fwd=uri-miss; fwd-status=200; stored");
    assert_eq!(fleet.insist(&other, miss).await.status, 200);
    assert_eq!((fleet.upstream.attempts(), fleet.upstream.charges()), (7, 7));
    fleet.check_counters();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_connections_are_refused_goes_on_and_then_serves_nothing_that_was_purged() {
    cut_off_it_goes_on_and_then_believes_no_memory(Cut::Refused).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_connections_are_silent_goes_on_and_then_serves_nothing_that_was_purged() {
    cut_off_it_goes_on_and_then_believes_no_memory(Cut::Silent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_may_ask_either_replica() {
    let fleet = Fleet::new("", "daily_credits = 9", "").await;
    let replicas = fleet.start::<2>().await;
    let [one, other] = &replicas;
    for (seed, replica) in [(1, one), (2, other), (3, one)] {
        fleet.upstream.on_next(Behaviour::CutBeforeAnswer);
        let doubtful = fleet.ask(replica, seed).await.unwrap().unwrap();
        assert_eq!(doubtful.status, 502, "{}", doubtful.text());
    }
    let reason = async |replica: &GranaryProcess, seed: u64| {
        let refused = fleet.ask(replica, seed).await.unwrap().unwrap();
        assert_eq!(refused.status, 429, "{}", refused.text());
        refused.header("granary-reason").unwrap().to_owned()
    };
    assert_eq!(reason(other, 4).await, "team_daily");
    let listed = verb(one, &["settle"]).await;
    assert_eq!(listed, verb(other, &["settle"]).await);
    let ids: Vec<&str> = listed.lines().map(|line| line.split('\t').next().unwrap()).collect();
    assert_eq!(ids.len(), 3, "{listed}");

    assert!(verb(other, &["settle", ids[0], "free"]).await.contains("given back"));
    assert!(verb(one, &["settle", ids[0], "free"]).await.contains("nothing changed"));
    assert!(failing_verb(one, &["settle", ids[0], "charged"]).await.contains("settled as free before"));
    let bought = fleet.insist(one, 4).await;
    assert_eq!(reason(other, 5).await, "team_daily", "the budget is exact");
    // Two who do not know of each other: one of them is told that it was late.
    let settling = |replica, outcome| admin("POST", replica, outcome);
    let outcomes = ["free", "charged"].map(|outcome| format!("calls/{}/settle?outcome={outcome}", ids[1]));
    let (free, charged) = tokio::join!(settling(one, &outcomes[0]), settling(other, &outcomes[1]));
    let mut statuses = [free.status, charged.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409], "{}, {}", free.text(), charged.text());
    assert!(verb(one, &["settle", ids[2], "charged"]).await.contains("stay counted"));
    for replica in &replicas {
        assert_eq!(verb(replica, &["settle"]).await, "no call waits to be settled\n");
        assert_eq!(metric(&replica.admin_url(), "granary_unknown_credits").await, 0.0);
    }

    assert_eq!(verb(other, &["freeze", "--team", "web"]).await, "team:web: frozen, hits go on\n");
    assert!(verb(one, &["freeze", "--team", "web"]).await.contains("nothing changed"));
    for replica in &replicas {
        assert_eq!(reason(replica, 5).await, "frozen");
        assert_eq!(fleet.insist(replica, 4).await.text(), bought.text());
        let frozen = admin("GET", replica, "frozen").await.json();
        assert_eq!(frozen["frozen"], json!(["team:web"]));
    }
    assert_eq!(verb(one, &["thaw", "--team", "web"]).await, "team:web: thawed\n");
    assert!(verb(one, &["purge", &key(4)]).await.starts_with("purged: "));
    assert!(verb(other, &["purge", &key(4)]).await.starts_with("nothing changed"));
    for replica in &replicas {
        let said = failing_verb(replica, &["purge", &"0".repeat(64)]).await;
        assert!(said.contains("nothing is stored under this key"), "{said}");
    }

    let lines = audit(one).await;
    assert_eq!(lines, audit(other).await);
    let told: Vec<(&str, &str)> = lines
        .iter()
        .map(|line| (line["action"].as_str().unwrap(), line["subject"].as_str().unwrap()))
        .collect();
    let purged = key(4);
    let expected = [
        ("purge", purged.as_str()),
        ("thaw", "team:web"),
        ("freeze", "team:web"),
        ("settle", ids[2]),
        ("settle", ids[1]),
        ("settle", ids[0]),
    ];
    assert_eq!(told, expected);
    assert!(lines.iter().all(|line| line["who"] == "loopback"), "{lines:?}");
    // Rows are the same through both, and so is what is known of a key.
    let calls = admin("GET", one, "calls").await.json();
    assert_eq!(calls, admin("GET", other, "calls").await.json());
    assert_eq!(calls["calls"].as_array().unwrap().len(), 4);
    fleet.check_counters();
}
