//! The upstream under fire: how often it is called and what it charges, what callers are told, and how
//! soon all is well again. The fake AILab counts; what takes minutes is tested in paused time instead.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use granary_kit::ailab::{Behaviour, FakeAilab, ResultBehaviour};
use granary_kit::client::{self, Answer, Call};
use granary_kit::form::Form;
use granary_kit::images;
use tokio::task::JoinHandle;

use crate::harness::{Granary, cache_status, real, team, until, upstream_section, within};

/// What a caller was told, in short: status and reason.
fn told(answer: &Answer) -> (u16, String) {
    (answer.status, answer.header("granary-reason").unwrap_or_default().to_owned())
}

fn is_told(answer: &Answer, status: u16, reason: &str) {
    assert_eq!(told(answer), (status, reason.to_owned()), "{}", answer.text());
}

/// A crop of its own for each number, asked for in a task.
fn ask(url: &str, token: Option<&str>, number: u32) -> JoinHandle<Answer> {
    let (url, token) = (url.to_owned(), token.map(str::to_owned));
    let form = Form::curl(images::tiny_png(16, 16, 1), 20 + number % 1000, 20 + number / 1000);
    tokio::spawn(async move { client::post_form(&url, token.as_deref(), &form).await.unwrap() })
}

async fn ask_many(url: &str, numbers: std::ops::Range<u32>) -> Vec<Answer> {
    let asking: Vec<_> = numbers.map(|number| ask(url, None, number)).collect();
    let mut answers = Vec::new();
    for asking in asking {
        answers.push(asking.await.unwrap());
    }
    answers
}

fn count(answers: &[Answer]) -> BTreeMap<(u16, String), usize> {
    let mut count = BTreeMap::new();
    answers.iter().for_each(|answer| *count.entry(told(answer)).or_default() += 1);
    count
}

async fn is_hit(granary: &Granary, number: u32) {
    let hit = ask(&granary.url(), None, number).await.unwrap();
    assert!(cache_status(&hit).starts_with("granary; hit"), "{hit:?}");
}

async fn nothing_is_reserved(granary: &Granary) {
    for state in ["reserved", "sent"] {
        let series = format!("granary_ledger_credits{{state=\"{state}\"}}");
        assert_eq!(granary.metric(&series).await, 0.0, "{state}");
    }
}

const CALLS: &str = "granary_upstream_attempts_total";

/// Clients that keep asking for something new, each as soon as it has its answer, and the hits of one
/// picture beside them.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<BTreeMap<(u16, String), u64>>>,
    next: Arc<AtomicU64>,
}

impl Load {
    fn start(url: &str, clients: usize, pause: Duration) -> Self {
        let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(10_000)));
        let clients = (0..clients)
            .map(|_| {
                let (url, stop, next) = (url.to_owned(), stop.clone(), next.clone());
                tokio::spawn(async move {
                    let mut ends = BTreeMap::new();
                    while !stop.load(Ordering::SeqCst) {
                        let number = u32::try_from(next.fetch_add(1, Ordering::SeqCst)).unwrap();
                        let answer = ask(&url, None, number).await.unwrap();
                        *ends.entry(told(&answer)).or_default() += 1;
                        tokio::time::sleep(pause).await;
                    }
                    ends
                })
            })
            .collect();
        Self { stop, clients, next }
    }

    /// Pictures asked for so far.
    fn offered(&self) -> u64 {
        self.next.load(Ordering::SeqCst) - 10_000
    }

    async fn stop(self) -> BTreeMap<(u16, String), u64> {
        self.stop.store(true, Ordering::SeqCst);
        let mut all: BTreeMap<(u16, String), u64> = BTreeMap::new();
        for client in self.clients {
            for (end, times) in client.await.unwrap() {
                *all.entry(end).or_default() += times;
            }
        }
        all
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_account_is_called_no_more_than_was_in_flight_and_again_once_it_is_filled() {
    let upstream = FakeAilab::start().await;
    let granary = Granary::ailab(&upstream, "").await;
    assert_eq!(ask(&granary.url(), None, 0).await.unwrap().status, 200);
    upstream.set_balance(0, 0);
    let answers = ask_many(&granary.url(), 1..60).await;
    assert_eq!(count(&answers), [((429, "upstream_credits".to_owned()), 59)].into());
    for answer in &answers {
        let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((300..=330).contains(&wait), "{wait}");
    }
    assert!(upstream.attempts() <= 1 + 4, "{} calls", upstream.attempts());
    assert_eq!(granary.metric("granary_purchases_blocked{cause=\"no_credits\"}").await, 1.0);
    let ready = client::get(&format!("{}/readyz", granary.admin())).await.unwrap();
    assert_eq!((ready.status, &ready.json()["paying"]), (200, &false.into()));
    let (calls, charges) = (upstream.attempts(), upstream.charges());
    is_told(&ask(&granary.url(), None, 1).await.unwrap(), 429, "upstream_credits");
    is_hit(&granary, 0).await;
    nothing_is_reserved(&granary).await;
    assert_eq!((upstream.attempts(), upstream.charges()), (calls, charges));
    // The free balance call notices long before the wait of a minute is over; one real request proves it.
    upstream.set_balance(100, 0);
    let filled = Instant::now();
    while ask(&granary.url(), None, 1).await.unwrap().status != 200 {
        assert!(filled.elapsed() < Duration::from_secs(50), "the balance was not noticed");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    granary.wait_for_metric("granary_purchases_blocked{cause=\"no_credits\"}", 0.0).await;
    assert_eq!((upstream.attempts(), upstream.charges()), (calls + 1, charges + 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_flow_limits_makes_hardly_more_calls_than_pictures_and_is_over_within_ten_seconds() {
    let upstream = FakeAilab::start().await;
    let granary = Granary::ailab(&upstream, "").await;
    let before = Load::start(&granary.url(), 12, Duration::from_millis(20));
    upstream.wait_for_attempts(100).await;
    let ends = before.stop().await;
    assert_eq!(ends.keys().collect::<Vec<_>>(), [&(200, String::new())], "{ends:?}");
    let grown = granary.metric("granary_upstream_concurrency_limit").await;
    assert!(grown > 4.0 && grown <= 16.0, "{grown}");
    let (calls, charges) = (upstream.attempts(), upstream.charges());
    upstream.always(Behaviour::FlowLimit { status: 429, retry_after: None });
    let storm = Load::start(&granary.url(), 12, Duration::from_millis(20));
    granary.wait_for_metric("granary_upstream_concurrency_limit", 1.0).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    upstream.always(Behaviour::Success);
    let healed = Instant::now();
    let offered = storm.offered();
    until("the first success", async || upstream.charges() > charges).await;
    assert!(healed.elapsed() <= Duration::from_secs(10), "{:?}", healed.elapsed());
    let refused = upstream.attempts() - calls - (upstream.charges() - charges);
    assert!(refused * 10 <= offered * 11, "{refused} calls for {offered} pictures");
    let ends = storm.stop().await;
    let known = [(200, ""), (503, "upstream_flow"), (503, "busy")].map(|(s, r)| (s, r.to_owned()));
    assert!(ends.keys().all(|end| known.contains(end)), "{ends:?}");
    nothing_is_reserved(&granary).await;
    let retries = granary.metric("granary_upstream_retries_total{reason=\"rate_limited\"}").await;
    assert!(retries >= 1.0 && retries <= (upstream.attempts() / 10) as f64, "{retries}");
    // One row and one attempt for each refusal.
    let refused_rows = granary.metric("granary_fills_total{state=\"refused\"}").await;
    assert_eq!(granary.metric(&format!("{CALLS}{{outcome=\"rate_limited\"}}")).await, refused_rows);
    assert_eq!(granary.metric_sum(CALLS).await, upstream.attempts() as f64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_that_flow_control_asks_for_is_kept_and_the_refusal_retried_on_a_row_of_its_own() {
    let upstream = FakeAilab::start().await;
    let granary = Granary::ailab(&upstream, "").await;
    // Ten purchases save up for one retry.
    assert!(ask_many(&granary.url(), 0..10).await.iter().all(|answer| answer.status == 200));
    upstream.on_next(Behaviour::FlowLimit { status: 503, retry_after: Some(2) });
    let asked = Instant::now();
    let answer = ask(&granary.url(), None, 10).await.unwrap();
    assert_eq!((answer.status, answer.header("granary-credits-charged")), (200, Some("3")));
    assert!(asked.elapsed() >= Duration::from_secs(2), "{:?}", asked.elapsed());
    assert_eq!((upstream.attempts(), upstream.charges()), (12, 11));
    for (state, rows) in [("refused", 1.0), ("stored", 11.0)] {
        assert_eq!(granary.metric(&format!("granary_fills_total{{state=\"{state}\"}}")).await, rows);
    }
    assert_eq!(granary.metric("granary_upstream_concurrency_limit").await, 2.0);
    upstream.on_next(Behaviour::FlowLimit { status: 503, retry_after: Some(2) });
    let answer = ask(&granary.url(), None, 11).await.unwrap();
    is_told(&answer, 503, "upstream_flow");
    assert_eq!(upstream.attempts(), 13, "its retry budget is exhausted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_is_left_alone_while_hits_go_on_and_is_over_soon_after_it_heals() {
    let mut upstream = FakeAilab::start().await;
    let granary = Granary::ailab(&upstream, "").await;
    assert_eq!(ask(&granary.url(), None, 0).await.unwrap().status, 200);
    upstream.go_down().await;
    let load = Load::start(&granary.url(), 12, Duration::from_millis(50));
    granary.wait_for_metric("granary_purchases_blocked{cause=\"outage\"}", 1.0).await;
    granary.wait_for_metric("granary_upstream_in_flight", 0.0).await;
    let attempts = granary.metric_sum(CALLS).await;
    assert!(
        attempts <= 1.0 + 5.0 + 3.0,
        "{attempts} attempts, of which three were under way beside the fifth"
    );
    let mut slowest = Duration::ZERO;
    for _ in 0..100 {
        let asked = Instant::now();
        is_hit(&granary, 0).await;
        slowest = slowest.max(asked.elapsed());
    }
    assert!(slowest < Duration::from_secs(2), "a hit took {slowest:?}");
    let refused = ask(&granary.url(), None, 1).await.unwrap();
    is_told(&refused, 503, "circuit_open");
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=11).contains(&wait), "{wait}");
    assert_eq!(granary.metric_sum(CALLS).await, attempts);
    nothing_is_reserved(&granary).await;
    upstream.come_back().await;
    let healed = Instant::now();
    granary.wait_for_metric("granary_purchases_blocked{cause=\"outage\"}", 0.0).await;
    assert!(healed.elapsed() <= Duration::from_secs(12), "{:?}", healed.elapsed());
    let charges = upstream.charges();
    upstream.wait_until("business as usual", |stats| stats.charges >= charges + 50).await;
    let ends = load.stop().await;
    let known = [(200, ""), (502, ""), (503, "circuit_open")].map(|(s, r)| (s, r.to_owned()));
    assert!(ends.keys().all(|end| known.contains(end)), "{ends:?}");
    assert_eq!(ends[&(200, String::new())] + 1, upstream.charges());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_never_went_out_whole_is_sent_again_and_charged_once() {
    let upstream = FakeAilab::start().await;
    let granary = Granary::ailab(&upstream, "").await;
    let ask_for_the_photo = async |size| granary.crop(None, images::photo_jpeg(), size, size).await;
    for (size, cut) in [(100, 0), (101, 1000), (102, 100_000)] {
        let (attempts, charges) = (upstream.attempts(), upstream.charges());
        upstream.on_next(Behaviour::ResetDuringUpload(cut));
        upstream.on_next(Behaviour::ResetDuringUpload(cut));
        let answer = ask_for_the_photo(size).await;
        assert_eq!(answer.status, 200, "{cut}: {}", answer.text());
        assert_eq!((upstream.attempts() - attempts, upstream.charges() - charges), (3, 1), "{cut}");
    }
    assert_eq!(granary.metric("granary_upstream_retries_total{reason=\"not_sent\"}").await, 6.0);
    (0..3).for_each(|_| upstream.on_next(Behaviour::ResetDuringUpload(1000)));
    let answer = ask_for_the_photo(103).await;
    assert_eq!((answer.status, answer.code().as_str()), (502, "AI_SERVICE_ERROR"), "{}", answer.text());
    assert_eq!((upstream.attempts(), upstream.charges()), (12, 3));
    nothing_is_reserved(&granary).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_other_failure_is_sent_again_by_itself() {
    let with_an_error =
        r#"{"error_code":500,"error_detail":{"status_code":500,"code":"PROCESSING_FAILURE"}}"#;
    let bare = |status| Behaviour::raw(status, "text/html", "<html>");
    let in_envelope = |status, code| Behaviour::Refuse { status, code: String::from(code) };
    for (behaviour, status, state) in [
        (in_envelope(500, "SERVICE_INTERNAL_ERROR"), 500, "failed"),
        (in_envelope(502, "ERROR_GATEWAY"), 502, "failed"),
        (in_envelope(503, "ERROR_INSUFFICIENT_RESOURCES"), 503, "failed"),
        (in_envelope(504, "AI_SERVICE_TIMEOUT"), 504, "failed"),
        (Behaviour::raw(500, "application/json", with_an_error), 500, "failed"),
        (bare(500), 502, "unknown"),
        (bare(502), 502, "unknown"),
        (bare(503), 502, "unknown"),
        (bare(504), 502, "unknown"),
        (Behaviour::CutBeforeAnswer, 502, "unknown"),
        (Behaviour::CutMidAnswer(100), 502, "unknown"),
    ] {
        let upstream = FakeAilab::start().await;
        let granary = Granary::ailab(&upstream, "").await;
        upstream.on_next(behaviour.clone());
        let answer = ask(&granary.url(), None, 1).await.unwrap();
        assert_eq!(answer.status, status, "{behaviour:?}: {}", answer.text());
        assert_eq!((upstream.attempts(), upstream.fully_received()), (1, 1), "{behaviour:?}");
        let rows = granary.metric(&format!("granary_fills_total{{state=\"{state}\"}}")).await;
        assert_eq!((rows, granary.metric_sum("granary_upstream_retries_total").await), (1.0, 0.0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_comes_after_the_callers_have_left_is_kept_and_charged_once() {
    let upstream = FakeAilab::start().await;
    upstream.always(Behaviour::Delay(Duration::from_millis(1500)));
    let granary = Granary::ailab(&upstream, "[server]\nanswer_within = \"400ms\"").await;
    for _ in 0..3 {
        is_told(&ask(&granary.url(), None, 1).await.unwrap(), 504, "still_being_made");
    }
    granary.wait_for_metric("granary_fills_total{state=\"stored\"}", 1.0).await;
    is_hit(&granary, 1).await;
    assert_eq!(
        (upstream.attempts(), upstream.charges()),
        (1, 1),
        "identical requests joined the running call"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_of_another_size_or_with_an_odd_place_are_kept_and_counted_as_suspect() {
    let upstream = FakeAilab::start().await;
    let granary = Granary::ailab(&upstream, "").await;
    let suspects = async |reason: &str| {
        granary.metric(&format!("granary_results_suspect_total{{reason=\"{reason}\"}}")).await
    };
    assert_eq!(ask(&granary.url(), None, 0).await.unwrap().status, 200);
    assert_eq!((suspects("dimensions").await, suspects("retain_location").await), (0.0, 0.0));
    upstream.on_next_result(ResultBehaviour::WrongSize(33, 44));
    let answer = ask(&granary.url(), None, 1).await.unwrap();
    assert_eq!(answer.status, 200, "it was paid for: {}", answer.text());
    assert_eq!((suspects("dimensions").await, suspects("retain_location").await), (1.0, 0.0));
    is_hit(&granary, 1).await;
    assert_eq!(suspects("dimensions").await, 1.0, "counted once");
    let url = upstream.purchases()[0].url.clone();
    let body = format!(
        "{{\"error_code\":0,\"data\":{{\"url\":\"{url}\",\"retain_location\":{{\"x\":9000,\"y\":0,\"width\":5,\"height\":5}}}}}}"
    );
    upstream.on_next(Behaviour::raw(200, "application/json", body));
    let answer = granary.crop(None, images::photo_jpeg(), 20, 20).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!((suspects("dimensions").await, suspects("retain_location").await), (1.0, 1.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_team_with_many_misses_does_not_starve_one_with_few() {
    let upstream = FakeAilab::start().await;
    upstream.always(Behaviour::Delay(Duration::from_millis(30)));
    let (greedy, greedy_token) = team("greedy", "");
    let (modest, modest_token) = team("modest", "");
    let lines = "concurrency = 2\nmax_concurrency = 2\nqueue = 50";
    let server = "[server]\nanswer_within = \"2m\"";
    let config = format!("{}\n{server}\n{greedy}\n{modest}", upstream_section(&upstream, lines));
    let granary = Granary::builtin(&config).await;
    let url = granary.url();
    let queued =
        async |team: &str| granary.metric(&format!("granary_upstream_queue_depth{{team=\"{team}\"}}")).await;
    upstream.always(Behaviour::Hold);
    let crowd: Vec<_> = (0..80).map(|number| ask(&url, Some(&greedy_token), number)).collect();
    // Seven eighths of the queue.
    until("the team to have its places", async || queued("greedy").await == 43.0).await;
    let few: Vec<_> = (100..105).map(|number| ask(&url, Some(&modest_token), number)).collect();
    until("the modest ones to have their places", async || queued("modest").await == 5.0).await;
    assert_eq!(queued("greedy").await, 43.0);
    upstream.always(Behaviour::Delay(Duration::from_millis(30)));
    upstream.release();
    for answer in few {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    // Turn and turn about: hardly more of the others were served meanwhile.
    let of_greedy = upstream.charges() - 5;
    assert!(of_greedy <= 2 + 5 + 6, "{of_greedy} of the greedy team before the last of the modest one");
    let mut ends = BTreeMap::new();
    for answer in crowd {
        let answer = answer.await.unwrap();
        *ends.entry(told(&answer)).or_insert(0) += 1;
    }
    assert_eq!(ends, [((200, String::new()), 45), ((503, "busy".to_owned()), 35)].into());
    assert_eq!(granary.metric("granary_upstream_shed_total{reason=\"queue_full\"}").await, 35.0);
    assert_eq!((upstream.charges(), upstream.attempts()), (50, 50));
    // Those that were refused passed through the queue, too.
    assert_eq!(
        granary.metric("granary_stage_duration_seconds_count{stage=\"queue_wait\"}").await,
        50.0 + 35.0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_miss_whose_turn_cannot_come_in_time_is_refused_at_once_with_its_wait() {
    let upstream = FakeAilab::start().await;
    upstream.always(Behaviour::Hold);
    let lines = "concurrency = 1\nmax_concurrency = 1";
    let granary = Granary::builtin(&upstream_section(&upstream, lines)).await;
    let url = granary.url();
    // With calls of two seconds, the first guess, thirteen can be over within 28 s.
    let mut asking = Vec::new();
    for number in 0..13 {
        asking.push(ask(&url, None, number));
        let depth = f64::from(number);
        granary.wait_for_metric("granary_upstream_queue_depth{team=\"local\"}", depth).await;
    }
    let asked = Instant::now();
    let late = ask(&url, None, 50).await.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(5), "at once: {:?}", asked.elapsed());
    is_told(&late, 503, "busy");
    let wait: u64 = late.header("retry-after").unwrap().parse().unwrap();
    assert!((26..=29).contains(&wait), "{wait}");
    assert_eq!(granary.metric("granary_upstream_shed_total{reason=\"wait_timeout\"}").await, 1.0);
    upstream.always(Behaviour::Success);
    upstream.release();
    for asking in asking {
        assert_eq!(asking.await.unwrap().status, 200);
    }
    assert_eq!((upstream.charges(), upstream.attempts()), (13, 13));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queued_fill_whose_callers_have_left_costs_nothing_and_gives_its_place_away_at_once() {
    let upstream = FakeAilab::start().await;
    upstream.always(Behaviour::Hold);
    let lines = "concurrency = 1\nmax_concurrency = 1\nqueue = 1";
    let granary = Granary::builtin(&upstream_section(&upstream, lines)).await;
    let url = granary.url();
    let depth = "granary_upstream_queue_depth{team=\"local\"}";
    let first = ask(&url, None, 1);
    upstream.wait_for_held(1).await;
    let call = Call::crop(&url, None, &Form::curl(images::photo_jpeg(), 300, 200));
    let leaves = call.send_part(call.body_len()).await.unwrap();
    granary.wait_for_metric(depth, 1.0).await;
    is_told(&ask(&url, None, 2).await.unwrap(), 503, "busy");
    leaves.reset();
    granary.wait_for_metric(depth, 0.0).await;
    assert_eq!(granary.metric("granary_upstream_shed_total{reason=\"deserted\"}").await, 1.0);
    let third = ask(&url, None, 3);
    granary.wait_for_metric(depth, 1.0).await;
    upstream.always(Behaviour::Success);
    upstream.release();
    assert_eq!((first.await.unwrap().status, third.await.unwrap().status), (200, 200));
    assert_eq!((upstream.charges(), upstream.attempts()), (2, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_paid_results_in_a_row_that_cannot_be_had_stop_all_buying() {
    let upstream = FakeAilab::start().await;
    let lines = "result_url_ttl = \"300ms\"";
    let granary = Granary::builtin(&upstream_section(&upstream, lines)).await;
    assert_eq!(ask(&granary.url(), None, 0).await.unwrap().status, 200);
    upstream.always_results(ResultBehaviour::NotFound);
    for number in 1..=3 {
        let answer = ask(&granary.url(), None, number).await.unwrap();
        is_told(&answer, 502, "result_not_fetched");
        granary.wait_for_metric("granary_fills_total{state=\"unfetchable\"}", f64::from(number)).await;
    }
    assert_eq!(granary.metric("granary_purchases_blocked{cause=\"unfetchable\"}").await, 1.0);
    let answers = ask_many(&granary.url(), 4..30).await;
    assert_eq!(count(&answers), [((503, "purchase_stop".to_owned()), 26)].into());
    for answer in &answers {
        let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((30..=66).contains(&wait), "{wait}");
    }
    is_hit(&granary, 0).await;
    nothing_is_reserved(&granary).await;
    assert_eq!((upstream.attempts(), upstream.charges()), (4, 4));
}

fn write_key(file: &Path, key: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    // As a mounted secret changes: all at once.
    let next = file.with_extension("next");
    std::fs::write(&next, key).unwrap();
    std::fs::set_permissions(&next, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(&next, file).unwrap();
}

/// The configuration for a fake AILab whose key is in a file.
fn with_key_file(upstream: &FakeAilab, file: &Path) -> String {
    let config = upstream_section(upstream, "");
    let key = format!("api_key = \"{}\"", upstream.api_key());
    assert!(config.contains(&key));
    config.replace(&key, &format!("api_key_file = \"{}\"", file.display()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_key_is_nobodys_401_and_works_again_when_its_file_changes() {
    let upstream = FakeAilab::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ailab.key");
    write_key(&file, &upstream.api_key());
    let granary = Granary::builtin(&with_key_file(&upstream, &file)).await;
    assert_eq!(ask(&granary.url(), None, 0).await.unwrap().status, 200);
    let new_key = upstream.rotate_key();
    let answers = ask_many(&granary.url(), 1..40).await;
    assert_eq!(count(&answers), [((502, "upstream_key".to_owned()), 39)].into());
    assert!(answers.iter().all(|answer| answer.code() == "AI_SERVICE_UNAUTHORIZED"));
    assert!(upstream.attempts() <= 1 + 4, "{} calls", upstream.attempts());
    assert_eq!(granary.metric("granary_purchases_blocked{cause=\"key_refused\"}").await, 1.0);
    is_hit(&granary, 0).await;
    nothing_is_reserved(&granary).await;
    // Files that hold no key leave things as they are.
    write_key(&file, " \n");
    granary.wait_for_metric("granary_reload_ok{file=\"upstream_key\"}", 0.0).await;
    assert_eq!(granary.metric("granary_reloads_total{file=\"upstream_key\",result=\"error\"}").await, 1.0);
    std::fs::remove_file(&file).unwrap();
    granary.wait_for_metric("granary_reloads_total{file=\"upstream_key\",result=\"error\"}", 2.0).await;
    write_key(&file, &new_key);
    granary.wait_for_metric("granary_purchases_blocked{cause=\"key_refused\"}", 0.0).await;
    assert_eq!(ask(&granary.url(), None, 1).await.unwrap().status, 200);
    assert_eq!(granary.metric("granary_reload_ok{file=\"upstream_key\"}").await, 1.0);
    assert_eq!(granary.metric("granary_reloads_total{file=\"upstream_key\",result=\"ok\"}").await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_rotated_under_load_without_a_failed_request() {
    let upstream = FakeAilab::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ailab.key");
    write_key(&file, &upstream.api_key());
    let granary = Granary::builtin(&with_key_file(&upstream, &file)).await;
    upstream.always(Behaviour::Delay(Duration::from_millis(50)));
    let load = Load::start(&granary.url(), 6, Duration::ZERO);
    for rotation in 1..=3 {
        upstream.wait_for_attempts(upstream.attempts() + 20).await;
        write_key(&file, &upstream.add_key());
        let series = "granary_reloads_total{file=\"upstream_key\",result=\"ok\"}";
        granary.wait_for_metric(series, f64::from(rotation)).await;
        // Those that carry the old key finish with it.
        let begun = upstream.attempts() + 16;
        upstream.wait_for_attempts(begun).await;
        upstream.retire_old_keys();
    }
    upstream.wait_for_attempts(upstream.attempts() + 20).await;
    let ends = load.stop().await;
    assert_eq!(ends.keys().collect::<Vec<_>>(), [&(200, String::new())], "{ends:?}");
    assert_eq!(upstream.charges(), ends.values().sum::<u64>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alarm_is_one_line_in_the_log_however_many_ask() {
    let upstream = FakeAilab::start().await;
    upstream.set_balance(0, 0);
    let builder = real().config_text(upstream_section(&upstream, "")).env("GRANARY_SERVER_DRAIN_GRACE", "0s");
    let mut granary = builder.start().await.unwrap();
    let answers = ask_many(&granary.public_url(), 0..30).await;
    assert!(answers.iter().all(|answer| answer.status == 429));
    granary.terminate();
    within("the end", granary.wait_exit(Duration::from_secs(20))).await;
    let lines = granary.log_lines();
    let errors: Vec<_> = lines.iter().filter(|line| line["level"] == "ERROR").collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].to_string().contains("has no credits left"), "{errors:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hung_upstream_answers_waiters_at_their_deadline_ends_unknown_and_opens_the_circuit() {
    let upstream = FakeAilab::start().await;
    upstream.always(Behaviour::NeverAnswer);
    // As by default, but with 28 s and 180 s shortened.
    let config = format!(
        "{}\n[server]\nanswer_within = \"300ms\"",
        upstream_section(&upstream, "hard_stop = \"1500ms\"")
    );
    let granary = Granary::builtin(&config).await;
    let url = granary.url();
    for number in 0..5_u32 {
        let asked = Instant::now();
        let waiters = [ask(&url, None, number), ask(&url, None, number)];
        for waiter in waiters {
            is_told(&waiter.await.unwrap(), 504, "still_being_made");
        }
        assert!(asked.elapsed() < Duration::from_millis(1500), "before the hard stop: {:?}", asked.elapsed());
        let rows = f64::from(number) + 1.0;
        granary.wait_for_metric("granary_fills_total{state=\"unknown\"}", rows).await;
        assert_eq!(granary.metric("granary_ledger_credits{state=\"unknown\"}").await, rows * 3.0);
        // Its outcome is not known, so the same crop is not bought again.
        is_told(
            &ask(&url, None, number).await.unwrap(),
            503,
            if number < 4 { "hold" } else { "circuit_open" },
        );
    }
    granary.wait_for_metric("granary_purchases_blocked{cause=\"outage\"}", 1.0).await;
    let asked = Instant::now();
    is_told(&ask(&url, None, 9).await.unwrap(), 503, "circuit_open");
    assert!(asked.elapsed() < Duration::from_millis(300), "at once: {:?}", asked.elapsed());
    assert_eq!((upstream.attempts(), upstream.charges()), (5, 5), "each was sent once");
    nothing_is_reserved(&granary).await;
}
