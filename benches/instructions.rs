//! A gate: the CPU instructions that each step of a hit takes, beside the numbers in `instructions.toml`. Times are
//! noise on a shared machine; instructions, counted by valgrind, are the same in each run.
//!
//! | step | what is counted |
//! |---|---|
//! | parser | the events of a form with a picture of 50 KB, in pieces as a connection delivers them |
//! | key | BLAKE3 of that picture with width and height |
//! | reading | both, with the checks of the head and the blocks of an upload |
//! | lookup | an answer in memory |
//! | answer | its body with our URL |
//!
//! Each step runs ten and twenty times in a process of its own, and the difference counts, so that the start does not.
//! `--self-test` runs each step eleven times instead of ten, and must see that as slower.
//!
//! Instructions depend on the compiler: after an update of Rust, or a change that is worth its price, write the numbers
//! that are printed into the file.

#![allow(clippy::print_stdout, reason = "a report is what it is for")]
#![allow(clippy::unwrap_used, reason = "a panic is the report of what cannot be measured")]

use std::convert::Infallible;
use std::hint::black_box;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use bytes::Bytes;
use granary::base::key::{CacheKey, Digest};
use granary::base::operation::IMAGE_CROPPING;
use granary::base::permits::{Permits, Sharing};
use granary::base::record::Record;
use granary::cache::MemoryCache;
use granary::gateway::rewrite;
use granary::metrics::Metrics;
use granary::request::multipart::{Boundary, Broken, Parser};
use granary::request::uploads::UploadRoom;
use granary::request::{self, RequestLimits};
use granary_kit::form::Form;
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::StreamBody;
use hyper::body::Frame;

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EXPECTED: &str = include_str!("instructions.toml");
/// A step may take that much more or less than the file says: a change elsewhere moves what the compiler inlines.
const TOLERANCE: f64 = 0.05;
const RUNS: u64 = 10;
/// Each machine copies memory by the same loop. Else valgrind counts an instruction for each byte where `rep movsb` is fast.
const PLAIN_COPIES: &str = "glibc.cpu.hwcaps=-ERMS,-AVX_Fast_Unaligned_Load";
/// Of the fast steps in one run.
const TIMES: usize = 200;
const PICTURE: usize = 50_000;
/// As a connection delivers it.
const PIECE: usize = 16 * 1024;
const STEPS: [&str; 5] = ["parser", "key", "reading", "lookup", "answer"];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["step", step, runs] => {
            run(step, runs.parse().unwrap());
            ExitCode::SUCCESS
        }
        [.., "--self-test", "--bench"] | ["--self-test"] => compare(RUNS + 1, |change| change > TOLERANCE),
        ["--bench"] => compare(RUNS, |change| change.abs() <= TOLERANCE),
        _ => {
            println!("start this with: make gate");
            ExitCode::SUCCESS
        }
    }
}

/// Counts each step, `more` runs of which stand for ten.
fn compare(more: u64, is_right: impl Fn(f64) -> bool) -> ExitCode {
    let expected: toml::Table = EXPECTED.parse().unwrap();
    let mut all_right = true;
    println!("| step | instructions | expected | change |\n|---|---|---|---|");
    for step in STEPS {
        let taken = (counted(step, RUNS + more) - counted(step, RUNS)) / RUNS;
        let expected = expected[step].as_integer().unwrap();
        let change = taken as f64 / expected as f64 - 1.0;
        let verdict = if is_right(change) { "" } else { " WRONG" };
        all_right &= is_right(change);
        println!("| {step} | {taken} | {expected} | {:+.1} %{verdict} |", 100.0 * change);
    }
    if all_right { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Instructions of a process that runs a step so often.
fn counted(step: &str, runs: u64) -> u64 {
    let valgrind = ["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"];
    let this = std::env::current_exe().unwrap();
    let output = Command::new("valgrind")
        .args(valgrind)
        .arg(this)
        .args(["step", step, &runs.to_string()])
        .env("GLIBC_TUNABLES", PLAIN_COPIES)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let line = said.lines().find(|line| line.contains("refs:")).unwrap_or_else(|| panic!("{said}"));
    line.rsplit("refs:").next().unwrap().trim().replace(',', "").parse().unwrap()
}

fn run(step: &str, runs: u64) {
    let picture: Vec<u8> =
        (0..PICTURE as u64).map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect();
    // As far as a BMP of 200 x 200 pixels is looked at.
    let sides = [40_u32, 200, 200].map(u32::to_le_bytes).concat();
    let picture = [b"BM".as_slice(), &[0; 12], &sides, &picture].concat();
    match step {
        "parser" => parse(runs, &picture),
        "key" => (0..runs).for_each(|_| _ = black_box(CacheKey::of(black_box(&picture), 400, 400))),
        "reading" => read(runs, &picture),
        "lookup" => look_up(runs, &picture),
        "answer" => answer(runs, &picture),
        other => panic!("{other} is no step"),
    }
}

fn form(picture: &[u8]) -> (HeaderMap, Bytes) {
    let form = Form::browser(picture, 400, 400);
    let body = Bytes::from(form.to_bytes());
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, form.content_type().parse().unwrap());
    headers.insert(CONTENT_LENGTH, body.len().into());
    (headers, body)
}

fn parse(runs: u64, picture: &[u8]) {
    let (headers, body) = form(picture);
    let boundary = Boundary::parse(headers[CONTENT_TYPE].as_bytes()).unwrap();
    for _ in 0..runs {
        let mut parser = Parser::new(&boundary);
        let mut sink = |event: request::multipart::Event<'_>| {
            black_box(event);
            Ok::<_, Broken>(())
        };
        body.chunks(PIECE).for_each(|piece| parser.feed(piece, &mut sink).unwrap());
        parser.finish(&mut sink).unwrap();
    }
}

fn read(runs: u64, picture: &[u8]) {
    let (headers, body) = form(picture);
    let room = UploadRoom::in_memory(1 << 20);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for _ in 0..runs {
        let pieces = (0..body.len()).step_by(PIECE).map(|at| body.slice(at..body.len().min(at + PIECE)));
        let frames: Vec<_> = pieces.map(|piece| Ok::<_, Infallible>(Frame::data(piece))).collect();
        let head = request::check_head(&IMAGE_CROPPING, &headers, &RequestLimits::default()).unwrap();
        let read = runtime.block_on(request::read(head, StreamBody::new(tokio_stream::iter(frames)), &room));
        black_box(read.unwrap().key);
    }
}

fn record(picture: &[u8]) -> Record {
    let (digest, extension) = (Digest::of(picture), "png".to_owned());
    Record {
        version: Record::VERSION,
        namespace: "ailab-v1".to_owned(),
        key: CacheKey::of(picture, 400, 400),
        generation: 0,
        answer: format!(
            r#"{{"request_id":"R","log_id":"L","error_code":0,"data":{{"url":"results/{digest}.{extension}"}}}}"#
        ),
        digest,
        extension,
        bytes: 1000,
        team: "web".to_owned(),
        credits: 3,
        stored_at: jiff::Timestamp::UNIX_EPOCH,
        upstream_request_id: "R".to_owned(),
        upstream_log_id: "L".to_owned(),
        image: Digest::of(picture),
        width: 400,
        height: 400,
    }
}

fn look_up(runs: u64, picture: &[u8]) {
    let room = Permits::new(1 << 20, Sharing::Whole);
    let cache = MemoryCache::new(1 << 20, room, Arc::new(Metrics::new(std::iter::empty())));
    let record = record(picture);
    let identity = record.identity();
    cache.keep_answer(Arc::new(record), cache.begin_reading(&identity));
    for _ in 0..TIMES as u64 * runs {
        black_box(cache.answer(black_box(&identity)).unwrap());
    }
}

fn answer(runs: u64, picture: &[u8]) {
    let record = record(picture);
    for _ in 0..TIMES as u64 * runs {
        black_box(rewrite::answer(black_box(&record), "https://granary.example").unwrap());
    }
}
