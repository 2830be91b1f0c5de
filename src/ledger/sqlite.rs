//! The ledger of one machine: a SQLite file, written by one thread.
//!
//! The thread takes whatever writes have queued up, runs each in a savepoint of one transaction,
//! and answers all of them after one durable commit (WAL, `synchronous = FULL`): group commit.
//! Reads go through a second thread with its own connection and never wait for a disk flush; reports,
//! which read much, through a third.
//!
//! Signed result URLs rest in `answered` rows only. When such a row ends, its text is overwritten
//! (`secure_delete`) and the write-ahead log, which still has the old page, is truncated as soon as
//! the thread is idle, and at every start. `secure_delete` does not reach the copies that SQLite
//! leaves behind when it moves rows from page to page; so the text begins a whole page into its row,
//! where it lies on pages of its own, which are never moved, and wiped when they are given up.
//!
//! The file does not shrink: what the spool has taken is used again by it and by everything else.

mod admin;
mod audit;
mod calls;
mod health;
mod inspect;
mod membership;
mod spool;
#[cfg(test)]
mod tests;
mod usage;
mod worker;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::tz::TimeZone;
use rusqlite::Connection;
use rusqlite::config::DbConfig;

use self::health::Health;
use self::worker::Worker;
use super::budget::{Budget, Scope, Used, Windows};
use super::spool::{SpoolUsage, Spooled};
use super::{
    Booking, CallId, Changes, Ledger, LedgerError, Orphan, Permit, Recovery, Reservation, Reserved,
    Soundness, StateTotal,
};
use crate::base::archive::{ArchiveId, Import, Membership};
use crate::base::clock::Clock;
use crate::base::disk;
use crate::base::key::CacheKey;
use crate::base::picture::ObjectName;
use crate::base::record::Record;

/// The layout of the file: how many of [`MIGRATIONS`] it has had. A file with a higher one is refused
/// untouched.
const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// What leads from each layout to the next; it only ever adds.
const MIGRATIONS: [&str; 6] =
    [SCHEMA, spool::SCHEMA, membership::SCHEMA, admin::SCHEMA, usage::SCHEMA, membership::IMPORT];

/// Bytes that may wait in the spool, unless [`SqliteLedger::with_spool_max`] says otherwise.
const SPOOL_MAX: u64 = 2 << 30;

/// Bytes of a page of the file, and of the padding before the text of an answer.
const PAGE_SIZE: u32 = 4096;

const SCHEMA: &str = "
CREATE TABLE calls (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace    TEXT    NOT NULL,
    key          BLOB    NOT NULL,
    generation   INTEGER NOT NULL,
    state        TEXT    NOT NULL,
    late         INTEGER NOT NULL DEFAULT 0,  -- 1: another row keeps the key
    adopted      INTEGER NOT NULL DEFAULT 0,  -- 1: paid through another ledger
    team         TEXT    NOT NULL,
    credits      INTEGER NOT NULL,
    day          TEXT    NOT NULL,            -- the windows it was reserved in
    month        TEXT    NOT NULL,
    image        BLOB    NOT NULL,
    width        INTEGER NOT NULL,
    height       INTEGER NOT NULL,
    reserved_at  TEXT    NOT NULL,
    sent_at      TEXT,
    answered_at  TEXT,
    ended_at     TEXT,
    reason       TEXT,
    answer       TEXT,                        -- `answered`: padding, then a signed URL; `stored`: the record's
    request_id   TEXT,
    log_id       TEXT,
    digest       BLOB,
    extension    TEXT,
    bytes        INTEGER
) STRICT;
CREATE UNIQUE INDEX calls_holding_a_key ON calls (namespace, key, generation)
    WHERE late = 0 AND state IN ('reserved', 'sent', 'answered', 'stored');
CREATE INDEX calls_by_key ON calls (namespace, key, state);
CREATE INDEX calls_open ON calls (state) WHERE state IN ('reserved', 'sent', 'answered');
CREATE INDEX calls_totals ON calls (state, credits) WHERE adopted = 0;
CREATE TABLE spent (
    scope   TEXT NOT NULL,
    period  TEXT NOT NULL,
    credits INTEGER NOT NULL,
    PRIMARY KEY (scope, period)
) STRICT, WITHOUT ROWID;
CREATE TABLE frozen (scope TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
";

/// See the module.
pub struct SqliteLedger {
    writer: Worker,
    reader: Worker,
    reporter: Worker,
    health: Health,
    clock: Clock,
    zone: TimeZone,
    spool_max: u64,
    /// Bytes that [`Ledger::keep_room`] keeps for each open call; 0 when it does not.
    kept_for_each: AtomicU64,
}

impl SqliteLedger {
    /// Opens or creates the file, and brings its layout up to date.
    ///
    /// Budgets' days and months are those of `zone`, by `clock`.
    ///
    /// # Errors
    /// [`LedgerError`] when the file cannot be opened, or is of a newer program.
    pub fn open(file: &Path, clock: Clock, zone: TimeZone) -> Result<Self, LedgerError> {
        make_private(file)
            .map_err(|error| LedgerError::Unavailable(format!("it cannot be made private: {error}")))?;
        let writable = connect(file)?;
        migrate(&writable)?;
        // After a kill the log may still have the page of an answer that has ended since.
        let log_has_secrets = !worker::scrub_log(&writable);
        let readable = connect(file)?;
        readable.pragma_update(None, "query_only", true)?;
        let reported = connect(file)?;
        reported.pragma_update(None, "query_only", true)?;
        let checked = connect(file)?;
        checked.pragma_update(None, "query_only", true)?;
        Ok(Self {
            writer: Worker::spawn(
                "ledger-write",
                writable,
                "BEGIN IMMEDIATE",
                worker::GROUP,
                log_has_secrets,
            ),
            reader: Worker::spawn("ledger-read", readable, "BEGIN", 1, false),
            reporter: Worker::spawn("ledger-report", reported, "BEGIN", 1, false),
            health: Health::check(checked),
            clock,
            zone,
            spool_max: SPOOL_MAX,
            kept_for_each: AtomicU64::new(0),
        })
    }

    /// Lets at most so many bytes of results wait in the spool; the default is 2 GiB.
    #[must_use]
    pub fn with_spool_max(self, bytes: u64) -> Self {
        Self { spool_max: bytes, ..self }
    }

    async fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Connection) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        self.health.learn(self.writer.run(false, change).await)
    }

    async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        self.health.learn(self.reader.run(false, query).await)
    }

    async fn report<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        self.health.learn(self.reporter.run(false, query).await)
    }
}

fn connect(file: &Path) -> Result<Connection, LedgerError> {
    let connection = Connection::open(file)?;
    connection.busy_timeout(worker::BUSY)?;
    refuse_newer(&connection)?;
    connection.pragma_update(None, "page_size", PAGE_SIZE)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "secure_delete", true)?;
    Ok(connection)
}

/// Shuts other users out of the ledger; SQLite gives what it makes beside it the same rights.
fn make_private(file: &Path) -> std::io::Result<()> {
    disk::create_private(file)?;
    ["-wal", "-shm"].iter().try_for_each(|suffix| {
        let mut beside = file.as_os_str().to_owned();
        beside.push(suffix);
        disk::make_private(Path::new(&beside))
    })
}

fn version(connection: &Connection) -> Result<i64, LedgerError> {
    Ok(connection.pragma_query_value(None, "user_version", |row| row.get(0))?)
}

/// Comes before anything that may write, as a change of the journal's mode or closing the log does.
fn refuse_newer(connection: &Connection) -> Result<(), LedgerError> {
    let version = version(connection)?;
    if version <= SCHEMA_VERSION {
        return Ok(());
    }
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Err(LedgerError::Unavailable(format!(
        "the file has layout {version}, and this program knows {SCHEMA_VERSION}: run the newer program"
    )))
}

fn migrate(connection: &Connection) -> Result<(), LedgerError> {
    let done = usize::try_from(version(connection)?).unwrap_or(0);
    for (migration, layout) in MIGRATIONS.iter().zip(1..).skip(done) {
        connection.execute_batch(&format!(
            "BEGIN IMMEDIATE; {migration} PRAGMA user_version = {layout}; COMMIT;"
        ))?;
    }
    Ok(())
}

impl From<rusqlite::Error> for LedgerError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        match error.sqlite_error_code() {
            Some(DatabaseCorrupt | NotADatabase) => Self::Damaged(error.to_string()),
            _ => Self::Unavailable(error.to_string()),
        }
    }
}

#[async_trait]
impl Ledger for SqliteLedger {
    async fn look_up(&self, namespace: &str, key: CacheKey) -> Result<Option<Record>, LedgerError> {
        let namespace = namespace.to_owned();
        self.read(move |db| calls::stored(db, &namespace, key)).await
    }

    async fn reserve(&self, reservation: Reservation) -> Result<Reserved, LedgerError> {
        self.health.is_sound().await?;
        let now = self.clock.now();
        let windows = Windows::at(now, &self.zone);
        let (each, max) = (self.kept_for_each.load(Ordering::Relaxed), self.spool_max);
        let room = (each > 0).then_some(spool::Room { each, max });
        self.write(move |db| calls::reserve(db, &reservation, now, &windows, room)).await
    }

    async fn mark_sent(&self, id: CallId) -> Result<Permit, LedgerError> {
        self.health.is_sound().await?;
        let now = self.clock.now();
        let today = Windows::at(now, &self.zone);
        self.write(move |db| usage::adjusting(db, id, &today, || calls::mark_sent(db, id, now))).await
    }

    async fn book(&self, id: CallId, booking: Booking) -> Result<(), LedgerError> {
        let now = self.clock.now();
        let today = Windows::at(now, &self.zone);
        let erases =
            matches!(booking, Booking::Stored { .. } | Booking::Spooled { .. } | Booking::Unfetchable { .. });
        let max = self.spool_max;
        let booked = self
            .writer
            .run(erases, move |db| {
                spool::check_fits(db, id, &booking, max)?;
                usage::adjusting(db, id, &today, || calls::book(db, id, &booking, now))
            })
            .await;
        self.health.learn(booked)
    }

    async fn import_record(&self, record: &Record) -> Result<(), LedgerError> {
        let now = self.clock.now();
        let today = Windows::at(now, &self.zone);
        let record = Box::new(record.clone());
        let windows = Windows::at(record.stored_at, &self.zone);
        self.write(move |db| match membership::orphan_of(db, &record)? {
            Some(id) => {
                let booking = Booking::Stored { record, holds_key: true };
                usage::adjusting(db, id, &today, || calls::book(db, id, &booking, now))
            }
            None => calls::import_record(db, &record, &windows),
        })
        .await
    }

    async fn lose(&self, record: &Record) -> Result<(), LedgerError> {
        let now = self.clock.now();
        let today = Windows::at(now, &self.zone);
        let record = record.clone();
        self.write(move |db| {
            let Some(id) = calls::stored_call(db, &record)? else { return Ok(()) };
            usage::adjusting(db, id, &today, || calls::book(db, id, &Booking::Lost, now))
        })
        .await
    }

    async fn recover(&self) -> Result<Recovery, LedgerError> {
        let now = self.clock.now();
        let today = Windows::at(now, &self.zone);
        self.write(move |db| usage::adjusting_open(db, &today, || calls::recover(db, now))).await
    }

    async fn changes(&self, after: Option<u64>) -> Result<Changes, LedgerError> {
        self.read(move |db| admin::changes(db, after)).await
    }

    async fn purged(&self, namespace: &str, key: CacheKey) -> Result<Option<u64>, LedgerError> {
        let namespace = namespace.to_owned();
        self.read(move |db| admin::purged(db, &namespace, key)).await
    }

    async fn totals(&self) -> Result<Vec<StateTotal>, LedgerError> {
        self.report(inspect::totals).await
    }

    async fn used(&self, budgets: Vec<Budget>) -> Result<Vec<Used>, LedgerError> {
        let windows = Windows::at(self.clock.now(), &self.zone);
        let used = move |db: &Connection, budget: Budget| {
            let used = calls::spent(db, &budget.scope, windows.of(budget.window).0)?;
            Ok(Used { budget, used })
        };
        self.read(move |db| budgets.into_iter().map(|budget| used(db, budget)).collect()).await
    }

    async fn set_frozen(&self, scope: Scope, frozen: bool) -> Result<(), LedgerError> {
        self.write(move |db| calls::set_frozen(db, &scope, frozen).map(|_| ())).await
    }

    async fn archive(&self) -> Result<Option<Membership>, LedgerError> {
        self.read(membership::read).await
    }

    async fn begin_archive(&self, archive: ArchiveId) -> Result<Membership, LedgerError> {
        self.write(move |db| membership::begin(db, archive)).await
    }

    async fn settle_archive(&self, archive: ArchiveId) -> Result<(), LedgerError> {
        self.write(move |db| membership::settle(db, archive)).await
    }

    async fn note_import(&self, archive: ArchiveId, import: Import) -> Result<(), LedgerError> {
        self.write(move |db| membership::note_import(db, archive, &import)).await
    }

    async fn knows_all_of(&self, namespace: &str, key: CacheKey) -> Result<bool, LedgerError> {
        let namespace = namespace.to_owned();
        self.read(move |db| membership::knows_all_of(db, &namespace, key)).await
    }

    async fn orphans(&self) -> Result<Vec<Orphan>, LedgerError> {
        self.read(membership::orphans).await
    }

    async fn spooled_object(&self, name: ObjectName) -> Result<Option<Bytes>, LedgerError> {
        self.read(move |db| spool::object(db, name)).await
    }

    async fn is_spooled(&self, name: ObjectName) -> Result<bool, LedgerError> {
        self.read(move |db| spool::has(db, name)).await
    }

    async fn spooled(&self, after: u64, limit: usize) -> Result<Vec<Spooled>, LedgerError> {
        self.read(move |db| spool::list(db, after, limit)).await
    }

    async fn unspool(&self, id: CallId, standing: &Record) -> Result<(), LedgerError> {
        let standing = standing.clone();
        let windows = Windows::at(standing.stored_at, &self.zone);
        self.write(move |db| spool::remove(db, id, &standing, &windows)).await
    }

    async fn spool_usage(&self) -> Result<SpoolUsage, LedgerError> {
        let now = self.clock.now();
        self.read(move |db| spool::usage(db, now)).await
    }

    fn soundness(&self) -> Soundness {
        self.health.soundness()
    }

    fn keep_room(&self, each: Option<u64>) {
        self.kept_for_each.store(each.unwrap_or(0), Ordering::Relaxed);
    }
}
