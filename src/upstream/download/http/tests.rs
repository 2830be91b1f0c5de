mod hostile;

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::*;
use crate::upstream::net::tests::{FakeWire, listen, tls_server};

/// One grey pixel.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0\x3A\x7E\x9B\x55\
    \0\0\0\nIDAT\x78\x9C\x63\x68\0\0\0\x82\0\x81\x77\xCD\x72\xB6\0\0\0\0IEND\xAE\x42\x60\x82";
const PATH: &str = "/x/y.png?Expires=1&Signature=s3cret%2Fp4rt%3D";

fn config(address: SocketAddr) -> DownloadConfig {
    DownloadConfig {
        hosts: vec![format!("http://{address}").parse().expect("an entry")],
        gap_timeout: Duration::from_millis(150),
        ..DownloadConfig::default()
    }
}

/// Reads a request's head.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => bytes.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(bytes).expect("an ASCII head")
}

async fn answer(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), bytes: &[u8]) -> String {
    let head = read_head(stream).await;
    stream.write_all(bytes).await.ok();
    stream.shutdown().await.ok();
    head
}

fn response(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn until_closed(body: &[u8]) -> Vec<u8> {
    [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", body].concat()
}

/// Fetches from a server that sends `bytes` whatever it is asked.
async fn fetched(bytes: &[u8]) -> Result<Fetched, FetchError> {
    let (listener, address) = listen().await;
    let server = async {
        let mut stream = listener.accept().await.unwrap().0;
        answer(&mut stream, bytes).await;
    };
    let downloader = Downloader::with_net(config(address), plain(FakeWire::default().real(address)));
    let url = Secret::new(format!("http://{address}{PATH}"));
    let (result, ()) = tokio::join!(downloader.fetch(&url), server);
    if let Err(error) = &result {
        let text = format!("{error} {error:?}");
        assert!(!text.contains("y.png") && !text.contains("s3cret"), "{text}");
    }
    result
}

trait Real {
    /// Lets an address be where it says it is.
    fn real(self, address: SocketAddr) -> Self;
}

impl Real for FakeWire {
    fn real(self, address: SocketAddr) -> Self {
        self.route(&address.to_string(), address)
    }
}

fn plain(wire: FakeWire) -> Net {
    Net::with_wire(wire, rustls::RootCertStore::empty())
}

fn transient(result: Result<Fetched, FetchError>) -> String {
    match result {
        Err(FetchError::Transient(reason) | FetchError::Incomplete(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_picture_arrives_whole_and_the_request_carries_nothing() {
    let (listener, address) = listen().await;
    let downloader = Downloader::new(config(address));
    let url = Secret::new(format!("http://{address}{PATH}#fragment"));
    let (result, head) = tokio::join!(downloader.fetch(&url), async {
        let mut stream = listener.accept().await.unwrap().0;
        answer(&mut stream, &response("200 OK", "Set-Cookie: a=b\r\nContent-Type: text/html\r\n", PNG)).await
    });
    let result = result.expect("a picture");
    assert_eq!((result.bytes.as_ref(), Some(result.name)), (PNG, ObjectName::of(PNG)));
    assert_eq!(
        head,
        format!(
            "GET {PATH} HTTP/1.1\r\nhost: {address}\r\naccept: image/*\r\naccept-encoding: identity\r\n\
             user-agent: granary/{}\r\n\r\n",
            env!("CARGO_PKG_VERSION")
        )
    );
}

#[tokio::test]
async fn a_status_says_whether_it_is_gone_or_worth_another_try() {
    for status in ["403 Forbidden", "404 Not Found", "410 Gone"] {
        let result = fetched(&response(status, "", b"<Error><Code>AccessDenied</Code></Error>")).await;
        assert_eq!(result.unwrap_err(), FetchError::Dead(format!("127.0.0.1 answered {}", &status[..3])));
    }
    for status in ["201 X", "204 X", "206 X", "304 X", "400 X", "401 X", "416 X", "429 X", "500 X", "503 X"] {
        transient(fetched(&response(status, "", b"")).await);
    }
}

/// Fetches from a server that answers one request after the other; says what was asked for.
async fn fetched_in_turn(answers: &[Vec<u8>]) -> (Result<Fetched, FetchError>, Vec<String>) {
    let (listener, address) = listen().await;
    let downloader = Downloader::new(config(address));
    let url = Secret::new(format!("http://{address}{PATH}"));
    let asked = std::sync::Mutex::new(Vec::new());
    let server = async {
        for bytes in answers {
            let head = answer(&mut listener.accept().await.unwrap().0, bytes).await;
            asked.lock().unwrap().push(head.lines().next().unwrap_or_default().to_owned());
        }
        std::future::pending::<()>().await;
    };
    let result = tokio::select! {
        result = downloader.fetch(&url) => result,
        () = server => unreachable!("it is pending"),
    };
    (result, asked.into_inner().unwrap())
}

fn redirect_to(status: &str, location: &str) -> Vec<u8> {
    response(status, &format!("Location: {location}\r\n"), b"moved")
}

#[tokio::test]
async fn redirect_is_followed_three_times_at_most() {
    for status in ["301 X", "302 X", "303 X", "307 X", "308 X"] {
        let (result, asked) =
            fetched_in_turn(&[redirect_to(status, "/b%2Fc?s=1"), response("200 OK", "", PNG)]).await;
        assert_eq!(result.expect("a picture").bytes.as_ref(), PNG);
        assert_eq!(asked, [format!("GET {PATH} HTTP/1.1"), "GET /b%2Fc?s=1 HTTP/1.1".to_owned()]);
    }
    let hops: Vec<_> = (1..=4).map(|hop| redirect_to("302 X", &format!("/{hop}"))).collect();
    let (result, asked) = fetched_in_turn(&[&hops[..3], &[response("200 OK", "", PNG)]].concat()).await;
    assert!(result.is_ok() && asked.len() == 4, "{result:?} {asked:?}");
    let (result, asked) = fetched_in_turn(&hops).await;
    assert!(transient(result).contains("redirects") && asked.len() == 4);
    // What a redirect without a place means is not known; what it leads to may be gone.
    transient(fetched(&response("302 X", "", b"")).await);
    transient(fetched(&response("300 X", "Location: /b\r\n", b"")).await);
    let (result, _) = fetched_in_turn(&[redirect_to("302 X", "/b"), response("404 X", "", b"")]).await;
    assert!(result.unwrap_err().is_dead());
}

#[tokio::test]
async fn redirect_to_a_place_that_is_not_allowed_is_not_followed() {
    let (elsewhere, other) = listen().await;
    let port = other.port();
    for location in [
        format!("http://{other}/"),
        format!("//127.0.0.1:{port}/"),
        format!("http://localhost:{port}/"),
        format!("http://[::ffff:127.0.0.1]:{port}/"),
        format!("http://user@{other}/"),
        "http://169.254.169.254/latest/meta-data".to_owned(),
        "https://127.0.0.1/".to_owned(),
        "file:///etc/passwd".to_owned(),
    ] {
        let (result, _) = fetched_in_turn(&[redirect_to("302 X", &location)]).await;
        assert!(matches!(result, Err(FetchError::NotAllowed(_))), "{location}: {result:?}");
    }
    // A public name that leads inside.
    let (listener, address) = listen().await;
    let wire = FakeWire::default()
        .name("a.aliyuncs.com", &["8.8.8.8"])
        .name("b.aliyuncs.com", &["10.0.0.1"])
        .route("8.8.8.8:80", address)
        .route("10.0.0.1:80", other);
    let downloader = Downloader::with_net(DownloadConfig::default(), plain(wire));
    let url = Secret::new("http://a.aliyuncs.com/a.png");
    let (result, _) = tokio::join!(downloader.fetch(&url), async {
        answer(&mut listener.accept().await.unwrap().0, &redirect_to("302 X", "http://b.aliyuncs.com/a.png"))
            .await
    });
    assert!(matches!(result, Err(FetchError::NotAllowed(_))), "{result:?}");
    assert!(timeout(Duration::from_millis(20), elsewhere.accept()).await.is_err());
}

#[tokio::test]
async fn what_follows_the_end_of_a_picture_is_kept() {
    for after in [&b"\0"[..], &[0; 64], &[0; 5000], b"AIGC label", PNG] {
        let longer = [PNG, after].concat();
        let chunked = [
            format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n", longer.len()).as_bytes(),
            &longer,
            b"\r\n0\r\n\r\n",
        ]
        .concat();
        for bytes in [response("200 OK", "", &longer), chunked, until_closed(&longer)] {
            assert_eq!(fetched(&bytes).await.expect("a picture").bytes.as_ref(), longer);
        }
        // By length and by chunks we know that more was to come.
        let cut = response("200 OK", "", &longer);
        transient(fetched(&cut[..cut.len() - 1]).await);
    }
}

#[tokio::test]
async fn sloppy_header_lines_are_read() {
    let many: String = (0..300).map(|number| format!("X-Node-{number}: a\r\n")).collect();
    for headers in [
        "X-Cache : HIT\r\n",
        "X Powered By: WAF\r\n",
        "no colon at all\r\n",
        "X-Folded: a\r\n  b\r\n",
        "X-Control: a\x01b\r\n",
        "Content-Encoding:\r\n",
        "Content-Encoding: identity, \r\n",
        "X-Latin: caf\u{e9}\r\n",
        &many,
    ] {
        let result = fetched(&response("200 OK", headers, PNG)).await;
        assert_eq!(result.expect(headers).bytes.as_ref(), PNG);
    }
}

#[tokio::test]
async fn a_body_cut_anywhere_is_never_taken_for_whole() {
    let chunked = [
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n", PNG.len()).as_bytes(),
        PNG,
        b"\r\n0\r\n\r\n",
    ]
    .concat();
    for whole in [response("200 OK", "", PNG), chunked] {
        for length in 0..whole.len() {
            transient(fetched(&whole[..length]).await);
        }
        assert!(fetched(&whole).await.is_ok());
    }
    // Without a length, a picture's own end must do.
    let whole = until_closed(PNG);
    for length in whole.len() - PNG.len() + 8..whole.len() {
        transient(fetched(&whole[..length]).await);
    }
    assert!(fetched(&whole).await.is_ok());
}

#[tokio::test]
async fn a_declared_length_that_is_too_short_cuts_the_picture() {
    let mut longer = response("200 OK", "", &PNG[..PNG.len() - 1]);
    longer.push(PNG[PNG.len() - 1]);
    transient(fetched(&longer).await);
    transient(fetched(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n123456").await);
}

#[tokio::test]
async fn what_is_no_picture_is_dead() {
    for body in [&b"<html>"[..], b"{\"error\":1}", b"<svg xmlns=\"\">", b"GIF89a", b""] {
        assert_eq!(
            fetched(&response("200 OK", "Content-Type: image/png\r\n", body)).await.unwrap_err(),
            FetchError::NotPicture
        );
    }
    transient(fetched(&response("200 OK", "Content-Encoding: gzip\r\n", PNG)).await);
}

#[tokio::test]
async fn more_than_the_cap_is_refused_declared_or_not() {
    let (listener, address) = listen().await;
    let limited = DownloadConfig { max_bytes: 1000, ..config(address) };
    let downloader = Downloader::new(limited);
    let url = Secret::new(format!("http://{address}/a"));
    let dead = FetchError::TooLarge(1000);
    let endless =
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(), b"64\r\n".to_vec()].concat();
    for (head, repeated) in [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n".to_vec(), Vec::new()),
        (endless, [&[b'x'; 100][..], b"\r\n64\r\n"].concat()),
        (b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![0; 4096]),
    ] {
        let (result, ()) = tokio::join!(downloader.fetch(&url), async {
            let mut stream = listener.accept().await.unwrap().0;
            read_head(&mut stream).await;
            stream.write_all(&head).await.unwrap();
            while !repeated.is_empty() && stream.write_all(&repeated).await.is_ok() {}
        });
        assert_eq!(result.unwrap_err(), dead);
    }
    for (max_bytes, fits) in [(PNG.len(), true), (PNG.len() - 1, false)] {
        let downloader = Downloader::new(DownloadConfig { max_bytes, ..config(address) });
        let (result, _) = tokio::join!(downloader.fetch(&url), async {
            answer(&mut listener.accept().await.unwrap().0, &until_closed(PNG)).await
        });
        assert_eq!(result.is_ok(), fits);
    }
}

#[tokio::test]
async fn silence_and_slowness_end_in_time() {
    let (listener, address) = listen().await;
    let limits = DownloadConfig { total_timeout: Duration::from_millis(250), ..config(address) };
    let downloader = Downloader::new(limits);
    let url = Secret::new(format!("http://{address}/a"));
    // Nothing at all; a head and nothing more; a drip that is never silent.
    for (head, drips) in [("", false), ("HTTP/1.1 200 OK\r\n\r\n", false), ("HTTP/1.1 200 OK\r\n\r\n", true)]
    {
        let (result, ()) = tokio::join!(downloader.fetch(&url), async {
            let mut stream = listener.accept().await.unwrap().0;
            read_head(&mut stream).await;
            stream.write_all(head.as_bytes()).await.unwrap();
            while drips && stream.write_all(b".").await.is_ok() {
                sleep(Duration::from_millis(5)).await;
            }
            stream.read_to_end(&mut Vec::new()).await.ok();
        });
        assert_eq!(result.unwrap_err(), FetchError::Timeout);
    }
}

#[tokio::test]
async fn an_address_that_is_not_allowed_is_never_dialled() {
    let wire = FakeWire::default()
        .name("private.example", &["10.0.0.1"])
        .name("mixed.example", &["8.8.8.8", "169.254.169.254"])
        .name("b.aliyuncs.com", &["127.0.0.1"])
        .name("localhost", &["127.0.0.1"]);
    let (_, roots) = tls_server(&["private.example"]);
    let downloader = Downloader::with_net(DownloadConfig::default(), Net::with_wire(wire.clone(), roots));
    for url in [
        "https://private.example/a",
        "https://mixed.example/a",
        "http://b.aliyuncs.com/a",
        "https://localhost/a",
        "https://127.0.0.1/a",
        "http://127.0.0.1/a",
        "https://[::1]/a",
        "https://[::ffff:127.0.0.1]/a",
        "https://8.8.8.8/a",
        "http://any.example/a",
        "https://any.example:22/a",
        "https://u@any.example/a",
        "file:///etc/passwd",
    ] {
        let result = downloader.fetch(&Secret::new(url)).await;
        assert!(matches!(result, Err(FetchError::NotAllowed(_))), "{url}: {result:?}");
    }
    assert!(wire.dialled().is_empty());
    transient(downloader.fetch(&Secret::new("https://unknown.example/a")).await);
}

#[tokio::test]
async fn a_host_that_an_entry_names_may_live_anywhere() {
    let (listener, address) = listen().await;
    let wire = FakeWire::default().name("cdn.internal", &["10.0.0.1"]).route("10.0.0.1:80", address);
    let named =
        |entry: &str| DownloadConfig { hosts: vec![entry.parse().unwrap()], ..DownloadConfig::default() };
    let url = Secret::new("http://cdn.internal/a");
    let downloader = Downloader::with_net(named("http://cdn.internal"), plain(wire.clone()));
    let (result, head) = tokio::join!(downloader.fetch(&url), async {
        answer(&mut listener.accept().await.unwrap().0, &response("200 OK", "", PNG)).await
    });
    assert!(result.is_ok() && head.contains("host: cdn.internal\r\n"));
    let downloader = Downloader::with_net(named("http://*.internal"), plain(wire.clone()));
    assert!(matches!(downloader.fetch(&url).await, Err(FetchError::NotAllowed(_))));
    assert_eq!(wire.dialled(), ["10.0.0.1:80"]);
}

/// Serves `plain` on one port and, where given, `secure` on another, as one vendor's host; tells
/// which were asked.
struct Vendor {
    wire: FakeWire,
    roots: rustls::RootCertStore,
    asked: mpsc::UnboundedReceiver<&'static str>,
}

const VENDOR_URL: &str = "http://b.oss.aliyuncs.com/x.png?Signature=a%2Fb";

async fn vendor(plain: Vec<u8>, secure: Option<Vec<u8>>) -> Vendor {
    let (tell, asked) = mpsc::unbounded_channel();
    let (acceptor, roots) = tls_server(&["b.oss.aliyuncs.com"]);
    // A second resolution would be led astray.
    let mut wire = FakeWire::default()
        .name("b.oss.aliyuncs.com", &["8.8.8.8"])
        .name("b.oss.aliyuncs.com", &["10.0.0.1"]);
    let (listener, address) = listen().await;
    wire = wire.route("8.8.8.8:80", address);
    tokio::spawn(serve(listener, None, plain, "http", tell.clone()));
    if let Some(bytes) = secure {
        let (listener, address) = listen().await;
        wire = wire.route("8.8.8.8:443", address);
        tokio::spawn(serve(listener, Some(acceptor), bytes, "https", tell));
    }
    Vendor { wire, roots, asked }
}

async fn serve(
    listener: TcpListener,
    tls: Option<tokio_rustls::TlsAcceptor>,
    bytes: Vec<u8>,
    name: &'static str,
    asked: mpsc::UnboundedSender<&'static str>,
) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let head = match &tls {
            None => answer(&mut stream, &bytes).await,
            Some(tls) => match tls.accept(stream).await {
                Ok(mut stream) => answer(&mut stream, &bytes).await,
                Err(_) => continue,
            },
        };
        assert!(
            head.starts_with("GET /x.png?Signature=a%2Fb HTTP/1.1\r\nhost: b.oss.aliyuncs.com\r\n"),
            "{head}"
        );
        asked.send(name).ok();
    }
}

impl Vendor {
    async fn fetch(&mut self) -> (Result<Fetched, FetchError>, Vec<&'static str>) {
        let net = Net::with_wire(self.wire.clone(), self.roots.clone());
        let limits = DownloadConfig { gap_timeout: Duration::from_millis(150), ..DownloadConfig::default() };
        let result = Downloader::with_net(limits, net).fetch(&Secret::new(VENDOR_URL)).await;
        sleep(Duration::from_millis(20)).await;
        let mut asked = Vec::new();
        while let Ok(name) = self.asked.try_recv() {
            asked.push(name);
        }
        (result, asked)
    }
}

#[tokio::test]
async fn the_vendors_plain_urls_are_tried_over_tls_first() {
    let picture = || response("200 OK", "", PNG);
    let gone = || response("403 X", "", b"");

    let (result, asked) = vendor(picture(), Some(picture())).await.fetch().await;
    assert!(result.is_ok());
    assert_eq!(asked, ["https"]);

    // What https does not have, or cannot be asked for, plain http may still have.
    for secure in
        [Some(gone()), Some(response("301 X", "Location: http://x.example/\r\n", b"")), Some(Vec::new())]
    {
        let (result, asked) = vendor(picture(), secure).await.fetch().await;
        assert!(result.is_ok());
        assert_eq!(asked, ["https", "http"]);
    }
    let mut without_tls = vendor(picture(), None).await;
    assert!(without_tls.fetch().await.0.is_ok());
    assert_eq!(without_tls.wire.dialled(), ["8.8.8.8:443", "8.8.8.8:80"]);
    let mut strange = vendor(picture(), Some(picture())).await;
    strange.roots = tls_server(&["b.oss.aliyuncs.com"]).1;
    assert_eq!(strange.fetch().await.1, ["http"]);

    // The last word is plain http's, unless https began to give the picture.
    let (result, _) = vendor(gone(), Some(Vec::new())).await.fetch().await;
    assert_eq!(result.unwrap_err(), FetchError::Dead("b.oss.aliyuncs.com answered 403".to_owned()));
    let (result, asked) = vendor(picture(), Some(picture()[..60].to_vec())).await.fetch().await;
    transient(result);
    assert_eq!(asked, ["https"]);
}
