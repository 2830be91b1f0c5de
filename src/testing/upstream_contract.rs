//! What every [`Upstream`] must do, and the [`ResultSource`] that goes with it, as tests: one
//! function for each clause, one list of them all.
//!
//! A pair runs it by implementing [`UpstreamFixture`] for its surroundings and writing, in its tests,
//! `crate::testing::upstream_contract::upstream_contract!(MyFixture::new())`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::base::envelope::Answer;
use crate::base::operation::IMAGE_CROPPING;
use crate::base::picture::{ImageFormat, ObjectName};
use crate::base::secret::Secret;
use crate::request::Order;
use crate::upstream::download::ResultSource;
use crate::upstream::{HeldCall, Opened, RefusalKind, Reply, Upstream};

/// Where an upstream under test lives.
#[async_trait]
pub(crate) trait UpstreamFixture: Send + Sync {
    fn upstream(&self) -> Arc<dyn Upstream>;

    fn results(&self) -> Arc<dyn ResultSource>;

    /// Calls that cost something until now; `None` where none ever does.
    async fn charges(&self) -> Option<u64>;
}

/// Makes a test of each clause. `$fixture` is an expression that awaits a fresh one.
macro_rules! upstream_contract {
    ($fixture:expr) => {
        $crate::testing::upstream_contract::upstream_contract! { $fixture;
            a_call_costs_when_its_tail_goes_and_brings_a_result_that_can_be_fetched
            what_is_opened_and_dropped_costs_nothing_however_often
            calls_at_the_same_time_are_calls_of_their_own
            a_refusal_is_complete_and_free
            what_was_never_sold_cannot_be_fetched
        }
    };
    ($fixture:expr; $($clause:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $clause() {
                let fixture = $fixture.await;
                $crate::testing::upstream_contract::$clause(&fixture).await;
            }
        )*
    };
}
pub(crate) use upstream_contract;

/// A picture to be cropped; `seed` tells it from others.
fn order(seed: u64, width: u32) -> Arc<Order> {
    let image = Bytes::from(granary_kit::images::tiny_png(24, 24, seed)).into();
    Arc::new(Order { operation: &IMAGE_CROPPING, image, format: ImageFormat::Png, width, height: 30 })
}

async fn open(fixture: &impl UpstreamFixture, order: Arc<Order>) -> Box<dyn HeldCall> {
    match fixture.upstream().open(order).await {
        Ok(Opened::Held(call)) => call,
        Ok(Opened::Answered(reply)) => panic!("answered early: {reply:?}"),
        Err(error) => panic!("not sent: {error}"),
    }
}

async fn buy(fixture: &impl UpstreamFixture, seed: u64) -> Answer {
    match open(fixture, order(seed, 40)).await.send().await {
        Reply::Answered(answer) => answer,
        other => panic!("no answer: {other:?}"),
    }
}

pub(crate) async fn a_call_costs_when_its_tail_goes_and_brings_a_result_that_can_be_fetched(
    fixture: &impl UpstreamFixture,
) {
    let call = open(fixture, order(1, 40)).await;
    assert!(fixture.charges().await.is_none_or(|charges| charges == 0), "the tail is held back");
    let Reply::Answered(answer) = call.send().await else { panic!("no answer") };
    assert!(fixture.charges().await.is_none_or(|charges| charges == 1));
    assert!(!answer.request_id.is_empty());
    let read_back =
        Answer::read(answer.text().expose(), &IMAGE_CROPPING).expect("what was answered can be read again");
    assert_eq!(read_back.url().expose(), answer.url().expose());

    let results = fixture.results();
    let first = results.fetch(answer.url()).await.expect("what was sold");
    assert_eq!(ObjectName::of(&first.bytes), Some(first.name));
    for _ in 0..2 {
        let again = results.fetch(answer.url()).await.expect("it may be fetched again");
        assert!((again.name, &again.bytes) == (first.name, &first.bytes));
    }
    assert!(fixture.charges().await.is_none_or(|charges| charges == 1), "a fetch is free");
}

pub(crate) async fn what_is_opened_and_dropped_costs_nothing_however_often(fixture: &impl UpstreamFixture) {
    for round in 0..8 {
        drop(open(fixture, order(2, 40)).await);
        // Given up at any point of the way, too.
        let opening = fixture.upstream();
        let _ = tokio::time::timeout(Duration::from_micros(300 * round), opening.open(order(2, 40))).await;
    }
    assert!(fixture.charges().await.is_none_or(|charges| charges == 0));
    buy(fixture, 2).await;
    assert!(fixture.charges().await.is_none_or(|charges| charges == 1), "and it still sells");
}

pub(crate) async fn calls_at_the_same_time_are_calls_of_their_own(fixture: &impl UpstreamFixture) {
    // Of one picture, too: an upstream knows no keys.
    let (first, second, third) = tokio::join!(buy(fixture, 3), buy(fixture, 3), buy(fixture, 4));
    assert!(first.request_id != second.request_id && second.request_id != third.request_id);
    assert!(fixture.charges().await.is_none_or(|charges| charges == 3));
    for answer in [first, second, third] {
        fixture.results().fetch(answer.url()).await.expect("what was sold");
    }
}

pub(crate) async fn a_refusal_is_complete_and_free(fixture: &impl UpstreamFixture) {
    // Narrower than anyone makes them.
    let reply = match fixture.upstream().open(order(5, 5)).await.expect("it is reached") {
        Opened::Held(call) => call.send().await,
        Opened::Answered(reply) => reply,
    };
    let Reply::Refused(refusal) = reply else { panic!("not refused: {reply:?}") };
    assert_eq!(refusal.kind, RefusalKind::Order);
    assert!(refusal.reply.status.is_client_error() && !refusal.reply.code.is_empty(), "{refusal:?}");
    assert!(refusal.reply.body.is_some(), "it may be passed through");
    assert!(fixture.charges().await.is_none_or(|charges| charges == 0));
}

pub(crate) async fn what_was_never_sold_cannot_be_fetched(fixture: &impl UpstreamFixture) {
    let sold = buy(fixture, 6).await;
    let never = format!("{}x", sold.url().expose());
    for url in ["", "nonsense", "ftp://results.example/1", &never] {
        assert!(fixture.results().fetch(&Secret::new(url)).await.is_err(), "{url}");
    }
}
