//! What a ledger in a SQLite file promises beyond the contract: what a crash, a full disk, a newer
//! program and a curious reader of the file find.
//!
//! Changes are put in order without luck: a test holds a thread inside a change ([`hold`]) while it
//! queues others behind it ([`queue`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, mpsc};
use std::task::{Context, Waker};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use proptest::prelude::*;
use rusqlite::Connection;
use tempfile::TempDir;

use super::query::{Db, run, translated};
use super::schema::{MIGRATIONS, migrate};
use super::worker::Worker;
use super::{SqliteLedger, connect};
use crate::base::archive::{ArchiveId, Import};
use crate::base::clock::Clock;
use crate::base::secret::Secret;
use crate::ledger::admin::{Actor, CallFilter, LedgerAdmin, Purge, Settlement};
use crate::ledger::budget::{Budget, Scope, Window};
use crate::ledger::sql::{Keeper, admin, book, reserve, usage};
use crate::ledger::{
    ArchiveIndex, Booking, CallId, CallState, Calls, LedgerError, LedgerOp, Permit, Queries, Reservation,
    Reserved, SpoolTable, StateTotal, Won,
};
use crate::testing::ledger_contract::admin::admin_contract;
use crate::testing::ledger_contract::{
    Bench, SPOOL_MAX, TurnableClock, WholeLedger, answer, ledger_contract, model, picture, record, released,
    stored, team, unfetchable, unknown, zone,
};
use crate::testing::usage_contract::{self, usage_contract};

async fn open(clock: Clock, zone: TimeZone) -> (SqliteLedger, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let ledger = SqliteLedger::open(&directory.path().join("ledger.db"), clock, zone).unwrap();
    (ledger.with_spool_max(SPOOL_MAX), directory)
}

ledger_contract!(open);
admin_contract!(open);
usage_contract!(open);

proptest! {
    // A case is some thirty writes to a disk; PROPTEST_CASES asks for more of them.
    #![proptest_config(ProptestConfig::with_cases(cases(32)))]
    #[test]
    fn a_random_life_with_crashes_agrees_with_the_model(life in model::lives()) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ledger.db");
        let clock = TurnableClock::at("2026-03-27T20:00:00Z");
        let open = || SqliteLedger::open(&file, clock.clock(), zone()).unwrap().with_spool_max(SPOOL_MAX);
        let reopen = || async { Arc::new(open()) as Arc<dyn WholeLedger> };
        runtime().block_on(model::live(life, clock.clone(), reopen));
        assert_counters_are_the_sum_of_the_rows(&Connection::open(&file).unwrap());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(32)))]
    #[test]
    fn the_usage_of_a_random_life_agrees_with_the_model(life in usage_contract::lives()) {
        let directory = tempfile::tempdir().unwrap();
        let clock = TurnableClock::at("2026-10-24T20:00:00Z");
        let ledger = SqliteLedger::open(&directory.path().join("ledger.db"), clock.clock(), zone()).unwrap();
        let bench = usage_contract::UsageBench::new(Arc::new(ledger), clock);
        runtime().block_on(usage_contract::live(life, &bench));
    }
}

fn cases(otherwise: u32) -> u32 {
    if std::env::var_os("PROPTEST_CASES").is_some() { ProptestConfig::default().cases } else { otherwise }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

/// The counters once more, from the rows, by SQL instead of by the code under test.
fn assert_counters_are_the_sum_of_the_rows(db: &Connection) {
    let wrong: i64 = db
        .query_row(
            "WITH counted AS (SELECT * FROM calls
                              WHERE adopted = 0 AND state NOT IN ('released', 'refused', 'failed')),
                  expected AS (SELECT 'global' AS scope, day AS period, credits FROM counted
                               UNION ALL SELECT 'global', month, credits FROM counted
                               UNION ALL SELECT 'team:' || team, day, credits FROM counted
                               UNION ALL SELECT 'team:' || team, month, credits FROM counted
                               UNION ALL SELECT 'refused:' || team, day, credits FROM calls
                               WHERE state = 'refused' AND reason LIKE '400 %'),
                  sums AS (SELECT scope, period, sum(credits) AS credits FROM expected GROUP BY 1, 2)
             SELECT (SELECT count(*) FROM (SELECT * FROM sums EXCEPT SELECT * FROM spent))
                  + (SELECT count(*) FROM (SELECT * FROM spent WHERE credits <> 0 EXCEPT SELECT * FROM sums))",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(wrong, 0, "a counter is not the sum of its rows");
}

/// A ledger in a directory of its own, driven from a plain thread.
struct Rig {
    ledger: Arc<SqliteLedger>,
    clock: TurnableClock,
    directory: TempDir,
}

impl Rig {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = TurnableClock::at("2026-11-22T09:00:00Z");
        let ledger = Arc::new(reopen(directory.path(), &clock));
        Self { ledger, clock, directory }
    }

    fn bench(&self) -> Bench {
        Bench { ledger: self.ledger.clone(), clock: self.clock.clone() }
    }

    /// Closes the ledger and opens it again.
    fn reopened(self) -> Self {
        let Self { ledger, clock, directory } = self;
        drop(ledger);
        let ledger = Arc::new(reopen(directory.path(), &clock));
        Self { ledger, clock, directory }
    }

    fn totals(&self) -> BTreeMap<&'static str, u64> {
        let totals = wait(self.ledger.totals()).unwrap();
        let present = totals.into_iter().filter(|total: &StateTotal| total.calls > 0);
        present.map(|total| (total.state.as_str(), total.calls)).collect()
    }

    fn used(&self) -> u64 {
        let budget = Budget { scope: Scope::Global, window: Window::Day, limit: 0, enforced: true };
        wait(self.ledger.used(vec![budget])).unwrap()[0].used
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("ledger.db-wal")
    }
}

fn reopen(directory: &Path, clock: &TurnableClock) -> SqliteLedger {
    SqliteLedger::open(&directory.join("ledger.db"), clock.clock(), zone()).unwrap()
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    runtime().block_on(future)
}

type Queued<'a, T> = Pin<Box<dyn Future<Output = Result<T, LedgerError>> + Send + 'a>>;

/// Puts what a future asks for into the ledger's queue, without waiting for the outcome.
fn queue<'a, T>(future: impl Future<Output = Result<T, LedgerError>> + Send + 'a) -> Queued<'a, T> {
    let mut future: Queued<'a, T> = Box::pin(future);
    let polled = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(polled.is_pending(), "it was to be queued");
    future
}

/// Stops a thread inside a change, and thereby its transaction; dropping the sender lets it go on.
fn hold(worker: &Worker) -> mpsc::Sender<()> {
    let (entered, has_entered) = mpsc::channel();
    let (gate, opened) = mpsc::channel::<()>();
    drop(queue(worker.run(false, move |db| {
        // A read, so that a transaction that only reads has begun as well.
        let _: i64 = db.query_row("SELECT count(*) FROM calls", [], |row| row.get(0))?;
        let _ = entered.send(());
        let _ = opened.recv();
        Ok(())
    })));
    has_entered.recv().unwrap();
    gate
}

/// What a kill at this instant would leave of the files.
fn killed(directory: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for name in ["ledger.db", "ledger.db-wal"] {
        if directory.join(name).exists() {
            fs::copy(directory.join(name), copy.path().join(name)).unwrap();
        }
    }
    copy
}

/// Waits, within bounds, for what another thread is about to do.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("still not: {what}");
}

/// Every signed URL in the files of a directory, whatever they are called, by its call.
fn signatures(directory: &Path) -> BTreeSet<u32> {
    let files = fs::read_dir(directory).unwrap().map(|file| fs::read(file.unwrap().path()).unwrap());
    files
        .flat_map(|bytes| bytes.split(|&byte| byte == b'<').filter_map(signature).collect::<Vec<_>>())
        .collect()
}

fn signature(bytes: &[u8]) -> Option<u32> {
    std::str::from_utf8(bytes.get(..5)?).ok()?.strip_suffix('>')?.parse().ok()
}

/// An answer of some `length` bytes, all of which are a signature that [`signatures`] finds.
fn signed(n: u32, length: usize) -> Booking {
    let text = Secret::new(format!("<{n:04}>").repeat(length / 6));
    Booking::Answered { text, request_id: "request".to_owned(), log_id: "log".to_owned() }
}

/// The commits a write-ahead log holds: its frames that carry the size of the database.
fn commits(log: &Path) -> usize {
    let log = fs::read(log).unwrap();
    let Some(header) = log.get(..32) else { return 0 };
    let page = u32::from_be_bytes(header[8..12].try_into().unwrap()) as usize;
    log[32..].chunks_exact(24 + page).filter(|frame| frame[4..8] != [0; 4]).count()
}

#[test]
fn the_book_survives_being_closed() {
    let rig = Rig::new();
    let kept = wait(rig.bench().store(picture(1)));
    wait(rig.bench().send(picture(2)));
    let reserved = wait(rig.bench().win(picture(3)));
    wait(rig.ledger.freeze(team("press"), true, &Actor::loopback())).unwrap();
    let before = (rig.totals(), rig.used());

    let rig = rig.reopened();
    assert_eq!((rig.totals(), rig.used()), before);
    assert_eq!(wait(rig.bench().look_up(&picture(1))), Some(kept));
    assert_eq!(wait(rig.bench().reserve(picture(3))), Reserved::Held(reserved.id));
    let permit = wait(rig.ledger.mark_sent(reserved.id)).unwrap();
    assert_eq!(permit, Permit::Frozen(team("press")), "a freeze survives a restart");
}

#[test]
fn a_kill_in_mid_queue_leaves_every_acknowledged_change_and_no_half_of_another() {
    let rig = Rig::new();
    let bench = rig.bench();
    let kept = wait(bench.store(picture(1)));
    let sent = wait(bench.send(picture(2)));
    for n in 3..10 {
        wait(bench.win(picture(n)));
    }
    let acknowledged = (rig.totals(), rig.used());

    let gate = hold(&rig.ledger.writer);
    let waiting: Vec<_> = (10..100).map(|n| queue(rig.ledger.reserve(picture(n)))).collect();
    let booking = queue(rig.ledger.book(sent.id, unknown()));

    let copy = killed(rig.directory.path());
    let survivor =
        Rig { ledger: Arc::new(reopen(copy.path(), &rig.clock)), clock: rig.clock.clone(), directory: copy };
    assert_eq!((survivor.totals(), survivor.used()), acknowledged);
    assert_eq!(wait(survivor.bench().look_up(&picture(1))), Some(kept));
    assert_eq!(wait(survivor.bench().reserve(picture(2))), Reserved::Held(sent.id));
    assert_counters_are_the_sum_of_the_rows(&connect(&survivor.directory.path().join("ledger.db")).unwrap());

    // Not a kill, but everyone hanging up and the ledger going away: what was queued is still made.
    drop((waiting, booking, bench));
    let Rig { ledger, clock, directory } = rig;
    drop(ledger);
    drop(gate);
    await_closed(directory.path());
    let rig = Rig { ledger: Arc::new(reopen(directory.path(), &clock)), clock, directory };
    assert_eq!(rig.totals(), BTreeMap::from([("stored", 1), ("unknown", 1), ("reserved", 97)]));
    assert_eq!(rig.used(), 99 * 3);
}

/// Waits until nobody has the ledger of a directory open: only then may its log be abolished.
fn await_closed(directory: &Path) {
    let db = Connection::open(directory.join("ledger.db")).unwrap();
    eventually("the threads have closed the file", || {
        db.query_row("PRAGMA journal_mode = DELETE", [], |row| row.get::<_, String>(0))
            .is_ok_and(|mode| mode == "delete")
    });
}

#[test]
fn the_threads_end_with_the_ledger_and_leave_no_lock() {
    let rig = Rig::new();
    let kept = wait(rig.bench().store(picture(1)));
    let busy = Connection::open(rig.directory.path().join("ledger.db")).unwrap();
    assert!(
        busy.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(())).is_err(),
        "control: an open ledger has its file"
    );
    drop(busy);

    let Rig { ledger, clock, directory } = rig;
    drop(ledger);
    await_closed(directory.path());
    let left: Vec<_> =
        fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(left, ["ledger.db"]);
    let again = reopen(directory.path(), &clock);
    assert_eq!(wait(again.look_up("ailab-v1", picture(1).key)).unwrap(), Some(kept));
    drop(again);
    await_closed(directory.path());
    directory.close().unwrap();
}

#[test]
fn a_signed_url_is_on_disk_while_its_call_is_answered_and_nowhere_after() {
    let rig = Rig::new();
    let bench = rig.bench();
    let here = rig.directory.path();
    let calls: Vec<_> = (0..9)
        .map(|n| {
            let won = wait(bench.send(picture(n)));
            wait(bench.book(won.id, signed(n, 700)));
            won
        })
        .collect();
    assert_eq!(signatures(here), (0..9).collect(), "control: they are to be found");

    for (n, won) in (0..8).zip(&calls) {
        let ending = match n % 2 {
            0 => unfetchable(),
            _ => stored(&record(&picture(n), *won, rig.clock.now())),
        };
        wait(bench.book(won.id, ending));
    }
    eventually("only the open call's is left", || signatures(here) == BTreeSet::from([8]));
    let found = wait(rig.ledger.recover()).unwrap();
    assert_eq!(found.unfinished[0].text.expose(), "<0008>".repeat(700 / 6));
}

/// A ledger without its threads, which does nothing between a commit and a kill.
fn bare(directory: &Path) -> Connection {
    let db = connect(&directory.join("ledger.db")).unwrap();
    migrate(&db).unwrap();
    db
}

/// Does something on the first of January 1970.
fn within<T>(connection: &Connection, work: impl FnOnce(&Db<'_>) -> T) -> T {
    let keeper = Keeper::new(String::new(), SPOOL_MAX, zone());
    work(&Db { connection, keeper: &keeper, now: Timestamp::UNIX_EPOCH })
}

/// Runs `work` on the thread that writes.
async fn write(
    ledger: &SqliteLedger,
    work: fn(&Db<'_>) -> Result<(), LedgerError>,
) -> Result<(), LedgerError> {
    ledger.ask(LedgerOp::Write, work, |db, work| Box::pin(std::future::ready(work(db)))).await
}

fn bare_book(db: &Connection, id: CallId, booking: &Booking) {
    within(db, |db| run(book::book(db, id, booking))).unwrap();
}

fn bare_send(db: &Connection, wanted: &Reservation) -> Won {
    let reserved = within(db, |db| run(reserve::reserve(db, wanted)));
    match reserved.unwrap() {
        Reserved::Won(won) => {
            assert_eq!(within(db, |db| run(book::mark_sent(db, won.id))).unwrap(), Permit::Granted);
            won
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_row_that_moves_about_in_the_file_leaves_no_signed_url_behind() {
    let mut seed = 1_u32;
    let mut any = |below: usize| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as usize % below
    };
    for round in 0..4 {
        let directory = tempfile::tempdir().unwrap();
        let db = bare(directory.path());
        db.pragma_update(None, "synchronous", "OFF").unwrap();
        let (mut sent, mut answered) = (Vec::new(), Vec::new());
        for n in 0..1000 {
            match any(10) {
                0..4 => sent.push((n, bare_send(&db, &picture(n)))),
                4..7 if !sent.is_empty() => {
                    let (n, won) = sent.swap_remove(any(sent.len()));
                    bare_book(&db, won.id, &signed(n, 100 + any(1400)));
                    answered.push((n, won));
                }
                7.. if !answered.is_empty() => {
                    let (n, won) = answered.swap_remove(any(answered.len()));
                    let ending = match any(10) {
                        0..3 => unfetchable(),
                        _ => stored(&record(&picture(n), won, Timestamp::UNIX_EPOCH)),
                    };
                    bare_book(&db, won.id, &ending);
                }
                _ => {}
            }
        }
        drop(db);
        let open: BTreeSet<u32> = answered.iter().map(|(n, _)| *n).collect();
        assert_eq!(signatures(directory.path()), open, "round {round}");
    }
}

#[test]
fn a_signed_url_left_in_the_log_by_a_kill_is_erased_at_the_next_start() {
    let directory = tempfile::tempdir().unwrap();
    let db = bare(directory.path());
    let won = bare_send(&db, &picture(1));
    bare_book(&db, won.id, &signed(1, 700));
    let kept = record(&picture(1), won, Timestamp::UNIX_EPOCH);
    bare_book(&db, won.id, &stored(&kept));
    let left = killed(directory.path());
    assert_eq!(signatures(left.path()), BTreeSet::from([1]), "control: the log still has it");

    let restarted = reopen(left.path(), &TurnableClock::at("2026-11-22T09:00:00Z"));
    eventually("the log is clean", || signatures(left.path()).is_empty());
    assert!(wait(restarted.look_up("ailab-v1", picture(1).key)).unwrap().is_some());
}

#[test]
fn a_reader_keeps_the_log_from_being_scrubbed_and_delays_nobody() {
    let world = Rig::new();
    let bench = world.bench();
    let reader = bare(world.directory.path());
    reader.execute_batch("BEGIN; SELECT count(*) FROM calls").unwrap();
    let won = wait(bench.answered(picture(1)));
    wait(bench.book(won.id, Booking::Unfetchable { reason: String::new() }));
    let begun = std::time::Instant::now();
    for n in 2..12 {
        wait(bench.win(picture(n)));
        std::thread::sleep(Duration::from_millis(30));
    }
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert!(fs::metadata(world.log()).unwrap().len() > 0);
    // The service is quiet from now on.
    reader.execute_batch("COMMIT").unwrap();
    eventually("the log is empty", || fs::metadata(world.log()).unwrap().len() == 0);
}

#[test]
fn a_commit_that_fails_is_told_to_everyone_in_it_and_later_writes_work() {
    let rig = Rig::new();
    let sent = wait(rig.bench().send(picture(1)));
    let before = (rig.totals(), rig.used());

    let gate = hold(&rig.ledger.writer);
    let reserving = queue(rig.ledger.reserve(picture(2)));
    let booking = queue(rig.ledger.book(sent.id, answer(sent.id)));
    // Every statement succeeds, and the commit cannot.
    let sabotage = queue(write(&rig.ledger, |db| {
        db.connection.execute_batch(
            "CREATE TABLE parent (id INTEGER PRIMARY KEY);
             CREATE TABLE child (parent INTEGER REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
             INSERT INTO child VALUES (1);",
        )?;
        Ok(())
    }));
    let by = Actor::loopback();
    let freezing = queue(LedgerAdmin::freeze(&*rig.ledger, Scope::Global, true, &by));
    drop(gate);
    for outcome in [wait(reserving).map(|_| ()), wait(booking), wait(sabotage), wait(freezing).map(|_| ())] {
        let Err(LedgerError::Unavailable(why)) = outcome else { panic!("{outcome:?}") };
        assert!(why.contains("FOREIGN KEY"), "{why}");
    }
    assert_eq!((rig.totals(), rig.used()), before);
    wait(rig.bench().store(picture(2)));
    wait(rig.bench().book(sent.id, answer(sent.id)));
}

#[test]
fn a_disk_that_fills_up_undoes_the_whole_group_and_no_more() {
    let rig = Rig::new();
    let before = (rig.totals(), rig.used());
    let gate = hold(&rig.ledger.writer);
    let earlier = queue(rig.ledger.reserve(picture(1)));
    let too_much = queue(write(&rig.ledger, |db| {
        let pages: i64 = db.connection.pragma_query_value(None, "page_count", |row| row.get(0))?;
        db.connection.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))?;
        db.connection.execute("INSERT INTO spent VALUES ('x', hex(zeroblob(100000)), 0)", [])?;
        Ok(())
    }));
    let later = queue(rig.ledger.reserve(picture(2)));
    drop(gate);
    let outcomes = [wait(earlier).map(|_| ()), wait(too_much), wait(later).map(|_| ())];
    let Err(LedgerError::Unavailable(why)) = &outcomes[1] else { panic!("{outcomes:?}") };
    assert!(why.contains("full"), "{why}");
    // SQLite may undo one statement or everything; whoever was told `Ok` must be in the book, and
    // nobody else.
    let made = [&outcomes[0], &outcomes[2]].iter().filter(|outcome| outcome.is_ok()).count() as u64;
    assert_eq!(rig.totals().get("reserved").copied().unwrap_or(0), made, "{outcomes:?}");
    assert_eq!(rig.used(), before.1 + made * 3);

    wait(write(&rig.ledger, |db| {
        Ok(db.connection.query_row("PRAGMA max_page_count = 1000000", [], |_| Ok(()))?)
    }))
    .unwrap();
    wait(rig.bench().store(picture(3)));
}

#[test]
fn a_transaction_that_cannot_begin_is_told_and_later_writes_work() {
    let rig = Rig::new();
    wait(write(&rig.ledger, |db| Ok(db.connection.busy_timeout(Duration::ZERO)?))).unwrap();
    let intruder = Connection::open(rig.directory.path().join("ledger.db")).unwrap();
    intruder.execute_batch("BEGIN IMMEDIATE").unwrap();
    for n in 1..5 {
        let outcome = wait(rig.ledger.reserve(picture(n)));
        assert!(matches!(outcome, Err(LedgerError::Unavailable(_))), "{outcome:?}");
    }
    intruder.execute_batch("COMMIT").unwrap();
    wait(rig.bench().store(picture(1)));
    assert_eq!((rig.totals(), rig.used()), (BTreeMap::from([("stored", 1)]), 3));
}

#[test]
fn a_change_that_is_refused_does_not_disturb_its_group() {
    let rig = Rig::new();
    let won = wait(rig.bench().win(picture(1)));
    let gate = hold(&rig.ledger.writer);
    let first = queue(rig.ledger.reserve(picture(2)));
    // Gives credits back and then fails: neither may stay.
    let half = queue(rig.ledger.ask(LedgerOp::Write, won.id, |db, id| {
        Box::pin(async {
            book::book(db, *id, &released()).await?;
            book::book(db, *id, &unknown()).await
        })
    }));
    let absurd = Reservation { credits: u64::MAX, budgets: Vec::new(), ..picture(3) };
    let absurd = queue(rig.ledger.reserve(absurd));
    let missing = queue(rig.ledger.mark_sent(CallId(4711)));
    let last = queue(rig.ledger.mark_sent(won.id));
    drop(gate);
    assert!(matches!(wait(first), Ok(Reserved::Won(_))));
    assert!(matches!(wait(half), Err(LedgerError::Contradiction { .. })));
    assert!(matches!(wait(absurd), Err(LedgerError::Unavailable(_))));
    assert!(matches!(wait(missing), Err(LedgerError::Unavailable(_))));
    assert_eq!(wait(last).unwrap(), Permit::Granted);
    assert_eq!(rig.totals(), BTreeMap::from([("reserved", 1), ("sent", 1)]));
    assert_eq!(rig.used(), 6);
}

#[test]
fn credits_beyond_all_numbers_are_refused_and_the_ledger_goes_on() {
    let rig = Rig::new();
    wait(rig.bench().win(picture(1)));
    let budget = Budget { scope: Scope::Global, window: Window::Day, limit: u64::MAX - 1, enforced: true };
    let absurd = Reservation { credits: u64::MAX - 1, budgets: vec![budget], ..picture(2) };
    let refused = wait(rig.ledger.reserve(absurd)).unwrap();
    assert!(matches!(refused, Reserved::OverBudget(_)), "{refused:?}");
    wait(rig.bench().win(picture(3)));
}

#[test]
fn concurrent_changes_share_a_commit() {
    let rig = Rig::new();
    wait(rig.bench().win(picture(0)));
    let before = commits(&rig.log());
    assert!(before > 0, "control: a change is a commit in the log");
    let gate = hold(&rig.ledger.writer);
    let waiting: Vec<_> = (1..121).map(|n| queue(rig.ledger.reserve(picture(n)))).collect();
    drop(gate);
    for outcome in waiting {
        assert!(matches!(wait(outcome), Ok(Reserved::Won(_))));
    }
    let made = commits(&rig.log()) - before;
    assert!((1..=2).contains(&made), "{made} commits for 120 changes");
}

#[test]
fn a_read_sees_every_change_acknowledged_before_it_was_asked() {
    let rig = Rig::new();
    let gate = hold(&rig.ledger.reader);
    let kept = wait(rig.bench().store(picture(1)));
    let asked = queue(rig.ledger.look_up("ailab-v1", picture(1).key));
    let also = queue(rig.ledger.look_up("ailab-v1", picture(1).key));
    drop(gate);
    assert_eq!(wait(asked).unwrap().as_ref(), Some(&kept));
    assert_eq!(wait(also).unwrap(), Some(kept));
}

#[test]
fn a_report_sees_every_change_acknowledged_before_it_was_asked_and_holds_up_no_read() {
    let rig = Rig::new();
    let gate = hold(&rig.ledger.reporter);
    let kept = wait(rig.bench().store(picture(1)));
    let asked = queue(rig.ledger.totals());
    assert_eq!(wait(rig.bench().look_up(&picture(1))), Some(kept));
    drop(gate);
    let stored = wait(asked).unwrap().into_iter().find(|total| total.state == CallState::Stored);
    assert_eq!(stored.map(|total| total.calls), Some(1));
}

#[test]
fn a_read_does_not_wait_for_a_write() {
    let rig = Rig::new();
    let kept = wait(rig.bench().store(picture(1)));
    let gate = hold(&rig.ledger.writer);
    assert_eq!(wait(rig.bench().look_up(&picture(1))), Some(kept));
    assert_eq!(rig.used(), 3);
    drop(gate);
}

#[test]
fn a_file_of_a_newer_program_is_refused_untouched() {
    for mode in ["DELETE", "WAL"] {
        let theirs = tempfile::tempdir().unwrap();
        let db = Connection::open(theirs.path().join("ledger.db")).unwrap();
        db.pragma_update(None, "journal_mode", mode).unwrap();
        db.execute_batch("CREATE TABLE calls (id); INSERT INTO calls VALUES (1); PRAGMA user_version = 99;")
            .unwrap();
        // Killed: in the second case all of it is still in the log.
        let copy = killed(theirs.path());
        let contents = || {
            let files = ["ledger.db", "ledger.db-wal"].map(|name| fs::read(copy.path().join(name)));
            files.map(Result::unwrap_or_default)
        };
        let before = contents();
        let clock = TurnableClock::at("2026-11-22T09:00:00Z").clock();
        let refused = SqliteLedger::open(&copy.path().join("ledger.db"), clock, zone()).map(|_| ());
        let Err(LedgerError::Unavailable(why)) = refused else { panic!("{mode}: opened") };
        assert!(why.contains("layout 99"), "{why}");
        assert!(contents() == before, "{mode}: changed");
    }
}

#[test]
fn a_file_of_the_first_layout_gets_what_is_new_and_keeps_its_book() {
    let directory = tempfile::tempdir().unwrap();
    let db = connect(&directory.path().join("ledger.db")).unwrap();
    db.execute_batch(&format!("{} PRAGMA user_version = 1;", MIGRATIONS[0])).unwrap();
    let Reservation { namespace, key, image, .. } = picture(1);
    db.execute(
        "INSERT INTO calls (namespace, key, generation, state, team, credits, day, month, image, width, height, \
         reserved_at, sent_at, answered_at, answer, request_id, log_id) \
         VALUES (?1, ?2, 0, 'answered', 'press', 3, '1970-01-01', '1970-01', ?3, 640, 427, \
         '1970-01-01T00:00:00Z', '1970-01-01T00:00:00Z', '1970-01-01T00:00:00Z', printf('%4096s', '') || '{}', 'R', 'L')",
        rusqlite::params![namespace, key.as_bytes(), image.as_bytes()],
    )
    .unwrap();
    drop(db);
    let won = Won { id: CallId(1), generation: 0 };
    let clock = TurnableClock::at("2026-11-22T09:00:00Z");
    for _ in 0..2 {
        let ledger = reopen(directory.path(), &clock);
        assert_eq!(wait(ledger.recover()).unwrap().unfinished.len(), 1);
        assert_eq!(wait(ledger.spool_usage()).unwrap().objects, 0);
    }
    let ledger = reopen(directory.path(), &clock);
    let kept = record(&picture(1), won, clock.now());
    let bytes = bytes::Bytes::from_static(b"a result");
    wait(ledger.book(won.id, Booking::Spooled { record: Box::new(kept), bytes })).unwrap();
    assert_eq!(wait(ledger.spool_usage()).unwrap().bytes, 8);
    // And what later layouts brought.
    assert_eq!(
        wait(ledger.purge(&namespace, key, &Actor::loopback())).unwrap(),
        Purge::Done { generation: 0 }
    );
}

#[test]
fn ledger_of_an_earlier_program_is_complete_unless_an_archive_was_adopted() {
    const ADOPT: &str =
        "INSERT INTO audit (at, who, action, subject, detail) VALUES ('', '', 'adopt', '', '')";
    let id = ArchiveId::random();
    for (settled, and, import) in
        [(1, "", Import::Complete), (0, "", Import::UpTo(None)), (1, ADOPT, Import::UpTo(None))]
    {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ledger.db");
        let db = Connection::open(&file).unwrap();
        let made = MIGRATIONS[..5].concat();
        db.execute_batch(&format!(
            "{made} INSERT INTO archive (one, id, settled) VALUES (1, '{id}', {settled}); {and}; PRAGMA user_version = 5;"
        ))
        .unwrap();
        drop(db);
        let ledger = SqliteLedger::open(&file, Clock::system(), zone()).unwrap();
        let membership = wait(ledger.archive()).unwrap().unwrap();
        assert_eq!((membership.archive, membership.import), (id, import), "settled {settled}, {and}");
    }
}

#[test]
fn a_spooled_result_erases_the_signed_url_and_survives_a_kill() {
    let rig = Rig::new();
    let won = wait(rig.bench().send(picture(1)));
    wait(rig.bench().book(won.id, signed(1, 700)));
    assert_eq!(signatures(rig.directory.path()), BTreeSet::from([1]), "control: it is to be found");
    let kept = record(&picture(1), won, rig.clock.now());
    let bytes = bytes::Bytes::from(vec![7; 100_000]);
    wait(rig.ledger.book(won.id, Booking::Spooled { record: Box::new(kept.clone()), bytes: bytes.clone() }))
        .unwrap();
    eventually("it is erased", || signatures(rig.directory.path()).is_empty());
    let copy = killed(rig.directory.path());
    let survivor = reopen(copy.path(), &rig.clock);
    assert_eq!(wait(survivor.spooled_object(kept.object().unwrap())).unwrap(), Some(bytes));
}

#[test]
fn the_file_lets_no_line_of_the_audit_be_changed_or_removed() {
    let rig = Rig::new();
    wait(LedgerAdmin::freeze(&*rig.ledger, Scope::Global, true, &Actor::loopback())).unwrap();
    let db = Connection::open(rig.directory.path().join("ledger.db")).unwrap();
    for change in [
        "UPDATE audit SET who = 'nobody'",
        "DELETE FROM audit",
        "INSERT OR REPLACE INTO audit SELECT id, at, 'nobody', action, subject, detail FROM audit",
    ] {
        // Only who asks for it has triggers run when a row is replaced.
        db.execute_batch("PRAGMA recursive_triggers = ON").unwrap();
        let refused = db.execute(change, []).unwrap_err().to_string();
        assert!(refused.contains("can only grow"), "{change}: {refused}");
    }
    assert_eq!(wait(rig.ledger.audit(None, 10)).unwrap()[0].who, "loopback");
}

#[test]
fn a_change_whose_line_cannot_be_written_is_not_made() {
    let rig = Rig::new();
    let kept = wait(rig.bench().store(picture(1)));
    let unknown = wait(rig.bench().send(picture(2)));
    wait(rig.bench().book(unknown.id, self::unknown()));
    let db = Connection::open(rig.directory.path().join("ledger.db")).unwrap();
    db.execute_batch("ALTER TABLE audit RENAME TO hidden").unwrap();
    let by = Actor::loopback();
    assert!(wait(rig.ledger.purge("ailab-v1", picture(1).key, &by)).is_err());
    assert!(wait(LedgerAdmin::freeze(&*rig.ledger, Scope::Global, true, &by)).is_err());
    assert!(wait(rig.ledger.settle(unknown.id, Settlement::Free, &by)).is_err());
    assert_eq!(wait(rig.bench().look_up(&picture(1))), Some(kept));
    assert_eq!(wait(rig.ledger.frozen()).unwrap(), []);
    assert_eq!(wait(rig.ledger.unsettled()).unwrap(), 3);
    assert_eq!(wait(rig.ledger.changes(Some(0))).unwrap().keys, []);
    assert_counters_are_the_sum_of_the_rows(&db);
}

#[test]
fn a_page_of_a_long_book_looks_at_a_part_of_it_and_says_where_to_go_on() {
    let rig = Rig::new();
    let db = Connection::open(rig.directory.path().join("ledger.db")).unwrap();
    db.execute_batch(
        "WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < 50000)
         INSERT INTO calls (id, namespace, key, generation, state, team, credits, day, month, image, width, height,
                            reserved_at)
         SELECT id, 'ailab-v1', randomblob(32), 0, CASE id WHEN 7 THEN 'unknown' ELSE 'released' END,
                CASE id WHEN 5 THEN 'rare' ELSE 'web' END, 3, '2026-11-22', '2026-11', zeroblob(32), 1, 1,
                '2026-11-22T09:00:00Z' FROM n",
    )
    .unwrap();
    let (mut filter, mut pages, mut found) =
        (CallFilter { team: Some("rare".to_owned()), limit: 10, ..CallFilter::default() }, 0, Vec::new());
    loop {
        let page = wait(rig.ledger.calls(filter.clone())).unwrap();
        pages += 1;
        found.extend(page.calls.iter().map(|call| call.id.0));
        filter.before = page.next;
        if page.next.is_none() {
            break;
        }
    }
    assert_eq!((pages, found), (3, vec![5]));
    // Where an index leads there, all of it is seen at once.
    let unknown = CallFilter { state: Some(CallState::Unknown), limit: 10, ..CallFilter::default() };
    let page = wait(rig.ledger.calls(unknown)).unwrap();
    assert_eq!((page.calls[0].id.0, page.next), (7, None));
}

#[test]
fn reports_read_an_index_and_no_call() {
    let db = Connection::open_in_memory().unwrap();
    migrate(&db).unwrap();
    for (sql, parameters, index) in [
        (usage::PAID, &["2026-11-01", "2026-11-30"][..], "calls_by_day"),
        (admin::TOTALS, &[], "calls_totals"),
    ] {
        let mut plan = db.prepare(&format!("EXPLAIN QUERY PLAN {}", translated(sql))).unwrap();
        let parameters = rusqlite::params_from_iter(parameters);
        let steps = plan.query_map(parameters, |row| row.get::<_, String>("detail")).unwrap();
        let steps: Vec<String> = steps.collect::<rusqlite::Result<_>>().unwrap();
        assert!(steps[0].contains(&format!("USING COVERING INDEX {index}")), "{steps:?}");
    }
}
