//! What Granary costs: a hit against a minimal server, reading a request, and the journal of a miss.
//!
//! Written without a benchmark library, because what counts here is the CPU time of another process
//! and ratios between two of them, taken in turns: on a shared machine, requests per second of one
//! server after another say more about the neighbours than about the servers.
//!
//! | measured | how |
//! |---|---|
//! | hit | the real binary as a child, 8 keep-alive connections on loopback, a boundary of its own for each request |
//! | sink-blake3 | the reference as a child (`sink.rs`): hyper reads the body, hashes it with BLAKE3 and answers 400 bytes |
//! | reading | `request::check_head` and `request::read` on a body in memory, beside BLAKE3 of the picture alone |
//! | journal | the four bookings of a bought crop in a SQLite ledger, beside a 4 KiB write with `fdatasync` |
//! | reservations | distinct crops reserved against four budgets, by so many callers at once, in each kind of ledger |
//!
//! CPU time is what the kernel's scheduler counted for the child's threads, so this runs on Linux only.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a report is what it is for")]
#![allow(clippy::unwrap_used, reason = "a panic is the report of what cannot be measured")]

use std::any::Any;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use granary::base::clock::Clock;
use granary::base::key::{CacheKey, Digest};
use granary::base::operation::IMAGE_CROPPING;
use granary::base::record::Record;
use granary::base::secret::Secret;
use granary::ledger::address::DatabaseAddress;
use granary::ledger::budget::{Budget, Scope, Window};
use granary::ledger::postgres::{PostgresConfig, PostgresLedger};
use granary::ledger::sqlite::SqliteLedger;
use granary::ledger::{Booking, Calls, Ledger, Permit, Reservation, Reserved};
use granary::request::uploads::UploadRoom;
use granary::request::{self, RequestLimits};
use granary_kit::client::{Call, RawConnection};
use granary_kit::form::Form;
use granary_kit::postgres::Postgres;
use granary_kit::process::{GranaryBuilder, GranaryProcess};
use http_body_util::StreamBody;
use hyper::body::Frame;
use tempfile::TempDir;

/// As in the program: it decides what the blocks of an upload cost.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Rounds of which the median is taken.
const ROUNDS: usize = 7;
/// Connections that send at the same time.
const CONNECTIONS: usize = 8;
/// Side of a square noise picture, requests a round: its BMP has about 50 KB, 500 KB, 3.5 MB.
const SIZES: [(u32, usize); 3] = [(129, 4000), (408, 800), (1080, 160)];
/// Purchases journaled, and synced writes beside them.
const PURCHASES: usize = 300;
/// Callers that reserve at the same time, and reservations a round.
const RESERVERS: [(usize, usize); 3] = [(1, 200), (16, 1600), (256, 5120)];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    // `cargo test --all-targets` starts benchmarks too.
    if arguments.iter().any(|argument| argument == "--bench") {
        runtime.block_on(measure(&arguments));
    } else {
        println!("start this with: make bench");
    }
}

/// All of it, or what is named, as in `cargo bench --bench cost -- reservations`.
async fn measure(arguments: &[String]) {
    let named: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |name: &str| named.is_empty() || named.iter().any(|named| *named == name);
    if is_wanted("hits") {
        hits().await;
    }
    if is_wanted("reading") {
        reading().await;
    }
    if is_wanted("journal") {
        journal().await;
    }
    if is_wanted("reservations") {
        reservations().await;
    }
}

/// One server and the requests made out for it.
struct Contender {
    process: GranaryProcess,
    /// By size: requests that differ in their boundary only.
    requests: Vec<Arc<Vec<Vec<u8>>>>,
    /// By size: what the rounds measured.
    rounds: Vec<Vec<Round>>,
}

#[derive(Clone)]
struct Round {
    cpu_us: f64,
    wall_us: f64,
    latencies_us: Vec<f64>,
}

impl Contender {
    async fn start(builder: GranaryBuilder, pictures: &[Bytes]) -> Self {
        let process = builder.start().await.unwrap_or_else(|ended| panic!("{ended:#?}"));
        let url = process.public_url();
        let variants = |picture: &Bytes| {
            let request = || Call::crop(&url, None, &Form::browser(picture, 400, 400)).to_bytes();
            Arc::new((0..CONNECTIONS).map(|_| request()).collect())
        };
        let requests = pictures.iter().map(variants).collect();
        Self { process, requests, rounds: vec![Vec::new(); pictures.len()] }
    }

    async fn round(&mut self, size: usize, requests: usize) {
        let cpu = cpu_time(self.process.pid());
        let begun = Instant::now();
        let senders: Vec<_> = (0..CONNECTIONS)
            .map(|sender| {
                let url = self.process.public_url();
                let variants = self.requests[size].clone();
                tokio::spawn(async move {
                    let mut connection = RawConnection::open(&url).await.unwrap();
                    let mut latencies = Vec::with_capacity(requests / CONNECTIONS);
                    for turn in 0..requests / CONNECTIONS {
                        let sent = Instant::now();
                        connection.send(&variants[(sender + turn) % CONNECTIONS]).await.unwrap();
                        let answer = connection.read_answer(false).await.unwrap();
                        latencies.push(sent.elapsed().as_secs_f64() * 1e6);
                        let status = answer.header("cache-status").unwrap_or("granary; hit");
                        assert!(answer.status == 200 && status.starts_with("granary; hit"), "{answer:?}");
                    }
                    latencies
                })
            })
            .collect();
        let mut latencies_us = Vec::new();
        for sender in senders {
            latencies_us.extend(sender.await.unwrap());
        }
        let wall = begun.elapsed();
        let cpu = cpu_time(self.process.pid()) - cpu;
        let each = |time: Duration| time.as_secs_f64() * 1e6 / requests as f64;
        self.rounds[size].push(Round { cpu_us: each(cpu), wall_us: each(wall), latencies_us });
    }

    fn median(&self, size: usize, figure: impl Fn(&Round) -> f64) -> f64 {
        median(self.rounds[size].iter().map(figure))
    }

    fn quantile_ms(&self, size: usize, quantile: f64) -> f64 {
        self.median(size, |round| percentile(round.latencies_us.clone(), quantile)) / 1000.0
    }
}

async fn hits() {
    let pictures: Vec<Bytes> = SIZES.iter().map(|&(side, _)| noise(side).into()).collect();
    let mut sink =
        Contender::start(GranaryProcess::builder(env!("CARGO_BIN_EXE_sink-blake3")), &pictures).await;
    let mut granary =
        Contender::start(GranaryProcess::builder(env!("CARGO_BIN_EXE_granary")), &pictures).await;
    for picture in &pictures {
        let call = Call::crop(&granary.process.public_url(), None, &Form::browser(picture, 400, 400));
        assert_eq!(call.send().await.unwrap().status, 200, "the crop is made");
    }
    for round in 0..=ROUNDS {
        for (size, &(_, requests)) in SIZES.iter().enumerate() {
            // Who goes first alternates; the first round warms up and does not count.
            let mut both = [&mut sink, &mut granary];
            both.rotate_left(round % 2);
            for contender in both {
                contender.round(size, requests).await;
                if round == 0 {
                    contender.rounds[size].clear();
                }
            }
        }
    }
    println!("\nA hit: {CONNECTIONS} connections, medians of {ROUNDS} rounds in turns\n");
    println!(
        "| body | CPU us, sink-blake3 | CPU us, granary | ratio | lowest, highest | requests/s, both | p50 ms, granary | p99 ms, granary |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (size, picture) in pictures.iter().enumerate() {
        let cpu = |contender: &Contender| contender.median(size, |round| round.cpu_us);
        let rate = |contender: &Contender| 1e6 / contender.median(size, |round| round.wall_us);
        let mut ratios: Vec<f64> = std::iter::zip(&granary.rounds[size], &sink.rounds[size])
            .map(|(a, b)| a.cpu_us / b.cpu_us)
            .collect();
        ratios.sort_by(f64::total_cmp);
        println!(
            "| {} KB | {:.0} | {:.0} | {:.2} | {:.2}, {:.2} | {:.0}, {:.0} | {:.2} | {:.2} |",
            picture.len() / 1000,
            cpu(&sink),
            cpu(&granary),
            cpu(&granary) / cpu(&sink),
            ratios[0],
            ratios[ROUNDS - 1],
            rate(&sink),
            rate(&granary),
            granary.quantile_ms(size, 0.5),
            granary.quantile_ms(size, 0.99),
        );
    }
}

/// Reading a form from memory, in pieces as a connection delivers them.
async fn reading() {
    println!("\nReading a request in memory, us, medians of 201\n");
    println!("| body | read and hash | BLAKE3 of the picture alone |");
    println!("|---|---|---|");
    for (side, _) in SIZES {
        let picture = noise(side);
        let room = UploadRoom::in_memory(256 << 20);
        let (mut read, mut alone) = (Vec::new(), Vec::new());
        for _ in 0..201 {
            let form = Form::browser(&picture, 400, 400);
            let mut headers = http::HeaderMap::new();
            headers.insert(http::header::CONTENT_TYPE, form.content_type().parse().unwrap());
            let body = Bytes::from(form.to_bytes());
            headers.insert(http::header::CONTENT_LENGTH, body.len().into());
            let pieces: Vec<_> = (0..body.len())
                .step_by(128 * 1024)
                .map(|from| body.slice(from..body.len().min(from + 128 * 1024)))
                .map(|piece| Ok::<_, std::io::Error>(Frame::data(piece)))
                .collect();
            let body = StreamBody::new(tokio_stream::iter(pieces));

            let begun = Instant::now();
            let head = request::check_head(&IMAGE_CROPPING, &headers, &RequestLimits::default()).unwrap();
            let request = request::read(head, body, &room).await.unwrap();
            read.push(begun.elapsed().as_secs_f64() * 1e6);

            let begun = Instant::now();
            let key = CacheKey::of(&picture, 400, 400);
            alone.push(begun.elapsed().as_secs_f64() * 1e6);
            assert_eq!(request.key, key);
        }
        println!("| {} KB | {:.0} | {:.0} |", picture.len() / 1000, median(read), median(alone));
    }
}

/// What the ledger adds to a miss: one purchase at a time, each booking durable before the next.
async fn journal() {
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let zone = jiff::tz::TimeZone::UTC;
    let ledger = SqliteLedger::open(&folder.path().join("ledger.sqlite"), Clock::system(), zone).unwrap();
    let mut disk = File::create(folder.path().join("synced")).unwrap();
    let (mut purchases, mut syncs) = (Vec::new(), Vec::new());
    for number in 0..PURCHASES {
        let begun = Instant::now();
        purchase(&ledger, number).await;
        purchases.push(begun.elapsed().as_secs_f64() * 1000.0);

        let begun = Instant::now();
        disk.write_all(&[7; 4096]).unwrap();
        disk.sync_data().unwrap();
        syncs.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    println!("\nThe journal of a miss, ms, {PURCHASES} purchases one after another\n");
    println!("| | median | p99 |");
    println!("|---|---|---|");
    for (name, times) in [
        ("reserved, sent, answered and stored, each durable", purchases),
        ("4 KiB written and synced with fdatasync on the same disk", syncs),
    ] {
        println!("| {name} | {:.2} | {:.2} |", median(times.clone()), percentile(times, 0.99));
    }
}

fn reservation(number: usize, budgets: Vec<Budget>) -> Reservation {
    let image = number.to_le_bytes();
    Reservation {
        namespace: "ailab-v1".to_owned(),
        key: CacheKey::of(&image, 400, 400),
        refresh: false,
        team: "web".to_owned(),
        credits: 3,
        budgets,
        image: Digest::of(&image),
        width: 400,
        height: 400,
    }
}

/// A ledger, and where it is kept.
struct Book {
    name: &'static str,
    ledger: Arc<dyn Ledger>,
    _home: Box<dyn Any>,
}

/// One of each kind there is.
fn books() -> Vec<Book> {
    let home = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let zone = jiff::tz::TimeZone::UTC;
    let sqlite = SqliteLedger::open(&home.path().join("ledger.sqlite"), Clock::system(), zone).unwrap();
    // As it is in service: a commit is on the disk before it is confirmed.
    let server = Postgres::start_with(&["fsync=on"]);
    let url = server.url("postgres");
    let postgres = PostgresLedger::new(PostgresConfig {
        address: Arc::new(move || DatabaseAddress::parse(&Secret::new(url.clone()))),
        roots: None,
        zone: jiff::tz::TimeZone::UTC,
        spool_max: 2 << 30,
        clock: None,
    });
    vec![
        Book { name: "SQLite", ledger: Arc::new(sqlite), _home: Box::new(home) },
        Book { name: "PostgreSQL", ledger: Arc::new(postgres), _home: Box::new(server) },
    ]
}

/// How many misses a ledger admits: each reservation is a row and four counters, durable before the
/// caller goes on. Callers that come together may share a transaction.
async fn reservations() {
    let books = books();
    let mut reserved = 0;
    println!("\nReservations, each durable, against a daily and a monthly budget of the team and of all\n");
    println!("| ledger | callers at once | reservations/s | lowest, highest |");
    println!("|---|---|---|---|");
    for book in &books {
        book.ledger.recover().await.unwrap();
        for (callers, each_round) in RESERVERS {
            let mut rates = Vec::new();
            for round in 0..=ROUNDS {
                let numbers = reserved..reserved + each_round;
                reserved += each_round;
                let rate = reserve(&book.ledger, callers, numbers).await;
                // The first warms up.
                rates.extend((round > 0).then_some(rate));
            }
            rates.sort_by(f64::total_cmp);
            let (lowest, highest) = (rates[0], rates[ROUNDS - 1]);
            let rate = median(rates);
            println!("| {} | {callers} | {rate:.0} | {lowest:.0}, {highest:.0} |", book.name);
        }
    }
}

/// Reserves a crop for each number, as fast as so many callers can; returns how many a second.
async fn reserve(ledger: &Arc<dyn Ledger>, callers: usize, numbers: std::ops::Range<usize>) -> f64 {
    let count = numbers.len();
    let begun = Instant::now();
    let callers: Vec<_> = (0..callers)
        .map(|caller| {
            let ledger = ledger.clone();
            let own = numbers.clone().skip(caller).step_by(callers);
            tokio::spawn(async move {
                for number in own {
                    let reserved = ledger.reserve(reservation(number, budgets())).await.unwrap();
                    assert!(matches!(reserved, Reserved::Won(_)), "a key of its own: {reserved:?}");
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    count as f64 / begun.elapsed().as_secs_f64()
}

/// Never used up.
fn budgets() -> Vec<Budget> {
    let scopes = [Scope::Global, Scope::Team("web".to_owned())];
    let of = |scope: Scope| {
        [Window::Day, Window::Month].map(|window| Budget {
            scope: scope.clone(),
            window,
            limit: 1_000_000_000,
            enforced: true,
        })
    };
    scopes.into_iter().flat_map(of).collect()
}

async fn purchase(ledger: &SqliteLedger, number: usize) {
    let reservation = reservation(number, Vec::new());
    let (key, image) = (reservation.key, reservation.image);
    let answer = format!(r#"{{"data":{{"url":"results/{}.jpg"}},"padding":"{}"}}"#, key, "x".repeat(400));
    let Reserved::Won(won) = ledger.reserve(reservation).await.unwrap() else { panic!("a key of its own") };
    assert_eq!(ledger.mark_sent(won.id).await.unwrap(), Permit::Granted);
    let answered = Booking::Answered {
        text: Secret::new(answer.clone()),
        request_id: "REQUEST".to_owned(),
        log_id: "LOG".to_owned(),
    };
    ledger.book(won.id, answered).await.unwrap();
    let record = Record {
        version: Record::VERSION,
        namespace: "ailab-v1".to_owned(),
        key,
        generation: won.generation,
        answer,
        digest: image,
        extension: "jpg".to_owned(),
        bytes: 50_000,
        team: "web".to_owned(),
        credits: 3,
        stored_at: jiff::Timestamp::now(),
        upstream_request_id: "REQUEST".to_owned(),
        upstream_log_id: "LOG".to_owned(),
        image,
        width: 400,
        height: 400,
    };
    ledger.book(won.id, Booking::Stored { record: Box::new(record), holds_key: true }).await.unwrap();
}

/// A picture nothing can guess: three random bytes for each pixel, uncompressed.
fn noise(side: u32) -> Vec<u8> {
    let mut colours = vec![0; (side * side * 3) as usize];
    blake3::Hasher::new().update(&side.to_le_bytes()).finalize_xof().fill(&mut colours);
    let picture = image::RgbImage::from_raw(side, side, colours).expect("three bytes for each pixel");
    let mut file = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut file, image::ImageFormat::Bmp).unwrap();
    file.into_inner()
}

/// The CPU time of all threads of a process. Threads that have ended are missing: servers on tokio
/// keep theirs.
fn cpu_time(pid: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a process that runs, on Linux");
    tasks.map(|task| scheduled(&task.unwrap().path())).sum()
}

/// The first figure of `schedstat`: nanoseconds on a CPU.
fn scheduled(task: &Path) -> Duration {
    let text = std::fs::read_to_string(task.join("schedstat")).unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|figure| figure.parse().ok()).unwrap_or(0))
}

fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    percentile(figures.into_iter().collect(), 0.5)
}

fn percentile(mut figures: Vec<f64>, share: f64) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[((figures.len() - 1) as f64 * share).round() as usize]
}
