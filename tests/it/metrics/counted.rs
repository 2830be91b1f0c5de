//! What happens is counted where it should be.

use granary_kit::ailab::{Behaviour, FakeAilab, ResultBehaviour};
use granary_kit::client::{self, CROP_PATH, Call};
use granary_kit::images::tiny_png;

use crate::harness::{Granary, team, until, upstream_section};

/// The values that these series have.
async fn check(granary: &Granary, expected: &[(&str, f64)]) {
    for (series, value) in expected {
        assert_eq!(granary.metric(series).await, *value, "{series}");
    }
}

fn picture(n: u64) -> Vec<u8> {
    tiny_png(40, 30, n)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lookups_and_operations_are_counted_by_where_they_went() {
    let granary = Granary::builtin("").await;
    granary.crop(None, &picture(1), 20, 20).await;
    let hit = granary.crop(None, &picture(1), 20, 20).await;
    client::get(&hit.result_url()).await.unwrap();
    check(
        &granary,
        &[
            ("granary_cache_lookups_total{result=\"hit\",tier=\"memory\"}", 1.0),
            ("granary_cache_lookups_total{result=\"miss\",tier=\"memory\"}", 1.0),
            ("granary_cache_lookups_total{result=\"miss\",tier=\"ledger\"}", 1.0),
            ("granary_cache_lookups_total{result=\"miss\",tier=\"store\"}", 1.0),
            ("granary_store_operations_total{op=\"put_object\",result=\"ok\"}", 1.0),
            ("granary_store_operations_total{op=\"put_record\",result=\"ok\"}", 1.0),
            ("granary_store_operations_total{op=\"object\",result=\"ok\"}", 1.0),
            ("granary_ledger_duration_seconds_count{op=\"reserve\"}", 1.0),
            ("granary_ledger_duration_seconds_count{op=\"send\"}", 1.0),
            ("granary_ledger_duration_seconds_count{op=\"answer\"}", 1.0),
            ("granary_ledger_duration_seconds_count{op=\"store\"}", 1.0),
            ("granary_http_requests_total{code=\"200\",method=\"POST\",route=\"crop\"}", 2.0),
            ("granary_http_requests_total{code=\"200\",method=\"GET\",route=\"result\"}", 1.0),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_reserved_and_came_back_is_not_spent_and_budgets_are_told() {
    let upstream = FakeAilab::start().await;
    let (web, web_token) = team("web", "daily_credits = 6\nmisses_per_second = 0.01");
    let (app, app_token) = team("app", "daily_credits = 3\nmode = \"shadow\"");
    let config = format!("{}\n[budget]\nmonthly_credits = 3000\n{web}{app}", upstream_section(&upstream, ""));
    let granary = Granary::builtin(&config).await;
    upstream.on_next(Behaviour::refuse(400, "ERROR_PARAMETERS"));
    assert_eq!(granary.crop(Some(&web_token), &picture(1), 20, 20).await.status, 400);
    // Its rate allows one in a hundred seconds.
    assert_eq!(granary.crop(Some(&web_token), &picture(2), 20, 20).await.status, 429);
    for n in 3..5 {
        assert_eq!(granary.crop(Some(&app_token), &picture(n), 20, 20).await.status, 200);
    }
    granary
        .wait_for_metric(
            "granary_limit_decisions_total{decision=\"deny\",kind=\"budget\",mode=\"shadow\"}",
            1.0,
        )
        .await;
    check(
        &granary,
        &[
            ("granary_ledger_credits{state=\"refused\"}", 3.0),
            ("granary_credits_spent_total{team=\"web\"}", 0.0),
            ("granary_credits_spent_total{team=\"app\"}", 6.0),
            ("granary_limit_decisions_total{decision=\"allow\",kind=\"budget\",mode=\"shadow\"}", 1.0),
            ("granary_limit_decisions_total{decision=\"allow\",kind=\"budget\",mode=\"enforce\"}", 3.0),
            ("granary_limit_decisions_total{decision=\"allow\",kind=\"rate\",mode=\"enforce\"}", 1.0),
            ("granary_limit_decisions_total{decision=\"deny\",kind=\"rate\",mode=\"enforce\"}", 1.0),
            ("granary_budget_limit_credits{id=\"web\",scope=\"team\",window=\"day\"}", 6.0),
            ("granary_budget_used_credits{id=\"web\",scope=\"team\",window=\"day\"}", 0.0),
            ("granary_budget_used_credits{id=\"app\",scope=\"team\",window=\"day\"}", 6.0),
            ("granary_budget_used_credits{id=\"global\",scope=\"global\",window=\"month\"}", 6.0),
            ("granary_team_info{mode=\"shadow\",team=\"app\"}", 1.0),
            ("granary_team_info{mode=\"enforce\",team=\"web\"}", 1.0),
        ],
    )
    .await;
    let reset =
        granary.metric("granary_budget_reset_timestamp_seconds{id=\"web\",scope=\"team\",window=\"day\"}");
    let (reset, now) = (reset.await, jiff::Timestamp::now().as_second() as f64);
    assert!(reset > now && reset <= now + 86_400.0, "{reset} at {now}");
    assert!(!granary.metrics().await.contains("window=\"month\",id=\"web\""), "it has no such budget");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_who_are_not_let_in_are_counted_by_why() {
    let (web, web_token) = team("web", "");
    let (off, off_token) = team("off", "disabled = true");
    let granary = Granary::builtin(&format!("{web}{off}")).await;
    let credits = format!("{}/api/common/query-credits", granary.url());
    let unknown = team("nobody", "").1;
    let ask = async |headers: &[(&str, &str)]| {
        let call =
            headers.iter().fold(Call::new("GET", &credits), |call, (name, value)| call.header(name, value));
        call.send().await.unwrap().status
    };
    assert_eq!(ask(&[]).await, 401);
    assert_eq!(ask(&[("ailabapi-api-key", "the vendor's own")]).await, 401);
    assert_eq!(ask(&[("ailabapi-api-key", &unknown)]).await, 401);
    assert_eq!(ask(&[("ailabapi-api-key", &off_token)]).await, 403);
    assert_eq!(ask(&[("ailabapi-api-key", &web_token), ("ailabapi-api-key", &off_token)]).await, 400);
    assert_eq!(ask(&[("ailabapi-api-key", &web_token)]).await, 200);
    for (reason, number) in [
        ("missing", 1.0),
        ("malformed", 1.0),
        ("unknown", 1.0),
        ("disabled", 1.0),
        ("ambiguous", 1.0),
        ("expired", 0.0),
    ] {
        let series = format!("granary_auth_failures_total{{reason=\"{reason}\"}}");
        assert_eq!(granary.metric(&series).await, number, "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_that_are_not_kept_are_counted_by_why() {
    let upstream = FakeAilab::start().await;
    let granary = Granary::ailab(&upstream, "").await;
    for (n, (behaviour, reason)) in [
        (ResultBehaviour::Html, "not_image"),
        (ResultBehaviour::NotFound, "dead_url"),
        (ResultBehaviour::Truncate(10), "incomplete"),
        (ResultBehaviour::Reset, "unreachable"),
    ]
    .into_iter()
    .enumerate()
    {
        upstream.on_next_result(behaviour);
        assert_eq!(granary.crop(None, &picture(n as u64), 20, 20).await.status, 200, "it was tried again");
        check(&granary, &[(&*format!("granary_cache_store_rejected_total{{reason=\"{reason}\"}}"), 1.0)])
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_anothers_fill_is_counted_and_so_is_who_gave_up() {
    let upstream = FakeAilab::start().await;
    upstream.on_next(Behaviour::Hold);
    let config = format!("{}\n[server]\nanswer_within = \"3s\"\n", upstream_section(&upstream, ""));
    let granary = std::sync::Arc::new(Granary::builtin(&config).await);
    let ask = |granary: std::sync::Arc<Granary>| {
        tokio::spawn(async move { granary.crop(None, &picture(1), 20, 20).await.status })
    };
    let first = ask(granary.clone());
    upstream.wait_for_held(1).await;
    let second = ask(granary.clone());
    granary.wait_for_metric("granary_coalesce_followers", 2.0).await;
    // Both are answered in time, though not with a crop; the fill goes on.
    assert_eq!((first.await.unwrap(), second.await.unwrap()), (504, 504));
    let third = ask(granary.clone());
    until("the third to wait", async || {
        granary.metric("granary_coalesce_followers_total{scope=\"local\"}").await == 2.0
    })
    .await;
    upstream.release();
    assert_eq!(third.await.unwrap(), 200);
    check(
        &granary,
        &[
            ("granary_coalesce_followers_total{scope=\"local\"}", 2.0),
            ("granary_coalesce_timeouts_total{scope=\"local\"}", 1.0),
            ("granary_coalesce_followers_total{scope=\"cluster\"}", 0.0),
            ("granary_stage_duration_seconds_count{stage=\"coalesce_wait\"}", 2.0),
            ("granary_overhead_seconds_count{outcome=\"coalesced\"}", 1.0),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_much_for_memory_is_counted_as_evicted() {
    let granary = Granary::builtin("[cache]\nmemory = \"4KiB\"\n").await;
    for n in 0..20 {
        granary.crop(None, &picture(n), 20, 20).await;
    }
    until("something to be evicted", async || {
        granary.metric("granary_cache_evictions_total{cause=\"size\",tier=\"memory\"}").await >= 10.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_looked_up_by_its_key_is_counted_with_it() {
    let granary = Granary::builtin("").await;
    let key = granary.crop(None, &picture(1), 20, 20).await.header("granary-key").unwrap().to_owned();
    let url = format!("{}{CROP_PATH}/{key}", granary.url());
    assert_eq!(client::get(&url).await.unwrap().status, 200);
    check(
        &granary,
        &[
            ("granary_cache_lookups_total{result=\"hit\",tier=\"memory\"}", 1.0),
            ("granary_credits_saved_total{cause=\"hash_first\",team=\"local\"}", 3.0),
            ("granary_http_requests_total{code=\"200\",method=\"GET\",route=\"lookup\"}", 1.0),
        ],
    )
    .await;
}
