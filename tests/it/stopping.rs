//! SIGTERM under load: whoever was let in is answered, whatever was paid is booked, and the exit is 0.
//!
//! `STOPS` says how often (default 4).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use granary_kit::ailab::{Behaviour, FakeAilab};
use granary_kit::client::{Answer, Call, RawConnection};
use granary_kit::form::Form;
use granary_kit::images;

use crate::harness::{Granary, number, real_ailab, until, within};
use crate::result_memory::{begin, end, keep_result};

/// Clients of each kind.
const CLIENTS: u64 = 4;

/// What clients saw in one life of the program.
#[derive(Default)]
struct Seen {
    stopping: AtomicBool,
    pictures: AtomicU64,
    answers: AtomicU64,
    last_answers: AtomicU64,
    drained: AtomicU64,
}

impl Seen {
    /// Every answer is a real one. Says whether it is its connection's last.
    fn take(&self, answer: &Answer) -> bool {
        let is_last = answer.header("connection") == Some("close");
        match answer.status {
            200 => {}
            503 => {
                assert_eq!(answer.header("granary-reason"), Some("draining"), "{}", answer.text());
                assert!(self.stopping.load(Ordering::SeqCst), "refused before it was told to stop");
                self.drained.fetch_add(1, Ordering::SeqCst);
            }
            status => panic!("{status}: {}", answer.text()),
        }
        self.answers.fetch_add(1, Ordering::SeqCst);
        self.last_answers.fetch_add(u64::from(is_last), Ordering::SeqCst);
        is_last
    }

    /// A picture that nobody has asked for.
    fn new_picture(&self) -> u64 {
        self.pictures.fetch_add(1, Ordering::SeqCst)
    }
}

fn crop(url: &str, seed: u64) -> Call {
    Call::crop(url, None, &Form::curl(images::tiny_png(16, 16, seed), 64, 64))
}

/// Asks for hits (of picture 0) and misses, on kept connections or each on its own, until nobody takes
/// connections any more. Whatever is sent on a connection that was taken is answered.
async fn client(url: String, seen: Arc<Seen>, keeps: bool, misses: bool, pause: Duration) {
    let mut connection = None;
    loop {
        let mut kept = match connection.take() {
            Some(kept) => kept,
            None => match RawConnection::open(&url).await {
                Ok(new) => new,
                Err(_) if seen.stopping.load(Ordering::SeqCst) => return,
                Err(error) => panic!("not stopping, and {error}"),
            },
        };
        let seed = if misses { seen.new_picture() } else { 0 };
        let answer = kept.call(&crop(&url, seed)).await.unwrap_or_else(|error| {
            panic!("a request was not answered: {error}, keeps: {keeps}, misses: {misses}, {pause:?}")
        });
        let is_last = seen.take(&answer);
        if keeps && !is_last {
            connection = Some(kept);
        }
        tokio::time::sleep(pause).await;
    }
}

/// Sends half of its request before the stop, and the other half after the listener has closed.
async fn slow_upload(url: String, seen: Arc<Seen>, closed: Arc<AtomicBool>) {
    let bytes = crop(&url, 0).to_bytes();
    let mut connection = RawConnection::open(&url).await.unwrap();
    connection.send(&bytes[..bytes.len() - 200]).await.unwrap();
    while !closed.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    connection.send(&bytes[bytes.len() - 200..]).await.unwrap();
    let answer = connection.read_answer(false).await.unwrap();
    assert_eq!(answer.status, 200, "a hit is served to the end: {}", answer.text());
    assert!(seen.take(&answer), "and it is the last");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_under_load_leaves_nobody_without_an_answer_and_nothing_unbooked() {
    let stops = number("STOPS").unwrap_or(4);
    let (mut answers, mut drained, mut charges) = (0, 0, 0);
    for stop in 0..stops {
        let upstream = FakeAilab::start().await;
        upstream.keep_bodies(false);
        upstream.always(Behaviour::Delay(Duration::from_millis(20)));
        // Some rounds have a grace in which clients can go elsewhere, and some close at once.
        let grace = if stop % 2 == 0 { "300ms" } else { "50ms" };
        let builder = real_ailab(&upstream).env("GRANARY_SERVER_DRAIN_GRACE", grace);
        let mut process = builder.start().await.unwrap();
        let (url, seen) = (process.public_url(), Arc::new(Seen::default()));
        let first = crop(&url, seen.new_picture()).send().await.unwrap();
        assert_eq!(first.status, 200);
        let closed = Arc::new(AtomicBool::new(false));
        let mut clients = tokio::task::JoinSet::new();
        for number in 0..CLIENTS {
            // The pauses are shorter than any grace: nobody who talks is cut off between two requests.
            let pause = Duration::from_millis(number * 5);
            for (keeps, misses) in [(true, false), (true, true), (false, false), (false, true)] {
                clients.spawn(client(url.clone(), seen.clone(), keeps, misses, pause));
            }
        }
        let uploading = tokio::spawn(slow_upload(url.clone(), seen.clone(), closed.clone()));
        tokio::time::sleep(Duration::from_millis(150 + stop * 13 % 100)).await;
        seen.stopping.store(true, Ordering::SeqCst);
        process.terminate();
        while let Some(ended) = within("clients to go", clients.join_next()).await {
            ended.unwrap();
        }
        closed.store(true, Ordering::SeqCst);
        within("the slow upload", uploading).await.unwrap();
        let status = process.wait_exit(Duration::from_secs(60)).await.expect("it ends");
        assert_eq!(status.code(), Some(0), "{}", process.stderr_text());

        let file = builder.home().join("granary-data/state/ledger.sqlite");
        let ledger = rusqlite::Connection::open(file).unwrap();
        let count = |states: &str| -> u64 {
            let rows = format!("SELECT count(*) FROM calls WHERE state {states}");
            ledger.query_row(&rows, [], |row| row.get(0)).unwrap()
        };
        let stored = count("= 'stored'");
        assert_eq!((count("NOT IN ('stored', 'released')"), stored), (0, upstream.charges()), "stop {stop}");
        let seen_last = seen.last_answers.load(Ordering::SeqCst);
        assert!(seen_last >= CLIENTS, "{seen_last} answers said that they were the last");
        answers += seen.answers.load(Ordering::SeqCst);
        drained += seen.drained.load(Ordering::SeqCst);
        charges += stored;
    }
    println!(
        "{stops} stops: {answers} answers, {drained} of them 503 draining; {charges} charges, all stored"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_rests_ends_at_once_when_the_listener_closes() {
    let upstream = FakeAilab::start().await;
    let mut process = real_ailab(&upstream).start().await.unwrap();
    let url = process.public_url();
    let mut resting = Vec::new();
    for _ in 0..50 {
        let mut connection = RawConnection::open(&url).await.unwrap();
        assert_eq!(connection.call(&Call::new("GET", &url)).await.unwrap().status, 200);
        resting.push(connection);
    }
    process.terminate();
    for mut connection in resting {
        assert_eq!(connection.read_to_close().await.unwrap(), b"");
    }
    // Well before any of them would have been idle for too long.
    let status = process.wait_exit(Duration::from_secs(20)).await.expect("it ends");
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_still_taking_an_answer_when_the_listener_closes_gets_all_of_it() {
    let granary = Granary::builtin("").await;
    let url = granary.url();
    // More than the buffers of both ends hold.
    let (path, bytes) = keep_result(&granary.store_path(), 1, 24 << 20);
    let taking = begin(&url, &path).await;
    let mut resting = RawConnection::open(&url).await.unwrap();
    assert_eq!(resting.call(&Call::new("GET", &url)).await.unwrap().status, 200);
    let stopping = tokio::spawn(granary.stop());
    assert_eq!(resting.read_to_close().await.unwrap(), b"");
    until("the listener to close", async || RawConnection::open(&url).await.is_err()).await;
    assert!(end(taking, &bytes).await, "an answer was cut short");
    within("the end", stopping).await.unwrap();
}
