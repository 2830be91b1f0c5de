//! Refusals given before the body was read, counted: how many does a client read that writes everything first?

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use granary_kit::client::{CROP_PATH, RawConnection};
use granary_kit::reverse_proxy::{Kind, ReverseProxy};

use crate::harness::{Granary, team};

/// Tries per proxy and refusal.
const TRIES: usize = 20;
/// Tries without a proxy.
const DIRECT: usize = 100;
/// The largest body Granary takes: a picture and 16 KiB.
const LIMIT: usize = 3_670_016 + 16 * 1024;
/// What Java's HttpClient and curl's `--http2` send over plain HTTP.
const UPGRADE: &str =
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n";

/// A request that is refused by its head, or once too much of it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refused {
    status: u16,
    bytes: usize,
    is_chunked: bool,
    upgrades: bool,
}

impl Refused {
    const fn new(status: u16, bytes: usize) -> Self {
        Self { status, bytes, is_chunked: false, upgrades: false }
    }

    /// As bytes. Without a good token it is refused with 401, else with 413.
    fn request(self, token: &str) -> Bytes {
        let token = if self.status == 401 { "bad" } else { token };
        let upgrade = if self.upgrades { UPGRADE } else { "" };
        let framing = match self.is_chunked {
            true => "Transfer-Encoding: chunked".to_owned(),
            false => format!("Content-Length: {}", self.bytes),
        };
        let mut request = format!(
            "POST {CROP_PATH} HTTP/1.1\r\nHost: granary\r\nailabapi-api-key: {token}\r\n\
             Content-Type: multipart/form-data; boundary=B\r\n{framing}\r\n{upgrade}\r\n"
        )
        .into_bytes();
        if self.is_chunked {
            request.extend_from_slice(format!("{:x}\r\n", self.bytes).as_bytes());
        }
        let begin = b"--B\r\nContent-Disposition: form-data; name=\"image\"; filename=\"a.jpg\"\r\n\r\n";
        request.extend_from_slice(begin);
        request.resize(request.len() + self.bytes - begin.len(), b'A');
        if self.is_chunked {
            request.extend_from_slice(b"\r\n0\r\n\r\n");
        }
        request.into()
    }
}

/// Every refusal: 300 KB, 3 MB and 20 MB; a 413 needs more than [`LIMIT`].
fn all() -> Vec<Refused> {
    let plain = [
        Refused::new(401, 300_000),
        Refused::new(401, 3_000_000),
        Refused::new(401, 20_000_000),
        Refused::new(413, 4_000_000),
        Refused::new(413, 20_000_000),
        Refused { is_chunked: true, ..Refused::new(413, 20_000_000) },
    ];
    plain.into_iter().flat_map(|plain| [plain, Refused { upgrades: true, ..plain }]).collect()
}

/// Writes everything before it reads, as OkHttp, Apache HttpClient and proxies do: a write that fails is the end.
/// `rate` is in bytes per second.
async fn write_then_read(url: &str, request: &[u8], rate: Option<usize>) -> Result<u16, String> {
    let said = |error: std::io::Error| format!("{:?}", error.kind());
    let mut connection = RawConnection::open(url).await.map_err(said)?;
    let begun = Instant::now();
    for (number, piece) in request.chunks(64 * 1024).enumerate() {
        if let Some(rate) = rate {
            let due = Duration::from_secs_f64((number * 64 * 1024) as f64 / rate as f64);
            tokio::time::sleep(due.saturating_sub(begun.elapsed())).await;
        }
        connection.send(piece).await.map_err(said)?;
    }
    Ok(connection.read_answer(false).await.map_err(said)?.status)
}

/// Tries, some at once, and returns what each client made of it.
async fn tries(
    url: &str,
    request: &Bytes,
    rate: Option<usize>,
    number: usize,
    at_once: usize,
) -> Vec<Result<u16, String>> {
    let permits = Arc::new(tokio::sync::Semaphore::new(at_once));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..number {
        let (url, request, permits) = (url.to_owned(), request.clone(), Arc::clone(&permits));
        tasks.spawn(async move {
            let _permit = permits.acquire_owned().await.unwrap();
            write_then_read(&url, &request, rate).await
        });
    }
    tasks.join_all().await
}

fn count(outcomes: &[Result<u16, String>], status: u16) -> usize {
    outcomes.iter().filter(|outcome| **outcome == Ok(status)).count()
}

/// Without a good token 401, with it 413: each at least as often as from nginx.
async fn refusals_are_read_as_often_as_from_nginx(kind: Kind) {
    let (team, token) = team("web", "");
    let granary = Granary::builtin(&team).await;
    let ours = ReverseProxy::start(kind, &granary.url());
    let origins = [ReverseProxy::unauthorized_origin(), ReverseProxy::too_large_origin(LIMIT)];
    let theirs = origins.each_ref().map(|origin| ReverseProxy::start(kind, &origin.url()));
    let mut worse = Vec::new();
    for refused in all() {
        let request = refused.request(&token);
        let theirs = &theirs[usize::from(refused.status == 413)];
        let begun = Instant::now();
        let by_granary = tries(&ours.url(), &request, None, TRIES, 2).await;
        let took = begun.elapsed();
        let by_nginx = tries(&theirs.url(), &request, None, TRIES, 2).await;
        let read = [count(&by_granary, refused.status), count(&by_nginx, refused.status)];
        println!("{kind:?} {refused:?}: read {} of {TRIES} ({took:?}), of nginx {}", read[0], read[1]);
        if read[0] < read[1] {
            worse.push(format!("{refused:?}: {read:?} {by_granary:?}"));
        }
    }
    assert!(worse.is_empty(), "{kind:?}: {worse:#?}\n{}", ours.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs target/proxies, which `make test-all` makes"]
async fn refusals_through_nginx_with_a_bare_proxy_pass_are_read_as_often_as_from_nginx() {
    refusals_are_read_as_often_as_from_nginx(Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs target/proxies, which `make test-all` makes"]
async fn refusals_through_nginx_that_passes_upgrades_are_read_as_often_as_from_nginx() {
    refusals_are_read_as_often_as_from_nginx(Kind::NginxUpgrade).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs target/proxies, which `make test-all` makes"]
async fn refusals_through_haproxy_are_read_as_often_as_from_nginx() {
    refusals_are_read_as_often_as_from_nginx(Kind::Haproxy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs target/proxies, which `make test-all` makes"]
async fn refusals_through_apache_are_read_as_often_as_from_nginx() {
    refusals_are_read_as_often_as_from_nginx(Kind::Apache).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs target/proxies, which `make test-all` makes"]
async fn refusals_through_varnish_are_read_as_often_as_from_nginx() {
    refusals_are_read_as_often_as_from_nginx(Kind::Varnish).await;
}

/// Every refusal, without a proxy.
async fn every_refusal_is_read(rate: Option<usize>, at_once: usize) {
    let (team, token) = team("web", "");
    let granary = Granary::builtin(&team).await;
    let mut unread = Vec::new();
    for refused in all() {
        let begun = Instant::now();
        let outcomes = tries(&granary.url(), &refused.request(&token), rate, DIRECT, at_once).await;
        let read = count(&outcomes, refused.status);
        println!("{refused:?}: read {read} of {DIRECT} in {:?}", begun.elapsed());
        if read < DIRECT {
            unread.push(format!("{refused:?}: {outcomes:?}"));
        }
    }
    assert!(unread.is_empty(), "{unread:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: `make test-all` runs it"]
async fn refusals_of_uploads_at_full_speed_are_all_read() {
    every_refusal_is_read(None, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: `make test-all` runs it"]
async fn refusals_of_uploads_at_1_megabyte_a_second_are_all_read() {
    every_refusal_is_read(Some(1_000_000), DIRECT).await;
}
