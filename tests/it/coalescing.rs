//! One charge per key, however many ask, however they ask, and whoever hangs up.

use std::sync::Arc;

use granary_kit::ailab::{Behaviour, FakeAilab};
use granary_kit::client::{self, Call};
use granary_kit::form::Form;
use granary_kit::images;

use crate::harness::{Granary, cache_status, team};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_misses_make_one_upstream_call() {
    let upstream = FakeAilab::start().await;
    upstream.always(Behaviour::Hold);
    let granary = Granary::ailab(&upstream, "").await;
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
    loop {
        // Until every caller has joined the one fill.
        if granary.metric("granary_coalesce_followers").await == 1000.0 {
            break;
        }
        tokio::task::yield_now().await;
    }
    upstream.release();
    let mut urls = std::collections::BTreeSet::new();
    let mut by_status = std::collections::BTreeMap::new();
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
    while granary.metric("granary_coalesce_followers").await < 2.0 {
        tokio::task::yield_now().await;
    }
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
    let config =
        format!("{}\n{poor}\n{rich}", crate::harness::upstream_section(&upstream, "concurrency = 1"));
    let granary = Arc::new(Granary::builtin(&config).await);
    let crop = |token: String, size: u32| {
        let granary = granary.clone();
        tokio::spawn(async move { granary.crop(Some(&token), images::photo_jpeg(), size, size).await })
    };
    let blocking = crop(rich_token.clone(), 100);
    upstream.wait_for_held(1).await;
    let leader = crop(poor_token, 200);
    while granary.metric("granary_coalesce_followers").await < 2.0 {
        tokio::task::yield_now().await;
    }
    let follower = crop(rich_token, 200);
    while granary.metric("granary_coalesce_followers").await < 3.0 {
        tokio::task::yield_now().await;
    }
    upstream.release();
    assert_eq!(blocking.await.unwrap().status, 200);
    let (leader, follower) = (leader.await.unwrap(), follower.await.unwrap());
    assert_eq!((leader.status, leader.code().as_str()), (429, "ERROR_NOT_ENOUGH_CREDITS"));
    assert_eq!(leader.header("granary-reason"), Some("team_daily"));
    assert_eq!((follower.status, follower.header("granary-credits-charged")), (200, Some("3")));
    assert_eq!(upstream.charges(), 2);
}
