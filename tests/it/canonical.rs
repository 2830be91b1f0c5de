//! What is keyed is what is forwarded: the upstream gets the canonical request, byte for byte, and
//! nothing else of what a client sent.

use std::collections::BTreeSet;

use granary_kit::ailab::{FakeAilab, SeenRequest};
use granary_kit::client::{CROP_PATH, Call};
use granary_kit::form::{Form, Part};
use granary_kit::images;
use image::ImageFormat;
use uuid::Uuid;

use crate::harness::{Granary, team, upstream_section};

/// Orders alone reach the upstream: its connections are counted.
const ALONE: &str = "balance_interval = \"0s\"";

/// What was bought, in the upstream's terms.
struct Bought<'a> {
    image: &'a [u8],
    extension: &'a str,
    media_type: &'a str,
    width: u32,
    height: u32,
}

/// Fails unless a request is exactly the one that is owed for `bought`; returns its boundary.
fn assert_canonical(upstream: &FakeAilab, seen: &SeenRequest, bought: &Bought<'_>) -> String {
    let content_type = seen.head.header("content-type").unwrap();
    let boundary = content_type.strip_prefix("multipart/form-data; boundary=").unwrap();
    assert!(boundary.len() == 48 && boundary.bytes().all(|byte| byte.is_ascii_hexdigit()), "{boundary}");
    let Bought { image, extension, media_type, width, height } = bought;
    let head = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"image\"; filename=\"image.{extension}\"\r\n\
         Content-Type: {media_type}\r\n\r\n"
    );
    let tail = format!(
        "\r\n--{boundary}\r\nContent-Disposition: form-data; name=\"width\"\r\n\r\n{width}\
         \r\n--{boundary}\r\nContent-Disposition: form-data; name=\"height\"\r\n\r\n{height}\
         \r\n--{boundary}--\r\n"
    );
    let body = [head.as_bytes(), image, tail.as_bytes()].concat();
    // Not with assert_eq, which would print pictures.
    assert!(seen.body == body, "{}", String::from_utf8_lossy(&seen.body[..400.min(seen.body.len())]));
    let expected = format!(
        "POST {CROP_PATH} HTTP/1.1\r\nhost: {}\r\nailabapi-api-key: {}\r\naccept: application/json\r\n\
         accept-encoding: identity\r\nuser-agent: granary/{}\r\ncontent-type: {content_type}\r\n\
         content-length: {}\r\n\r\n",
        upstream.base_url().strip_prefix("http://").unwrap(),
        upstream.api_key(),
        env!("CARGO_PKG_VERSION"),
        body.len()
    );
    assert_eq!(String::from_utf8_lossy(&seen.head.raw), expected);
    boundary.to_owned()
}

/// The only request since the last look, which must be the canonical one.
fn assert_one_more(upstream: &FakeAilab, so_far: &mut BTreeSet<String>, bought: &Bought<'_>) {
    let seen = upstream.seen();
    assert_eq!(seen.len(), so_far.len() + 1);
    let newest = seen.last().unwrap();
    assert_eq!(newest.connection, so_far.len() as u64, "each on a connection of its own");
    assert!(so_far.insert(assert_canonical(upstream, newest, bought)), "a boundary was used twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn name_type_and_numbers_are_ours_whatever_the_client_wrote() {
    let upstream = FakeAilab::start().await;
    let granary = Granary::builtin(&upstream_section(&upstream, ALONE)).await;
    let mut boundaries = BTreeSet::new();
    let formats = [
        (ImageFormat::Jpeg, "jpg", "image/jpeg"),
        (ImageFormat::Png, "png", "image/png"),
        (ImageFormat::WebP, "webp", "image/webp"),
        (ImageFormat::Bmp, "bmp", "image/bmp"),
    ];
    let lies = [
        ("photo.gif", Some("image/gif")),
        ("", None),
        ("image.svg; x=\u{e9}", Some("text/html; charset=\"utf-8\"")),
        ("..\\..\\a.png", Some("image/jpeg")),
        ("a.jpg", Some("application/octet-stream")),
    ];
    for (number, (format, extension, media_type)) in formats.into_iter().enumerate() {
        for (lie, (name, kind)) in lies.into_iter().enumerate() {
            let (width, height) = (50 + lie as u32, 60 + number as u32);
            let image = images::solid(format, 40, 30, [1, 2, 3]);
            let form = Form::crop(&image, format!(" 000{width}"), format!("{height} \t"))
                .order([&["height", "width"][..], &["image"], &["width", "image"]][lie % 3])
                .file_name(name)
                .part_type(kind)
                .field("output_format", "gif")
                .part(Part::file("mask", "mask.png", "image/png", images::tiny_png(4, 4, 1)))
                .field("Image", "no")
                .field("image[]", "no")
                .field("width\u{2009}", "1");
            let call = Call::new("POST", &format!("{}{CROP_PATH}?width=1&key=secret", granary.url()))
                .header("Content-Type", &form.content_type())
                .body(form.to_bytes());
            let answer = call.send().await.unwrap();
            assert_eq!(answer.status, 200, "{name}: {}", answer.text());
            let ignored = answer.header("granary-ignored").unwrap();
            for field in ["output_format", "mask", "Image", "?width", "?key"] {
                assert!(ignored.contains(field), "{ignored}");
            }
            let bought = Bought { image: &image, extension, media_type, width, height };
            assert_one_more(&upstream, &mut boundaries, &bought);
        }
    }
    assert_eq!(upstream.charges(), 20);
}

/// Numbers that look random and are the same at each run, from BLAKE3.
struct Dice(blake3::OutputReader);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof())
    }

    fn below(&mut self, end: usize) -> usize {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        usize::try_from(u64::from_le_bytes(bytes) % end as u64).unwrap()
    }

    fn word(&mut self, letters: &[u8], longest: usize) -> String {
        (0..=self.below(longest)).map(|_| char::from(letters[self.below(letters.len())])).collect()
    }
}

/// Headers a proxy has been led astray with, each of which some request may carry.
const TRAPS: [(&str, &str); 30] = [
    ("Connection", "ailabapi-api-key"),
    ("Connection", "keep-alive, ailabapi-api-key, content-type, host"),
    ("Keep-Alive", "timeout=1"),
    ("Proxy-Connection", "keep-alive"),
    ("TE", "trailers"),
    ("Trailer", "ailabapi-api-key"),
    ("Upgrade", "h2c"),
    ("Proxy-Authorization", "Basic Zm9vOmJhcg=="),
    ("Cookie", "session=abc; ailabapi-api-key=stolen"),
    ("Set-Cookie", "a=b"),
    ("Accept", "text/html"),
    ("Accept-Encoding", "gzip, deflate, br, zstd"),
    ("Accept-Language", "de"),
    ("User-Agent", "Mozilla/5.0"),
    ("Referer", "https://app.example.com/secret?token=1"),
    ("Origin", "https://app.example.com"),
    ("Forwarded", "for=10.0.0.1;host=evil.example"),
    ("X-Forwarded-For", "10.0.0.1"),
    ("X-Forwarded-Host", "evil.example"),
    ("X-Original-URL", "/api/common/query-credits"),
    ("X-HTTP-Method-Override", "DELETE"),
    ("Via", "1.1 elsewhere"),
    ("Max-Forwards", "0"),
    ("Range", "bytes=0-10"),
    ("If-None-Match", "*"),
    ("Cache-Control", "no-cache, max-age=0"),
    ("Pragma", "no-cache"),
    ("Content-Language", "en"),
    ("Content-MD5", "Q2hlY2sgSW50ZWdyaXR5IQ=="),
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_header_of_a_clients_reaches_the_upstream() {
    let upstream = FakeAilab::start().await;
    let (team, token) = team("red", "");
    let granary = Granary::builtin(&format!("{}\n{team}", upstream_section(&upstream, ALONE))).await;
    let mut boundaries = BTreeSet::new();
    for seed in 0..200 {
        let mut dice = Dice::new(seed);
        let image = images::tiny_png(8, 8, seed);
        let form = Form::browser(&image, 40, 30);
        let mut call = Call::new("POST", &format!("{}{CROP_PATH}", granary.url()));
        let mut headers = vec![
            ("Content-Type".to_owned(), form.content_type()),
            // The team's credential where existing clients put it, so that nobody can confuse the two.
            ("AILabApi-Api-Key".to_owned(), token.clone()),
        ];
        if dice.below(2) == 0 {
            headers.push(("Authorization".to_owned(), format!("Bearer {token}")));
        }
        for _ in 0..dice.below(12) {
            let (name, value) = TRAPS[dice.below(TRAPS.len())];
            headers.push((name.to_owned(), value.to_owned()));
        }
        for _ in 0..dice.below(12) {
            let name = format!("X-{}", dice.word(b"abcXYZ019-_.!#$%&'*+^`|~", 20));
            headers.push((name, dice.word(b" abc;,=\"\\/:?@[]{}<>()~\t9", 60).trim().to_owned()));
        }
        while headers.len() > 2 && dice.below(3) == 0 {
            let (one, other) = (dice.below(headers.len()), dice.below(headers.len()));
            headers.swap(one, other);
        }
        for (name, value) in &headers {
            call = call.header(name, value);
        }
        let answer = call.body(form.to_bytes()).send().await.unwrap();
        assert_eq!(answer.status, 200, "{headers:?}: {}", answer.text());
        let bought =
            Bought { image: &image, extension: "png", media_type: "image/png", width: 40, height: 30 };
        assert_one_more(&upstream, &mut boundaries, &bought);
    }
    assert_eq!((upstream.charges(), boundaries.len()), (200, 200));
    // Whoever fetches the pictures cannot carry a credential at all.
    for head in upstream.fetched() {
        let names: Vec<_> = head.headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["host", "accept", "accept-encoding", "user-agent"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_set_of_a_clients_own_making_cannot_move_the_call_elsewhere() {
    let (upstream, elsewhere) = (FakeAilab::start().await, FakeAilab::start().await);
    let granary = Granary::builtin(&upstream_section(&upstream, ALONE)).await;
    let image = images::photo_jpeg();
    let form = Form::curl(image, 100, 100);
    let host = elsewhere.base_url().strip_prefix("http://").unwrap().to_owned();
    let call = Call::new("POST", &format!("{}{CROP_PATH}", granary.url()))
        .header("Host", &host)
        .header("X-Forwarded-Host", &host)
        .header("X-Request-Id", &Uuid::new_v4().to_string())
        .header("ailabapi-api-key", "stolen")
        .header("Content-Type", &form.content_type())
        .body(form.to_bytes());
    let answer = call.send().await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.result_url().starts_with(&granary.url()), "nor the URL that is given out");
    let bought = Bought { image, extension: "jpg", media_type: "image/jpeg", width: 100, height: 100 };
    assert_one_more(&upstream, &mut BTreeSet::new(), &bought);
    assert_eq!((elsewhere.attempts(), elsewhere.fetches()), (0, 0));
}
