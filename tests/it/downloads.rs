//! Fetching what was paid for, under fire: cuts at any offset, servers that lie, addresses inside.
//!
//! Whatever the result's server does, nothing but a whole picture is stored, the free fetches go on while the
//! URL lives, and nothing is bought twice. `CUT_FILES` says how many results of each kind are cut (default 1);
//! `CUT_FILES=100` is the long form.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use granary_kit::ailab::{Behaviour, FakeAilab, ResultBehaviour};
use granary_kit::client::{self, Answer};
use granary_kit::form::Form;
use granary_kit::images;
use granary_kit::proxy::{Ending, Fault, FaultProxy, Plan};
use image::ImageFormat;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::harness::{
    Granary, bytes_of, cache_status, files_below, metric, number, real, until, upstream_section,
    upstream_section_at,
};

/// Fetches while the callers wait.
const FOREGROUND: u64 = 5;
/// How far apart the cuts are in the long form; the short one has this many all over a file.
const STEP: u64 = 4096;
const SHORT_CUTS: u64 = 10;

/// A Granary that reads its results through a proxy.
struct World {
    granary: Granary,
    upstream: FakeAilab,
    proxy: FaultProxy,
}

impl World {
    async fn start(more: &str) -> Self {
        let upstream = FakeAilab::start().await;
        let proxy = FaultProxy::start(&upstream.result_host()).await;
        upstream.sell_results_at(&proxy.url());
        let config = upstream_section_at(&upstream.base_url(), &upstream, &[&proxy.url()], more);
        Self { granary: Granary::builtin(&config).await, upstream, proxy }
    }

    fn results(&self) -> usize {
        files_below(&self.granary.store_path().join("results"))
    }
}

/// A picture of its own for each number, in a format.
fn picture(format: ImageFormat, seed: u64) -> Vec<u8> {
    // The number stands after the picture's end, where it changes nothing but the key.
    [images::solid(format, 16, 16, [180, 90, 30]), seed.to_le_bytes().to_vec()].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_cut_at_any_offset_is_fetched_again_and_stored_whole() {
    let files = number("CUT_FILES").unwrap_or(1);
    let mut lanes = JoinSet::new();
    for format in [ImageFormat::Jpeg, ImageFormat::Png] {
        for fault in [Fault::Cut, Fault::Reset] {
            lanes.spawn(cut_everywhere(format, fault, files));
        }
    }
    let mut cuts = 0;
    while let Some(lane) = lanes.join_next().await {
        cuts += lane.unwrap();
    }
    println!("{cuts} fetches were cut");
}

/// Buys `files` pictures for every cut; each is fetched twice. Returns how many fetches were cut.
async fn cut_everywhere(format: ImageFormat, fault: fn(u64) -> Fault, files: u64) -> u64 {
    let world = World::start("").await;
    let (width, height) = (640, 480);
    let mut bought = 0;
    let mut buy = async |plan: Plan| {
        bought += 1;
        world.proxy.on_next(plan);
        let answer = world.granary.crop(None, &picture(format, bought), width, height).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(bytes_of(&answer.result_url()).await == world.upstream.result_bytes(bought));
        world.proxy.wait_for_idle().await
    };
    let whole = buy(Plan::clean()).await[0].to_client;
    assert!(whole > 4 * STEP, "{whole}");
    let mut offsets: Vec<u64> = match files {
        1 => (0..SHORT_CUTS).map(|part| part * whole / SHORT_CUTS).collect(),
        _ => (0..whole).step_by(STEP as usize).collect(),
    };
    // In the head, and before the last bytes; results differ in length by a little.
    offsets.extend([1, 40, whole - 800, whole - 100]);
    let mut cut = 0;
    for _ in 0..files {
        for offset in &offsets {
            let before = world.proxy.connections();
            let fetches = buy(Plan::clean().to_client(fault(*offset))).await;
            let (first, more) = fetches[before..].split_first().unwrap();
            if first.to_client == *offset {
                assert!(matches!(first.ending, Some(Ending::Cut | Ending::Reset)));
                cut += 1;
            }
            // One more fetch when the first was cut, and none when it had come in whole by then.
            let was_whole = first.to_client >= whole - 200 && more.is_empty();
            assert!(more.len() == 1 || was_whole, "cut at {offset} of {whole}: {fetches:?}");
        }
    }
    assert!(cut + files * 2 >= files * offsets.len() as u64, "{cut} of {}", offsets.len());
    assert_eq!((world.upstream.charges(), world.upstream.attempts()), (bought, bought));
    assert_eq!(world.results() as u64, bought, "and nothing else");
    cut
}

/// What a server does with each request for a result, and what the client is told of it.
struct Bad {
    what: &'static str,
    behaviour: ResultBehaviour,
    settings: &'static str,
    code: &'static str,
}

fn raw(status: u16, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> ResultBehaviour {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    ResultBehaviour::Raw { status, headers, body: body.into() }
}

fn bad_servers(inside: SocketAddr) -> Vec<Bad> {
    use ResultBehaviour as Do;
    const SVG: &str = "<svg xmlns=\"http://www.w3.org/2000/svg\"><script>alert(1)</script></svg>";
    let png = || images::photo_png();
    let failed = |what, behaviour| Bad { what, behaviour, settings: "", code: "ERROR_FILE_DOWNLOAD_FAILED" };
    let late = |what, behaviour| Bad {
        what,
        behaviour,
        settings: "result_timeout = \"300ms\"",
        code: "ERROR_FILE_DOWNLOAD_TIMEOUT",
    };
    let small = |what, behaviour| Bad { settings: "result_max_bytes = \"1MiB\"", ..failed(what, behaviour) };
    vec![
        failed("403", Do::Forbidden),
        failed("404", Do::NotFound),
        failed("410", raw(410, &[], "gone")),
        failed("a page", Do::Html),
        failed("JSON", raw(200, &[("Content-Type", "image/png")], r#"{"error":"no such picture"}"#)),
        failed("SVG", raw(200, &[("Content-Type", "image/svg+xml")], SVG)),
        failed("GIF", raw(200, &[("Content-Type", "image/gif")], "GIF89a\u{1}\0\u{1}\0")),
        failed("nothing", raw(200, &[("Content-Type", "image/png")], "")),
        failed("a picture called gzip", raw(200, &[("Content-Encoding", "gzip")], png())),
        failed("a picture called br", raw(200, &[("Content-Encoding", "br")], png())),
        failed("206", raw(206, &[("Content-Range", "bytes 0-9/10")], png())),
        failed("500", raw(500, &[], "oops")),
        failed("503", raw(503, &[("Retry-After", "1")], "busy")),
        failed("a picture under 404", raw(404, &[("Content-Type", "image/png")], png())),
        failed("a redirect inside", Do::Redirect(format!("http://{inside}/latest/meta-data"))),
        failed("half a picture", Do::Truncate(2000)),
        failed("a reset", Do::Reset),
        failed("half a picture called whole", raw(200, &[], &png()[..png().len() / 2])),
        small("more than is allowed, declared", Do::TooLarge(300 << 20)),
        small("chunks for ever", Do::Endless),
        late("a head and silence", Do::Stall(0)),
        late("half and silence", Do::Stall(2000)),
        late("silence", Do::Hang),
        late("a drip", Do::Drip { bytes: 16, every: Duration::from_millis(20) }),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_but_a_whole_picture_is_stored_and_the_fetches_go_on_until_it_is_there() {
    let canary = TcpListener::bind("127.0.0.1:0").await.unwrap();
    join_all(bad_servers(canary.local_addr().unwrap()).into_iter().map(fetched_in_the_end)).await;
    let redirected = tokio::time::timeout(Duration::from_millis(10), canary.accept()).await;
    assert!(redirected.is_err(), "the redirect was followed");
}

async fn fetched_in_the_end(bad: Bad) {
    let Bad { what, behaviour, settings, code } = bad;
    let world = World::start(settings).await;
    world.upstream.always_results(behaviour);
    let told = world.granary.crop(None, images::photo_png(), 320, 240).await;
    // So many while the client waited; one or two more may have begun in the background by now.
    let fetches = world.upstream.fetches();
    assert!((FOREGROUND..=FOREGROUND + 2).contains(&fetches), "{what}: {fetches}");
    let status = if code.ends_with("TIMEOUT") { 504 } else { 502 };
    assert_eq!((told.status, told.code().as_str()), (status, code), "{what}: {}", told.text());
    assert_eq!(world.results(), 0, "{what}");
    assert_eq!(world.granary.metric("granary_ledger_credits{state=\"answered\"}").await, 3.0, "{what}");
    // A socket's buffers are filled on the way, but nobody reads three hundred megabytes.
    for fetch in world.proxy.traffic() {
        assert!(fetch.to_client < 32 << 20, "{what}: {fetch:?}");
    }
    for head in world.upstream.fetched() {
        let names: Vec<&str> = head.headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["host", "accept", "accept-encoding", "user-agent"], "{what}");
    }

    world.upstream.always_results(ResultBehaviour::Serve);
    world.granary.wait_for_metric("granary_ledger_credits{state=\"stored\"}", 3.0).await;
    let hit = world.granary.crop(None, images::photo_png(), 320, 240).await;
    // It is in the ledger a moment before it is in memory.
    let found = cache_status(&hit);
    assert!(hit.status == 200 && found.starts_with("granary; hit"), "{what}: {} {found}", hit.status);
    assert!(bytes_of(&hit.result_url()).await == world.upstream.result_bytes(1), "{what}");
    assert_eq!((world.upstream.charges(), world.results()), (1, 1), "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_beyond_the_declared_length_are_not_the_result() {
    let world = World::start("").await;
    world.upstream.on_next_result(ResultBehaviour::LongerThanDeclared(5000));
    let answer = world.granary.crop(None, images::photo_png(), 320, 240).await;
    assert_eq!((answer.status, world.upstream.fetches()), (200, 1), "{}", answer.text());
    assert!(bytes_of(&answer.result_url()).await == world.upstream.result_bytes(1));
    // One that is told it is whole and is slow all the way is waited for.
    world.upstream.on_next_result(ResultBehaviour::Drip { bytes: 200, every: Duration::from_millis(5) });
    let answer = world.granary.crop(None, images::photo_png(), 64, 48).await;
    assert_eq!((answer.status, world.upstream.fetches()), (200, 2), "{}", answer.text());
    assert!(bytes_of(&answer.result_url()).await == world.upstream.result_bytes(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_of_another_size_was_paid_for_and_is_kept() {
    let world = World::start("").await;
    world.upstream.on_next_result(ResultBehaviour::WrongSize(64, 48));
    let answer = world.granary.crop(None, images::photo_png(), 320, 240).await;
    assert_eq!((answer.status, world.upstream.fetches()), (200, 1), "{}", answer.text());
    let kept = image::load_from_memory(&bytes_of(&answer.result_url()).await).unwrap();
    assert_eq!((kept.width(), kept.height()), (64, 48));
    let again = world.granary.crop(None, images::photo_png(), 320, 240).await;
    assert_eq!((cache_status(&again).as_str(), again.text()), ("granary; hit; detail=memory", answer.text()));
    assert_eq!(world.upstream.charges(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_not_had_while_its_url_lives_is_unfetchable_and_said_aloud() {
    let upstream = FakeAilab::start().await;
    upstream.always_results(ResultBehaviour::NotFound);
    // The pauses of the foreground add up to three seconds at the most.
    let builder = real().config_text(upstream_section(&upstream, "result_url_ttl = \"8s\""));
    let granary = builder.start().await.unwrap();
    let ask = async || {
        let form = Form::curl(images::photo_jpeg(), 100, 100);
        client::post_form(&granary.public_url(), None, &form).await.unwrap()
    };
    let told = ask().await;
    assert_eq!((told.status, told.code().as_str()), (502, "ERROR_FILE_DOWNLOAD_FAILED"), "{}", told.text());
    assert!((FOREGROUND..=FOREGROUND + 2).contains(&upstream.fetches()), "{}", upstream.fetches());
    let warned = granary.wait_for_line(PATIENCE, |line| is_said(line, "WARN", "trying on in the background"));
    assert!(warned.await.is_some(), "{}", granary.stderr_text());
    // Whoever asks meanwhile is told at once, and buys nothing.
    assert_eq!(ask().await.code(), "ERROR_FILE_DOWNLOAD_FAILED");

    let alarm = granary.wait_for_line(PATIENCE, |line| is_said(line, "ERROR", "a paid result is lost")).await;
    let alarm = alarm.unwrap_or_else(|| panic!("no alarm: {}", granary.stderr_text())).to_string();
    assert!(!alarm.contains(&upstream.last_signature().unwrap()), "{alarm}");
    let admin = granary.admin_url();
    until("the fill to end", async || metric(&admin, "granary_coalesce_groups_in_flight").await == 0.0).await;
    for (series, value) in [
        ("granary_fills_total{state=\"unfetchable\"}", 1.0),
        ("granary_ledger_credits{state=\"unfetchable\"}", 3.0),
        ("granary_ledger_credits{state=\"answered\"}", 0.0),
        ("granary_ledger_credits{state=\"stored\"}", 0.0),
    ] {
        assert_eq!(metric(&admin, series).await, value, "{series}");
    }
    let fetches = upstream.fetches();
    assert!((FOREGROUND + 1..=FOREGROUND + 5).contains(&fetches), "{fetches}");
    // It is over, and the key rests before anybody may buy it again.
    let resting = ask().await;
    assert_eq!((resting.status, resting.header("granary-reason")), (503, Some("hold")), "{}", resting.text());
    assert_eq!((upstream.fetches(), upstream.charges(), upstream.attempts()), (fetches, 1, 1));
}

const PATIENCE: Duration = Duration::from_secs(30);

fn is_said(line: &Value, level: &str, part: &str) -> bool {
    line["level"] == level && line.to_string().contains(part)
}

/// Asks for as many crops as there are URLs, all at once, each answered with one of them.
async fn all_at_once(granary: &Granary, upstream: &FakeAilab, urls: &[String]) -> Vec<Answer> {
    let mut asked = JoinSet::new();
    for (seed, url) in urls.iter().enumerate() {
        upstream.on_next(Behaviour::UrlOverride(url.clone()));
        let (base, picture) = (granary.url(), picture(ImageFormat::Png, seed as u64));
        asked.spawn(
            async move { client::post_form(&base, None, &Form::curl(picture, 100, 100)).await.unwrap() },
        );
    }
    asked.join_all().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_url_that_leads_inside_is_never_connected_to() {
    let canary = TcpListener::bind(("::", 0)).await;
    let canary = match canary {
        Ok(both) => both,
        Err(_) => TcpListener::bind("0.0.0.0:0").await.unwrap(),
    };
    let port = canary.local_addr().unwrap().port();
    let upstream = FakeAilab::start().await;
    // Every name is allowed at the canary's port, so that only the address stands in the way.
    let hosts = [format!("https://*:{port}"), format!("http://*:{port}")];
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let granary = Granary::builtin(&upstream_section_at(&upstream.base_url(), &upstream, &hosts, "")).await;
    let urls: Vec<String> = [
        "localhost",
        "LOCALHOST",
        "localhost.",
        "ip6-localhost",
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "user@localhost",
        "user:pass@127.0.0.1",
        "b.aliyuncs.com@127.0.0.1",
        "127.0.0.1%00",
        "①②⑦.0.0.1",
        "127。0。0。1",
        "169.254.169.254",
    ]
    .iter()
    .flat_map(|host| ["http", "https"].map(|scheme| format!("{scheme}://{host}:{port}/a.png?Signature=x")))
    .collect();
    let answers = all_at_once(&granary, &upstream, &urls).await;
    for answer in &answers {
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (502, "ERROR_FILE_DOWNLOAD_FAILED"),
            "{}",
            answer.text()
        );
    }
    let connected = tokio::time::timeout(Duration::from_millis(10), canary.accept()).await;
    assert!(connected.is_err(), "{connected:?}");
    let answered = granary.metric("granary_ledger_credits{state=\"answered\"}").await;
    assert_eq!(answered, (urls.len() * 3) as f64);
    assert_eq!((files_below(&granary.store_path().join("results")), upstream.fetches()), (0, 0));
    assert_eq!(upstream.charges(), urls.len() as u64, "nothing is bought again");
    // The canary sings when it is reached.
    tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    canary.accept().await.unwrap();
}

/// Answers every request with one picture, whatever it is called.
struct AnyName {
    address: SocketAddr,
    _task: AbortOnDropHandle<()>,
}

impl AnyName {
    async fn serving(picture: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n",
                picture.len()
            );
            let answer = [head.as_bytes(), &picture].concat();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n")
                    && stream.read_buf(&mut request).await.is_ok_and(|n| n > 0)
                {}
                stream.write_all(&answer).await.ok();
            }
        });
        Self { address, _task: AbortOnDropHandle::new(task) }
    }
}

/// Every file below a directory, relative to it.
fn names_below(root: &Path, folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| match path.is_dir() {
            true => names_below(root, &path),
            false => vec![path.strip_prefix(root).unwrap().to_str().unwrap().to_owned()],
        })
        .collect()
}

fn is_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_url_is_called_files_have_the_names_of_their_bytes() {
    let long = format!("/{}.png", "a".repeat(4000));
    let names = [
        "/../../../../etc/passwd",
        "/%2e%2e/%2e%2e/%2e%2e/x.png",
        "/..%2f..%2f..%2fx.png",
        "//etc//passwd",
        "/a%00b.png",
        "/x.html",
        "/x.svg?x=.png",
        "/.hidden",
        "/CON.png",
        "/x.png/",
        "/",
        "",
        "?../../x",
        "/%0d%0aSet-Cookie:%20a=b",
        "/lock",
        "/results/../state/ledger.sqlite",
        "/x;rm%20-rf.png",
        "/é.png",
        "/var/x.jpg%00.php",
        &long,
    ];
    for (format, extension) in [
        (ImageFormat::Jpeg, "jpg"),
        (ImageFormat::Png, "png"),
        (ImageFormat::WebP, "webp"),
        (ImageFormat::Bmp, "bmp"),
    ] {
        let picture = images::solid(format, 32, 24, [9, 120, 200]);
        let server = AnyName::serving(picture.clone()).await;
        let upstream = FakeAilab::start().await;
        let host = format!("http://{}", server.address);
        let granary =
            Granary::builtin(&upstream_section_at(&upstream.base_url(), &upstream, &[&host], "")).await;
        let urls: Vec<String> = names.iter().map(|name| format!("{host}{name}")).collect();
        for answer in all_at_once(&granary, &upstream, &urls).await {
            assert_eq!(answer.status, 200, "{}", answer.text());
            let url = answer.result_url();
            let (digest, rest) = url.rsplit_once('/').unwrap().1.split_once('.').unwrap();
            assert!(is_hex(digest) && rest == extension, "{url}");
            let served = client::get(&url).await.unwrap();
            let kind =
                if extension == "jpg" { "image/jpeg".to_owned() } else { format!("image/{extension}") };
            assert_eq!(served.header("content-type"), Some(kind.as_str()));
            assert!(served.body == picture);
        }
        let store = granary.store_path();
        let (results, records): (Vec<String>, Vec<String>) = names_below(&store, &store)
            .into_iter()
            .filter(|name| name != "archive")
            .partition(|name| name.starts_with("results/"));
        assert_eq!((results.len(), records.len()), (1, names.len()), "{results:?} {records:?}");
        for name in results.iter().chain(&records) {
            let (stem, kind) = name.rsplit_once('/').unwrap().1.split_once('.').unwrap();
            assert!(is_hex(stem) && [extension, "json"].contains(&kind), "{name}");
            let folders = name.split('/').count();
            assert!(
                name.starts_with("results/") && folders == 2
                    || name.starts_with("records/ailab-v1/") && folders == 4,
                "{name}"
            );
        }
    }
}
