//! The crash campaign: one world after another in which the real program dies again and again, under
//! load, at a named point or at any moment, and what it was paid for is never lost.
//!
//! The short form runs with the other tests. `make crash` is the long one: `KILLS` deaths at each
//! named point and `MOMENTS` at any, from the round `FROM` on with the dice of `SEED`. Each round
//! draws from its own number, so a campaign that was broken off goes on from the last line it wrote.
//! `CRASH_POINTS=CP14,CP40` leaves the other points out.
//!
//! After every death the next process is audited while it serves: the upstream's charges minus the
//! booked ones lie between 0 and the number of `unknown` rows, no key is charged more often than its
//! doubtful rows allow, and URLs that were told serve what they did. At the end every URL ever told
//! and every result ever stored is read. What must hold is the kit's reference model.

#![expect(clippy::print_stdout, reason = "a campaign prints its seed and its figures")]

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use granary::base::key::CacheKey;
use granary_kit::ailab::{Behaviour, FakeAilab};
use granary_kit::client::{self, Call};
use granary_kit::dice::Dice;
use granary_kit::form::Form;
use granary_kit::images;
use granary_kit::model::{Archive, Balance, Served, check_charges};
use granary_kit::process::{GranaryBuilder, GranaryProcess};
use granary_kit::s3::S3Server;
use tempfile::TempDir;

use crate::crash::{POINTS, WAITS, all, check_point, check_wait};
use crate::harness::{bucket_section, bytes_of, real, until, upstream_section};

/// Longer than any of these processes has a reason to take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Clients at once.
const CLIENTS: u64 = 4;
/// Points that only files have.
const OF_FILES: [&str; 5] = ["CP17", "CP18", "CP19", "CP20", "CP23"];
/// In the copying of what waits for a bucket.
const SPOOL: &str = "CP40";
/// URLs read at each audit.
const SAMPLE: usize = 3;

/// How a process ends.
#[derive(Clone, Copy, Debug)]
enum Death {
    /// By its own hand, at a point.
    Point(&'static str),
    /// Killed from outside at any moment.
    Moment,
}

/// A number from the environment.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().filter(|text| !text.is_empty()).map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, and should be a number"))
    })
}

/// A Granary that dies and comes back, with all that outlives it.
struct World {
    upstream: FakeAilab,
    bucket: Option<S3Server>,
    folder: TempDir,
    builder: GranaryBuilder,
    told: Arc<Mutex<LogContext>>,
    deaths: BTreeMap<&'static str, u64>,
}

/// What clients know.
#[derive(Default)]
struct LogContext {
    archive: Archive,
    /// Pictures that have been asked for: 0 up to here.
    pictures: u64,
    /// The path of the URL that was answered for a picture, by its number.
    urls: BTreeMap<u64, String>,
    /// What contradicts the model.
    wrong: Vec<String>,
}

/// A row of the ledger: its key, its state, and what it stored.
struct Row {
    key: String,
    state: String,
    object: Option<String>,
}

impl World {
    async fn new(with_bucket: bool) -> Self {
        let (upstream, folder) = (FakeAilab::start().await, TempDir::new().unwrap());
        upstream.keep_bodies(false);
        upstream.always(Behaviour::Delay(Duration::from_millis(4)));
        let mut config = upstream_section(&upstream, "");
        let mut bucket = None;
        if with_bucket {
            let server = S3Server::start().await;
            config += &bucket_section(&server, &folder, "granary/test");
            bucket = Some(server);
        }
        let path = |name: &str| folder.path().join(name).display().to_string();
        let builder = real()
            .config_text(config)
            .env("GRANARY_SERVER_DRAIN_GRACE", "0s")
            .env("GRANARY_STORE_PATH", path("store"))
            .env("GRANARY_STATE_PATH", path("state"));
        Self { upstream, bucket, folder, builder, told: Arc::default(), deaths: BTreeMap::new() }
    }

    /// The rows of the ledger, read beside the process that owns it.
    fn rows(&self) -> Vec<Row> {
        let db = rusqlite::Connection::open(self.folder.path().join("state/ledger.sqlite")).unwrap();
        let sql = "SELECT lower(hex(key)), state, lower(hex(digest)) || '.' || extension FROM calls";
        let mut rows = db.prepare(sql).unwrap();
        let rows = rows
            .query_map([], |row| Ok(Row { key: row.get(0)?, state: row.get(1)?, object: row.get(2)? }))
            .unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    }

    /// One life and its end.
    async fn round(&mut self, mut dice: Dice, death: Death) {
        self.upstream.wait_for_idle().await;
        if let Death::Point(point @ ("CP33" | "CP34")) = death {
            self.died_at(self.builder.clone().env("GRANARY_CRASH_AT", point).spawn(), point).await;
            return;
        }
        let mut granary = match death {
            Death::Moment => self.builder.start().await.unwrap(),
            Death::Point(point) => {
                // A process stops only once, and not much is ever spooled.
                let passage = if ["CP35", SPOOL].contains(&point) { 1 } else { 1 + dice.below(3) };
                let plan = format!("{point}:{passage}");
                match self.builder.clone().env("GRANARY_CRASH_AT", plan).start().await {
                    Ok(granary) => granary,
                    // It came upon its point while it finished what the last one had left.
                    Err(ended) => {
                        assert_eq!(ended.status.signal(), Some(9), "{}", ended.stderr);
                        assert!(ended.stderr.contains(&format!("crash point {point}\n")), "{}", ended.stderr);
                        *self.deaths.entry(point).or_default() += 1;
                        return;
                    }
                }
            }
        };
        self.audit(&granary, &mut dice).await;
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let dice = Dice::new(dice.below(u64::MAX));
                tokio::spawn(run_client(granary.public_url(), dice, self.told.clone()))
            })
            .collect();
        if let (Death::Point(SPOOL), Some(bucket)) = (death, &mut self.bucket) {
            // Away until something waits for it.
            bucket.go_down().await;
            let metrics = format!("{}/metrics", granary.admin_url());
            let is_spooled = |line: &str| {
                line.strip_prefix("granary_space_used_bytes{space=\"spool\"} ")
                    .is_some_and(|bytes| bytes != "0")
            };
            until("a result in the spool", async || match client::get(&metrics).await {
                Ok(answer) => answer.text().lines().any(is_spooled),
                // What the last life had left in the spool was being copied when the bucket went.
                Err(_) => true,
            })
            .await;
            bucket.come_back().await;
        }
        // Now and then the bucket goes away for a moment.
        if let Some(bucket) = self.bucket.as_mut().filter(|_| dice.below(3) == 0) {
            tokio::time::sleep(Duration::from_millis(dice.below(60))).await;
            bucket.go_down().await;
            tokio::time::sleep(Duration::from_millis(dice.below(120))).await;
            if matches!(death, Death::Moment) && dice.below(2) == 0 {
                granary.kill().await;
            }
            bucket.come_back().await;
        }
        match death {
            Death::Moment => {
                tokio::time::sleep(Duration::from_micros(dice.below(120_000))).await;
                granary.kill().await;
                assert_eq!(granary.died_by_signal(), Some(9), "{}", granary.stderr_text());
                *self.deaths.entry("any moment").or_default() += 1;
            }
            Death::Point(point) => {
                if point == "CP35" {
                    self.upstream.wait_for_attempts(self.upstream.attempts() + 1).await;
                    granary.terminate();
                }
                self.died_at(granary, point).await;
            }
        }
        for client in clients {
            client.await.unwrap();
        }
    }

    async fn died_at(&mut self, mut granary: GranaryProcess, point: &'static str) {
        let exit = granary.wait_exit(PATIENCE).await;
        let said = granary.stderr_text();
        assert!(exit.is_some(), "{point} was not reached\n{said}");
        assert_eq!(granary.died_by_signal(), Some(9), "{said}");
        // Others may have logged something in the moment between.
        assert!(said.contains(&format!("crash point {point}\n")), "{said}");
        *self.deaths.entry(point).or_default() += 1;
    }

    /// What must hold while a process serves and nobody asks it for anything.
    async fn audit(&self, granary: &GranaryProcess, dice: &mut Dice) {
        let charges = self.upstream.charges_by_key();
        let rows = self.rows();
        let count =
            |states: &[&str]| rows.iter().filter(|row| states.contains(&row.state.as_str())).count() as u64;
        let balance = Balance {
            charges: charges.values().sum(),
            booked: count(&["answered", "stored", "unfetchable", "lost"]),
            unknown: count(&["unknown"]),
            open: count(&["sent", "reserved"]),
        };
        balance.check().unwrap_or_else(|wrong| panic!("{wrong}"));
        assert_eq!(balance.open, 0, "nobody has asked for anything since the start");
        let mut doubtful: BTreeMap<&str, u64> = BTreeMap::new();
        for row in rows.iter().filter(|row| row.state == "unknown") {
            *doubtful.entry(&row.key).or_default() += 1;
        }
        for (key, charges) in &charges {
            let doubtful = doubtful.get(key.as_str()).copied().unwrap_or(0);
            check_charges(key, *charges, doubtful).unwrap_or_else(|wrong| panic!("{wrong}"));
        }
        let paths: Vec<String> = {
            let told = self.told.lock().unwrap();
            assert!(told.wrong.is_empty(), "{:?}", told.wrong);
            let count = told.urls.len() as u64;
            let picks: BTreeSet<u64> = (0..SAMPLE.min(told.urls.len())).map(|_| dice.below(count)).collect();
            let urls: Vec<&String> = told.urls.values().collect();
            picks.into_iter().map(|pick| urls[usize::try_from(pick).unwrap()].clone()).collect()
        };
        for path in paths {
            self.read_back(granary, &path).await;
        }
    }

    /// Reads a URL that was told. With a bucket that was away a moment ago it may take a while, but
    /// it is never missing.
    async fn read_back(&self, granary: &GranaryProcess, path: &str) {
        until(path, async || {
            let Ok(answer) = client::get(&format!("{}{path}", granary.public_url())).await else {
                // What it found unfinished may have led it to the point where it is to die.
                return granary.has_exited();
            };
            let digest = blake3::hash(&answer.body).to_hex();
            let served = match answer.status {
                200 => Served::Bytes(digest.as_bytes()),
                404 => Served::NotThere,
                503 => Served::Later,
                other => panic!("{path}: {other} {}", answer.text()),
            };
            let checked = self.told.lock().unwrap().archive.served(path, served);
            checked.unwrap_or_else(|wrong| panic!("{wrong}"));
            answer.status == 200
        })
        .await;
    }

    /// After the last death: all that was left open comes to rest, and everything is read.
    async fn last_audit(mut self, name: &str) {
        self.upstream.wait_for_idle().await;
        if let Some(bucket) = &mut self.bucket {
            bucket.heal();
        }
        let granary = self.builder.start().await.unwrap();
        let at_rest = async || self.rows().iter().all(|row| row.state != "answered");
        until("the last fills to be finished", at_rest).await;
        self.audit(&granary, &mut Dice::new(0)).await;
        let urls = self.told.lock().unwrap().urls.clone();
        for (picture, path) in &urls {
            self.read_back(&granary, path).await;
            let again = client::post_form(&granary.public_url(), None, &form(*picture)).await.unwrap();
            assert_eq!(again.header("granary-credits-charged"), Some("0"), "{picture}: {}", again.text());
            assert!(again.result_url().ends_with(path.as_str()), "{picture}: {}", again.text());
        }
        let rows = self.rows();
        for object in rows.iter().filter(|row| row.state == "stored").filter_map(|row| row.object.as_ref()) {
            let bytes = bytes_of(&format!("{}/results/{object}", granary.public_url())).await;
            assert!(object.starts_with(blake3::hash(&bytes).to_hex().as_str()), "{object}");
        }
        let count = |state: &str| rows.iter().filter(|row| row.state == state).count();
        println!(
            "campaign, {name}: {} deaths {:?}; {} charges, {} stored, {} unknown, {} released; {} keys told, 0 lost",
            self.deaths.values().sum::<u64>(),
            self.deaths,
            self.upstream.charges(),
            count("stored"),
            count("unknown"),
            count("released"),
            urls.len(),
        );
        assert!(!urls.is_empty() && count("stored") > 0, "nothing happened");
    }
}

fn form(picture: u64) -> Form {
    Form::curl(images::tiny_png(16, 16, picture), 40, 30)
}

/// Asks for new and old pictures until the process is gone.
async fn run_client(url: String, mut dice: Dice, told: Arc<Mutex<LogContext>>) {
    loop {
        let picture = {
            let mut told = told.lock().unwrap();
            let is_new = told.pictures == 0 || dice.below(3) > 0;
            told.pictures += u64::from(is_new);
            // Another one may be asking for the newest at this moment: that is the point.
            if is_new { told.pictures - 1 } else { dice.below(told.pictures) }
        };
        let form = form(picture);
        if dice.below(16) == 0 {
            // All of it or a part, and gone.
            let call = Call::crop(&url, None, &form);
            let part = dice.below(call.body_len() as u64 + 1);
            match call.send_part(usize::try_from(part).unwrap()).await {
                Ok(connection) => connection.reset(),
                Err(_) => return,
            }
            continue;
        }
        let Ok(answer) = client::post_form(&url, None, &form).await else { return };
        if answer.status != 200 {
            assert_ne!(answer.status, 500, "{}", answer.text());
            // The upstream's crops of this key rest, or there is no room for a moment.
            tokio::time::sleep(Duration::from_millis(2)).await;
            continue;
        }
        let key = CacheKey::of(&images::tiny_png(16, 16, picture), 40, 30).to_string();
        let url = answer.result_url();
        let path = url[url.find("/results/").unwrap()..].to_owned();
        let digest = path["/results/".len()..].split('.').next().unwrap().to_owned();
        let mut told = told.lock().unwrap();
        if let Err(wrong) = told.archive.told(&key, &path, digest.as_bytes()) {
            told.wrong.push(wrong);
        }
        let first = told.urls.entry(picture).or_insert_with(|| path.clone()).clone();
        if first != path {
            told.wrong.push(format!("picture {picture} was given {first} and then {path}"));
        }
    }
}

/// Every point that this world passes.
fn points(with_bucket: bool) -> Vec<&'static str> {
    let all: BTreeSet<&str> = POINTS.iter().map(|(point, _)| *point).collect();
    let here = all.into_iter().filter(|point| !with_bucket || !OF_FILES.contains(point));
    here.chain(with_bucket.then_some(SPOOL)).filter(|point| is_wanted(point)).collect()
}

/// Is a point among those that `CRASH_POINTS` names, if it names any?
fn is_wanted(point: &str) -> bool {
    let only = std::env::var("CRASH_POINTS").unwrap_or_default();
    only.is_empty() || only.split(',').any(|name| name == point)
}

/// Runs a world: `kills` deaths at each point, in an order that the dice decide, and `moments` more.
async fn run(with_bucket: bool, kills: u64, moments: u64) {
    let name = if with_bucket { "bucket" } else { "files" };
    let (seed, from) = (number("CRASH_SEED", 1), number("CRASH_FROM", 0));
    println!("campaign, {name}: seed {seed}, from round {from}");
    let mut plan: Vec<Death> = points(with_bucket)
        .into_iter()
        .flat_map(|point| (0..kills).map(move |_| Death::Point(point)))
        .chain((0..moments).map(|_| Death::Moment))
        .collect();
    let mut dice = Dice::new(seed);
    for last in (1..plan.len()).rev() {
        plan.swap(last, usize::try_from(dice.below(last as u64 + 1)).unwrap());
    }
    let mut world = World::new(with_bucket).await;
    for (round, death) in plan.iter().enumerate().skip(usize::try_from(from).unwrap()) {
        let dice = Dice::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ round as u64);
        world.round(dice, *death).await;
        if (round + 1) % 100 == 0 {
            println!("campaign, {name}: seed {seed}, {} of {} rounds", round + 1, plan.len());
        }
    }
    world.last_audit(name).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_files_it_may_die_anywhere() {
    run(false, 1, 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_bucket_it_may_die_anywhere() {
    run(true, 1, 10).await;
}

#[test]
#[ignore = "long; make crash runs it"]
fn the_long_campaign() {
    let (kills, moments) = (number("CRASH_KILLS", 25), number("CRASH_MOMENTS", 2000));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        run(false, kills, moments.div_ceil(2)).await;
        run(true, kills, moments / 2).await;
    });
    // And each point by itself, with everything looked at that can be foretold.
    for kill in 1..=kills {
        let wanted: Vec<_> = POINTS.into_iter().filter(|(point, _)| is_wanted(point)).collect();
        all(&wanted, |(point, left)| check_point(point, left));
        all(&WAITS, |(wait, left)| check_wait(wait, left));
        println!("campaign, one by one: {kill} of {kills} deaths at each point and in each wait");
    }
}
