//! TLS on the public listener: what is spoken, what is refused, and certificates that change under load.
//!
//! `SWAPS` says how often certificate and upstream key are swapped (default 3).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use granary_kit::ailab::FakeAilab;
use granary_kit::certificate::SelfSigned;
use granary_kit::client::{CROP_PATH, Call, RawConnection};
use granary_kit::form::Form;
use granary_kit::images;
use granary_kit::process::{GranaryBuilder, GranaryProcess};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::harness::{metric, number, real, real_ailab, until, upstream_section, within};

/// The files of a certificate, and a program that reads them.
struct World {
    folder: TempDir,
    builder: GranaryBuilder,
}

impl World {
    fn new(builder: GranaryBuilder, certificate: &SelfSigned) -> Self {
        let folder = TempDir::new().unwrap();
        let builder = builder
            .env("GRANARY_SERVER_TLS_CERT", folder.path().join("tls.crt").to_str().unwrap())
            .env("GRANARY_SERVER_TLS_KEY", folder.path().join("tls.key").to_str().unwrap());
        let world = Self { folder, builder };
        certificate.write(&world.chain(), &world.key()).unwrap();
        world
    }

    fn chain(&self) -> PathBuf {
        self.folder.path().join("tls.crt")
    }

    fn key(&self) -> PathBuf {
        self.folder.path().join("tls.key")
    }
}

/// A client that trusts these certificates and no other.
fn connector(trusted: &[&SelfSigned], protocols: &[&[u8]]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    for certificate in trusted {
        roots.add(CertificateDer::from(certificate.der.clone())).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

fn address(process: &GranaryProcess) -> String {
    process.public_url().strip_prefix("http://").unwrap().to_owned()
}

/// A connection, and the certificate it was shown.
async fn connect(
    process: &GranaryProcess,
    connector: &TlsConnector,
) -> std::io::Result<(SendRequest<Full<Bytes>>, Vec<u8>)> {
    let tcp = TcpStream::connect(address(process)).await?;
    let tls = connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await?;
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let shown = tls.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.map_err(std::io::Error::other)?;
    tokio::spawn(connection);
    Ok((sender, shown))
}

async fn ask(
    sender: &mut SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> Result<Response<Bytes>, hyper::Error> {
    sender.ready().await?;
    let (head, body) = sender.send_request(request).await?.into_parts();
    Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
}

fn crop(seed: u64) -> Request<Full<Bytes>> {
    let form = Form::curl(images::tiny_png(16, 16, seed), 64, 64);
    let request =
        Request::post(CROP_PATH).header("Host", "localhost").header("Content-Type", form.content_type());
    request.body(Full::from(form.to_bytes())).unwrap()
}

fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).header("Host", "localhost").body(Full::default()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_certificate_clients_are_spoken_to_by_tls_and_urls_say_so() {
    let certificate = SelfSigned::until(2040);
    let world = World::new(real(), &certificate);
    let process = world.builder.start().await.unwrap();
    let trusting = connector(&[&certificate], &[b"h2", b"http/1.1"]);
    let (mut sender, shown) = connect(&process, &trusting).await.unwrap();
    assert_eq!(shown, certificate.der);
    for _ in 0..2 {
        let answer = ask(&mut sender, crop(1)).await.unwrap();
        assert_eq!(answer.status(), 200);
        let json: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
        let url = json["data"]["url"].as_str().unwrap();
        let path = url.strip_prefix(&format!("https://{}", address(&process))).expect(url);
        let result = ask(&mut sender, get(path)).await.unwrap();
        assert!(result.status() == 200 && result.body().len() > 20);
    }
    let large = Form::curl(images::padded(images::photo_jpeg(), 3_500_000), 64, 64);
    let request =
        Request::post(CROP_PATH).header("Host", "localhost").header("Content-Type", large.content_type());
    let answer = ask(&mut sender, request.body(Full::from(large.to_bytes())).unwrap()).await.unwrap();
    assert_eq!(answer.status(), 200);

    let expiry = metric(&process.admin_url(), "granary_tls_certificate_expiry_timestamp_seconds").await;
    assert_eq!(expiry, 2_208_988_800.0);
    // A client that speaks something else, and one that trusts somebody else.
    assert!(connect(&process, &connector(&[&certificate], &[b"h2"])).await.is_err());
    assert!(connect(&process, &connector(&[&SelfSigned::until(2040)], &[b"http/1.1"])).await.is_err());
    let mut plain = RawConnection::open(&process.public_url()).await.unwrap();
    plain.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let said = within("the end", plain.read_to_close()).await.unwrap_or_default();
    assert!(!said.starts_with(b"HTTP"), "{said:?}");
    let refused = "granary_connections_closed_total{listener=\"public\",reason=\"handshake\"}";
    until("three refusals", async || metric(&process.admin_url(), refused).await == 3.0).await;
    // A head that is refused is refused here too, and operators are where they were.
    let bad = Request::get("/").header("Host", "a").header("Host", "b").body(Full::default()).unwrap();
    let answer = ask(&mut sender, bad).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers()["connection"].as_bytes()), (400, &b"close"[..]));
    let health = Call::new("GET", &format!("{}/readyz", process.admin_url())).send().await.unwrap();
    assert_eq!(health.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_that_does_not_go_on_is_ended_in_time_and_keeps_nobody_out() {
    let certificate = SelfSigned::until(2040);
    let world = World::new(real().env("GRANARY_SERVER_HEAD_TIMEOUT", "2s"), &certificate);
    let process = world.builder.start().await.unwrap();
    let trusting = connector(&[&certificate], &[b"http/1.1"]);
    // A greeting, as a client would send it.
    let mut hello = Vec::new();
    let (client, mut server) = tokio::io::duplex(64 * 1024);
    let connecting =
        tokio::spawn(trusting.clone().connect(ServerName::try_from("localhost").unwrap(), client));
    while hello.len() < 5 || hello.len() < 5 + usize::from(u16::from_be_bytes([hello[3], hello[4]])) {
        server.read_buf(&mut hello).await.unwrap();
    }
    connecting.abort();

    let opened = Instant::now();
    let mut stalled = Vec::new();
    for number in 0..150 {
        let mut tcp = TcpStream::connect(address(&process)).await.unwrap();
        let part = [0, 1, hello.len() / 2, hello.len() - 1, hello.len()][number % 5];
        tcp.write_all(&hello[..part]).await.unwrap();
        stalled.push(tcp);
    }
    let asked = Instant::now();
    let (mut sender, _) = connect(&process, &trusting).await.unwrap();
    assert_eq!(ask(&mut sender, get("/")).await.unwrap().status(), 200);
    let took = asked.elapsed();
    for mut tcp in stalled {
        within("the end", tcp.read_to_end(&mut Vec::new())).await.ok();
    }
    println!(
        "150 stalled handshakes ended {:?} after the first; meanwhile one took {took:?}",
        opened.elapsed()
    );
    let timed_out = "granary_connections_closed_total{listener=\"public\",reason=\"handshake_timeout\"}";
    assert_eq!(metric(&process.admin_url(), timed_out).await, 150.0);
    // Records that are none.
    for byte in [0_u8, 0x16, 0x17, 0xff] {
        let mut tcp = TcpStream::connect(address(&process)).await.unwrap();
        tcp.write_all(&[&[byte, 3, 1, 0, 5][..], &[byte; 50]].concat()).await.unwrap();
        within("the end", tcp.read_to_end(&mut Vec::new())).await.ok();
    }
    assert_eq!(ask(&mut sender, get("/")).await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn early_refusal_over_tls_is_read_by_a_client_that_writes_everything_first() {
    let certificate = SelfSigned::until(2040);
    let world = World::new(real(), &certificate);
    let process = world.builder.start().await.unwrap();
    let trusting = connector(&[&certificate], &[b"http/1.1"]);
    let length = 10_000_000;
    for upgrade in ["", "Connection: Upgrade\r\nUpgrade: h2c\r\n"] {
        let tcp = TcpStream::connect(address(&process)).await.unwrap();
        let mut tls = trusting.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap();
        let head = format!(
            "POST {CROP_PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n{upgrade}\
             Content-Length: {length}\r\n\r\n"
        );
        tls.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..length / 10_000 {
            tls.write_all(&[b'x'; 10_000]).await.unwrap();
        }
        let mut answer = Vec::new();
        within("the end", tls.read_to_end(&mut answer)).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 413 "), "{}", String::from_utf8_lossy(&answer));
    }
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_said_in_one_sentence_before_anything_starts() {
    let (certificate, other) = (SelfSigned::until(2040), SelfSigned::until(2040));
    let refused = async |world: &World, builder: &GranaryBuilder| {
        let ended = builder.clone().args(["check"]).run(Duration::from_secs(20)).await;
        assert_eq!(ended.status.code(), Some(3), "{ended:?}");
        assert_eq!(ended.stderr.trim().lines().count(), 1, "{}", ended.stderr);
        assert!(!ended.stderr.contains(world.folder.path().to_str().unwrap()), "{}", ended.stderr);
        ended.stderr
    };
    let world = World::new(real(), &certificate);
    let builder = &world.builder;
    let alone = refused(&world, &builder.clone().without_env("GRANARY_SERVER_TLS_KEY")).await;
    assert!(alone.contains("server.tls_key: is missing, but server.tls_cert is set"), "{alone}");
    let alone = refused(&world, &builder.clone().without_env("GRANARY_SERVER_TLS_CERT")).await;
    assert!(alone.contains("server.tls_cert: is missing, but server.tls_key is set"), "{alone}");
    let plain = refused(&world, &builder.clone().env("GRANARY_SERVER_PUBLIC_URL", "http://a.example")).await;
    assert!(plain.contains("server.public_url: is http, but"), "{plain}");
    std::fs::write(world.key(), &other.key).unwrap();
    let said = refused(&world, builder).await;
    assert!(said.contains("server.tls_key: does not belong to the certificate"), "{said}");
    std::fs::write(world.key(), "nothing").unwrap();
    let said = refused(&world, builder).await;
    assert!(said.contains("server.tls_key: holds no private key"), "{said}");
    std::fs::write(world.chain(), "nothing").unwrap();
    let said = refused(&world, builder).await;
    assert!(said.contains("server.tls_cert: holds no certificate"), "{said}");
    certificate.write(&world.chain(), &world.key()).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(world.key(), std::fs::Permissions::from_mode(0o644)).unwrap();
    let said = refused(&world, builder).await;
    assert!(said.contains("server.tls_key: names a file that every user of this machine may read"), "{said}");
    std::fs::remove_file(world.chain()).unwrap();
    let said = refused(&world, builder).await;
    assert!(said.contains("server.tls_cert: names a file that cannot be read"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_no_pair_change_nothing_and_are_said_once() {
    let (certificate, renewed) = (SelfSigned::until(2040), SelfSigned::until(2041));
    let world = World::new(real(), &certificate);
    let process = world.builder.start().await.unwrap();
    let trusting = connector(&[&certificate, &renewed], &[b"http/1.1"]);
    let reloads = async |result: &str| {
        metric(
            &process.admin_url(),
            &format!("granary_reloads_total{{file=\"certificate\",result=\"{result}\"}}"),
        )
        .await
    };
    std::fs::write(world.chain(), &renewed.chain).unwrap();
    until("the half of a pair to be noticed", async || reloads("error").await == 1.0).await;
    assert_eq!(connect(&process, &trusting).await.unwrap().1, certificate.der);
    // Two more looks at the same files.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!((reloads("error").await, reloads("ok").await), (1.0, 0.0));
    renewed.write(&world.chain(), &world.key()).unwrap();
    until("the pair to be taken", async || reloads("ok").await == 1.0).await;
    assert_eq!(connect(&process, &trusting).await.unwrap().1, renewed.der);
    let said = process.stderr_text().matches("does not belong to the certificate").count();
    assert_eq!(said, 1, "{}", process.stderr_text());
    assert!(!process.stderr_text().contains("PRIVATE KEY"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_and_the_upstreams_key_change_under_load_without_a_failed_request() {
    let swaps = number("SWAPS").unwrap_or(3);
    let upstream = Arc::new(FakeAilab::start().await);
    upstream.keep_bodies(false);
    let certificates: Vec<_> = (0..=swaps).map(|_| SelfSigned::until(2040)).collect();
    let key = TempDir::new().unwrap();
    let key_file = key.path().join("ailab.key");
    let write_key = |secret: &str| {
        use std::os::unix::fs::PermissionsExt;
        let new = key_file.with_extension("new");
        std::fs::write(&new, secret).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::rename(&new, &key_file).unwrap();
    };
    write_key(&upstream.api_key());
    let section = upstream_section(&upstream, "");
    let section: String =
        section.lines().filter(|line| !line.starts_with("api_key")).map(|line| format!("{line}\n")).collect();
    let builder = real_ailab(&upstream)
        .config_text(section)
        .env("GRANARY_UPSTREAM_API_KEY_FILE", key_file.to_str().unwrap());
    let world = World::new(builder, &certificates[0]);
    let process = Arc::new(world.builder.start().await.unwrap());
    let trusting = connector(&certificates.iter().collect::<Vec<_>>(), &[b"http/1.1"]);

    let (stopped, pictures, requests) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(1)), Arc::new(AtomicU64::new(0)));
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..6 {
        let (process, trusting, stopped, pictures, requests) =
            (process.clone(), trusting.clone(), stopped.clone(), pictures.clone(), requests.clone());
        clients.spawn(async move {
            let mut kept = None;
            while !stopped.load(Ordering::SeqCst) {
                let mut sender = match kept.take() {
                    Some(sender) => sender,
                    None => connect(&process, &trusting).await.expect("a connection").0,
                };
                // Hits and misses, on kept connections and on new ones.
                let is_miss = number % 3 == 0;
                let seed = if is_miss { pictures.fetch_add(1, Ordering::SeqCst) } else { 0 };
                let answer = ask(&mut sender, crop(seed)).await.expect("an answer");
                assert_eq!(answer.status(), 200, "{:?}", answer.body());
                requests.fetch_add(1, Ordering::SeqCst);
                if number % 2 == 0 {
                    kept = Some(sender);
                }
                tokio::time::sleep(Duration::from_millis(if is_miss { 50 } else { 10 })).await;
            }
        });
    }
    let keys_read = "granary_reloads_total{file=\"upstream_key\",result=\"ok\"}";
    for (before, certificate) in certificates[1..].iter().enumerate() {
        write_key(&upstream.add_key());
        certificate.write(&world.chain(), &world.key()).unwrap();
        until("the new certificate", async || {
            connect(&process, &trusting).await.is_ok_and(|(_, shown)| shown == certificate.der)
        })
        .await;
        // The two are polled apart, and a key that is replaced too soon is never read.
        until("the new key", async || metric(&process.admin_url(), keys_read).await > before as f64).await;
    }
    upstream.retire_old_keys();
    let before = requests.load(Ordering::SeqCst);
    until("the newest key alone to serve", async || requests.load(Ordering::SeqCst) > before + 50).await;
    stopped.store(true, Ordering::SeqCst);
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    assert_eq!(
        metric(&process.admin_url(), "granary_reloads_total{file=\"certificate\",result=\"ok\"}").await,
        swaps as f64
    );
    println!(
        "{swaps} certificates and keys, {} requests, none failed; {} charges",
        requests.load(Ordering::SeqCst),
        upstream.charges()
    );
}
