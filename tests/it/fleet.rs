//! Several real processes on one PostgreSQL and one bucket: one paid call per key, budgets exact over all of them,
//! and what a dead one began another finishes.

mod agreement;
mod budgets;
mod deaths;
mod operators;
mod outages;
mod reload;
mod stops;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use granary_kit::ailab::{Behaviour, FakeAilab};
use granary_kit::client::{self, Answer};
use granary_kit::form::Form;
use granary_kit::images;
use granary_kit::postgres::Postgres;
use granary_kit::process::{GranaryBuilder, GranaryProcess};
use granary_kit::s3::S3Server;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::bucket::{path_of, store_section};
use crate::harness::{cache_status, metric, real, team, until, upstream_section, within};

/// How long a `reserved` or `answered` call's owner may be silent.
const LEASE: Duration = Duration::from_secs(15);
/// The same for a `sent` call, with [`HARD_STOP`].
const SENT_LEASE: Duration = Duration::from_secs(24);
/// Seconds that a paid call's answer is waited for.
const HARD_STOP: &str = "4s";

/// What all replicas share.
pub(crate) struct Fleet {
    pub(crate) upstream: FakeAilab,
    pub(crate) bucket: S3Server,
    pub(crate) postgres: Postgres,
    pub(crate) token: String,
    config: String,
    _folder: TempDir,
}

impl Fleet {
    /// With one team, `web`; `upstream` are lines of `[upstream]`, `team_lines` of its `[[team]]`, `more` anything else.
    pub(crate) async fn new(upstream_lines: &str, team_lines: &str, more: &str) -> Self {
        let (upstream, bucket, folder) =
            (FakeAilab::start().await, S3Server::start().await, TempDir::new().unwrap());
        let postgres = Postgres::start();
        postgres.create_database("granary");
        let (table, token) = team("web", team_lines);
        let config = format!(
            "{}\n{}\n[state]\ndatabase_url = \"{}\"\n[server]\ndrain_grace = \"0s\"\nanswer_within = \"8s\"\n\
             public_url = \"http://granary.test\"\n{more}\n{table}",
            upstream_section(&upstream, &format!("hard_stop = \"{HARD_STOP}\"\n{upstream_lines}")),
            store_section(&bucket, &folder),
            postgres.url("granary"),
        );
        Self { upstream, bucket, postgres, token, config, _folder: folder }
    }

    /// How a replica is started: with a state directory of its own.
    pub(crate) fn replica(&self) -> GranaryBuilder {
        real().config_text(self.config.clone())
    }

    /// Starts so many, one after the other.
    pub(crate) async fn start<const N: usize>(&self) -> [GranaryProcess; N] {
        self.start_as(|replica| replica).await
    }

    /// The same, each made by `made` out of what it would be.
    pub(crate) async fn start_as<const N: usize>(
        &self,
        made: impl Fn(GranaryBuilder) -> GranaryBuilder,
    ) -> [GranaryProcess; N] {
        let mut replicas = Vec::new();
        for _ in 0..N {
            replicas.push(made(self.replica()).start().await.unwrap());
        }
        for replica in &replicas {
            until("a replica that pays", async || {
                client::get(&format!("{}/readyz", replica.admin_url())).await.unwrap().json()["paying"]
                    == true
            })
            .await;
        }
        replicas.try_into().unwrap()
    }

    /// Asks a replica for picture `seed`.
    pub(crate) fn ask(&self, replica: &GranaryProcess, seed: u64) -> JoinHandle<std::io::Result<Answer>> {
        let (url, token) = (replica.public_url(), self.token.clone());
        tokio::spawn(async move { client::post_form(&url, token.as_str(), &picture(seed)).await })
    }

    /// Asks again and again, as a client does who is told to, until the answer is 200.
    pub(crate) async fn insist(&self, replica: &GranaryProcess, seed: u64) -> Answer {
        within("a result", async {
            loop {
                let answer = self.ask(replica, seed).await.unwrap().unwrap();
                if answer.status == 200 {
                    return answer;
                }
                assert!(matches!(answer.status, 503 | 504), "{}: {}", answer.status, answer.text());
                assert!(answer.header("retry-after").is_some(), "{}", answer.text());
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        })
        .await
    }

    /// Rows of the ledger in each state.
    pub(crate) fn rows(&self) -> BTreeMap<String, u64> {
        let text = self.sql("SELECT state, count(*) FROM granary.calls GROUP BY state");
        let rows = text.lines().filter_map(|line| line.split_once('|'));
        rows.map(|(state, count)| (state.to_owned(), count.parse().unwrap())).collect()
    }

    pub(crate) fn sql(&self, statement: &str) -> String {
        self.postgres.sql("granary", statement)
    }

    /// Every counter equals the sum over its rows.
    pub(crate) fn check_counters(&self) {
        let wrong = self.sql(
            "WITH sums AS (
                SELECT scope, period, sum(credits) AS credits FROM granary.calls
                CROSS JOIN LATERAL (VALUES ('global', day), ('global', month), ('team:' || team, day), ('team:' || team, month))
                    AS windows (scope, period)
                WHERE adopted IN (false) AND state NOT IN ('released', 'refused', 'failed') GROUP BY scope, period
                UNION ALL SELECT 'refused:' || team, day, sum(credits) FROM granary.calls
                WHERE state = 'refused' AND substr(reason, 1, 3) IN ('400', '413', '415', '422') GROUP BY team, day)
             SELECT scope, period, spent.credits, sums.credits FROM granary.spent FULL JOIN sums USING (scope, period)
             WHERE coalesce(spent.credits, 0) <> coalesce(sums.credits, 0)",
        );
        assert_eq!(wrong.trim(), "", "counters that are not the sum over their rows");
    }
}

/// A series of a replica.
async fn metric_of(replica: &GranaryProcess, series: &str) -> f64 {
    metric(&replica.admin_url(), series).await
}

/// The request for picture `seed`.
pub(crate) fn picture(seed: u64) -> Form {
    Form::curl(images::tiny_png(16, 16, seed), 64, 64)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_identical_requests_over_three_processes_are_one_paid_call() {
    let fleet = Fleet::new("", "", "").await;
    let replicas = fleet.start::<3>().await;
    fleet.upstream.always(Behaviour::Hold);
    let asked: Vec<_> = (0..300).map(|n| fleet.ask(&replicas[n % 3], 1)).collect();
    fleet.upstream.wait_for_held(1).await;
    let sum = async |series: &str| {
        let of = replicas.iter().map(|replica| metric_of(replica, series));
        futures_util::future::join_all(of).await.into_iter().sum::<f64>()
    };
    // One of a hundred makes it, or waits for another process that does.
    let followers = "granary_coalesce_followers_total{scope=";
    until("all to wait", async || {
        (sum(&format!("{followers}\"local\"}}")).await, sum(&format!("{followers}\"cluster\"}}")).await)
            == (297.0, 2.0)
    })
    .await;
    fleet.upstream.release();
    let mut urls = BTreeSet::new();
    for asked in asked {
        let answer = asked.await.unwrap().unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        urls.insert(answer.result_url());
    }
    for scope in ["local", "cluster"] {
        assert_eq!(sum(&format!("granary_coalesce_timeouts_total{{scope=\"{scope}\"}}")).await, 0.0);
    }
    assert_eq!(sum("granary_coalesce_followers_total{scope=\"cluster\"}").await, 2.0);
    assert_eq!((urls.len(), fleet.upstream.attempts(), fleet.upstream.charges()), (1, 1, 1));
    for replica in &replicas {
        let url = format!("{}{}", replica.public_url(), path_of(urls.first().unwrap()));
        assert_eq!(client::get(&url).await.unwrap().status, 200);
    }
    assert_eq!(fleet.rows(), BTreeMap::from([("stored".to_owned(), 1)]));
    fleet.check_counters();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asked_without_a_pause_around_its_completion_by_three_processes_a_key_is_paid_for_once() {
    let fleet = Fleet::new("", "", "").await;
    let replicas = fleet.start::<3>().await;
    for seed in 0..3 {
        fleet.upstream.on_next(Behaviour::Hold);
        let begun = tokio::time::Instant::now();
        let (mut asked, mut released) = (Vec::new(), None);
        // From a second before the result is there to a second after.
        while released.is_none_or(|at: tokio::time::Instant| at.elapsed() < Duration::from_secs(1)) {
            for replica in &replicas {
                asked.push(fleet.ask(replica, seed));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            if released.is_none() && begun.elapsed() > Duration::from_secs(1) {
                fleet.upstream.wait_for_held(1).await;
                fleet.upstream.release();
                released = Some(tokio::time::Instant::now());
            }
        }
        let mut urls = BTreeSet::new();
        let count = asked.len();
        for asked in asked {
            let answer = asked.await.unwrap().unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
            urls.insert(answer.result_url());
        }
        assert_eq!((urls.len(), fleet.upstream.attempts()), (1, seed + 1), "of {count} requests");
    }
    fleet.check_counters();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_freeze_holds_on_every_replica_from_its_commit_on_and_over_restarts() {
    let fleet = Fleet::new("", "", "").await;
    let [one, mut other] = fleet.start::<2>().await;
    fleet.insist(&one, 1).await;
    let brake = |verb: &str| {
        let call = client::Call::new("POST", &format!("{}/admin/v1/{verb}", one.admin_url()));
        async move { assert_eq!(call.send().await.unwrap().status, 200) }
    };
    brake("freeze").await;
    for round in 0..2 {
        for replica in [&one, &other] {
            let hit = fleet.ask(replica, 1).await.unwrap().unwrap();
            assert!(cache_status(&hit).starts_with("granary; hit"), "{}", cache_status(&hit));
            let miss = fleet.ask(replica, 2).await.unwrap().unwrap();
            assert_eq!((miss.status, miss.header("granary-reason")), (429, Some("frozen")), "round {round}");
        }
        other.kill().await;
        other = fleet.replica().start().await.unwrap();
        until("a replica that pays", async || {
            client::get(&format!("{}/readyz", other.admin_url())).await.unwrap().json()["paying"] == true
        })
        .await;
    }
    assert_eq!(fleet.upstream.attempts(), 1);
    brake("thaw").await;
    assert_eq!(fleet.ask(&other, 2).await.unwrap().unwrap().status, 200);
    assert_eq!(fleet.upstream.attempts(), 2);
    assert_eq!(metric(&one.admin_url(), "granary_ledger_credits{state=\"stored\"}").await, 6.0);
}
