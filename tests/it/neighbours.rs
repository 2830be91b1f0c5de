//! What a careless or hostile team does to the others: nothing. Each test has one attack by one team, and requests of
//! another team meanwhile; it asserts success and shares, no times.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use granary_kit::ailab::{Behaviour, FakeAilab};
use granary_kit::client::{self, Answer, Call, RawConnection};
use granary_kit::form::Form;
use granary_kit::images::{padded, tiny_png};
use granary_kit::proxy::{Ending, Fault, FaultProxy, Plan};
use granary_kit::s3::S3Server;
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::bucket::store_section;
use crate::harness::{Granary, cache_status, team};

/// An address of this machine in another network than the clients' usual one.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);

/// A Granary with two teams.
struct World {
    upstream: FakeAilab,
    granary: Granary,
    attacker: String,
    victim: String,
}

impl World {
    /// `config` is further configuration; lines before its first section belong to `[upstream]`.
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

/// Sends all of these from one address; returns when they are on their way.
async fn flood(url: &str, from: Ipv4Addr, calls: impl Iterator<Item = Call>) -> Vec<JoinHandle<Answer>> {
    let sent = Arc::new(Semaphore::new(0));
    let send = |call: Call| {
        let (url, sent) = (url.to_owned(), sent.clone());
        tokio::spawn(async move {
            let mut connection = RawConnection::open_from(&url, from).await.unwrap();
            connection.send(&call.to_bytes()).await.unwrap();
            sent.add_permits(1);
            connection.read_answer(false).await.unwrap()
        })
    };
    let asked: Vec<_> = calls.map(send).collect();
    let _ = sent.acquire_many(asked.len() as u32).await.unwrap();
    asked
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
async fn pictures_that_the_upstream_refuses_rest_nobody() {
    let world = World::start("").await;
    world.upstream.always(Behaviour::refuse(400, "ERROR_PARAMETERS"));
    for picture in 0..30 {
        assert_eq!(world.crop(&world.attacker, picture).await.status, 400);
    }
    world.upstream.always(Behaviour::Success);
    for picture in 100..110 {
        assert_eq!(world.crop(&world.victim, picture).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_wait_leave_places_for_another_team() {
    // Misses, and followers of one; groups that are in flight when 26 wait.
    for (pictures, groups) in [(32, 26.0), (1, 1.0)] {
        // Three quarters of the connections may wait.
        let world = World::start("[server]\nmax_connections = 40\n").await;
        world.upstream.always(Behaviour::Hold);
        let attack: Vec<_> = (0..32).map(|n| world.begin(&world.attacker, n % pictures)).collect();
        world.granary.wait_for_metric("granary_coalesce_groups_in_flight", groups).await;
        let followers = "granary_coalesce_followers_total{scope=\"local\"}";
        world.granary.wait_for_metric(followers, 26.0 - groups).await;
        let victims: Vec<_> = (100..103).map(|picture| world.begin(&world.victim, picture)).collect();
        world.granary.wait_for_metric("granary_coalesce_groups_in_flight", groups + 3.0).await;
        world.upstream.always(Behaviour::Success);
        world.upstream.release();
        let (attack, victims) = (answers(attack).await, answers(victims).await);
        assert_eq!(with_status(&victims, 200), 3);
        let ends = (with_status(&attack, 200), with_status(&attack, 503));
        assert_eq!(ends, (26, 6), "seven eighths of the places");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_of_misses_takes_turns_with_another_team() {
    const FLOOD: u64 = 20;
    let world = World::start("concurrency = 2\n").await;
    world.upstream.always(Behaviour::Hold);
    let attack: Vec<_> = (0..FLOOD).map(|picture| world.begin(&world.attacker, picture)).collect();
    world.granary.wait_for_metric("granary_coalesce_groups_in_flight", FLOOD as f64).await;
    let victims: Vec<_> = (100..104).map(|picture| world.begin(&world.victim, picture)).collect();
    world.granary.wait_for_metric("granary_coalesce_groups_in_flight", FLOOD as f64 + 4.0).await;
    world.upstream.always(Behaviour::Delay(Duration::from_millis(100)));
    world.upstream.release();
    let before = world.upstream.attempts();
    assert_eq!(with_status(&answers(victims).await, 200), 4);
    // Two under way, and one for each of the victim's.
    let attempts = world.upstream.attempts() - before;
    assert!(attempts <= 4 + 4 + 4, "{attempts} calls until the four were answered");
    assert_eq!(with_status(&answers(attack).await, 200), FLOOD as usize);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_without_a_request_make_way_for_another_client() {
    let world = World::start("[server]\nmax_connections = 40\n").await;
    let mut hogs = Vec::new();
    for _ in 0..60 {
        let mut hog = RawConnection::open_from(&world.granary.url(), ELSEWHERE).await.unwrap();
        // It may have been closed for the next one.
        let _ = hog.send(b"POST / HTTP/1.1\r\n").await;
        hogs.push(hog);
    }
    for picture in 0..20 {
        assert_eq!(world.crop(&world.victim, picture / 2).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_results_that_are_not_there_take_turns_with_another_network() {
    const NAMES: u64 = 200;
    let (bucket, folder) = (S3Server::start().await, TempDir::new().unwrap());
    let to_bucket = FaultProxy::start(&bucket.endpoint()).await;
    let store = store_section(&bucket, &folder).replace(&bucket.endpoint(), &to_bucket.url());
    let mut world = World::start(&store).await;
    let mut results = Vec::new();
    for picture in 0..4 {
        results.push(world.crop(&world.victim, picture).await.result_url());
    }
    // Nothing is in memory.
    world.granary = world.granary.restart().await;
    to_bucket.always(Plan::clean().to_client(Fault::Delay(Duration::from_millis(500))));
    to_bucket.end_all(Ending::Cut);
    to_bucket.hold(true);
    let url = world.granary.url();
    let names = (0..NAMES).map(|number| Call::new("GET", &format!("{url}/results/{number:064x}.png")));
    let attack = flood(&url, ELSEWHERE, names).await;
    to_bucket.hold(false);
    for result in results {
        let path = result.split_once("/results/").unwrap().1;
        let answer = client::get(&format!("{url}/results/{path}")).await.unwrap();
        assert_eq!((answer.status, answer.header("granary-reason")), (200, None));
    }
    let attack = answers(attack).await;
    assert_eq!(with_status(&attack, 404) + with_status(&attack, 503), NAMES as usize);
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
    to_bucket.hold(true);
    let url = world.granary.url();
    // In one queue they would take more than the five seconds that a request waits for the store.
    let lookups = (0..LOOKUPS).map(|number| {
        let url = format!("{url}/api/image/editing/image-cropping/{number:064x}");
        Call::new("GET", &url).header("ailabapi-api-key", &world.attacker)
    });
    let attack = flood(&url, Ipv4Addr::LOCALHOST, lookups).await;
    to_bucket.hold(false);
    let victims: Vec<_> = (0..4).map(|picture| world.begin(&world.victim, picture)).collect();
    let victims = answers(victims).await;
    assert_eq!(with_status(&victims, 200), 4);
    let attack = answers(attack).await;
    assert_eq!(with_status(&attack, 404) + with_status(&attack, 503), LOOKUPS as usize);
    assert!(with_status(&attack, 503) > 0, "the flood was too small to be one");
}
