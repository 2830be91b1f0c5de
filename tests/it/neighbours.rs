//! What a careless or hostile team does to the others: nothing. Each test has one attack by one team, and requests of
//! another team meanwhile; it asserts success and shares, no times.

use std::time::Duration;

use futures_util::future::join_all;
use granary_kit::ailab::{Behaviour, FakeAilab};
use granary_kit::client::{Answer, Call, RawConnection};
use granary_kit::form::Form;
use granary_kit::images::{padded, tiny_png};
use granary_kit::proxy::{Ending, Fault, FaultProxy, Plan};
use granary_kit::s3::S3Server;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::bucket::store_section;
use crate::harness::{Granary, cache_status, team};

/// A Granary with two teams.
struct World {
    upstream: FakeAilab,
    granary: Granary,
    attacker: String,
    victim: String,
}

impl World {
    /// `config` is further configuration.
    async fn start(config: &str) -> Self {
        let upstream = FakeAilab::start().await;
        let (attacker, victim) = (team("attacker", ""), team("victim", ""));
        let config = format!("{config}\n{}\n{}", attacker.0, victim.0);
        let granary = Granary::ailab(&upstream, &config).await;
        Self { upstream, granary, attacker: attacker.1, victim: victim.1 }
    }

    async fn crop(&self, token: &str, picture: u64) -> Answer {
        self.granary.crop(Some(token), &tiny_png(40, 30, picture), 20, 20).await
    }

    /// Sends it in a task of its own.
    fn begin(&self, token: &str, picture: u64) -> JoinHandle<Answer> {
        let call =
            Call::crop(&self.granary.url(), Some(token), &Form::curl(tiny_png(40, 30, picture), 20, 20));
        tokio::spawn(async move { call.send().await.unwrap() })
    }
}

async fn answers(asked: Vec<JoinHandle<Answer>>) -> Vec<Answer> {
    join_all(asked).await.into_iter().map(Result::unwrap).collect()
}

fn with_status(answers: &[Answer], status: u16) -> usize {
    answers.iter().filter(|answer| answer.status == status).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pictures_that_the_upstream_fails_on_rest_their_team_alone() {
    let world = World::start("").await;
    world.upstream.always(Behaviour::refuse(500, "PROCESSING_FAILURE"));
    let mut failed = Vec::new();
    for picture in 0..13 {
        failed.push(world.crop(&world.attacker, picture).await);
    }
    assert_eq!((with_status(&failed, 500), with_status(&failed, 503)), (5, 8), "it rests after five");
    world.upstream.always(Behaviour::Success);
    for picture in 100..120 {
        let answer = world.crop(&world.victim, picture).await;
        assert_eq!((answer.status, answer.header("granary-reason")), (200, None));
    }
    assert_eq!(world.granary.metric("granary_purchases_blocked{cause=\"outage\"}").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_wait_leave_places_for_another_team() {
    // Three quarters of the connections may wait.
    let world = World::start("[server]\nmax_connections = 40\n").await;
    world.upstream.always(Behaviour::Hold);
    let attack: Vec<_> = (0..32).map(|picture| world.begin(&world.attacker, picture)).collect();
    world.granary.wait_for_metric("granary_coalesce_groups_in_flight", 26.0).await;
    let victims: Vec<_> = (100..103).map(|picture| world.begin(&world.victim, picture)).collect();
    world.granary.wait_for_metric("granary_coalesce_groups_in_flight", 29.0).await;
    world.upstream.always(Behaviour::Success);
    world.upstream.release();
    let (attack, victims) = (answers(attack).await, answers(victims).await);
    assert_eq!(with_status(&victims, 200), 3);
    assert_eq!(
        (with_status(&attack, 200), with_status(&attack, 503)),
        (26, 6),
        "seven eighths of the places"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_uploads_leave_room_for_another_team() {
    let world = World::start("[server]\nupload_memory = \"4MiB\"\nupload_spill = \"4MiB\"\n").await;
    let picture = |number, length| padded(&tiny_png(16, 16, number), length);
    let crop = async |number| world.granary.crop(Some(&world.victim), &picture(number, 50_000), 20, 20).await;
    assert_eq!(crop(1).await.status, 200);
    // Until not even a small one has room.
    let (mut stalled, mut number) = (Vec::new(), 100);
    for length in [700_000, 60_000, 3000] {
        let refused = async || world.granary.metric("granary_uploads_refused_total").await;
        let before = refused().await;
        while refused().await == before {
            let form = Form::curl(picture(number, length), 20, 20);
            let bytes = Call::crop(&world.granary.url(), Some(world.attacker.as_str()), &form).to_bytes();
            let mut connection = RawConnection::open(&world.granary.url()).await.unwrap();
            connection.send_until_answered(&bytes[..bytes.len() - 8]).await.unwrap();
            stalled.push(connection);
            number += 1;
        }
    }
    let hit = crop(1).await;
    assert_eq!((hit.status, hit.header("granary-reason")), (200, None));
    assert_eq!(cache_status(&hit), "granary; hit; detail=memory");
    let miss = crop(2).await;
    assert_eq!((miss.status, miss.header("granary-reason")), (200, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lookups_that_flood_a_slow_bucket_take_turns_with_another_team() {
    const LOOKUPS: u64 = 700;
    let (bucket, folder) = (S3Server::start().await, TempDir::new().unwrap());
    let to_bucket = FaultProxy::start(&bucket.endpoint()).await;
    let store = store_section(&bucket, &folder).replace(&bucket.endpoint(), &to_bucket.url());
    let world = World::start(&store).await;
    to_bucket.always(Plan::clean().to_client(Fault::Delay(Duration::from_millis(500))));
    to_bucket.end_all(Ending::Cut);
    // In one queue they would take more than the five seconds that a request waits for the store.
    let attack: Vec<_> = (0..LOOKUPS)
        .map(|number| {
            let url = format!("{}/api/image/editing/image-cropping/{number:064x}", world.granary.url());
            let call = Call::new("GET", &url).header("ailabapi-api-key", &world.attacker);
            tokio::spawn(async move { call.send().await.unwrap() })
        })
        .collect();
    world.granary.wait_for_metric("granary_connections_open{listener=\"public\"}", LOOKUPS as f64).await;
    let victims: Vec<_> = (0..4).map(|picture| world.begin(&world.victim, picture)).collect();
    let victims = answers(victims).await;
    assert_eq!(with_status(&victims, 200), 4);
    let attack = answers(attack).await;
    assert_eq!(with_status(&attack, 404) + with_status(&attack, 503), LOOKUPS as usize);
    assert!(with_status(&attack, 503) > 0, "the flood was too small to be one");
}
