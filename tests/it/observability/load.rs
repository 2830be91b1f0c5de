//! A day of a Granary in half a minute: every kind of answer, several teams with budgets, faults of the upstream and
//! of the bucket, callers who are wrong; counted as their clients see it.
//!
//! `BOARDS_REQUESTS` is how many come at random beside what is asked for on purpose.

use std::collections::BTreeMap;
use std::time::Duration;

use granary::http::routes::usage::UsageReport;
use granary_kit::ailab::{Behaviour, CREDITS_PER_CROP, FakeAilab, ResultBehaviour};
use granary_kit::client::{self, Answer, CROP_PATH, Call, RawConnection};
use granary_kit::dice::Dice;
use granary_kit::form::Form;
use granary_kit::images::tiny_png;
use granary_kit::process::GranaryProcess;
use granary_kit::prometheus::Prometheus;
use granary_kit::s3::{Fault, S3Server};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::bucket::store_section;
use crate::harness::{Granary, adopt, cache_status, metric, number, real, team, until, upstream_section};

/// Pictures that were bought before this ledger began.
const EARLIER: [u64; 2] = [901, 902];
/// How many ask at once in a crowd.
const CLIENTS: u64 = 8;

/// A Granary with all it needs, and what its clients have seen.
pub(super) struct World {
    pub(super) granary: GranaryProcess,
    upstream: FakeAilab,
    bucket: S3Server,
    tokens: BTreeMap<&'static str, String>,
    /// Crop requests by team and outcome; every refusal and failure is `refused`.
    seen: BTreeMap<(&'static str, &'static str), u64>,
    /// What the upstream had charged, and been asked, before this Granary was there.
    before: (u64, u64),
    _folder: TempDir,
}

impl World {
    pub(super) async fn start() -> Self {
        let (upstream, bucket, folder) =
            (FakeAilab::start().await, S3Server::start().await, TempDir::new().unwrap());
        let store = store_section(&bucket, &folder);
        let earlier = Granary::ailab(&upstream, &store).await;
        for picture in EARLIER {
            assert_eq!(earlier.crop(None, &tiny_png(40, 30, picture), 20, 20).await.status, 200);
        }
        earlier.stop().await;

        let teams = [
            ("web", "daily_credits = 1500\nmonthly_credits = 6000\nmay_refresh = true"),
            // Two crops.
            ("app", "daily_credits = 8"),
            ("batch", "monthly_credits = 900\nmisses_per_second = 0.01"),
            ("guest", "monthly_credits = 3000\nmode = \"shadow\""),
        ];
        let made = teams.map(|(name, more)| (name, team(name, more)));
        let tables: String = made.iter().map(|(_, (table, _))| table.as_str()).collect();
        // Memory for a few answers, so that others are found in the ledger.
        let config = format!(
            "{}\n{store}\n[cache]\nmemory = \"8KiB\"\n[budget]\nmonthly_credits = 30000\n{tables}",
            upstream_section(&upstream, "credit_price = 0.003\nbalance_interval = \"1s\""),
        );
        let before = (upstream.charges(), upstream.attempts());
        let granary =
            real().config_text(config).env("GRANARY_SERVER_DRAIN_GRACE", "0s").start().await.unwrap();
        let tokens = made.into_iter().map(|(name, (_, token))| (name, token)).collect();
        Self { granary, upstream, bucket, tokens, seen: BTreeMap::new(), before, _folder: folder }
    }

    fn call(&self, team: &'static str, picture: u64) -> Call {
        let form = Form::curl(tiny_png(40, 30, picture), 20, 20);
        Call::crop(&self.granary.public_url(), self.tokens[team].as_str(), &form)
    }

    fn saw(&mut self, team: &'static str, answer: &Answer) -> &'static str {
        let outcome = if answer.status == 200 { outcome(answer) } else { "refused" };
        *self.seen.entry((team, outcome)).or_default() += 1;
        outcome
    }

    async fn crop(&mut self, team: &'static str, picture: u64) -> Answer {
        let answer = self.call(team, picture).send().await.unwrap();
        self.saw(team, &answer);
        answer
    }

    async fn crops(&mut self, team: &'static str, picture: u64, expected: &str) -> Answer {
        let answer = self.crop(team, picture).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(outcome(&answer), expected);
        answer
    }

    async fn is_refused(&mut self, team: &'static str, picture: u64, reason: &str) {
        let answer = self.crop(team, picture).await;
        assert_eq!(answer.header("granary-reason"), Some(reason), "{} {}", answer.status, answer.text());
    }

    /// All of it.
    pub(super) async fn load(&mut self, prometheus: &Prometheus) {
        self.answers().await;
        self.refusals().await;
        self.faults_of_the_upstream().await;
        self.bucket_is_away(prometheus).await;
        self.what_else_is_asked().await;
        self.crowd().await;
    }

    async fn answers(&mut self) {
        for picture in EARLIER {
            self.crops("web", picture, "hit_store").await;
        }
        let admin = self.granary.admin_url();
        adopt(&admin).await;
        until("the import to be complete", async || {
            client::get(&format!("{admin}/readyz")).await.unwrap().json()["import"] == "complete"
        })
        .await;
        for picture in 1..=12 {
            self.crops("web", picture, "miss").await;
        }
        self.crops("guest", 13, "miss").await;
        // Which ones memory keeps is its own affair.
        for picture in (1..=12).cycle().take(400) {
            self.crop("guest", picture).await;
            let has = |outcome| self.seen.contains_key(&("guest", outcome));
            if has("hit_memory") && has("hit_ledger") {
                break;
            }
        }
        assert!(self.seen.contains_key(&("guest", "hit_memory")), "{:?}", self.seen);
        assert!(self.seen.contains_key(&("guest", "hit_ledger")), "{:?}", self.seen);
        let refresh = self.call("web", 1).header("Granary-Refresh", "1").send().await.unwrap();
        assert_eq!(self.saw("web", &refresh), "refresh");

        self.upstream.on_next(Behaviour::Hold);
        let (leader, follower) = (self.call("web", 20), self.call("guest", 20));
        let release = async {
            self.upstream.wait_for_held(1).await;
            let admin = self.granary.admin_url();
            let waiting = async || metric(&admin, "granary_coalesce_followers").await == 3.0;
            let followers = async { tokio::join!(follower.send(), follower.send()) };
            let (answers, ()) = tokio::join!(followers, async {
                until("all three to wait", waiting).await;
                self.upstream.release();
            });
            answers
        };
        let (led, (one, other)) = tokio::join!(leader.send(), release);
        assert_eq!(self.saw("web", &led.unwrap()), "miss");
        for followed in [one, other] {
            assert_eq!(self.saw("guest", &followed.unwrap()), "coalesced");
        }
    }

    async fn refusals(&mut self) {
        self.crops("app", 30, "miss").await;
        self.crops("app", 31, "miss").await;
        self.is_refused("app", 32, "team_daily").await;
        self.crops("batch", 33, "miss").await;
        self.is_refused("batch", 34, "rate").await;
        let wrong = Call::crop(
            &self.granary.public_url(),
            self.tokens["web"].as_str(),
            &Form::curl(b"GIF89a", 20, 20),
        );
        let answer = wrong.send().await.unwrap();
        assert_eq!((answer.status, self.saw("web", &answer)), (415, "refused"));
    }

    async fn faults_of_the_upstream(&mut self) {
        self.upstream.on_next(Behaviour::refuse(400, "ERROR_PARAMETERS"));
        assert_eq!(self.crop("web", 40).await.status, 400);
        self.upstream.on_next(Behaviour::refuse(500, "AI_SERVICE_INTERNAL_ERROR"));
        assert_eq!(self.crop("web", 41).await.status, 500);
        self.upstream.on_next(Behaviour::FlowLimit { status: 429, retry_after: Some(1) });
        self.crop("web", 42).await;
        // Charged, and nobody knows.
        self.upstream.on_next(Behaviour::CutBeforeAnswer);
        assert_eq!(self.crop("web", 43).await.status, 502);
        self.is_refused("web", 43, "hold").await;
        // A result that is none, once: it is fetched again.
        self.upstream.on_next_result(ResultBehaviour::Html);
        let mut answer = self.crop("web", 44).await;
        while answer.status != 200 {
            assert_eq!(answer.header("granary-reason"), Some("result_not_fetched"), "{}", answer.text());
            tokio::time::sleep(Duration::from_millis(200)).await;
            answer = self.crop("web", 44).await;
        }
    }

    async fn bucket_is_away(&mut self, prometheus: &Prometheus) {
        self.bucket.fail_always(Fault::SlowDown);
        let spooled = self.crops("web", 50, "miss").await;
        until("a scrape to see the spool", async || {
            let waiting =
                prometheus.query("max(granary_space_used_bytes{space=\"spool\"}) > 0").await.unwrap();
            !waiting.is_empty()
        })
        .await;
        self.bucket.heal();
        assert_eq!(client::get(&spooled.result_url()).await.unwrap().status, 200);
        let admin = self.granary.admin_url();
        until("the spool to be empty", async || {
            metric(&admin, "granary_space_used_bytes{space=\"spool\"}").await == 0.0
        })
        .await;
    }

    async fn what_else_is_asked(&mut self) {
        let base = self.granary.public_url();
        let answer = self.crop("web", 2).await;
        let (url, key) = (answer.result_url(), answer.header("granary-key").unwrap().to_owned());
        let token = self.tokens["web"].as_str();
        let ask = async |method: &str, url: &str, name: &str, value: &str| {
            Call::new(method, url).header(name, value).send().await.unwrap().status
        };
        let look_up = format!("{base}{CROP_PATH}/{key}");
        assert_eq!(ask("GET", &look_up, "ailabapi-api-key", token).await, 200);
        assert_eq!(ask("GET", &look_up.replace(&key[..8], "00000000"), "ailabapi-api-key", token).await, 404);
        for (range, status) in [("bytes=0-1", 206), ("bytes=99999999-", 416), ("lines=1", 200)] {
            assert_eq!(ask("GET", &url, "Range", range).await, status);
        }
        assert_eq!(
            ask(
                "GET",
                &format!("{base}/api/common/query-credits"),
                "Authorization",
                &format!("Bearer {token}")
            )
            .await,
            200
        );
        assert_eq!(ask("GET", &format!("{base}/"), "Accept", "*/*").await, 200);
        assert_eq!(ask("GET", &format!("{base}/wp-login.php"), "Accept", "*/*").await, 404);
        assert_eq!(ask("DELETE", &look_up, "Accept", "*/*").await, 405);
        for (name, value) in
            [("Accept", "*/*"), ("ailabapi-api-key", "granary_guessed"), ("Authorization", "Basic eA==")]
        {
            assert_eq!(ask("GET", &look_up, name, value).await, 401);
        }
        let mut nameless = RawConnection::open(base.trim_start_matches("http://")).await.unwrap();
        nameless.send(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert_eq!(nameless.read_answer(false).await.unwrap().status, 400, "it names no host");
        for verb in ["freeze", "thaw"] {
            let url = format!("{}/admin/v1/{verb}?team=batch", self.granary.admin_url());
            assert_eq!(Call::new("POST", &url).send().await.unwrap().status, 200);
        }
    }

    /// Many at once, for the same pictures and for others, while the upstream is slow now and then, or fails.
    async fn crowd(&mut self) {
        let requests = number("BOARDS_REQUESTS").unwrap_or(200);
        let pictures = (requests / 5).clamp(20, 300);
        let mut dice = Dice::new(requests);
        for round in 0..requests / CLIENTS {
            match round % 10 {
                3 => self.upstream.on_next(Behaviour::refuse(500, "AI_SERVICE_INTERNAL_ERROR")),
                7 => self.upstream.on_next(Behaviour::Delay(Duration::from_millis(100))),
                _ => {}
            }
            let mut asking = JoinSet::new();
            for _ in 0..CLIENTS {
                let team = if dice.below(2) == 0 { "web" } else { "guest" };
                let call = self.call(team, 100 + dice.below(pictures));
                let call =
                    if dice.below(20) == 0 { call.header("Cache-Control", "only-if-cached") } else { call };
                asking.spawn(async move { (team, call.send().await.unwrap()) });
            }
            while let Some(answered) = asking.join_next().await {
                let (team, answer) = answered.unwrap();
                self.saw(team, &answer);
            }
        }
    }

    /// Waits until nothing is on its way any more.
    pub(super) async fn settle(&self) {
        let admin = self.granary.admin_url();
        for (series, value) in [
            ("granary_usage_unbooked_requests", 0.0),
            ("granary_ledger_credits{state=\"answered\"}", 0.0),
            ("granary_upstream_in_flight", 0.0),
            ("granary_store_up", 1.0),
        ] {
            until(&format!("{series} to be {value}"), async || metric(&admin, series).await == value).await;
        }
    }

    pub(super) async fn exposition(&self) -> String {
        client::get(&format!("{}/metrics", self.granary.admin_url())).await.unwrap().text()
    }

    /// Clients, ledger, metrics as Prometheus has them, and the upstream's own count are the same to the unit.
    pub(super) async fn agrees(&self, prometheus: &Prometheus) {
        let sum = async |expression: &str| {
            let found = prometheus.query(expression).await.unwrap();
            found.first().unwrap_or_else(|| panic!("{expression} has no answer")).value
        };
        // Requests.
        for (&(team, outcome), &times) in &self.seen {
            let outcomes = if outcome == "refused" { "rejected|error" } else { outcome };
            let counted =
                sum(&format!("sum(granary_requests_total{{team=\"{team}\", outcome=~\"{outcomes}\"}})"))
                    .await;
            assert_eq!(counted, times as f64, "{team} {outcome}: {:?}", self.seen);
        }
        let requests: u64 = self.seen.values().sum();
        assert_eq!(sum("sum(granary_requests_total)").await, requests as f64);
        // Attempts.
        let attempts = self.upstream.attempts() - self.before.1;
        assert_eq!(sum("sum(granary_upstream_attempts_total)").await, attempts as f64);
        // Credits.
        let report = client::get(&format!("{}/admin/v1/usage", self.granary.admin_url())).await.unwrap();
        let report: UsageReport = serde_json::from_slice(&report.body).unwrap();
        let charged = i64::try_from(self.upstream.charges() - self.before.0).unwrap() * CREDITS_PER_CROP;
        let spent = sum("sum(granary_credits_spent_total)").await + sum("max(granary_unknown_credits)").await;
        assert_eq!((report.total.spent_credits, spent), (charged, charged as f64));
        assert_eq!(sum("sum(max by (team) (granary_month_credits))").await, charged as f64);
        let saved = report.total.saved_credits as f64;
        assert_eq!(sum("sum(granary_credits_saved_total)").await, saved);
        assert_eq!(sum("sum(max by (team) (granary_month_saved_credits))").await, saved);
        println!(
            "observability: {requests} requests, {attempts} attempts, {charged} credits spent, {saved} saved, all agree"
        );
    }
}

/// The word of an answer's `Cache-Status`.
fn outcome(answer: &Answer) -> &'static str {
    match cache_status(answer).as_str() {
        "granary; hit; detail=memory" => "hit_memory",
        "granary; hit; detail=ledger" => "hit_ledger",
        "granary; hit; detail=store" => "hit_store",
        "granary; fwd=uri-miss; fwd-status=200; stored; collapsed" => "coalesced",
        "granary; fwd=uri-miss; fwd-status=200; stored" => "miss",
        "granary; fwd=request; fwd-status=200; stored" => "refresh",
        other => panic!("{other}"),
    }
}
