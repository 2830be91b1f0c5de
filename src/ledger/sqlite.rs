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

mod health;
mod query;
mod reserve;
mod schema;
#[cfg(test)]
mod tests;
mod worker;

use std::path::Path;
use std::sync::Arc;

use jiff::tz::TimeZone;
use rusqlite::Connection;

use self::health::Health;
use self::query::{Db, Work, run};
use self::worker::Worker;
use super::sql::{Keeper, sql_ledger};
use super::{CallState, Leases, LedgerError, LedgerObserver, LedgerOp, observed};
use crate::base::clock::Clock;
use crate::base::disk;

/// Bytes that may wait in the spool, unless [`SqliteLedger::with_spool_max`] says otherwise.
const SPOOL_MAX: u64 = 2 << 30;

/// Bytes of a page of the file, and of the padding before the text of an answer.
const PAGE_SIZE: u32 = 4096;

/// What is left of the calls of dead owners, once they are settled.
const UNFINISHED: &str = "SELECT id, namespace, key, generation, team, credits, image, width, height, answered_at, \
                          substr(answer, 4097) AS text FROM calls WHERE state = 'answered' ORDER BY id";

/// See the module.
pub struct SqliteLedger {
    writer: Worker,
    reader: Worker,
    reporter: Worker,
    health: Health,
    clock: Clock,
    keeper: Arc<Keeper>,
    observer: Option<Arc<dyn LedgerObserver>>,
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
        schema::migrate(&writable)?;
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
            keeper: Arc::new(Keeper::new(String::new(), SPOOL_MAX, zone)),
            observer: None,
        })
    }

    /// Lets at most so many bytes of results wait in the spool; the default is 2 GiB.
    #[must_use]
    pub fn with_spool_max(self, bytes: u64) -> Self {
        Self { keeper: Arc::new(Keeper::new(String::new(), bytes, self.keeper.zone.clone())), ..self }
    }

    /// Lets `observer` see each operation.
    #[must_use]
    pub(crate) fn with_observer(self, observer: Arc<dyn LedgerObserver>) -> Self {
        Self { observer: Some(observer), ..self }
    }

    /// Runs a statement on the thread of its operation, so that no lookup waits for a report.
    async fn ask<A: Send + 'static, T: Send + 'static>(
        &self,
        op: LedgerOp,
        asked: A,
        work: Work<A, T>,
    ) -> Result<T, LedgerError> {
        observed(self.observer.as_deref(), op, async {
            if matches!(op, LedgerOp::Reserve | LedgerOp::Send) {
                self.health.is_sound().await?;
            }
            let worker = match op {
                LedgerOp::LookUp | LedgerOp::Read => &self.reader,
                LedgerOp::Totals | LedgerOp::Report => &self.reporter,
                _ => &self.writer,
            };
            let (now, keeper) = (self.clock.now(), Arc::clone(&self.keeper));
            // These states end a row that has a signed URL.
            let erases = matches!(op, LedgerOp::Book(CallState::Stored | CallState::Unfetchable));
            let work =
                move |connection: &Connection| run(work(&Db { connection, keeper: &keeper, now }, &asked));
            self.health.learn(worker.run(erases, work).await)
        })
        .await
    }
}

sql_ledger! { SqliteLedger {
    async fn reserve(&self, wanted: Reservation) -> Result<Reserved, LedgerError> {
        self.ask(Reserve, wanted, |db, wanted| Box::pin(reserve::reserve(db, wanted))).await
    }

    async fn recover(&self) -> Result<Recovery, LedgerError> {
        self.ask(Write, (), |db, ()| Box::pin(book::recover(db, UNFINISHED))).await
    }

    fn soundness(&self) -> Soundness {
        self.health.soundness()
    }
} }

impl Leases for SqliteLedger {}

fn connect(file: &Path) -> Result<Connection, LedgerError> {
    let connection = Connection::open(file)?;
    connection.busy_timeout(worker::BUSY)?;
    schema::refuse_newer(&connection)?;
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

impl From<rusqlite::Error> for LedgerError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        match error.sqlite_error_code() {
            Some(DatabaseCorrupt | NotADatabase) => Self::Damaged(error.to_string()),
            _ => Self::Unavailable(error.to_string()),
        }
    }
}
