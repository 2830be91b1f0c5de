//! One charge per key, however many ask, however they ask, and whoever hangs up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use granary_kit::ailab::{Behaviour, FakeAilab, ResultBehaviour};
use granary_kit::client::{self, Answer, Call, RawConnection};
use granary_kit::form::Form;
use granary_kit::images;
use tokio::task::JoinHandle;

use crate::harness::{
    Granary, bytes_of, cache_status, files_below, metric, real_ailab, team, until, upstream_section,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_misses_make_one_upstream_call() {
    let upstream = FakeAilab::start().await;
    upstream.always(Behaviour::Hold);
    // A thousand uploads at once on a slow machine, clients included, may take longer than any client
    // of a server's would; what is tested is not the clocks.
    let clocks = "[server]\nhead_timeout = \"2m\"\nbody_timeout = \"2m\"\nmin_upload_rate = \"0B\"\nanswer_within = \"2m\"";
    let granary = Granary::ailab(&upstream, clocks).await;
    let url: Arc<str> = granary.url().into();
    let orders = [["image", "width", "height"], ["height", "width", "image"], ["width", "image", "height"]];
    let callers: Vec<_> = (0..1000)
        .map(|caller| {
            let url = url.clone();
            let form = Form::browser(images::photo_jpeg(), 400, 400)
                .order(&orders[caller % 3])
                .file_name(&format!("picture-{caller}.png"));
            tokio::spawn(async move { client::post_form(&url, None, &form).await.unwrap() })
        })
        .collect();
    upstream.wait_for_held(1).await;
    until_followers(&granary, 1000).await;
    upstream.release();
    let mut urls = BTreeSet::new();
    let mut by_status = BTreeMap::new();
    for caller in callers {
        let answer = caller.await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        *by_status.entry(cache_status(&answer)).or_insert(0) += 1;
        urls.insert(answer.result_url());
    }
    assert_eq!(urls.len(), 1);
    assert_eq!(by_status["granary; fwd=uri-miss; fwd-status=200; stored"], 1);
    assert_eq!(by_status["granary; fwd=uri-miss; fwd-status=200; stored; collapsed"], 999);
    assert_eq!((upstream.charges(), upstream.attempts()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_caller_may_hang_up_half_way() {
    let upstream = FakeAilab::start().await;
    upstream.always(Behaviour::Hold);
    let granary = Granary::ailab(&upstream, "").await;
    let form = Form::curl(images::photo_jpeg(), 300, 200);
    let first = Call::crop(&granary.url(), None, &form);
    let first = first.send_part(first.body_len()).await.unwrap();
    upstream.wait_for_held(1).await;
    let url = granary.url();
    let second = tokio::spawn({
        let form = form.clone();
        async move { client::post_form(&url, None, &form).await.unwrap() }
    });
    until_followers(&granary, 2).await;
    first.reset();
    upstream.release();
    let answer = second.await.unwrap();
    assert_eq!((answer.status, upstream.charges()), (200, 1), "{}", answer.text());
    let again = client::post_form(&granary.url(), None, &form).await.unwrap();
    assert_eq!(cache_status(&again), "granary; hit; detail=memory");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_of_a_solvent_team_is_served_when_the_first_team_may_not_pay() {
    let upstream = FakeAilab::start().await;
    let (poor, poor_token) = team("poor", "daily_credits = 2");
    let (rich, rich_token) = team("rich", "");
    // One slot, taken by another picture, keeps both callers waiting in one group.
    upstream.on_next(Behaviour::Hold);
    let config = format!("{}\n{poor}\n{rich}", upstream_section(&upstream, "concurrency = 1"));
    let granary = Arc::new(Granary::builtin(&config).await);
    let crop = |token: String, size: u32| {
        let granary = granary.clone();
        tokio::spawn(async move { granary.crop(Some(&token), images::photo_jpeg(), size, size).await })
    };
    let blocking = crop(rich_token.clone(), 100);
    upstream.wait_for_held(1).await;
    let leader = crop(poor_token, 200);
    until_followers(&granary, 2).await;
    let follower = crop(rich_token, 200);
    until_followers(&granary, 3).await;
    upstream.release();
    assert_eq!(blocking.await.unwrap().status, 200);
    let (leader, follower) = (leader.await.unwrap(), follower.await.unwrap());
    assert_eq!((leader.status, leader.code().as_str()), (429, "ERROR_NOT_ENOUGH_CREDITS"));
    assert_eq!(leader.header("granary-reason"), Some("team_daily"));
    assert_eq!((follower.status, follower.header("granary-credits-charged")), (200, Some("3")));
    assert_eq!(upstream.charges(), 2);
}

/// A request under way in a task of its own.
fn ask(granary: &Granary, token: Option<&str>, size: u32) -> JoinHandle<Answer> {
    let (url, token) = (granary.url(), token.map(str::to_owned));
    let form = Form::curl(images::photo_jpeg(), size, size);
    tokio::spawn(async move { client::post_form(&url, token.as_deref(), &form).await.unwrap() })
}

/// Callers that have sent everything and have not been answered yet; they can hang up.
async fn whole_uploads(granary: &Granary, callers: usize, size: u32) -> Vec<RawConnection> {
    let mut connections = Vec::new();
    for _ in 0..callers {
        let call = Call::crop(&granary.url(), None, &Form::curl(images::photo_jpeg(), size, size));
        connections.push(call.send_part(call.body_len()).await.unwrap());
    }
    connections
}

async fn until_followers(granary: &Granary, number: usize) {
    let series = "granary_coalesce_followers";
    until(&format!("{number} followers"), async || granary.metric(series).await == number as f64).await;
}

async fn ledger_credits(granary: &Granary, state: &str) -> f64 {
    granary.metric(&format!("granary_ledger_credits{{state=\"{state}\"}}")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asked_for_without_a_pause_around_its_completion_a_key_is_paid_for_once() {
    let upstream = FakeAilab::start().await;
    upstream.always(Behaviour::Hold);
    let granary = Granary::ailab(&upstream, "").await;
    let (form, url) = (Form::curl(images::tiny_png(16, 16, 1), 64, 64), granary.url());
    let new_caller = || {
        let (url, form) = (url.clone(), form.clone());
        tokio::spawn(async move { client::post_form(&url, None, &form).await.unwrap() })
    };
    // From a second before the result is there to a second after, every other millisecond someone
    // new, whom nothing keeps waiting but the answer: some look it up just before it is there.
    let mut clock = tokio::time::interval(Duration::from_millis(2));
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut callers = vec![new_caller()];
    upstream.wait_for_held(1).await;
    for is_released in [false, true] {
        if is_released {
            upstream.release();
        }
        let end = Instant::now() + Duration::from_secs(1);
        while Instant::now() < end {
            clock.tick().await;
            callers.push(new_caller());
        }
    }
    let (mut urls, mut by_status) = (BTreeSet::new(), BTreeMap::new());
    for caller in callers {
        let answer = caller.await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        urls.insert(answer.result_url());
        *by_status.entry(cache_status(&answer)).or_insert(0) += 1;
    }
    assert_eq!((urls.len(), upstream.charges(), upstream.attempts()), (1, 1, 1), "{by_status:?}");
    assert_eq!(by_status["granary; fwd=uri-miss; fwd-status=200; stored"], 1);
    assert!(by_status["granary; fwd=uri-miss; fwd-status=200; stored; collapsed"] > 20, "{by_status:?}");
    assert!(by_status["granary; hit; detail=memory"] > 20, "{by_status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_hangs_up_while_uploading_buys_nothing() {
    let upstream = FakeAilab::start().await;
    let granary = Granary::ailab(&upstream, "").await;
    let form = Form::curl(images::photo_jpeg(), 300, 200);
    let call = Call::crop(&granary.url(), None, &form);
    let body = call.body_len();
    let mut uploading = Vec::new();
    for sent in [0, 1, body / 2, body - 4, body - 2, body - 1] {
        uploading.push(call.send_part(sent).await.unwrap());
        // One that says so politely: the body ends before its declared length.
        let mut half_closed = call.send_part(sent).await.unwrap();
        half_closed.shutdown_write().await.unwrap();
        let answer = half_closed.read_answer(false).await;
        assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status == 400), "{sent} of {body} bytes");
    }
    assert_eq!(upstream.attempts(), 0);
    let whole = call.send().await.unwrap();
    assert_eq!(cache_status(&whole), "granary; fwd=uri-miss; fwd-status=200; stored");
    uploading.into_iter().for_each(RawConnection::reset);
    // A stop returns when every connection has ended, so nothing of theirs can come later.
    let _folder = granary.stop().await;
    assert_eq!((upstream.attempts(), upstream.charges()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_everybody_hangs_up_during_the_paid_call_its_result_is_kept() {
    let upstream = FakeAilab::start().await;
    upstream.always(Behaviour::Hold);
    let granary = Granary::ailab(&upstream, "").await;
    let callers = whole_uploads(&granary, 3, 300).await;
    upstream.wait_for_held(1).await;
    until_followers(&granary, 3).await;
    callers.into_iter().for_each(RawConnection::reset);
    until_followers(&granary, 0).await;
    assert_eq!(upstream.in_flight(), 1, "the call goes on");
    upstream.release();
    until("the result to be kept", async || ledger_credits(&granary, "stored").await == 3.0).await;
    let next = ask(&granary, None, 300).await.unwrap();
    assert_eq!(cache_status(&next), "granary; hit; detail=memory");
    assert_eq!(bytes_of(&next.result_url()).await, upstream.result_bytes(1));
    assert_eq!((upstream.charges(), upstream.attempts()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queued_fill_that_nobody_waits_for_any_more_is_dropped_before_paying() {
    let upstream = FakeAilab::start().await;
    upstream.on_next(Behaviour::Hold);
    let granary = Granary::builtin(&upstream_section(&upstream, "concurrency = 1")).await;
    let blocking = ask(&granary, None, 100);
    upstream.wait_for_held(1).await;
    let callers = whole_uploads(&granary, 3, 200).await;
    until_followers(&granary, 4).await;
    callers.into_iter().for_each(RawConnection::reset);
    until_followers(&granary, 1).await;
    upstream.release();
    assert_eq!(blocking.await.unwrap().status, 200);
    until("no fill", async || granary.metric("granary_coalesce_groups_in_flight").await == 0.0).await;
    assert_eq!((upstream.attempts(), upstream.charges()), (1, 1));
    assert_eq!(granary.metric("granary_upstream_in_flight").await, 0.0, "the slot is free again");
    // The key is as it was: whoever comes now buys it.
    let late = ask(&granary, None, 200).await.unwrap();
    assert_eq!(cache_status(&late), "granary; fwd=uri-miss; fwd-status=200; stored");
    assert_eq!(upstream.charges(), 2);
}

/// Twenty callers of one key whose fill fails as scripted, and one caller after that.
async fn shared_failure(
    granary: &Granary,
    upstream: &FakeAilab,
    failure: Behaviour,
) -> (Vec<Answer>, Answer) {
    // Another picture takes the only slot until all twenty have joined.
    upstream.on_next(Behaviour::Hold);
    upstream.on_next(failure);
    let blocking = ask(granary, None, 100);
    upstream.wait_for_held(1).await;
    let callers: Vec<_> = (0..20).map(|_| ask(granary, None, 200)).collect();
    until_followers(granary, 21).await;
    upstream.release();
    assert_eq!(blocking.await.unwrap().status, 200);
    let mut answers = Vec::new();
    for caller in callers {
        answers.push(caller.await.unwrap());
    }
    assert_eq!(upstream.attempts(), 2, "the twenty made one attempt");
    (answers, ask(granary, None, 200).await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_is_shared_by_all_who_wait_and_the_next_request_tries_again() {
    let upstream = FakeAilab::start().await;
    let granary = Granary::builtin(&upstream_section(&upstream, "concurrency = 1")).await;
    let failure = Behaviour::Refuse { status: 500, code: "SERVICE_INTERNAL_ERROR".to_owned() };
    let (answers, next) = shared_failure(&granary, &upstream, failure).await;
    for answer in &answers {
        assert_eq!((answer.status, answer.code().as_str()), (500, "SERVICE_INTERNAL_ERROR"));
        assert_eq!(answer.text(), answers[0].text(), "the upstream's own words");
    }
    assert_eq!(cache_status(&next), "granary; fwd=uri-miss; fwd-status=200; stored");
    assert_eq!((upstream.attempts(), upstream.charges()), (3, 2));
    assert_eq!(ledger_credits(&granary, "stored").await, 6.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unclear_outcome_is_shared_and_its_key_rests() {
    let upstream = FakeAilab::start().await;
    let granary = Granary::builtin(&upstream_section(&upstream, "concurrency = 1")).await;
    let (answers, next) = shared_failure(&granary, &upstream, Behaviour::CutBeforeAnswer).await;
    for answer in &answers {
        assert_eq!((answer.status, answer.code().as_str()), (502, "AI_SERVICE_ERROR"), "{}", answer.text());
    }
    assert_eq!((next.status, next.header("granary-reason")), (503, Some("hold")), "{}", next.text());
    let wait: u64 = next.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=66).contains(&wait), "{wait}");
    assert_eq!((upstream.attempts(), upstream.charges()), (2, 2));

    granary.clock().turn(61);
    let rested = ask(&granary, None, 200).await.unwrap();
    assert_eq!(cache_status(&rested), "granary; fwd=uri-miss; fwd-status=200; stored");
    assert_eq!(upstream.charges(), 3);
    assert_eq!(
        (ledger_credits(&granary, "unknown").await, ledger_credits(&granary, "stored").await),
        (3.0, 6.0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refreshes_at_the_same_time_buy_one_new_result() {
    let upstream = FakeAilab::start().await;
    let (red, token) = team("red", "may_refresh = true");
    let (blue, other) = team("blue", "");
    let granary = Granary::builtin(&format!("{}\n{red}\n{blue}", upstream_section(&upstream, ""))).await;
    let form = Form::curl(images::photo_jpeg(), 120, 120);
    let plain = async |token: &str| client::post_form(&granary.url(), token, &form).await.unwrap();
    let refresh = |token: &str| {
        let call = Call::crop(&granary.url(), token, &form).header("Granary-Refresh", "1");
        tokio::spawn(async move { call.send().await.unwrap() })
    };
    let old = plain(&token).await.result_url();

    upstream.on_next(Behaviour::Hold);
    let refreshing: Vec<_> = (0..10).map(|_| refresh(&token)).collect();
    upstream.wait_for_held(1).await;
    until_followers(&granary, 10).await;
    // Meanwhile the old result is what there is, for everybody else.
    let meanwhile = plain(&other).await;
    assert_eq!(
        (cache_status(&meanwhile).as_str(), meanwhile.result_url()),
        ("granary; hit; detail=memory", old.clone())
    );
    upstream.release();
    let mut by_status = BTreeMap::new();
    let mut urls = BTreeSet::new();
    for caller in refreshing {
        let answer = caller.await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        *by_status.entry(cache_status(&answer)).or_insert(0) += 1;
        urls.insert(answer.result_url());
    }
    assert_eq!(by_status["granary; fwd=request; fwd-status=200; stored"], 1, "{by_status:?}");
    assert_eq!((by_status.values().sum::<i32>(), urls.len(), upstream.charges()), (10, 1, 2));
    let new = urls.pop_first().unwrap();
    assert_ne!(new, old);
    assert_eq!(plain(&other).await.result_url(), new);
    assert_eq!(bytes_of(&old).await, upstream.result_bytes(1), "a URL once answered");
    assert_eq!(bytes_of(&new).await, upstream.result_bytes(2));

    // Whoever may not is refused, and a refresh that fails changes nothing.
    let forbidden = refresh(&other).await.unwrap();
    assert_eq!((forbidden.status, forbidden.code().as_str()), (403, "ERROR_ILLEGAL_OPERATION"));
    upstream.on_next(Behaviour::Refuse { status: 500, code: "UNKNOWN_ERROR".to_owned() });
    assert_eq!(refresh(&token).await.unwrap().status, 500);
    assert_eq!(plain(&token).await.result_url(), new);
    let granary = granary.restart().await;
    let path = |url: &str| url.split_once("/results/").unwrap().1.to_owned();
    let after = client::post_form(&granary.url(), token.as_str(), &form).await.unwrap();
    assert_eq!(
        (cache_status(&after).as_str(), path(&after.result_url())),
        ("granary; hit; detail=ledger", path(&new))
    );
    assert_eq!((upstream.attempts(), upstream.charges()), (3, 2));
    assert_eq!(files_below(&granary.store_path().join("results")), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_join_the_download_a_dead_process_left_behind() {
    let upstream = FakeAilab::start().await;
    let builder = real_ailab(&upstream);
    let form = Form::curl(images::photo_jpeg(), 100, 100);
    let mut granary = builder.start().await.unwrap();
    upstream.on_next_result(ResultBehaviour::Stall(100));
    let first = Call::crop(&granary.public_url(), None, &form);
    let _unanswered = first.send_part(first.body_len()).await.unwrap();
    upstream.wait_for_fetches(1).await;
    granary.kill().await;

    // Slow enough that everybody is there before it ends.
    let bytes = upstream.result_bytes(1).len() / 50 + 1;
    upstream.always_results(ResultBehaviour::Drip { bytes, every: Duration::from_millis(100) });
    let granary = builder.start().await.unwrap();
    upstream.wait_for_fetches(2).await;
    let callers: Vec<_> = (0..3)
        .map(|_| {
            let (url, form) = (granary.public_url(), form.clone());
            tokio::spawn(async move { client::post_form(&url, None, &form).await.unwrap() })
        })
        .collect();
    let admin = granary.admin_url();
    until("three followers", async || metric(&admin, "granary_coalesce_followers").await == 3.0).await;
    for caller in callers {
        let answer = caller.await.unwrap();
        assert_eq!(cache_status(&answer), "granary; fwd=uri-miss; fwd-status=200; stored; collapsed");
        assert_eq!(answer.header("granary-credits-charged"), Some("0"));
        assert_eq!(bytes_of(&answer.result_url()).await, upstream.result_bytes(1));
    }
    assert_eq!((upstream.attempts(), upstream.charges(), upstream.fetches()), (1, 1, 2));
}
