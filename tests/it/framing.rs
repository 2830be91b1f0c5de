//! Heads that could be understood in two ways are refused, in the envelope, and nothing after them is
//! heard; what has one meaning is served, in order.
//!
//! `PIPELINED` says how many requests are sent without waiting for answers (default 2,000).

use granary_kit::client::{Answer, CROP_PATH, Call, RawConnection};
use granary_kit::form::Form;
use granary_kit::images;

use crate::harness::{Granary, number, within};

/// A request after the hostile one, or inside it.
const CANARY: &str = "GET /canary HTTP/1.1\r\nHost: localhost\r\n\r\n";
/// What the canary is counted as, should it ever be heard.
const HEARD: &str = "granary_http_requests_total{code=\"404\",method=\"GET\",route=\"unmatched\"}";
const APP: &str = "https://app.example.com";

/// Lines as they are sent.
fn crlf(lines: &str) -> String {
    lines.replace('\n', "\r\n")
}

/// Everything that comes after these bytes: answers, until the server closes.
async fn answers(granary: &Granary, bytes: &[u8]) -> Vec<Answer> {
    let mut connection = RawConnection::open(&granary.url()).await.unwrap();
    // The server may have closed by then.
    let _ = connection.send(bytes).await;
    connection.shutdown_write().await.ok();
    let mut answers = Vec::new();
    while let Ok(answer) = within("an answer or the end", connection.read_answer(false)).await {
        answers.push(answer);
    }
    answers
}

fn hostile() -> Vec<(u16, String)> {
    let mut heads = Vec::new();
    let mut add = |status: u16, head: &str| heads.push((status, crlf(head)));
    let post = format!("POST {CROP_PATH} HTTP/1.1\nHost: localhost\n");
    for lines in [
        // The classic smuggles, both ways.
        "Content-Length: 4\nTransfer-Encoding: chunked\n\n0\n\n",
        "Transfer-Encoding: chunked\nContent-Length: 4\n\n0\n\n",
        "Content-Length: 0\nContent-Length: 44\n\n",
        "Content-Length: 5\nContent-Length: 5\n\nhello",
        "Content-Length: 5, 5\n\nhello",
        "Content-Length: +5\n\nhello",
        "Content-Length: -5\n\n",
        "Content-Length: 5 5\n\nhello",
        "Content-Length: 99999999999999999999\n\n",
        "Content-Length:\n\n",
        "Transfer-Encoding: chunked\nTransfer-Encoding: chunked\n\n0\n\n",
        "Transfer-Encoding: chunked\nTransfer-Encoding: identity\n\n0\n\n",
        "Transfer-Encoding: identity\n\n",
        "Transfer-Encoding: gzip, chunked\n\n0\n\n",
        "Transfer-Encoding: chunked, identity\n\n0\n\n",
        "Transfer-Encoding: xchunked\n\n0\n\n",
        "Transfer-Encoding: \"chunked\"\n\n0\n\n",
        "Transfer-Encoding : chunked\n\n0\n\n",
        "Transfer-Encoding:\u{b}chunked\n\n0\n\n",
        "Transfer-Encoding: chunked\n : x\n\n0\n\n",
        "X: y\n Content-Length: 44\n\n",
        "X: y\rContent-Length: 44\n\n",
        "X: y\0\n\n",
        "X y\n\n",
    ] {
        add(400, &format!("{post}{lines}"));
    }
    for head in [
        "GET / HTTP/1.1\n\n",
        "GET / HTTP/1.1\nHost: localhost\nHost: localhost\n\n",
        "GET / HTTP/1.1\nHost: localhost\nhost: b\n\n",
        "GET /results/x.png HTTP/1.1\nHost: localhost\nHost: localhost\n\n",
        "GET / HTTP/1.1\nHost:\n\n",
        "GET / HTTP/1.1\nHost: x/?\n\n",
        "GET / HTTP/1.1\nHost: x/#\n\n",
        "GET / HTTP/1.1\nHost: u@x\n\n",
        "GET / HTTP/1.1\nHost: x y\n\n",
        "GET / HTTP/1.1\nHost: x:y\n\n",
        "GET http://b/ HTTP/1.1\nHost: localhost\n\n",
        "GET http://localhost:81/ HTTP/1.1\nHost: localhost:80\n\n",
        "GET http://u@localhost/ HTTP/1.1\nHost: localhost\n\n",
        "GET a HTTP/1.1\nHost: localhost\n\n",
        "GET * HTTP/1.1\nHost: localhost\n\n",
        "GET / HTTP/1.0\nHost: localhost\nTransfer-Encoding: chunked\n\n0\n\n",
        "POST / HTTP/1.0\nHost: localhost\nContent-Length: 5\nTransfer-Encoding: chunked\n\nhello",
        "GET / HTTP/1.2\nHost: localhost\n\n",
        "GET / HTTP/3.0\nHost: localhost\n\n",
        "GET /\n\n",
        "GET / x HTTP/1.1\nHost: localhost\n\n",
        "PRI * HTTP/2.0\n\nSM\n\n",
        "\u{16}\u{3}\u{1}\n\n",
    ] {
        add(400, head);
    }
    add(405, "CONNECT localhost:443 HTTP/1.1\nHost: localhost:443\n\n");
    add(405, "TRACE / HTTP/1.1\nHost: localhost\n\n");
    add(414, &format!("GET /{} HTTP/1.1\nHost: localhost\n\n", "x".repeat(2048)));
    add(414, &format!("GET /{} HTTP/1.1\nHost: localhost\n\n", "x".repeat(64 * 1024)));
    add(431, &format!("GET / HTTP/1.1\nHost: localhost\n{}\n", "X: y\n".repeat(64)));
    add(431, &format!("GET / HTTP/1.1\nHost: localhost\n{}\n", "X: y\n".repeat(10_000)));
    add(431, &format!("GET / HTTP/1.1\nHost: localhost\nX: {}\n\n", "y".repeat(16 * 1024)));
    add(431, &format!("GET / HTTP/1.1\nHost: localhost\nX: {}\n\n", "y".repeat(1 << 20)));
    // Lines that end in one byte are as good as none.
    heads.push((400, "GET / HTTP/1.1\nHost: localhost\n\n".to_owned()));
    heads.push((400, "GET / HTTP/1.1\r\nHost: localhost\r\n\n".to_owned()));
    heads
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_head_that_two_could_read_differently_nothing_is_heard() {
    let granary = Granary::builtin(&format!("[server]\ncors_origins = [\"{APP}\"]")).await;
    let heads = hostile();
    for (status, head) in &heads {
        let seen = answers(&granary, format!("{head}{CANARY}{CANARY}").as_bytes()).await;
        let shown: String = head.chars().take(300).collect();
        let [answer] = &seen[..] else { panic!("{} answers to {shown:?}: {seen:?}", seen.len()) };
        let code = if *status == 405 { "ERROR_ILLEGAL_OPERATION" } else { "ERROR_PARAMETERS" };
        assert_eq!((answer.status, answer.code().as_str()), (*status, code), "{shown:?}");
        assert_eq!(answer.json()["error_code"], *status, "{shown:?}");
        let id = answer.header("x-request-id").unwrap();
        assert_eq!(answer.json()["request_id"], id);
        assert_eq!(answer.headers("connection"), ["close"], "{shown:?}");
        assert_eq!(answer.header("allow").is_some(), *status == 405);
    }
    assert_eq!(granary.metric(HEARD).await, 0.0, "a canary was heard");
    let refused = granary.metric_sum("granary_request_errors_total").await;
    assert_eq!(refused, heads.len() as f64);
    assert_eq!(answers(&granary, CANARY.as_bytes()).await[0].status, 404);
    assert_eq!(granary.metric(HEARD).await, 1.0, "the control");
}

#[tokio::test]
async fn a_refused_head_is_answered_to_pages_and_to_head_as_anything_else_is() {
    let granary = Granary::builtin(&format!("[server]\ncors_origins = [\"{APP}\"]")).await;
    let of = |method: &str, origin: &str| {
        format!("{method} / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\nOrigin: {origin}\r\n\r\n")
            .into_bytes()
    };
    let allowed = answers(&granary, &of("POST", APP)).await;
    assert_eq!(allowed[0].headers("access-control-allow-origin"), [APP]);
    assert!(!allowed[0].headers("access-control-expose-headers").is_empty());
    let foreign = answers(&granary, &of("POST", "https://evil.example.net")).await;
    assert_eq!(foreign[0].headers("access-control-allow-origin"), [""; 0]);
    let mut connection = RawConnection::open(&granary.url()).await.unwrap();
    connection.send(&of("HEAD", APP)).await.unwrap();
    let head = connection.read_answer(true).await.unwrap();
    assert_eq!((head.status, connection.read_to_close().await.unwrap()), (400, vec![]));
    // Operators get their own shape.
    let mut connection = RawConnection::open(&granary.admin()).await.unwrap();
    connection.send(b"GET /livez HTTP/1.1\r\n\r\n").await.unwrap();
    let answer = connection.read_answer(false).await.unwrap();
    assert_eq!((answer.status, answer.json()["reason"].as_str()), (400, Some("malformed")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_one_meaning_is_served_and_so_is_what_follows_it() {
    let granary = Granary::builtin("").await;
    let form = Form::curl(images::photo_jpeg(), 40, 40);
    let body = form.to_bytes();
    let post =
        format!("POST {CROP_PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {}\r\n", form.content_type());
    let mut chunked = format!("{post}Transfer-Encoding: Chunked\r\n\r\n").into_bytes();
    for (at, chunk) in body.chunks(7001).enumerate() {
        let extension = if at % 2 == 0 { ";a=b" } else { "" };
        chunked.extend_from_slice(format!("{:X}{extension}\r\n", chunk.len()).as_bytes());
        chunked.extend_from_slice(chunk);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\nX-Trailer: y\r\n\r\n");
    let sized = [format!("{post}Content-Length: {}\r\n\r\n", body.len()).as_bytes(), &body].concat();
    let plain = |text: &str| text.as_bytes().to_vec();
    for (status, bytes) in [
        (200, chunked),
        (200, sized),
        (200, plain("GET http://localhost:80/ HTTP/1.1\r\nHost: LOCALHOST:80\r\n\r\n")),
        (200, plain("\r\n\r\nGET / HTTP/1.1\r\nHost: localhost\r\n\r\n")),
        (200, plain("GET / HTTP/1.1\r\nHost: [::1]:8080\r\nX: \u{e4}\r\n\r\n")),
        // Nothing else is ever spoken on a connection.
        (
            200,
            plain(
                "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
            ),
        ),
        (
            200,
            plain(
                "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
            ),
        ),
        (405, plain("PROPFIND / HTTP/1.1\r\nHost: localhost\r\n\r\n")),
        (404, plain("BREW /pot HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")),
    ] {
        let seen = answers(&granary, &[&bytes[..], CANARY.as_bytes()].concat()).await;
        let statuses: Vec<u16> = seen.iter().map(|answer| answer.status).collect();
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
        assert_eq!(statuses, [status, 404], "{shown}");
        assert!(seen.iter().all(|answer| !answer.interim.contains(&101)), "{shown}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_1_0_requests_with_a_content_length_are_served_and_kept_alive_on_request() {
    let granary = Granary::builtin("").await;
    let form = Form::curl(images::photo_jpeg(), 40, 40);
    let body = form.to_bytes();
    let post = |more: &str| {
        let head = format!(
            "POST {CROP_PATH} HTTP/1.0\r\n{more}Content-Type: {}\r\nContent-Length: {}\r\n\r\n",
            form.content_type(),
            body.len()
        );
        [head.as_bytes(), &body].concat()
    };
    let get = |more: &str| format!("GET / HTTP/1.0\r\n{more}\r\n").into_bytes();
    for (bytes, is_kept) in [
        (post(""), false),
        (post("Host: localhost\r\nConnection: close\r\n"), false),
        (post("Host: localhost\r\nConnection: Keep-Alive\r\n"), true),
        (get(""), false),
        (get("Connection: keep-alive\r\n"), true),
    ] {
        let seen = answers(&granary, &[&bytes[..], &bytes].concat()).await;
        let statuses: Vec<u16> = seen.iter().map(|answer| answer.status).collect();
        assert_eq!(statuses, vec![200; if is_kept { 2 } else { 1 }]);
        let keep_alive = is_kept.then_some("keep-alive");
        assert_eq!(seen[0].header("connection").filter(|value| *value != "close"), keep_alive);
        assert_eq!(seen[0].header("keep-alive"), is_kept.then_some("timeout=75"));
    }
    // Later requests of one connection, cut at every place.
    let mut connection = RawConnection::open(&granary.url()).await.unwrap();
    for piece in post("Connection: keep-alive\r\n").repeat(3).chunks(4001) {
        connection.send(piece).await.unwrap();
    }
    for _ in 0..3 {
        assert_eq!(connection.read_answer(false).await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn answers_name_the_idle_timeout_unless_they_close() {
    let granary = Granary::builtin("[server]\nidle_timeout = \"33s\"").await;
    for (headers, expected) in
        [("", Some("timeout=33")), ("Connection: close\r\n", None), ("Content-Length: 1\r\n", None)]
    {
        let head = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
        let seen = answers(&granary, head.as_bytes()).await;
        assert_eq!(seen[0].header("keep-alive"), expected, "{headers}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tiny_chunks_are_refused_and_ordinary_ones_are_served() {
    let granary = Granary::builtin("").await;
    let form = Form::curl(images::photo_jpeg(), 40, 40);
    let body = form.to_bytes();
    for (length, status) in [(1, 400), (63, 400), (4096, 200)] {
        let mut bytes = format!(
            "POST {CROP_PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {}\r\nTransfer-Encoding: chunked\r\n\r\n",
            form.content_type()
        )
        .into_bytes();
        for chunk in body.chunks(length) {
            bytes.extend([format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat());
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        let seen = answers(&granary, &bytes).await;
        assert_eq!((seen.len(), seen[0].status), (1, status), "{length}: {}", seen[0].text());
        if status == 400 {
            assert!(seen[0].text().contains("64 bytes on average"), "{}", seen[0].text());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_that_two_could_read_differently_end_the_connection() {
    let granary = Granary::builtin("").await;
    let head = format!(
        "POST {CROP_PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    );
    for chunks in [
        "+1\r\nx\r\n0\r\n\r\n",
        "1\nx\n0\n\n",
        "00000000000000001\r\nx\r\n0\r\n\r\n",
        "2\r\nx\r\n0\r\n\r\n",
        "0\r\nX: y\n\r\n",
        "zz\r\n",
    ] {
        let seen = answers(&granary, format!("{head}{chunks}{CANARY}").as_bytes()).await;
        let statuses: Vec<u16> = seen.iter().map(|answer| answer.status).collect();
        assert!(matches!(statuses[..], [] | [400]), "{chunks:?}: {statuses:?}");
    }
    assert_eq!(granary.metric(HEARD).await, 0.0, "a canary was heard");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_do_not_wait_for_answers_are_answered_in_their_order() {
    let granary = Granary::builtin("").await;
    let mut expected = Vec::new();
    for width in [30, 40, 50] {
        let url = granary.crop(None, images::photo_jpeg(), width, 40).await.result_url();
        let tag = format!("\"{}\"", url.rsplit('/').next().unwrap().split('.').next().unwrap());
        expected.push((Call::new("HEAD", &url).to_bytes(), tag));
    }
    let requests = usize::try_from(number("PIPELINED").unwrap_or(2000)).unwrap();
    let mut connection = RawConnection::open(&granary.url()).await.unwrap();
    // As many as fit into the buffers in between, with heads cut at every place.
    for batch in (0..requests).collect::<Vec<_>>().chunks(200) {
        let bytes: Vec<u8> = batch.iter().flat_map(|at| expected[at % 3].0.clone()).collect();
        for piece in bytes.chunks(997) {
            connection.send(piece).await.unwrap();
        }
        for at in batch {
            let answer = connection.read_answer(true).await.unwrap();
            assert_eq!(
                (answer.status, answer.header("etag")),
                (200, Some(expected[at % 3].1.as_str())),
                "{at}"
            );
        }
    }
    println!("{requests} requests were answered in order");
}
