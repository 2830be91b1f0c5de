//! Two operations share nothing: the same picture with the same numbers is bought once for each.
//!
//! The second operation exists only in builds for tests; it differs from cropping in its path.

use std::collections::BTreeSet;

use granary::base::operation::{IMAGE_CROPPING, OPERATIONS, Operation};
use granary_kit::ailab::{Behaviour, FakeAilab};
use granary_kit::client::{self, Answer, Call};
use granary_kit::dice::Dice;
use granary_kit::form::Form;
use granary_kit::images::tiny_png;

use crate::harness::{Granary, cache_status, files_below};

const PICTURES: u64 = 3;
const STEPS: usize = 60;

/// What is asked for: an operation, and a picture. The numbers are always the same.
type Wanted = (&'static Operation, u64);

async fn post(granary: &Granary, (operation, picture): Wanted) -> Answer {
    let form = Form::curl(tiny_png(30, 20, picture), 20, 20);
    Call::new("POST", &format!("{}{}", granary.url(), operation.path))
        .header("Content-Type", &form.content_type())
        .body(form.to_bytes())
        .send()
        .await
        .unwrap()
}

async fn look_up(granary: &Granary, operation: &Operation, key: &str) -> Answer {
    client::get(&format!("{}{}/{key}", granary.url(), operation.path)).await.unwrap()
}

fn key(answer: &Answer) -> &str {
    answer.header("granary-key").expect("a key")
}

/// The name of the result; its host is another after a restart.
fn name_of(answer: &Answer) -> String {
    answer.result_url().rsplit('/').next().unwrap().to_owned()
}

/// Paths of the calls that were charged, in order.
fn charged_paths(upstream: &FakeAilab) -> Vec<String> {
    let charged = upstream.seen().into_iter().filter(|seen| seen.charged);
    charged.map(|seen| seen.head.start[1].clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_operations_are_bought_stored_and_purged_apart() {
    let upstream = FakeAilab::start().await;
    let granary = Granary::ailab(&upstream, "").await;
    let [crop, second] = [OPERATIONS[0], OPERATIONS[1]];

    // At the same time, so that one could wait for the other.
    let (one, other) = tokio::join!(post(&granary, (crop, 1)), post(&granary, (second, 1)));
    for answer in [&one, &other] {
        assert_eq!(
            (answer.status, cache_status(answer).as_str()),
            (200, "granary; fwd=uri-miss; fwd-status=200; stored")
        );
    }
    assert_eq!(key(&one), key(&other), "the key is made of picture and numbers");
    let paths: BTreeSet<String> = charged_paths(&upstream).into_iter().collect();
    assert_eq!(paths, [crop.path, second.path].map(str::to_owned).into());
    for namespace in ["ailab-v1", "ailab-v1.second"] {
        assert_eq!(files_below(&granary.store_path().join("records").join(namespace)), 1, "{namespace}");
    }

    // The purge of a crop leaves the other operation's result.
    let purge = format!("{}/admin/v1/keys/{}/purge", granary.admin(), key(&one));
    assert_eq!(Call::new("POST", &purge).send().await.unwrap().status, 200);
    assert_eq!(look_up(&granary, crop, key(&one)).await.status, 404);
    assert_eq!(look_up(&granary, second, key(&one)).await.result_url(), other.result_url());

    // A new ledger imports both archives.
    let granary = granary.restart_without_state().await;
    granary.adopt().await;
    assert_eq!(name_of(&post(&granary, (second, 1)).await), name_of(&other));
    assert_eq!(post(&granary, (crop, 1)).await.status, 200);
    assert_eq!(charged_paths(&upstream).len(), 3);
    granary.stop().await;
}

/// A random life of some pictures under both operations, against a model that knows each pair.
async fn live(seed: u64) {
    let mut dice = Dice::new(seed);
    let upstream = FakeAilab::start().await;
    let mut granary = Granary::ailab(&upstream, "").await;
    let (mut bought, mut refused) = (BTreeSet::<(&str, u64)>::new(), BTreeSet::<(&str, u64)>::new());
    for step in 0..STEPS {
        let operation = OPERATIONS[dice.below(OPERATIONS.len() as u64) as usize];
        let wanted = (operation, dice.below(PICTURES));
        let pair = (operation.path, wanted.1);
        let context = format!("seed {seed}, step {step}, {pair:?}");
        let attempts = upstream.attempts();
        if dice.chance(500) {
            granary = granary.restart().await;
            refused.clear();
        }
        let is_known = bought.contains(&pair);
        if dice.chance(3000) {
            let key = granary::base::key::CacheKey::of(&tiny_png(30, 20, wanted.1), 20, 20).to_string();
            let status = look_up(&granary, operation, &key).await.status;
            assert_eq!(status, if is_known { 200 } else { 404 }, "{context}");
            assert_eq!(upstream.attempts(), attempts, "{context}");
            continue;
        }
        let is_refused = !is_known && !refused.contains(&pair) && dice.chance(3000);
        if is_refused {
            upstream.on_next(Behaviour::Refuse { status: 400, code: "ERROR_PARAMETERS".to_owned() });
        }
        let answer = post(&granary, wanted).await;
        let calls = upstream.attempts() - attempts;
        if is_known {
            assert_eq!((answer.status, calls), (200, 0), "{context}");
        } else if refused.contains(&pair) {
            assert_eq!((answer.status, calls), (400, 0), "{context}: a refusal is remembered");
        } else if is_refused {
            assert_eq!((answer.status, calls), (400, 1), "{context}");
            refused.insert(pair);
        } else {
            assert_eq!((answer.status, calls), (200, 1), "{context}: {}", answer.text());
            bought.insert(pair);
        }
    }
    assert_eq!(upstream.charges(), bought.len() as u64, "seed {seed}");
    granary.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operations_share_nothing_in_any_order_of_requests() {
    assert!(std::ptr::eq(OPERATIONS[0], &raw const IMAGE_CROPPING));
    for seed in 0..8 {
        live(seed).await;
    }
}
