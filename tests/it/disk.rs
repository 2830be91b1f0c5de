//! The real binary on a disk that fails: errors from the very calls that make things durable.
//!
//! Whatever fails and whenever, nothing that was acknowledged is lost, hits are served, nothing is paid for that
//! could not be written down, and the upstream's charges minus the booked ones lie between 0 and the number of
//! `unknown` rows. `DISK_FAULTS=1` sweeps over every call of a fill and not over every few.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use granary_kit::ailab::{Behaviour, FakeAilab};
use granary_kit::client::{self, Answer};
use granary_kit::disk::{DiskFault, Failing};
use granary_kit::form::Form;
use granary_kit::images;
use granary_kit::process::{GranaryBuilder, GranaryProcess};
use serde_json::Value;

use crate::harness::{bytes_of, cache_status, files_below, metric, number, real, until, upstream_section};

const PATIENCE: Duration = Duration::from_secs(30);
/// A page of the ledger's file, in bytes.
const PAGE: usize = 4096;
/// Processes with a tracer at the same time.
const AT_ONCE: usize = 3;
/// What puts files in place: nothing but the store uses them.
const PUT_IN_PLACE: &str = "link,linkat,rename,renameat,renameat2";

/// The real binary in front of a fake AILab, in a home of its own.
struct World {
    upstream: FakeAilab,
    builder: GranaryBuilder,
}

impl World {
    async fn new() -> Self {
        let upstream = FakeAilab::start().await;
        let config = format!(
            "{}\n[server]\nanswer_within = \"3s\"\ndrain_grace = \"0s\"",
            upstream_section(&upstream, "")
        );
        // strace attaches to it, which only root could do otherwise.
        Self { builder: real().config_text(config).env("GRANARY_DUMPABLE", "1"), upstream }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.builder.home().join("granary-data").join(name)
    }

    /// The ledger's file and its log.
    fn ledger(&self) -> [PathBuf; 2] {
        ["state/ledger.sqlite", "state/ledger.sqlite-wal"].map(|name| self.path(name))
    }

    /// What the ledger, the upstream and what clients were told say after a clean start.
    async fn adds_up(&self, acknowledged: &[(u32, Answer)]) {
        // A killed process that was traced may still have its files open for a moment, and what is being
        // written by somebody is not swept.
        until("the dead process to let go of the store", async || {
            let tmp = self.path("store/tmp");
            std::fs::File::open(tmp).map_or(true, |folder| folder.try_lock().is_ok())
        })
        .await;
        let granary = self.builder.start().await.unwrap();
        let admin = granary.admin_url();
        // What was left answered is finished by itself.
        until("no fill to be under way", async || {
            metric(&admin, "granary_coalesce_groups_in_flight").await == 0.0
        })
        .await;
        for state in ["reserved", "sent", "answered"] {
            assert_eq!(credits(&granary, state).await, 0.0, "{state}");
        }
        let charges = self.upstream.charges();
        for (size, told) in acknowledged {
            let again = crop(&granary, *size).await;
            assert_eq!((again.status, again.text()), (200, told.text()), "{size}: it was acknowledged");
            let bytes = bytes_of(&again.result_url()).await;
            assert!((1..=charges).any(|purchase| self.upstream.result_bytes(purchase) == bytes), "{size}");
        }
        assert_eq!(self.upstream.charges(), charges, "bought again");
        let (stored, unknown) = (credits(&granary, "stored").await, credits(&granary, "unknown").await);
        let charged = (charges * 3) as f64;
        assert!(
            stored <= charged && charged <= stored + unknown,
            "{stored} stored, {unknown} unknown, {charged} charged"
        );
        // A trial of the store's may be under way.
        until("no temporary file to remain", async || files_below(&self.path("store/tmp")) == 0).await;
    }
}

async fn crop(granary: &GranaryProcess, size: u32) -> Answer {
    client::post_form(&granary.public_url(), None, &Form::curl(images::photo_jpeg(), size, size))
        .await
        .unwrap()
}

async fn credits(granary: &GranaryProcess, state: &str) -> f64 {
    metric(&granary.admin_url(), &format!("granary_ledger_credits{{state=\"{state}\"}}")).await
}

async fn is_hit(granary: &GranaryProcess, size: u32, told: &Answer) {
    let hit = crop(granary, size).await;
    assert!(cache_status(&hit).starts_with("granary; hit"), "{}", hit.text());
    assert_eq!(hit.text(), told.text());
    bytes_of(&hit.result_url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_journal_cannot_be_written_hits_are_served_and_nothing_is_paid() {
    let faults = [
        ("fsync", "EIO"),
        ("fsync", "ENOSPC"),
        ("pwrite64", "EIO"),
        ("pwrite64", "ENOSPC"),
        ("pwrite64", "EROFS"),
    ];
    let cases = faults.map(async |(calls, error)| {
        let what = format!("{error} from {calls}");
        let world = World::new().await;
        let mut granary = world.builder.start().await.unwrap();
        let bought = crop(&granary, 100).await;
        assert_eq!(bought.status, 200, "{}", bought.text());
        let ledger = world.ledger();
        let only: Vec<&Path> = ledger.iter().map(PathBuf::as_path).collect();
        let fault = DiskFault::under(granary.pid(), Failing { calls, error, when: "1+", only: &only }).await;
        for _ in 0..2 {
            let miss = crop(&granary, 200).await;
            assert_eq!(
                (miss.status, miss.header("granary-reason")),
                (503, Some("ledger")),
                "{what}: {}",
                miss.text()
            );
            is_hit(&granary, 100, &bought).await;
        }
        assert_eq!(world.upstream.attempts(), 1, "{what}");
        assert!(granary.wait_for_log("the ledger could not be written", PATIENCE).await.is_some(), "{what}");
        assert!(!granary.has_exited());
        assert!(fault.lift().await >= 2, "{what}");

        // It heals without a restart.
        let healed = crop(&granary, 200).await;
        assert_eq!(healed.status, 200, "{what}: {}", healed.text());
        granary.kill().await;
        world.adds_up(&[(100, bought), (200, healed)]).await;
        assert_eq!((world.upstream.charges(), world.upstream.attempts()), (2, 2), "{what}");
    });
    futures_util::stream::iter(cases).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_store_cannot_be_written_hits_are_served_and_nothing_is_paid() {
    let cases = ["ENOSPC", "EDQUOT", "EIO", "EROFS", "EACCES"].map(async |error| {
        let world = World::new().await;
        let mut granary = world.builder.start().await.unwrap();
        let bought = crop(&granary, 100).await;
        assert_eq!(bought.status, 200, "{}", bought.text());
        // Room that was proved a moment ago is believed; a new process knows nothing.
        granary.terminate();
        granary.wait_exit(PATIENCE).await.unwrap();
        let mut granary = world.builder.start().await.unwrap();
        let failing = Failing { calls: PUT_IN_PLACE, error, when: "1+", only: &[] };
        let fault = DiskFault::under(granary.pid(), failing).await;
        for size in [200, 300] {
            let miss = crop(&granary, size).await;
            assert_eq!(
                (miss.status, miss.header("granary-reason")),
                (503, Some("no_room")),
                "{error}: {}",
                miss.text()
            );
            is_hit(&granary, 100, &bought).await;
        }
        assert_eq!(world.upstream.attempts(), 1, "{error}");
        assert!(fault.lift().await >= 2, "{error}");
        let healed = crop(&granary, 200).await;
        assert_eq!(healed.status, 200, "{error}: {}", healed.text());
        granary.kill().await;
        world.adds_up(&[(100, bought), (200, healed)]).await;
        assert_eq!((world.upstream.charges(), world.upstream.attempts()), (2, 2), "{error}");
    });
    futures_util::stream::iter(cases).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
}

/// What happens to a process whose disk failed while the upstream worked.
#[derive(Clone, Copy, Debug)]
enum Then {
    Heals,
    IsKilled,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_after_paying_loses_nothing_that_was_acknowledged() {
    let mut cases = Vec::new();
    for then in [Then::Heals, Then::IsKilled] {
        for (calls, error, is_ledger) in [
            ("fsync", "EIO", true),
            ("pwrite64", "ENOSPC", true),
            (PUT_IN_PLACE, "ENOSPC", false),
            (PUT_IN_PLACE, "EIO", false),
            ("fsync", "EIO", false),
        ] {
            cases.push(fails_after_paying(calls, error, is_ledger, then));
        }
    }
    futures_util::stream::iter(cases).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
}

async fn fails_after_paying(calls: &str, error: &str, is_ledger: bool, then: Then) {
    let what = format!("{error} from {calls} (ledger alone: {is_ledger}), then {then:?}");
    let world = World::new().await;
    let mut granary = world.builder.start().await.unwrap();
    let before = crop(&granary, 100).await;
    assert_eq!(before.status, 200, "{}", before.text());
    world.upstream.on_next(Behaviour::Hold);
    let asked = tokio::spawn({
        let url = granary.public_url();
        async move { client::post_form(&url, None, &Form::curl(images::photo_jpeg(), 200, 200)).await.unwrap() }
    });
    world.upstream.wait_for_held(1).await;
    let ledger = world.ledger();
    let only: Vec<&Path> = if is_ledger { ledger.iter().map(PathBuf::as_path).collect() } else { Vec::new() };
    let fault = DiskFault::under(granary.pid(), Failing { calls, error, when: "1+", only: &only }).await;
    world.upstream.release();
    fault.wait_for_failed(1).await;
    is_hit(&granary, 100, &before).await;
    // Kept in the ledger's spool, or nowhere, and then not acknowledged: the client is told to ask again.
    let told = asked.await.unwrap();
    let is_kept = told.status == 200;
    if !is_kept {
        assert_eq!(
            (told.status, told.code().as_str()),
            (504, "AI_SERVICE_TIMEOUT"),
            "{what}: {}",
            told.text()
        );
    }
    assert!(!granary.has_exited(), "{what}");
    let mut acknowledged = vec![(100, before)];
    acknowledged.extend(is_kept.then_some((200, told)));
    match then {
        Then::Heals => {
            fault.lift().await;
            let admin = granary.admin_url();
            let stored = "granary_ledger_credits{state=\"stored\"}";
            until("the result to be kept", async || metric(&admin, stored).await == 6.0).await;
            let kept = crop(&granary, 200).await;
            assert_eq!(cache_status(&kept), "granary; hit; detail=memory", "{what}");
            acknowledged.push((200, kept));
            granary.kill().await;
        }
        Then::IsKilled => {
            granary.kill().await;
            fault.lift().await;
        }
    }
    world.adds_up(&acknowledged).await;
    assert_eq!(world.upstream.charges(), 2, "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_call_is_the_first_to_fail_nothing_acknowledged_is_lost() {
    // Of two fills and what comes after them.
    let step = if number("DISK_FAULTS").is_some() { 1 } else { 13 };
    let mut cases = Vec::new();
    for for_ever in [true, false] {
        let step_of_syncs = if step == 1 { 1 } else { 3 };
        cases.extend((1..=14).step_by(step_of_syncs).map(|first| ("fsync", "EIO", first, for_ever)));
        cases.extend((1..=160).step_by(step).map(|first| ("pwrite64", "ENOSPC", first, for_ever)));
        cases.extend((1..=2).map(|first| (PUT_IN_PLACE, "EIO", first, for_ever)));
        // Making room and tidying up; and reading, which may happen at any time.
        cases.extend((1..=2).map(|first| ("ftruncate,fallocate", "EIO", first, for_ever)));
        cases.extend((1..=2).map(|first| ("unlink,unlinkat", "EIO", first, for_ever)));
        cases.extend((1..=7).step_by(step_of_syncs).map(|first| ("pread64", "EIO", first, for_ever)));
    }
    let number = cases.len();
    let outcomes: Vec<usize> = futures_util::stream::iter(cases)
        .map(|(calls, error, first, for_ever)| fails_at(calls, error, first, for_ever))
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    println!(
        "{number} first calls to fail, {} fills acknowledged of {}",
        outcomes.iter().sum::<usize>(),
        3 * number
    );
}

/// Two fills on a disk on which this call is the first to fail, and perhaps all after it. Says how
/// many of three were acknowledged.
async fn fails_at(calls: &str, error: &str, first: usize, for_ever: bool) -> usize {
    let world = World::new().await;
    let mut granary = world.builder.start().await.unwrap();
    let before = crop(&granary, 100).await;
    assert_eq!(before.status, 200, "{}", before.text());
    let mut acknowledged = vec![(100, before.clone())];
    let when = format!("{first}{}", if for_ever { "+" } else { "" });
    let fault = DiskFault::under(granary.pid(), Failing { calls, error, when: &when, only: &[] }).await;
    let (a, b) = tokio::join!(crop(&granary, 200), crop(&granary, 300));
    for (size, answer) in [(200, a), (300, b)] {
        match answer.status {
            200 => {
                bytes_of(&answer.result_url()).await;
                acknowledged.push((size, answer));
            }
            502..=504 => {}
            other => panic!("{other} at call {first} of {calls}: {}", answer.text()),
        }
    }
    is_hit(&granary, 100, &before).await;
    assert!(!granary.has_exited());
    granary.kill().await;
    fault.lift().await;
    let charges = world.upstream.charges();
    assert!((acknowledged.len() as u64..=3).contains(&charges), "{charges}");
    world.adds_up(&acknowledged).await;
    acknowledged.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_disk_slows_down_misses_alone() {
    const SLOW: Duration = Duration::from_millis(700);
    let world = World::new().await;
    let config = upstream_section(&world.upstream, "");
    let builder = world.builder.clone().config_text(config);
    let mut granary = builder.start().await.unwrap();
    let bought = crop(&granary, 100).await;
    assert_eq!(bought.status, 200, "{}", bought.text());
    bytes_of(&bought.result_url()).await;
    let fault = DiskFault::slow(granary.pid(), "fsync", SLOW).await;
    let url = granary.public_url();
    let begun = Instant::now();
    let miss = tokio::spawn(async move {
        client::post_form(&url, None, &Form::curl(images::photo_jpeg(), 200, 200)).await.unwrap()
    });
    let mut hits = Vec::new();
    while !miss.is_finished() {
        let asked = Instant::now();
        is_hit(&granary, 100, &bought).await;
        hits.push(asked.elapsed());
    }
    let miss = miss.await.unwrap();
    assert_eq!(miss.status, 200, "{}", miss.text());
    // Reserved, sent, answered, the object, the record: one after the other.
    assert!(begun.elapsed() > SLOW * 5, "{:?}", begun.elapsed());
    // Some may be slow because the machine is busy; one that waited for the disk would be as slow as the disk.
    hits.sort();
    let middle = hits[hits.len() / 2];
    assert!(hits.len() > 10 && middle < SLOW / 2, "{} hits, half of them in {middle:?}", hits.len());
    granary.kill().await;
    fault.lift().await;
    world.adds_up(&[(100, bought), (200, miss)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_store_that_went_away_nothing_is_bought_and_nothing_is_taken_for_absent() {
    let world = World::new().await;
    let mut granary = world.builder.start().await.unwrap();
    let bought = crop(&granary, 100).await;
    assert_eq!(bought.status, 200, "{}", bought.text());
    granary.terminate();
    granary.wait_exit(PATIENCE).await.unwrap();
    let granary = world.builder.start().await.unwrap();
    std::fs::rename(world.path("store"), world.path("elsewhere")).unwrap();
    // The ledger knows the answer; the bytes are away, which is not the same as gone.
    assert_eq!(cache_status(&crop(&granary, 100).await), "granary; hit; detail=ledger");
    let result = client::get(&bought.result_url()).await.unwrap();
    assert_eq!((result.status, result.header("retry-after").is_some()), (503, true));
    let miss = crop(&granary, 200).await;
    assert_eq!((miss.status, miss.header("granary-reason")), (503, Some("no_room")), "{}", miss.text());
    assert_eq!(world.upstream.attempts(), 1);
    std::fs::rename(world.path("elsewhere"), world.path("store")).unwrap();
    assert_eq!(bytes_of(&bought.result_url()).await, world.upstream.result_bytes(1));
    assert_eq!(crop(&granary, 200).await.status, 200);
    assert_eq!(world.upstream.charges(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_part_of_the_ledger_is_damaged_nothing_known_is_bought_again() {
    let world = World::new().await;
    let mut granary = world.builder.start().await.unwrap();
    let sizes = [100, 110, 120, 130];
    let mut known = Vec::new();
    for size in sizes {
        let bought = crop(&granary, size).await;
        assert_eq!(bought.status, 200, "{}", bought.text());
        known.push((size, bought));
    }
    granary.terminate();
    granary.wait_exit(PATIENCE).await.unwrap();
    let [file, log] = world.ledger();
    // Whoever closes a ledger last moves its log into the file; a process that ends may be too quick for that.
    rusqlite::Connection::open(&file).unwrap().execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    assert!(!log.exists(), "all of it is in the file");
    let whole = std::fs::read(&file).unwrap();
    let pages = whole.len() / PAGE;
    assert!(pages >= 8, "{pages}");

    let (mut refused, mut served, mut new) = (0, 0, 0);
    // What the file says of itself; the first bytes of each page, which say what it is; a stretch in
    // the middle of one; a whole one.
    let places =
        (0..pages).flat_map(|page| [(page * PAGE, 100), (page * PAGE + 2000, 200), (page * PAGE, PAGE)]);
    for (place, length) in [(0, 16), (16, 2), (40, 4)].into_iter().chain(places) {
        let what = format!("{length} bytes at {place}");
        let mut damaged = whole.clone();
        damaged[place..place + length].iter_mut().for_each(|byte| *byte ^= 0xa5);
        std::fs::write(&file, &damaged).unwrap();
        std::fs::remove_file(&log).ok();
        std::fs::remove_file(world.path("state/ledger.sqlite-shm")).ok();
        let charges = world.upstream.charges();
        let mut granary = match world.builder.start().await {
            Ok(granary) => granary,
            Err(finished) => {
                assert_eq!(finished.status.code(), Some(1), "{what}: {}", finished.stderr);
                assert!(finished.stderr.contains("ledger"), "{what}: {}", finished.stderr);
                refused += 1;
                continue;
            }
        };
        for (size, told) in &known {
            is_hit(&granary, *size, told).await;
        }
        assert_eq!(world.upstream.charges(), charges, "{what}: bought again");
        served += 1;
        // Damage stops purchases as soon as it is met: by the check, or by a statement of the purchase.
        let form = Form::curl(images::tiny_png(9, 9, (place * 8192 + length) as u64), 50, 50);
        let ask = async || client::post_form(&granary.public_url(), None, &form).await.unwrap();
        let (first, second) = (ask().await, ask().await);
        let bought = world.upstream.charges() - charges;
        match first.status {
            200 => {
                new += 1;
                assert_eq!((bought, second.text()), (1, first.text()), "{what}");
            }
            503 => assert_eq!((bought, second.status), (0, 503), "{what}: {}", second.text()),
            other => panic!("{what}: {other} {}", first.text()),
        }
        let is_alarm = |line: &Value| line["level"] == "ERROR" && line.to_string().contains("ledger");
        assert!(
            first.status == 200 || granary.log_lines().iter().any(is_alarm),
            "{what}: nothing is said of it"
        );
        granary.kill().await;
    }
    println!("{refused} starts refused; {new} of {served} others bought something new");
    assert!(refused >= 3 && served >= 3, "{refused} refused, {served} served");
}
