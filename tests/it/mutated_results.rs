//! What is paid for is read: answers and results changed as vendors, their networks and storages change them.
//!
//! Whatever is complete by its framing and intact to its end mark is kept byte for byte, with anything after it; what
//! is cut short is not kept and is fetched again; nothing is paid twice. `MUTATED_RESULTS` says how many results there
//! are (default 120; `MUTATED_RESULTS=1000` is the long form), `MUTATED_SEED` which ones (default 1).

use std::sync::Arc;

use granary_kit::ailab::{Behaviour, Coding, FakeAilab, Framing, Mutation, ResultBehaviour};
use granary_kit::client;
use granary_kit::dice::Dice;
use granary_kit::images;
use image::ImageFormat;
use tokio::task::JoinSet;

use crate::harness::{Granary, bytes_of, cache_status, files_below, number};

/// Granaries that are tried at the same time, each with an upstream of its own.
const LANES: u64 = 4;

const ROCKET: &[u8] = include_bytes!("../images/rocket.jpg");
const PROGRESSIVE: &[u8] = include_bytes!("../images/rocket-progressive.jpg");
const LOSSY: &[u8] = include_bytes!("../images/rocket-lossy.webp");

/// Header lines as they come from proxies, firewalls and object storages.
const SLOPPY: [&str; 14] = [
    "X-Cache : HIT\r\n",
    "X Powered By: WAF\r\n",
    "no colon at all\r\n",
    "X-Folded: one\r\n  two\r\n\tthree\r\n",
    "X-Control: a\x01b\r\n",
    "X-Latin: caf\u{e9}\r\n",
    ": no name\r\n",
    "X-Empty:\r\n",
    "Content-Encoding:\r\n",
    "Content-Encoding: identity\r\n",
    "content-encoding: utf-8\r\n",
    "Content-Type: text/html; charset=gbk\r\n",
    "Connection: keep-alive, Keep-Alive\r\n",
    "Set-Cookie: a=b\r\nSet-Cookie: a=c\r\n",
];

const ANSWERS: [&str; 5] = [
    r#"{"data":{"url":"{url}","retain_location":{"width":{width},"height":{height},"y":0,"x":0}},"error_code":0,"error_detail":{"status_code":200,"code":"","code_message":"","message":""},"error_msg":"","log_id":"77496025","request_id":"A6697900"}"#,
    r#"{"request_id":"R","log_id":"1","error_detail":{"code":"","code_message":"","message":""},"data":{"url":"{url}"}}"#,
    r#"{"log_id":7,"error_code":"0","error_code_str":"","data":{"backup":"http://other.example/a.png?Signature=foreign","url":"{url}"}}"#,
    r#"{"error_code":1,"error_code":0,"data":{"url":"https://old.example/","url":"{url}"},"error_msg":"kept at {url} for 24 h"}"#,
    "\r\n {\"error_code\":0,\n\t\"error_detail\":{\"code\":\"SUCCESS\"},\"data\":{\"url\":\"{url}\",\"note\":\"caf\u{e9}\"}}\r\n",
];

/// One order and what comes of it.
#[derive(Debug)]
struct Case {
    answer: Mutation,
    template: &'static str,
    redirects: Vec<Mutation>,
    result: Mutation,
    fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Everything is complete.
    Kept,
    /// The result is cut short at the first fetch.
    FetchedAgain,
    /// The answer is cut short.
    Unknown,
}

/// A JPEG whose first segment contains a whole JPEG.
fn with_thumbnail() -> Vec<u8> {
    let thumbnail = images::solid(ImageFormat::Jpeg, 16, 16, [9, 9, 9]);
    let length = u16::try_from(thumbnail.len() + 2).unwrap().to_be_bytes();
    [&ROCKET[..2], &[0xFF, 0xE1], &length, &thumbnail, &ROCKET[2..]].concat()
}

impl Case {
    fn roll(dice: &mut Dice) -> Self {
        let fate = match dice.below(30) {
            0 => Fate::Unknown,
            1..=9 => Fate::FetchedAgain,
            _ => Fate::Kept,
        };
        let mut answer = sloppy(dice);
        if dice.chance(2000) {
            answer.before = b"\xEF\xBB\xBF".to_vec();
        }
        if fate == Fate::Unknown {
            answer.coding = Coding::None;
            answer.before.clear();
            cut(dice, &mut answer, 30, false);
        }
        let redirects = (0..dice.below(8).saturating_sub(4)).map(|_| redirect(dice)).collect();
        let mut result = sloppy(dice);
        result.body = body(dice);
        let has_end_mark =
            result.body.as_ref().is_none_or(|body| !body.starts_with(b"RIFF") && !body.starts_with(b"BM"));
        if fate == Fate::FetchedAgain {
            cut(dice, &mut result, 200, has_end_mark);
        } else {
            result.after = after(dice);
        }
        Self { answer, template: ANSWERS[dice.below(5) as usize], redirects, result, fate }
    }
}

/// Instead of the small picture that the fake draws.
fn body(dice: &mut Dice) -> Option<Vec<u8>> {
    match dice.below(9) {
        0 => Some(ROCKET.to_vec()),
        1 => Some(PROGRESSIVE.to_vec()),
        2 => Some(LOSSY.to_vec()),
        3 => Some(with_thumbnail()),
        4 => Some(images::solid(ImageFormat::Bmp, 33, 20, [1, 2, 3])),
        5 => Some(images::solid(ImageFormat::WebP, 33, 20, [1, 2, 3])),
        _ => None,
    }
}

/// What stands behind a picture's end: padding, a label, an MPO's second picture, a motion photo's film.
fn after(dice: &mut Dice) -> Vec<u8> {
    let length = [1, 2, 50, 63, 64, 65, 300, 512, 4096, 100_000][dice.below(10) as usize];
    match dice.below(8) {
        0 => vec![0; length],
        1 => vec![0xFF; length],
        2 => b"\r\n".to_vec(),
        3 => b"AIGC".repeat(length / 4 + 1),
        4 => ROCKET.to_vec(),
        5 => [b"\0\0\0\x18ftypmp42", &vec![7; length][..]].concat(),
        _ => Vec::new(),
    }
}

fn sloppy(dice: &mut Dice) -> Mutation {
    let mut mutation = Mutation::default();
    for _ in 0..dice.below(4) {
        mutation.headers += SLOPPY[dice.below(14) as usize];
    }
    if dice.chance(500) {
        mutation.headers += &(0..300).map(|line| format!("X-Node-{line}: a\r\n")).collect::<String>();
    }
    mutation.framing = match dice.below(3) {
        0 => Framing::Length,
        1 => Framing::Chunks(1 + dice.below(5000) as usize),
        _ => Framing::Close,
    };
    mutation.coding = match dice.below(12) {
        0 => Coding::Gzip,
        1 => Coding::Zlib,
        2 => Coding::Deflate,
        _ => Coding::None,
    };
    mutation
}

/// Cuts a response: on its way, or because the server had no more. Zeros may stand for what it had not.
fn cut(dice: &mut Dice, response: &mut Mutation, most: u64, may_pad: bool) {
    let bytes = 5 + dice.below(most) as usize;
    let is_framed = !matches!(response.framing, Framing::Close);
    if is_framed && dice.chance(5000) {
        response.unsent = bytes;
        return;
    }
    response.missing = bytes;
    if may_pad && dice.chance(5000) {
        response.after = vec![0; bytes + dice.below(500) as usize];
    }
}

fn redirect(dice: &mut Dice) -> Mutation {
    let status = [301, 302, 303, 307, 308][dice.below(5) as usize];
    let location = ["{url}", "{path}", " {url} ", "{url}#top"][dice.below(4) as usize];
    let headers = format!("{}Location: {location}\r\n", SLOPPY[dice.below(8) as usize]);
    let body = Some(b"moved".to_vec());
    Mutation { status: Some(status), headers, body, coding: Coding::None, ..sloppy(dice) }
}

/// Orders of one lane; returns how many ended in each way.
async fn lane(lane: u64, orders: u64, seed: u64) -> [u64; 3] {
    let upstream = FakeAilab::start().await;
    let granary = Granary::ailab(&upstream, "").await;
    let mut ends = [0; 3];
    for order in 0..orders {
        let mut dice = Dice::new(seed ^ (lane << 48) ^ (order << 16));
        let case = Case::roll(&mut dice);
        let place = format!("seed {seed}, lane {lane}, order {order}: {case:?}");
        let place = &place[..place.floor_char_boundary(3000)];
        let fetches = upstream.fetches();
        upstream.on_next(Behaviour::Mutated(case.template.to_owned(), case.answer.clone()));
        if case.fate != Fate::Unknown {
            for redirect in &case.redirects {
                upstream.on_next_result(ResultBehaviour::Mutated(redirect.clone()));
            }
            upstream.on_next_result(ResultBehaviour::Mutated(case.result.clone()));
        }
        let picture =
            [images::solid(ImageFormat::Png, 16, 16, [180, 90, 30]), order.to_le_bytes().to_vec()].concat();
        let answer = granary.crop(None, &picture, 40, 30).await;
        // Paid once, whatever came.
        assert_eq!((upstream.charges(), upstream.attempts()), (order + 1, order + 1), "{place}");
        ends[case.fate as usize] += 1;
        if case.fate == Fate::Unknown {
            assert_eq!(answer.status, 502, "{place}\n{}", answer.text());
            continue;
        }
        assert_eq!(answer.status, 200, "{place}\n{}", answer.text());
        let drawn = upstream.result_bytes(order + 1);
        let (again, expected) = match case.fate {
            Fate::FetchedAgain => (1, drawn),
            Fate::Kept | Fate::Unknown => (0, case.result.content(&drawn)),
        };
        let fetched = upstream.fetches() - fetches;
        assert_eq!(fetched, case.redirects.len() as u64 + 1 + again, "{place}");
        let text = answer.text();
        assert!(!text.contains("Signature") && !text.contains("other.example"), "{place}\n{text}");
        let kept = bytes_of(&answer.result_url()).await;
        assert!(kept == expected, "{place}\n{} bytes and not {}", kept.len(), expected.len());
        let hit = granary.crop(None, &picture, 40, 30).await;
        assert!(
            cache_status(&hit).starts_with("granary; hit") && hit.text() == text,
            "{place}\n{}",
            hit.text()
        );
    }
    let [kept, again, unknown] = ends;
    for (state, rows) in [("stored", kept + again), ("unknown", unknown), ("answered", 0), ("unfetchable", 0)]
    {
        let series = format!("granary_ledger_credits{{state=\"{state}\"}}");
        assert_eq!(granary.metric(&series).await, (rows * 3) as f64, "lane {lane}: {state}");
    }
    assert!(files_below(&granary.store_path().join("results")) as u64 <= kept + again);
    for head in upstream.fetched() {
        assert!(head.all("ailabapi-api-key").is_empty() && head.all("cookie").is_empty());
    }
    ends
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn complete_answer_and_result_are_kept_byte_for_byte_and_what_is_cut_short_is_not() {
    let (results, seed) = (number("MUTATED_RESULTS").unwrap_or(120), number("MUTATED_SEED").unwrap_or(1));
    let mut lanes = JoinSet::new();
    for number in 0..LANES {
        lanes.spawn(lane(number, results / LANES, seed));
    }
    let ends = lanes.join_all().await;
    let sum = |fate: Fate| ends.iter().map(|ends| ends[fate as usize]).sum::<u64>();
    let [kept, again, unknown] = [Fate::Kept, Fate::FetchedAgain, Fate::Unknown].map(sum);
    println!("{kept} kept at once, {again} fetched again, {unknown} answers cut");
    assert!(kept > 0 && again > 0 && unknown > 0, "each way is tried");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blank_in_a_results_url_is_escaped_as_browsers_do() {
    let upstream = FakeAilab::start().await;
    let granary = Granary::ailab(&upstream, "").await;
    // The place of the fake's picture, spelled with blanks around it and a fragment behind.
    let template = r#"{"error_code":0,"data":{"url":" {url} "}}"#;
    upstream.on_next(Behaviour::Mutated(template.to_owned(), Mutation::default()));
    let answer = granary.crop(None, images::photo_png(), 40, 30).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(!answer.text().contains("Signature"), "{}", answer.text());
    // Within it a blank reaches the server as %20: another URL than was sold, so it is not there.
    let template = r#"{"error_code":0,"data":{"url":"{url} x"}}"#;
    upstream.on_next(Behaviour::Mutated(template.to_owned(), Mutation::default()));
    let answer = granary.crop(None, images::photo_png(), 41, 30).await;
    assert_eq!(answer.code(), "ERROR_FILE_DOWNLOAD_FAILED", "{}", answer.text());
    let asked = upstream.fetched().last().unwrap().start[1].clone();
    assert!(asked.ends_with("%20x"), "{asked}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_address_or_echoed_key_reaches_neither_client_nor_file() {
    let upstream = FakeAilab::start().await;
    let granary = Arc::new(Granary::ailab(&upstream, "").await);
    let key = upstream.api_key();
    let escaped: String = key.bytes().map(|byte| format!("\\u{byte:04x}")).collect();
    let percent: String = key.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let base64 = base64_of(format!("user:{key}").as_bytes());
    let foreign = "http://b.oss-cn-shanghai.aliyuncs.com/x.png?Signature=f0re1gn-s1gnature%2F";
    let quoted = [&key, &key.to_uppercase(), &escaped, &percent, &base64, &key[..32], &key[32..], foreign];
    for (number, text) in (0_u32..).zip(quoted) {
        let success = format!(
            r#"{{"error_code":0,"data":{{"url":"{{url}}","source":"{text}"}},"error_msg":"made from {text} ok","request_id":"{text}"}}"#
        );
        upstream.on_next(Behaviour::Mutated(success, Mutation::default()));
        let bought = granary.crop(None, images::photo_png(), 100 + number, 30).await;
        let error = format!(
            r#"{{"error_code":422,"error_detail":{{"status_code":422,"code":"ERROR_LOW_RESOLUTION","message":"x {text} y"}},"error_msg":"{text}"}}"#
        );
        upstream.on_next(Behaviour::Raw {
            status: 422,
            content_type: "application/json".to_owned(),
            body: error.into_bytes(),
            charged: false,
        });
        let refused = granary.crop(None, images::photo_png(), 100 + number, 31).await;
        assert_eq!(
            (bought.status, refused.status),
            (200, 422),
            "{text}: {} {}",
            bought.text(),
            refused.text()
        );
        assert_eq!(refused.code(), "ERROR_LOW_RESOLUTION");
        let hit = client::get(&bought.result_url()).await.unwrap();
        assert_eq!(hit.body, upstream.result_bytes(u64::from(number) + 1));
        for answer in [&bought, &refused] {
            let seen = answer.text().to_lowercase();
            let word = text.to_lowercase();
            assert!(!seen.contains(&word[..word.len().min(20)]), "{text}: {seen}");
            assert!(!seen.contains("f0re1gn") && !seen.contains("aliyuncs"), "{text}: {seen}");
        }
    }
    let secrets = [("key", key.as_str()), ("half a key", &key[32..]), ("foreign URL", "f0re1gn-s1gnature")];
    let leaks = granary_kit::leak::Secrets::new(secrets);
    assert_eq!(leaks.scan_dir(granary.store_path()).unwrap(), []);
    assert_eq!(leaks.scan_dir(granary.state_path()).unwrap(), []);
}

fn base64_of(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
