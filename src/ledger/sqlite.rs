//! The ledger of one machine: a SQLite file, written by one thread. The thread runs all queued writes in
//! savepoints of one transaction and answers them after one durable commit (WAL, `synchronous = FULL`): group
//! commit. Reads have a thread and a connection of their own and never wait for a disk flush; large reads
//! have another. The file does not shrink: freed pages are used again.
//!
//! Signed result URLs are in `answered` rows only. When that state ends, the text is overwritten (`secure_delete`),
//! and the write-ahead log, which still has the old page, is truncated as soon as the thread is idle, and at every
//! start. `secure_delete` does not reach copies of rows that SQLite moved between pages; so the text begins a whole
//! page into its row, on overflow pages, which are not moved, and wiped when freed.

mod health;
mod query;
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

const SPOOL_MAX: u64 = 2 << 30;

/// Bytes of a page, and of the padding before the text of an answer.
const PAGE_SIZE: u32 = 4096;

const UNFINISHED: &str = "SELECT id, namespace, key, generation, team, credits, image, width, height, answered_at, \
                          substr(answer, 4097) AS text FROM calls WHERE state = 'answered' ORDER BY id";

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
    /// Creates or migrates the file; refuses that of a newer program. Days are those of `zone`, by `clock`.
    pub fn open(file: &Path, clock: Clock, zone: TimeZone) -> Result<Self, LedgerError> {
        make_private(file)
            .map_err(|error| LedgerError::Unavailable(format!("it cannot be made private: {error}")))?;
        let writable = connect(file)?;
        schema::migrate(&writable)?;
        // After a kill the log may still have the text of an ended answer.
        let log_has_secrets = !worker::scrub_log(&writable);
        let readable = || {
            let connection = connect(file)?;
            connection.pragma_update(None, "query_only", true)?;
            Ok::<_, LedgerError>(connection)
        };
        Ok(Self {
            writer: Worker::writer(writable, log_has_secrets),
            reader: Worker::reader("ledger-read", readable()?),
            reporter: Worker::reader("ledger-report", readable()?),
            health: Health::check(readable()?),
            clock,
            keeper: Arc::new(Keeper::new(String::new(), SPOOL_MAX, zone)),
            observer: None,
        })
    }

    /// The default is 2 GiB.
    #[must_use]
    pub fn with_spool_max(self, bytes: u64) -> Self {
        Self { keeper: Arc::new(Keeper::new(String::new(), bytes, self.keeper.zone.clone())), ..self }
    }

    #[must_use]
    pub(crate) fn with_observer(self, observer: Option<Arc<dyn LedgerObserver>>) -> Self {
        Self { observer, ..self }
    }

    /// Runs a statement on its operation's thread, so that no lookup waits for a report.
    async fn ask<A: Send + 'static, T: Send + 'static>(
        &self,
        op: LedgerOp,
        asked: A,
        work: Work<A, T>,
    ) -> Result<T, LedgerError> {
        observed(self.observer.as_deref(), op, async {
            if matches!(op, LedgerOp::Reserve | LedgerOp::Send) {
                self.health.is_whole()?;
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

/// SQLite gives new files beside the ledger the same mode.
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
