//! Answers given before the request's body was read: every client can read them, also one that writes its
//! whole request first (OkHttp, Apache HttpClient, nginx and most other proxies).
//!
//! `REFUSALS` says how many requests of each kind and size are sent, and adds uploads of 20 MB at 1 MB/s
//! (default: a few, and none slower than three seconds).

use std::time::{Duration, Instant};

use granary_kit::client::{Answer, CROP_PATH, RawConnection};

use crate::harness::{Granary, memory_of, number, real, team, until};
use crate::result_memory::keep_result;

const MIB: usize = 1 << 20;
/// What Java 11 and later and `curl --http2` add to each request over plain HTTP.
const H2C: &str =
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n";

/// One kind of refusal.
#[derive(Clone, Copy)]
struct Refusal {
    status: u16,
    is_chunked: bool,
    more_headers: &'static str,
}

/// All kinds: 401 and 413 by the head alone, 413 in the middle of the body.
fn refusals() -> Vec<Refusal> {
    let mut kinds = Vec::new();
    for more_headers in ["", H2C] {
        for (status, is_chunked) in [(401, false), (401, true), (413, false), (413, true)] {
            kinds.push(Refusal { status, is_chunked, more_headers });
        }
    }
    kinds
}

impl Refusal {
    /// Sends `length` bytes, perhaps at so many bytes per second, and then reads the answer.
    async fn ask(
        self,
        url: &str,
        token: &str,
        length: usize,
        rate: Option<usize>,
    ) -> std::io::Result<Answer> {
        let key = if self.status == 401 { "unknown" } else { token };
        let framing = match self.is_chunked {
            true => "Transfer-Encoding: chunked".to_owned(),
            false => format!("Content-Length: {length}"),
        };
        let head = format!(
            "POST {CROP_PATH} HTTP/1.1\r\nHost: localhost\r\nailabapi-api-key: {key}\r\n{}\
             Content-Type: multipart/form-data; boundary=B\r\n{framing}\r\n\r\n",
            self.more_headers
        );
        let part = "--B\r\nContent-Disposition: form-data; name=\"image\"; filename=\"a.jpg\"\r\n\r\n";
        let mut connection = RawConnection::open(url).await?;
        connection.send(head.as_bytes()).await?;
        let (mut sent, start) = (0, Instant::now());
        while sent < length {
            let mut piece = vec![b'x'; (64 * 1024).min(length - sent)];
            if sent == 0 {
                piece[..part.len()].copy_from_slice(part.as_bytes());
            }
            sent += piece.len();
            if self.is_chunked {
                piece = [format!("{:x}\r\n", piece.len()).as_bytes(), &piece, b"\r\n"].concat();
            }
            connection.send(&piece).await?;
            if let Some(rate) = rate {
                let due = Duration::from_secs_f64(sent as f64 / rate as f64);
                tokio::time::sleep(due.saturating_sub(start.elapsed())).await;
            }
        }
        if self.is_chunked {
            connection.send(b"0\r\n\r\n").await?;
        }
        connection.read_answer(false).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn early_refusal_is_read_by_clients_that_write_everything_first() {
    let (web, token) = team("web", "");
    let granary = Granary::builtin(&web).await;
    let url = granary.url();
    let requests = number("REFUSALS");
    // (length, rate, how many)
    let mut uploads = vec![(300_000, None, 10), (3_000_000, None, 4), (20_000_000, None, 1)];
    uploads.push((3_000_000, Some(1_000_000), 2));
    if let Some(requests) = requests {
        uploads.iter_mut().for_each(|upload| upload.2 = requests);
        uploads.push((20_000_000, Some(1_000_000), requests));
    }
    for (length, rate, count) in uploads {
        let mut tasks = tokio::task::JoinSet::new();
        for refusal in refusals() {
            // The smaller ones are within the limit.
            if refusal.status == 413 && length < 4_000_000 {
                continue;
            }
            for _ in 0..count {
                let (url, token) = (url.clone(), token.clone());
                tasks.spawn(async move {
                    let answer = refusal.ask(&url, &token, length, rate).await;
                    let shown = format!("{length} bytes, {rate:?}, chunked: {}", refusal.is_chunked);
                    let answer = answer.unwrap_or_else(|error| panic!("{shown}: {error}"));
                    assert_eq!(answer.status, refusal.status, "{shown}: {}", answer.text());
                    assert_eq!(answer.header("connection"), Some("close"), "{shown}");
                });
                // A few at a time.
                if rate.is_none() && tasks.len() >= 8 {
                    tasks.join_next().await.unwrap().unwrap();
                }
            }
        }
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_bytes_cost_no_memory() {
    let (web, token) = team("web", "");
    let process = real().config_text(web).env("GRANARY_SERVER_PUBLIC_URL", "http://a.example").start().await;
    let process = process.unwrap();
    let url = process.public_url();
    let send = async |count: usize, length: usize| {
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..count {
            let (url, token, refusal) = (url.clone(), token.clone(), refusals()[number % 2]);
            tasks.spawn(async move { refusal.ask(&url, &token, length, None).await.unwrap().status });
        }
        while let Some(status) = tasks.join_next().await {
            assert_eq!(status.unwrap(), 401);
        }
    };
    // The allocator's and the connections' own share.
    send(40, 100_000).await;
    let before = memory_of(&process, "VmHWM");
    send(40, 20 * MIB).await;
    let after = memory_of(&process, "VmHWM");
    println!("800 MiB were dropped; the peak went from {before} to {after} MiB");
    assert!(after <= before + 16, "{before} MiB before, {after} MiB after");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_answer_to_a_request_with_upgrade_is_complete() {
    let granary = Granary::builtin("").await;
    // More than the buffers of both ends hold.
    let (path, bytes) = keep_result(&granary.store_path(), 1, 24 * MIB);
    // A body that does not come is not waited for, and ends the connection.
    for headers in ["Connection: close", "Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 1000"] {
        let mut connection = RawConnection::open(&granary.url()).await.unwrap();
        let request = format!("GET /{path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\n");
        connection.send(request.as_bytes()).await.unwrap();
        let head = connection.read_head().await.unwrap();
        assert_eq!(head.start[1], "200");
        // Hyper has handed over its last bytes long before the client reads them.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(connection.read_to_close().await.unwrap() == bytes, "cut short: {headers}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lingering_connection_ends_when_the_client_closes_or_is_silent() {
    let granary = Granary::builtin("").await;
    let open = "granary_connections_open{listener=\"public\"}";
    let refused = async || {
        let mut connection = RawConnection::open(&granary.url()).await.unwrap();
        connection.send(b"PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n").await.unwrap();
        assert_eq!(connection.read_answer(false).await.unwrap().status, 405);
        connection
    };
    drop(refused().await);
    until("the end", async || granary.metric(open).await == 0.0).await;
    let silent = refused().await;
    let start = Instant::now();
    until("the end", async || granary.metric(open).await == 0.0).await;
    assert!(start.elapsed() > Duration::from_secs(4), "{:?}", start.elapsed());
    drop(silent);
}
