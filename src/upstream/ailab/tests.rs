use std::net::SocketAddr;

use bytes::Bytes;
use proptest::prelude::{ProptestConfig, any, proptest};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::sleep;

use super::answer::MAX_ANSWER_BYTES;
use super::credits::CreditsError;
use super::*;
use crate::base::operation::IMAGE_CROPPING;
use crate::base::picture::ImageFormat;
use crate::upstream::net::tests::{FakeWire, listen, tls_server};
use crate::upstream::{ErrorReply, HeldCall, Refusal, RefusalKind, Reply, UnknownCause};

const KEY: &str = "c4n4ry-key-5e5ame";
const SUCCESS: &str =
    r#"{"data":{"url":"https://h.example/a.jpg?s=1"},"error_code":0,"log_id":"7","request_id":"R"}"#;

fn config(address: SocketAddr) -> AilabConfig {
    let url = Url::parse(&format!("http://{address}")).expect("a URL");
    AilabConfig::new(url, Arc::new(ArcSwap::from_pointee(Secret::new(KEY))))
}

fn upstream(address: SocketAddr) -> AilabUpstream {
    AilabUpstream::new(config(address)).expect("a configuration")
}

fn order(image_bytes: usize) -> Arc<Order> {
    let mut image = vec![0x5A; image_bytes];
    image[..4].copy_from_slice(b"\xFF\xD8\xFF\xE0");
    Arc::new(Order {
        operation: &IMAGE_CROPPING,
        image: Bytes::from(image).into(),
        format: ImageFormat::Jpeg,
        width: 600,
        height: 40,
    })
}

fn held(opened: Result<Opened, NotSent>) -> Box<dyn HeldCall> {
    match opened {
        Ok(Opened::Held(call)) => call,
        Ok(Opened::Answered(reply)) => panic!("answered early: {reply:?}"),
        Err(error) => panic!("not sent: {error}"),
    }
}

/// Reads what is there until it is quiet for a moment; whether the peer has closed comes with it.
async fn read_what_is_there(stream: &mut (impl AsyncRead + Unpin)) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match timeout(Duration::from_millis(60), stream.read(&mut buffer)).await {
            Err(_) => return (bytes, false),
            Ok(Ok(0) | Err(_)) => return (bytes, true),
            Ok(Ok(count)) => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}

/// Reads a request to its closing boundary.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    while !bytes.ends_with(b"--\r\n") {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
        }
    }
    bytes
}

fn response(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// Answers every connection's request with `bytes` and closes.
async fn serve(listener: TcpListener, bytes: Vec<u8>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        read_request(&mut stream).await;
        stream.write_all(&bytes).await.ok();
        stream.shutdown().await.ok();
    }
}

async fn reply_to(bytes: Vec<u8>) -> Reply {
    let (listener, address) = listen().await;
    let server = tokio::spawn(serve(listener, bytes));
    let reply = held(upstream(address).open(order(100)).await).send().await;
    server.abort();
    reply
}

fn unknown(reply: &Reply) -> Option<UnknownCause> {
    match reply {
        Reply::Unknown(cause) => Some(*cause),
        Reply::Answered(_) | Reply::Refused(_) | Reply::Failed(_) | Reply::NotSent(_) => None,
    }
}

#[tokio::test]
async fn the_request_is_canonical_and_its_tail_waits() {
    let (listener, address) = listen().await;
    let upstream = upstream(address);
    let order = order(200_000);
    let (opened, accepted) = tokio::join!(upstream.open(order.clone()), listener.accept());
    let (call, mut stream) = (held(opened), accepted.unwrap().0);
    let (bytes, closed) = read_what_is_there(&mut stream).await;
    assert!(!closed);

    let marker = b"boundary=";
    let at = memchr::memmem::find(&bytes, marker).expect("a boundary") + marker.len();
    let boundary = String::from_utf8(bytes[at..at + 48].to_vec()).unwrap();
    let before = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"image\"; filename=\"image.jpg\"\r\n\
         Content-Type: image/jpeg\r\n\r\n"
    );
    let after = format!(
        "\r\n--{boundary}\r\nContent-Disposition: form-data; name=\"width\"\r\n\r\n600\
         \r\n--{boundary}\r\nContent-Disposition: form-data; name=\"height\"\r\n\r\n"
    );
    let tail = format!("40\r\n--{boundary}--\r\n");
    let length = before.len() + order.image.len() + after.len() + tail.len();
    let mut expected = format!(
        "POST /api/image/editing/image-cropping HTTP/1.1\r\nhost: {address}\r\nailabapi-api-key: {KEY}\r\n\
         accept: application/json\r\naccept-encoding: identity\r\nuser-agent: granary/{}\r\n\
         content-type: multipart/form-data; boundary={boundary}\r\ncontent-length: {length}\r\n\r\n{before}",
        env!("CARGO_PKG_VERSION")
    )
    .into_bytes();
    expected.extend_from_slice(&order.image.whole().unwrap());
    expected.extend_from_slice(after.as_bytes());
    assert_eq!(bytes.len(), expected.len());
    assert!(bytes == expected, "{:?}", String::from_utf8_lossy(&bytes[..900]));

    let sent = tokio::spawn(call.send());
    assert_eq!(read_request(&mut stream).await, tail.as_bytes());
    stream.write_all(&response("200 OK", "", SUCCESS)).await.unwrap();
    match sent.await.unwrap() {
        Reply::Answered(answer) => assert_eq!(answer.text().expose(), SUCCESS),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_dropped_call_closes_without_its_tail() {
    let (listener, address) = listen().await;
    let upstream = upstream(address);
    let (opened, accepted) = tokio::join!(upstream.open(order(3_000_000)), async {
        let mut stream = listener.accept().await.unwrap().0;
        let read = read_what_is_there(&mut stream).await;
        (stream, read)
    });
    let (mut stream, (bytes, closed)) = accepted;
    assert!(bytes.len() > 3_000_000 && bytes.ends_with(b"name=\"height\"\r\n\r\n") && !closed);
    drop(held(opened));
    assert_eq!(read_what_is_there(&mut stream).await, (Vec::new(), true));
}

#[tokio::test]
async fn a_cancelled_upload_closes_without_its_tail() {
    let (listener, address) = listen().await;
    let upstream = upstream(address);
    // More than the sockets take, so that the upload is under way when it is cancelled.
    let mut opening = Box::pin(upstream.open(order(40_000_000)));
    let mut stream = tokio::select! {
        _ = &mut opening => panic!("all of it fitted"),
        accepted = async {
            let accepted = listener.accept().await.unwrap().0;
            sleep(Duration::from_millis(20)).await;
            accepted
        } => accepted,
    };
    drop(opening);
    let (bytes, closed) = read_what_is_there(&mut stream).await;
    assert!(closed && bytes.len() < 40_000_000);
}

/// Opens a call that is answered when the server has seen the request's head only.
async fn opened_early(bytes: Vec<u8>) -> Result<Opened, NotSent> {
    let (listener, address) = listen().await;
    let upstream = upstream(address);
    let (opened, _) = tokio::join!(upstream.open(order(40_000_000)), async {
        let mut stream = listener.accept().await.unwrap().0;
        stream.read_exact(&mut [0; 100]).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        stream
    });
    opened
}

#[tokio::test]
async fn a_reset_during_the_upload_was_not_sent_or_was_refused() {
    for _ in 0..5 {
        let (listener, address) = listen().await;
        let upstream = upstream(address);
        let (opened, ()) = tokio::join!(upstream.open(order(20_000_000)), async {
            let mut stream = listener.accept().await.unwrap().0;
            stream.read_exact(&mut [0; 100]).await.unwrap();
            stream.write_all(&response("413 X", "", "")).await.unwrap();
            // Closed with unread bytes, which resets the connection.
        });
        match opened {
            Ok(Opened::Answered(Reply::Refused(Refusal { kind: RefusalKind::Order, .. }))) => {}
            Err(NotSent::Upload(_)) => {}
            Ok(Opened::Answered(reply)) => panic!("{reply:?}"),
            Ok(Opened::Held(_)) => panic!("the server had a hundred bytes of it"),
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn an_early_refusal_is_an_answer_and_early_nonsense_is_not() {
    let error = r#"{"error_code":401,"error_detail":{"status_code":401,"code":"ERROR_USER_NOT_EXISTS"}}"#;
    match opened_early(response("401 Unauthorized", "", error)).await {
        Ok(Opened::Answered(Reply::Refused(Refusal { kind: RefusalKind::Key, reply }))) => {
            assert_eq!(reply.code, "ERROR_USER_NOT_EXISTS");
        }
        _ => panic!("not an early refusal"),
    }
    match opened_early(response("413 Too Large", "", "<html>")).await {
        Ok(Opened::Answered(Reply::Refused(Refusal { kind: RefusalKind::Order, reply }))) => {
            assert_eq!(reply.body, None);
        }
        _ => panic!("not an early refusal"),
    }
    for body in [SUCCESS, "{}", "<html>"] {
        match opened_early(response("200 OK", "", body)).await {
            Ok(Opened::Answered(Reply::Unknown(UnknownCause::Garbage))) => {}
            _ => panic!("an early success must not be taken for one, nor for nothing"),
        }
    }
    for bytes in [
        response("502 Bad Gateway", "", "<html>"),
        response("302 Found", "Location: http://127.0.0.1:1/\r\n", ""),
        b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 9\r\n\r\n<htm".to_vec(),
        b"HTTP/1.1 401 Unau".to_vec(),
        b"\x15\x03\x01".to_vec(),
        Vec::new(),
    ] {
        assert!(matches!(opened_early(bytes).await, Err(NotSent::Upload(_))));
    }
}

#[tokio::test]
async fn a_refusal_while_held_keeps_the_tail_here() {
    let (listener, address) = listen().await;
    let upstream = upstream(address);
    for (bytes, is_key) in [(response("401 X", "", ""), true), (response("200 OK", "", SUCCESS), false)] {
        let (opened, accepted) = tokio::join!(upstream.open(order(100)), listener.accept());
        let (call, mut stream) = (held(opened), accepted.unwrap().0);
        read_what_is_there(&mut stream).await;
        stream.write_all(&bytes).await.unwrap();
        sleep(Duration::from_millis(30)).await;
        match call.send().await {
            Reply::Refused(Refusal { kind: RefusalKind::Key, .. }) => assert!(is_key),
            Reply::Unknown(UnknownCause::Garbage) => assert!(!is_key),
            other => panic!("{other:?}"),
        }
        assert_eq!(read_what_is_there(&mut stream).await, (Vec::new(), true));
    }
}

#[tokio::test]
async fn a_connection_lost_while_held_costs_nothing() {
    let (listener, address) = listen().await;
    let upstream = upstream(address);
    let (opened, accepted) = tokio::join!(upstream.open(order(100)), listener.accept());
    let call = held(opened);
    drop(accepted);
    sleep(Duration::from_millis(20)).await;
    assert!(matches!(call.send().await, Reply::NotSent(NotSent::Upload(_))));
}

#[tokio::test]
async fn each_class_of_answer_arrives() {
    let refused = reply_to(response("429 X", "Retry-After: 7\r\n", r#"{"error_code":429}"#)).await;
    let flow = RefusalKind::Flow { retry_after: Some(Duration::from_secs(7)) };
    assert!(matches!(refused, Reply::Refused(Refusal { kind, .. }) if kind == flow));
    let failed = reply_to(response("200 OK", "", r#"{"error_code":500,"request_id":"r"}"#)).await;
    assert!(matches!(failed, Reply::Failed(ErrorReply { status, .. }) if status == 200));
    let nothing = reply_to(response("200 OK", "", r#"{"request_id":"r","data":{}}"#)).await;
    assert_eq!(unknown(&nothing), Some(UnknownCause::NoResult));
    let chunked = format!(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{SUCCESS}\r\n0\r\n\
         X-Trailer: 1\r\n\r\nHTTP/1.1 200 OK\r\n",
        SUCCESS.len()
    );
    assert!(matches!(reply_to(chunked.into_bytes()).await, Reply::Answered(_)));
    let until_closed = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{SUCCESS}");
    assert!(matches!(reply_to(until_closed.into_bytes()).await, Reply::Answered(_)));
}

#[tokio::test]
async fn what_is_not_an_answer_is_unknown() {
    let garbage = Some(UnknownCause::Garbage);
    let large = " ".repeat(MAX_ANSWER_BYTES + 1);
    for bytes in [
        response("302 Found", "Location: http://127.0.0.1:1/\r\n", ""),
        response("201 Created", "", SUCCESS),
        response("200 OK", "Content-Encoding: gzip\r\n", SUCCESS),
        response("200 OK", "", &SUCCESS[..40]),
        response("200 OK", "", &large),
        response("502 Bad Gateway", "", "<html>"),
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n".to_vec(),
        [&b"HTTP/1.1 102 Processing\r\n\r\n".repeat(9)[..], &response("200 OK", "", SUCCESS)].concat(),
        b"220 mail.example ESMTP\r\n\r\n".to_vec(),
        format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(100_000)).into_bytes(),
    ] {
        let reply = reply_to(bytes.clone()).await;
        assert_eq!(unknown(&reply), garbage, "{}", String::from_utf8_lossy(&bytes[..bytes.len().min(60)]));
    }
    assert_eq!(unknown(&reply_to(Vec::new()).await), Some(UnknownCause::Cut));
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (elsewhere, other) = listen().await;
    let location = format!("Location: http://{other}/\r\n");
    for status in ["301 X", "302 X", "303 X", "307 X", "308 X"] {
        assert_eq!(unknown(&reply_to(response(status, &location, "")).await), Some(UnknownCause::Garbage));
    }
    assert!(timeout(Duration::from_millis(20), elsewhere.accept()).await.is_err());
}

#[tokio::test]
async fn an_answer_cut_anywhere_is_never_taken_for_one() {
    let chunked = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{SUCCESS}\r\n0\r\n\r\n",
        SUCCESS.len()
    );
    for whole in [response("200 OK", "", SUCCESS), chunked.into_bytes()] {
        for length in 0..whole.len() {
            let reply = reply_to(whole[..length].to_vec()).await;
            assert_eq!(unknown(&reply), Some(UnknownCause::Cut), "after {length} bytes");
        }
        assert!(matches!(reply_to(whole).await, Reply::Answered(_)));
    }
}

#[tokio::test]
async fn the_hard_stop_ends_a_silent_and_a_dripping_answer() {
    for drip in [&b""[..], b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{"] {
        let (listener, address) = listen().await;
        let server = tokio::spawn(async move {
            let mut stream = listener.accept().await.unwrap().0;
            read_request(&mut stream).await;
            stream.write_all(drip).await.unwrap();
            loop {
                sleep(Duration::from_millis(10)).await;
                if !drip.is_empty() && stream.write_all(b" ").await.is_err() {
                    break;
                }
            }
        });
        let limits = AilabConfig { hard_stop: Duration::from_millis(80), ..config(address) };
        let upstream = AilabUpstream::new(limits).unwrap();
        let call = held(upstream.open(order(100)).await);
        let start = Instant::now();
        assert_eq!(unknown(&call.send().await), Some(UnknownCause::Timeout));
        assert!(start.elapsed() < Duration::from_secs(2));
        server.abort();
    }
}

#[tokio::test]
async fn what_does_not_get_through_was_not_sent() {
    let (listener, address) = listen().await;
    let limits = AilabConfig { upload_timeout: Duration::from_millis(60), ..config(address) };
    let stalled = AilabUpstream::new(limits).unwrap().open(order(40_000_000)).await;
    assert!(matches!(stalled, Err(NotSent::Upload(_))));
    drop(listener);
    assert!(matches!(upstream(address).open(order(100)).await, Err(NotSent::Connect(_))));
}

#[tokio::test]
async fn a_new_key_is_used_from_the_next_call_on() {
    let (listener, address) = listen().await;
    let config = config(address);
    let key = config.api_key.clone();
    let upstream = AilabUpstream::new(config.clone()).unwrap();
    assert!(!format!("{config:?} {:?}", key_header(&key.load())).contains(KEY));
    for current in [KEY, "another"] {
        key.store(Arc::new(Secret::new(current)));
        let (opened, accepted) = tokio::join!(upstream.open(order(100)), listener.accept());
        let (request, _) = read_what_is_there(&mut accepted.unwrap().0).await;
        let line = format!("ailabapi-api-key: {current}\r\n");
        assert!(memchr::memmem::find(&request, line.as_bytes()).is_some());
        drop(opened);
    }
    key.store(Arc::new(Secret::new("line\nbreak")));
    assert!(matches!(upstream.open(order(100)).await, Err(NotSent::Connect(text)) if !text.contains("line")));
    assert!(!format!("{config:?}").contains("line"));
}

#[tokio::test]
async fn answer_that_quotes_the_key_goes_on_without_its_text() {
    let quoting = format!(r#"{{"error_code":400,"error_msg":"no key {KEY}, {KEY}"}}"#);
    match reply_to(response("400 X", "", &quoting)).await {
        Reply::Refused(refusal) => {
            let body = String::from_utf8(refusal.reply.body.unwrap().to_vec()).unwrap();
            assert!(body.contains("withheld") && !body.contains(KEY) && !body.contains("no key"), "{body}");
        }
        other => panic!("{other:?}"),
    }
    let quoting = format!(r#"{{"error_code":0,"data":{{"url":"https://h.example/a.png"}},"debug":"{KEY}"}}"#);
    match reply_to(response("200 OK", "", &quoting)).await {
        Reply::Answered(answer) => assert!(!answer.text().expose().contains(KEY)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn tls_reaches_the_upstream_and_a_strange_certificate_does_not() {
    let (acceptor, roots) = tls_server(&["api.example"]);
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(mut stream) = acceptor.accept(stream).await {
                read_and_answer(&mut stream).await;
            }
        }
    });
    let wire = FakeWire::default().name("api.example", &["10.0.0.1"]).route("10.0.0.1:443", address);
    let config = AilabConfig { base_url: Url::parse("https://api.example/").unwrap(), ..config(address) };
    let upstream = AilabUpstream::with_net(config.clone(), Net::with_wire(wire.clone(), roots)).unwrap();
    assert!(matches!(held(upstream.open(order(500_000)).await).send().await, Reply::Answered(_)));

    let (_, strange) = tls_server(&["api.example"]);
    let upstream = AilabUpstream::with_net(config, Net::with_wire(wire, strange)).unwrap();
    assert!(matches!(upstream.open(order(100)).await, Err(NotSent::Connect(_))));
}

async fn read_and_answer(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    read_request(stream).await;
    stream.write_all(&response("200 OK", "", SUCCESS)).await.unwrap();
    stream.flush().await.unwrap();
}

#[tokio::test]
async fn the_balance_is_asked_for_with_the_key_and_without_an_order() {
    let (listener, address) = listen().await;
    let upstream = upstream(address);
    let pools = r#"{"request_id":"r","error_code":0,"data":[{"unique_sign":"image_cropping","balance":12}]}"#;
    for (bytes, expected) in [
        (response("200 OK", "", pools), Ok(12)),
        (response("200 OK", "", "{}"), Err(CreditsError::Format(200))),
        (response("200 OK", "Content-Encoding: gzip\r\n", pools), Err(CreditsError::Format(200))),
        (response("302 Found", "Location: http://127.0.0.1:1/\r\n", ""), Err(CreditsError::Format(302))),
        (response("401 X", "", pools), Err(CreditsError::Key(401))),
        (response("403 X", "", pools), Err(CreditsError::Key(403))),
        (response("500 X", "", pools), Err(CreditsError::Format(500))),
    ] {
        let (balance, request) = tokio::join!(upstream.query_credits(), async {
            let mut stream = listener.accept().await.unwrap().0;
            let (request, _) = read_what_is_there(&mut stream).await;
            stream.write_all(&bytes).await.unwrap();
            String::from_utf8(request).unwrap()
        });
        assert_eq!(balance, expected);
        assert_eq!(
            request,
            format!(
                "GET /api/common/query-credits HTTP/1.1\r\nhost: {address}\r\nailabapi-api-key: {KEY}\r\n\
                 accept: application/json\r\naccept-encoding: identity\r\nuser-agent: granary/{}\r\n\r\n",
                env!("CARGO_PKG_VERSION")
            )
        );
    }
    drop(listener);
    assert!(matches!(upstream.query_credits().await, Err(CreditsError::Unreachable(_))));
}

/// Everything logged on this thread, at every level, ours and the dependencies'.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn nothing_logs_the_key_or_the_url_or_the_answer() {
    use tracing_subscriber::util::SubscriberInitExt;
    let log = Log::default();
    let writer = log.clone();
    let logging = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish()
        .set_default();

    let (acceptor, roots) = tls_server(&["api.example"]);
    let (listener, address) = listen().await;
    let server = tokio::spawn(async move {
        for _ in 0..2 {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = acceptor.accept(stream).await.unwrap();
            read_and_answer(&mut stream).await;
        }
    });
    let wire = FakeWire::default().name("api.example", &["8.8.8.8"]).route("8.8.8.8:443", address);
    let net = Net::with_wire(wire, roots);
    let config = AilabConfig { base_url: Url::parse("https://api.example").unwrap(), ..config(address) };
    let upstream = AilabUpstream::with_net(config, net.clone()).unwrap();
    let reply = held(upstream.open(order(100)).await).send().await;
    let url = Secret::new("https://api.example/p4th.png?Signature=s1gn--\r\n");
    let downloader = crate::upstream::download::http::Downloader::with_net(Default::default(), net);
    let refused = crate::upstream::download::ResultSource::fetch(&downloader, &url).await;
    let url = Secret::new("https://api.example/p4th.png?Signature=s1gn");
    let missing = timeout(
        Duration::from_millis(100),
        crate::upstream::download::ResultSource::fetch(&downloader, &url),
    );
    let missing = missing.await;
    drop(logging);
    server.abort();

    let seen = format!("{reply:?} {refused:?} {missing:?}");
    let logged = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(logged.contains("ClientHello"), "the dependencies' own lines are not there: {logged}");
    for secret in [KEY, "5e5ame", "p4th", "s1gn", "h.example/a.jpg", "Signature"] {
        assert!(!logged.contains(secret) && !seen.contains(secret), "{secret} in {seen} {logged}");
    }
}

#[test]
fn a_base_url_is_an_origin_and_encrypted() {
    let (_, roots) = tls_server(&["api.example"]);
    let net = Net::with_roots(roots);
    let check = |url: &str, expected: Result<(), AilabConfigError>| {
        let key = Arc::new(ArcSwap::from_pointee(Secret::new(KEY)));
        let config = AilabConfig::new(Url::parse(url).unwrap(), key);
        assert_eq!(AilabUpstream::with_net(config, net.clone()).map(|_| ()), expected, "{url}");
    };
    for url in [
        "https://www.ailabapi.com",
        "https://a.example:8443/",
        "http://127.0.0.1:1",
        "http://[::1]:1/",
        "http://localhost",
    ] {
        check(url, Ok(()));
    }
    for url in ["http://www.ailabapi.com", "http://10.0.0.1", "http://localhost.example", "http://0.0.0.0"] {
        check(url, Err(AilabConfigError::Plaintext));
    }
    for url in [
        "https://a.example/api",
        "https://a.example/?x",
        "https://a.example/#",
        "https://u@a.example",
        "https://:p@a.example",
    ] {
        check(url, Err(AilabConfigError::NotAnOrigin));
    }
    for url in ["ftp://a.example", "data:x", "unix:/run/x"] {
        check(url, Err(AilabConfigError::Scheme));
    }
    let rootless = Net::with_roots(rustls::RootCertStore::empty());
    let with_key = |key: &str, net: &Net| {
        let key = Arc::new(ArcSwap::from_pointee(Secret::new(key)));
        let config = AilabConfig::new(Url::parse("https://a.example").unwrap(), key);
        AilabUpstream::with_net(config, net.clone()).map(|_| ()).unwrap_err()
    };
    assert_eq!(with_key(KEY, &rootless), AilabConfigError::NoRoots);
    assert_eq!(with_key("", &net), AilabConfigError::Key);
    assert_eq!(with_key("a\r\nb: c", &net), AilabConfigError::Key);
}

#[tokio::test]
async fn plain_http_to_localhost_goes_to_loopback_only() {
    let wire = FakeWire::default().name("localhost", &["10.0.0.1"]);
    let config = AilabConfig {
        base_url: Url::parse("http://localhost").unwrap(),
        ..config(([127, 0, 0, 1], 1).into())
    };
    let net = Net::with_wire(wire.clone(), rustls::RootCertStore::empty());
    let upstream = AilabUpstream::with_net(config, net).unwrap();
    assert!(matches!(upstream.open(order(100)).await, Err(NotSent::Connect(_))));
    assert!(wire.dialled().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_answer_makes_a_panic(status in 200u16..600, body in any::<Vec<u8>>()) {
        let status = http::StatusCode::from_u16(status).unwrap();
        answer::classify(status, &http::HeaderMap::new(), &body.into(), &IMAGE_CROPPING, &Secret::new(KEY));
    }
}
