//! Promise 6 for results: readers share what they read, and what slow ones hold is what is configured.
//!
//! `READERS` says how many read one result slowly at once; without, fewer do.

use std::net::SocketAddrV4;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use granary::base::picture::ObjectName;
use granary_kit::client::{self, Call, RawConnection};
use granary_kit::images;

use crate::harness::{Granary, memory_of, metric, number, real, until};

const MIB: usize = 1 << 20;
/// Connections that are opened at the same time.
const TOGETHER: usize = 50;

/// Puts a result of so many bytes into a store, and says its path below the public root.
pub(crate) fn keep_result(store: &Path, seed: u64, length: usize) -> (String, Vec<u8>) {
    let bytes = images::padded(&images::tiny_png(16, 16, seed), length);
    let path = ObjectName::of(&bytes).unwrap().path();
    std::fs::write(store.join(&path), &bytes).unwrap();
    (path, bytes)
}

/// A client that has read the head of a result and nothing more.
pub(crate) async fn begin(url: &str, path: &str) -> RawConnection {
    let mut connection = RawConnection::open(url).await.unwrap();
    connection
        .send(format!("GET /{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let head = connection.read_head().await.unwrap();
    assert_eq!(head.start[1], "200");
    connection
}

/// Reads the rest, and says whether it is the result.
pub(crate) async fn end(mut connection: RawConnection, bytes: &[u8]) -> bool {
    connection.read_to_close().await.unwrap() == bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_of_one_result_share_its_bytes() {
    let readers = number("READERS").map_or(300, |readers| readers as usize);
    let builder = real();
    let process = builder.start().await.unwrap();
    let (url, admin) = (process.public_url(), process.admin_url());
    let (path, bytes) = keep_result(&builder.home().join("granary-data/store"), 1, 6 * MIB);
    assert!(end(begin(&url, &path).await, &bytes).await);
    let before = memory_of(&process, "VmRSS");

    let mut reading = Vec::new();
    while reading.len() < readers {
        let more = TOGETHER.min(readers - reading.len());
        reading.extend(join_all((0..more).map(|_| begin(&url, &path))).await);
    }
    assert_eq!(
        metric(&admin, "granary_space_used_bytes{space=\"results\"}").await,
        (6 * MIB) as f64,
        "it is there once"
    );
    let grown = memory_of(&process, "VmRSS").saturating_sub(before);
    println!(
        "{readers} slow readers of a result of 6 MiB: the process grew from {before} MiB by {grown} MiB"
    );
    // The goal for 5,000 is 100 MiB: 20 KiB for each.
    let bound = 32 + readers / 32;
    assert!(grown <= bound, "grew by {grown} MiB, more than {bound} MiB");
    // Some hang up; the others read on, a few at a time, and get all of it.
    reading.truncate(300);
    while !reading.is_empty() {
        let some = reading.split_off(reading.len().saturating_sub(TOGETHER / 5));
        assert!(
            join_all(some.into_iter().map(|reader| end(reader, &bytes)))
                .await
                .into_iter()
                .all(|is_whole| is_whole)
        );
    }
    until("its memory to be free", async || {
        metric(&admin, "granary_space_used_bytes{space=\"results\"}").await == 0.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_of_many_results_keep_others_waiting_and_take_no_more_memory() {
    let server = "[server]\nresult_memory = \"128MiB\"\ntrusted_proxies = [\"127.0.0.1\"]\n";
    let granary = Granary::builtin(server).await;
    let (url, store) = (granary.url(), granary.store_path());
    let results: Vec<_> = (0..7).map(|seed| keep_result(&store, seed, 20 * MIB)).collect();
    let (small, small_bytes) = keep_result(&store, 9, 100_000);
    // It is at hand from now on.
    assert!(end(begin(&url, &small).await, &small_bytes).await);
    let mut slow = Vec::new();
    for (path, _) in &results[..5] {
        slow.push(begin(&url, path).await);
    }
    granary.wait_for_metric("granary_space_used_bytes{space=\"results\"}", (100 * MIB) as f64).await;

    // Clients of one network have seven eighths at most.
    let (last, last_bytes) = &results[5];
    let refused = client::get(&format!("{url}/{last}")).await.unwrap();
    assert_eq!((refused.status, refused.header("granary-reason")), (503, Some("busy")), "{}", refused.text());
    assert_eq!(refused.code(), "AI_SERVICE_FLOW_RESTRICTION");
    assert!(refused.header("retry-after").is_some() && refused.header("etag").is_none());
    let (other, other_bytes) = &results[6];
    let elsewhere = Call::new("GET", &format!("{url}/{other}")).header("x-forwarded-for", "198.51.100.7");
    let served = elsewhere.send().await.unwrap();
    assert_eq!((served.status, served.body == *other_bytes), (200, true), "another network has room");
    // What is at hand, or being sent, needs no more.
    assert!(end(begin(&url, &small).await, &small_bytes).await);
    assert!(end(begin(&url, &results[0].0).await, &results[0].1).await);

    // One of them reads on, and whoever waits has room.
    let waiting = tokio::spawn({
        let (url, path) = (url.clone(), last.clone());
        async move { begin(&url, &path).await }
    });
    assert!(end(slow.remove(0), &results[0].1).await);
    assert!(end(waiting.await.unwrap(), last_bytes).await);
    // A result that is longer than usual is no error of the store.
    assert_eq!(granary.metric("granary_store_operations_total{op=\"object\",result=\"error\"}").await, 0.0);
    // Who hangs up takes nothing any more.
    drop(slow);
    granary.wait_for_metric("granary_space_used_bytes{space=\"results\"}", 0.0).await;
}

/// The bytes that the kernel holds for the slowest client of a listener: sent and not confirmed, or not sent yet.
fn longest_send_queue(listener: SocketAddrV4) -> usize {
    let (address, port) = (u32::from_le_bytes(listener.ip().octets()), listener.port());
    let listener = format!("{address:08X}:{port:04X}");
    let queue = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let queued = fields[4].split_once(':').unwrap().0;
        (fields[1] == listener).then(|| usize::from_str_radix(queued, 16).unwrap())
    };
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().skip(1).filter_map(queue).max().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_reader_holds_no_more_of_the_kernels_memory_than_configured() {
    let builder = real();
    let process = builder.start().await.unwrap();
    let url = process.public_url();
    let (path, bytes) = keep_result(&builder.home().join("granary-data/store"), 1, 6 * MIB);
    let slow = begin(&url, &path).await;
    let listener = url.strip_prefix("http://").unwrap().parse().unwrap();
    // Full when it has taken nothing more for a second.
    let (mut longest, mut since) = (0, Instant::now());
    while longest == 0 || since.elapsed() < Duration::from_secs(1) {
        let now = longest_send_queue(listener);
        if now > longest {
            (longest, since) = (now, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("the kernel holds {longest} bytes for a slow reader");
    // 128 KiB, which the kernel doubles for its overhead, and one write; without a limit it takes 2.5 MB.
    assert!(longest <= 384 << 10, "{longest} bytes");
    assert!(end(slow, &bytes).await);
}
