//! Refusals given before the body was read, counted: how many does a client read that writes everything first?

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, io};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use granary_kit::client::{CROP_PATH, RawConnection};
use granary_kit::reverse_proxy::{Kind, ReverseProxy};

use crate::harness::{Granary, team};

/// Tries per proxy and refusal.
const TRIES: usize = 20;
/// Tries without a proxy at full speed.
const DIRECT: usize = 100;
/// Tries of each refusal without a proxy at 1 MB/s.
const PACED: usize = 20;
/// The largest body Granary takes: a picture and 16 KiB.
const LIMIT: usize = 3_670_016 + 16 * 1024;
/// What Java's HttpClient and curl's `--http2` send over plain HTTP.
const H2C: &str =
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n";
/// What a proxy with lines for WebSockets makes of any request of a browser's.
const WEBSOCKET: &str = "Connection: upgrade\r\nUpgrade: websocket\r\n";

/// A request that is refused by its head, or once too much of it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refused {
    status: u16,
    bytes: usize,
    is_chunked: bool,
    upgrade: &'static str,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chunked = if self.is_chunked { " in chunks" } else { "" };
        let upgrade = self.upgrade.lines().find(|line| line.starts_with("Upgrade")).unwrap_or_default();
        write!(f, "{} for {} bytes{chunked} {upgrade}", self.status, self.bytes)
    }
}

impl Refused {
    const fn new(status: u16, bytes: usize) -> Self {
        Self { status, bytes, is_chunked: false, upgrade: "" }
    }

    /// As bytes. Without a good token it is refused with 401, else with 413.
    fn request(self, token: &str) -> Bytes {
        let token = if self.status == 401 { "bad" } else { token };
        let framing = match self.is_chunked {
            true => "Transfer-Encoding: chunked".to_owned(),
            false => format!("Content-Length: {}", self.bytes),
        };
        let mut request = format!(
            "POST {CROP_PATH} HTTP/1.1\r\nHost: granary\r\nailabapi-api-key: {token}\r\n\
             Content-Type: multipart/form-data; boundary=B\r\n{framing}\r\n{}\r\n",
            self.upgrade
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
    let upgrade = |upgrade| plain.map(|plain| Refused { upgrade, ..plain });
    let websocket = upgrade(WEBSOCKET).into_iter().filter(|refused| refused.bytes < 20_000_000);
    [upgrade(""), upgrade(H2C)].concat().into_iter().chain(websocket).collect()
}

/// Writes everything before it reads, as OkHttp, Apache HttpClient and proxies do: a write that fails is the end.
/// `rate` is in bytes per second.
async fn write_then_read(url: &str, request: &[u8], rate: Option<usize>) -> io::Result<u16> {
    let mut connection = RawConnection::open(url).await?;
    let begun = Instant::now();
    for (number, piece) in request.chunks(64 * 1024).enumerate() {
        if let Some(rate) = rate {
            let due = Duration::from_secs_f64((number * 64 * 1024) as f64 / rate as f64);
            tokio::time::sleep(due.saturating_sub(begun.elapsed())).await;
        }
        connection.send(piece).await?;
    }
    Ok(connection.read_answer(false).await?.status)
}

/// What clients made of a refusal, counted: a status, or the error of the client.
type Outcomes = BTreeMap<String, usize>;

/// Tries again and again, some at once.
async fn tries(url: &str, request: Bytes, rate: Option<usize>, number: usize, at_once: usize) -> Outcomes {
    let permits = Arc::new(tokio::sync::Semaphore::new(at_once));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..number {
        let (url, request, permits) = (url.to_owned(), request.clone(), Arc::clone(&permits));
        tasks.spawn(async move {
            let _permit = permits.acquire_owned().await.unwrap();
            match write_then_read(&url, &request, rate).await {
                Ok(status) => status.to_string(),
                Err(error) => format!("{:?}", error.kind()),
            }
        });
    }
    let mut outcomes = Outcomes::new();
    for outcome in tasks.join_all().await {
        *outcomes.entry(outcome).or_default() += 1;
    }
    outcomes
}

fn read(outcomes: &Outcomes, refused: Refused) -> usize {
    outcomes.get(&refused.status.to_string()).copied().unwrap_or(0)
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
        let urls = [ours.url(), theirs[usize::from(refused.status == 413)].url()];
        let request = refused.request(&token);
        let (ours, theirs) = tokio::join!(
            tries(&urls[0], request.clone(), None, TRIES, 2),
            tries(&urls[1], request.clone(), None, TRIES, 2)
        );
        println!("{kind:?} {refused}: {ours:?}, from nginx {theirs:?}");
        if read(&ours, refused) < read(&theirs, refused) {
            worse.push(format!("{refused}: {ours:?}, from nginx {theirs:?}"));
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
async fn every_refusal_is_read(rate: Option<usize>, number: usize, at_once: usize, variants_at_once: usize) {
    let (team, token) = team("web", "");
    let granary = Granary::builtin(&team).await;
    let (url, token) = (&granary.url(), &token);
    let one = |refused: Refused| async move {
        let outcomes = tries(url, refused.request(token), rate, number, at_once).await;
        println!("{refused}: {outcomes:?}");
        (read(&outcomes, refused) < number).then(|| format!("{refused}: {outcomes:?}"))
    };
    let unread: Vec<_> = stream::iter(all()).map(one).buffered(variants_at_once).collect().await;
    let unread: Vec<_> = unread.into_iter().flatten().collect();
    assert!(unread.is_empty(), "{unread:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: `make test-all` runs it"]
async fn refusals_of_uploads_at_full_speed_are_all_read() {
    every_refusal_is_read(None, DIRECT, 4, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: `make test-all` runs it"]
async fn refusals_of_uploads_at_1_megabyte_a_second_are_all_read() {
    // Few enough that a busy machine keeps the pace: Granary waits 30 s for the 20 MB.
    every_refusal_is_read(Some(1_000_000), PACED, PACED, 3).await;
}
