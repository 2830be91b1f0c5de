//! Real proxies in front of Granary: crops pass, and refusals given before the body was read reach the client at
//! least as often as when an nginx origin gives them behind the same proxy.
//!
//! `make test-all` unpacks the proxies and runs these; without them they fail.

#![expect(clippy::print_stdout, reason = "the figures of these tests are looked at")]

mod clients;
mod refusals;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use granary_kit::ailab::FakeAilab;
use granary_kit::client::{self, Answer, Call};
use granary_kit::form::Form;
use granary_kit::images;
use granary_kit::reverse_proxy::{Kind, ReverseProxy};

use crate::harness::{Granary, team};

/// How many crops go through each proxy.
const CROPS: usize = 100;
/// How many of them at once.
const CLIENTS: usize = 4;

/// Granary in front of a fake AILab, with one team and its token.
async fn granary(upstream: &FakeAilab) -> (Granary, String) {
    let (team, token) = team("web", "");
    upstream.keep_bodies(false);
    (Granary::ailab(upstream, &team).await, token)
}

/// Crop `number` of [`CROPS`]: 50 KB to 3.5 MB.
fn crop(url: &str, token: &str, number: usize) -> Call {
    let picture = images::tiny_png(16, 16, number as u64);
    let picture = images::padded(&picture, 50_000 + number * 3_450_000 / (CROPS - 1));
    Call::crop(url, token, &Form::curl(picture, 64, 64))
}

/// Crops while there are some left, every fourth in chunks. Proxies end idle connections soon (Varnish after 5 s), so
/// each has its own.
async fn crop_some(url: &str, token: &str, next: &AtomicUsize) -> Vec<(usize, Answer)> {
    let mut answers = Vec::new();
    loop {
        let number = next.fetch_add(1, Ordering::SeqCst);
        if number >= CROPS {
            return answers;
        }
        let call = crop(url, token, number);
        let answer = if number % 4 == 3 { call.send_chunked(16 * 1024).await } else { call.send().await };
        answers.push((number, answer.unwrap()));
    }
}

/// All crops answer 200, are bought once, and their results and repeats can be read through the proxy.
async fn all_crops_answer_200(kind: Kind) {
    let upstream = FakeAilab::start().await;
    let (granary, token) = granary(&upstream).await;
    let proxy = ReverseProxy::start(kind, &granary.url());
    let begun = Instant::now();
    let next = Arc::new(AtomicUsize::new(0));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let (url, token, next) = (proxy.url(), token.clone(), Arc::clone(&next));
        clients.spawn(async move { crop_some(&url, &token, &next).await });
    }
    let answers: Vec<_> = clients.join_all().await.into_iter().flatten().collect();
    println!("{kind:?}: {CROPS} crops in {:?}", begun.elapsed());
    for (number, answer) in &answers {
        assert_eq!(answer.status, 200, "{kind:?}, crop {number}: {}\n{}", answer.text(), proxy.log());
    }
    assert_eq!((answers.len(), upstream.charges()), (CROPS, CROPS as u64));

    let (number, bought) = &answers[CROPS / 2];
    let again = crop(&proxy.url(), &token, *number).send().await.unwrap();
    assert_eq!(again.header("cache-status").map(|status| status.contains("hit")), Some(true));
    assert_eq!(again.result_url(), bought.result_url());
    let path = bought.result_url().replace(&granary.url(), "");
    let direct = client::get(&format!("{}{path}", granary.url())).await.unwrap();
    let through = client::get(&format!("{}{path}", proxy.url())).await.unwrap();
    assert_eq!((direct.status, through.status), (200, 200));
    assert_eq!(through.body, direct.body);
    assert_eq!(upstream.charges(), CROPS as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs target/proxies, which `make test-all` makes"]
async fn crops_through_nginx_with_a_bare_proxy_pass_answer_200() {
    all_crops_answer_200(Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs target/proxies, which `make test-all` makes"]
async fn crops_through_nginx_that_passes_upgrades_answer_200() {
    all_crops_answer_200(Kind::NginxUpgrade).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs target/proxies, which `make test-all` makes"]
async fn crops_through_haproxy_answer_200() {
    all_crops_answer_200(Kind::Haproxy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs target/proxies, which `make test-all` makes"]
async fn crops_through_apache_answer_200() {
    all_crops_answer_200(Kind::Apache).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs target/proxies, which `make test-all` makes"]
async fn crops_through_varnish_answer_200() {
    all_crops_answer_200(Kind::Varnish).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs target/proxies, which `make test-all` makes"]
async fn nginx_as_the_readme_configures_it_passes_the_largest_picture() {
    let (team, token) = team("web", "");
    let granary = Granary::builtin(&team).await;
    let readme = include_str!("../../README.md");
    let server = readme.split("```nginx\n").nth(1).unwrap().split("```").next().unwrap();
    let origin = granary.url();
    let server = server.replace("listen 80", "listen LISTEN").replace("http://127.0.0.1:8080", &origin);
    assert!(server.contains("LISTEN") && server.contains(&origin), "{server}");
    let proxy = ReverseProxy::nginx(&server);
    let send = async |bytes| {
        let picture = images::padded(images::photo_jpeg(), bytes);
        client::post_form(&proxy.url(), &*token, &Form::curl(picture, 64, 64)).await.unwrap().status
    };
    assert_eq!(send(3_670_016).await, 200);
    // What Granary would refuse for its size, nginx may refuse too.
    assert_eq!(send(5_000_000).await, 413);
}
