//! Connections, and whole transactions on them, each in its own task. When a caller is dropped, its task
//! still ends the transaction. A connection returns to the pool only after the server has confirmed that;
//! otherwise, as after a timeout, it is closed.
//!
//! Nothing outlives a transaction on a connection: no settings, locks or prepared statements. So a pooler may
//! give each transaction another connection.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_postgres::Client;

use super::connect::{self, Connection, Tls};
use super::failure::{COMMITS_ARE_LOST, Failure, TRIES};
use super::schema;
use crate::base::breaker::{Breaker, CallError};
use crate::base::clock::Clock;
use crate::ledger::LedgerError;
use crate::ledger::address::DatabaseAddress;
use crate::ledger::sql::{Keeper, Query as _, damaged};

const PREPARATION: Duration = Duration::from_secs(600);
/// For a connection. All that wait are refused as soon as the first one times out.
const QUEUE: Duration = Duration::from_secs(10);
/// In microseconds since 1970.
pub(super) const NOW: &str = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint";

pub(super) const CHANGE: &str = "ISOLATION LEVEL READ COMMITTED READ WRITE";
/// All statements read at the same instant.
pub(super) const REPORT: &str = "ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// Read for each connection, because a file may have changed. May block.
pub type AddressSource = Arc<dyn Fn() -> Result<DatabaseAddress, String> + Send + Sync>;

#[derive(Clone)]
pub(super) struct PoolConfig {
    pub(super) address: AddressSource,
    pub(super) roots: Option<std::path::PathBuf>,
    pub(super) keeper: Arc<Keeper>,
    pub(super) clock: Option<Clock>,
    pub(super) is_prepared: Arc<AtomicBool>,
}

#[derive(Clone, Copy)]
pub(super) struct Limits {
    connections: usize,
    /// For one operation, including the wait for a connection.
    operation: Duration,
}

impl Limits {
    /// Each is held for some milliseconds.
    pub(super) const CALLS: Self = Self { connections: 16, operation: Duration::from_secs(5) };
    /// A report may read every call of a year.
    pub(super) const REPORTS: Self = Self { connections: 2, operation: Duration::from_secs(10) };

    /// The server limits statements, and waits for us, so that a stopped process does not block others.
    fn begin(&self, mode: &str) -> String {
        let statement = self.operation.saturating_sub(Duration::from_secs(1)).as_millis();
        format!(
            "BEGIN {mode}; SET LOCAL statement_timeout = {statement}; \
             SET LOCAL idle_in_transaction_session_timeout = '5s'; "
        )
    }

    fn silent(&self) -> LedgerError {
        LedgerError::Unavailable(format!("the database did not answer within {:?}", self.operation))
    }
}

#[derive(Clone)]
pub(super) struct Pool(Arc<Inner>);

struct Inner {
    config: PoolConfig,
    limits: Limits,
    permits: Semaphore,
    idle: Mutex<Vec<Connection>>,
    breaker: Breaker,
}

impl Pool {
    pub(super) fn new(config: PoolConfig, limits: Limits) -> Self {
        let probed = config.clone();
        let breaker = Breaker::new("database", move || {
            let probed = probed.clone();
            async move {
                let Ok((connection, _)) = dial(&probed).await else { return false };
                connection.client.simple_query("SELECT 1").await.is_ok()
            }
        });
        let permits = Semaphore::new(limits.connections);
        Self(Arc::new(Inner { config, limits, permits, idle: Mutex::default(), breaker }))
    }

    /// Runs `work`, perhaps several times, in a transaction after `locks`; without a `mode`, as single reads.
    pub(super) async fn run<T, F, W>(
        &self,
        mode: Option<&str>,
        locks: &[String],
        work: W,
    ) -> Result<T, LedgerError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send,
        W: Fn(Tx) -> F + Send + Sync + 'static,
    {
        let inner = Arc::clone(&self.0);
        let begin = mode.map(|mode| {
            let locks: String = locks.iter().map(|lock| format!("{lock}; ")).collect();
            let begin = inner.limits.begin(mode);
            format!("{begin}{locks}SELECT {NOW}, current_setting('synchronous_commit')")
        });
        let operation = async move {
            let done = async {
                match begin {
                    Some(begin) => inner.transact(&begin, &work).await,
                    None => inner.ask(&work).await,
                }
            };
            inner.limited(done).await
        };
        tokio::spawn(operation).await.unwrap_or_else(|_| Err(broke_off()))
    }

    pub(super) async fn prove(&self) -> Result<(), Failure> {
        let inner = Arc::clone(&self.0);
        let proof = tokio::spawn(async move {
            let connecting = timeout(inner.limits.operation, inner.connect());
            let connection = connecting.await.unwrap_or_else(|_| Err(inner.limits.silent().into()))?;
            inner.idle.lock().push(connection);
            Ok(())
        });
        proof.await.unwrap_or_else(|_| Err(broke_off().into()))
    }
}

fn breaker_open() -> LedgerError {
    LedgerError::Unavailable("the database does not answer; it is probed every second".to_owned())
}

async fn dial(config: &PoolConfig) -> Result<(Connection, DatabaseAddress), Failure> {
    let (address, roots) = (Arc::clone(&config.address), config.roots.clone());
    // Reads files, and a file system may hang.
    let read = tokio::task::spawn_blocking(move || Ok((address()?, Tls::new(roots.as_deref())?)));
    let (address, tls) = read.await.map_err(|_| broke_off())?.map_err(LedgerError::Unavailable)?;
    Ok((connect::connect(&address, &tls).await?, address))
}

fn broke_off() -> LedgerError {
    LedgerError::Unavailable("the ledger's task broke off".to_owned())
}

impl Inner {
    async fn limited<T>(
        &self,
        operation: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, LedgerError> {
        if self.breaker.is_open() {
            return Err(breaker_open());
        }
        let permit = timeout(QUEUE, self.permits.acquire()).await;
        let Ok(Ok(_permit)) = permit else {
            let all = self.limits.connections;
            return Err(LedgerError::Unavailable(format!("all {all} connections are in use")));
        };
        let error = match self.breaker.call(self.limits.operation, operation, Failure::is_of_connection).await
        {
            Ok(value) => return Ok(value),
            Err(CallError::Open) => return Err(breaker_open()),
            Err(CallError::TimedOut) => self.limits.silent(),
            Err(CallError::Failed(failure)) if !failure.is_of_connection() => {
                return Err(failure.into_ledger_error());
            }
            Err(CallError::Failed(failure)) => failure.into_ledger_error(),
        };
        self.idle.lock().clear();
        Err(error)
    }

    /// An idle connection or a new one, and whether it was used before.
    async fn connection(&self) -> Result<(Connection, bool), Failure> {
        loop {
            let Some(idle) = self.idle.lock().pop() else { return Ok((self.connect().await?, false)) };
            if !idle.client.is_closed() {
                return Ok((idle, true));
            }
        }
    }

    async fn connect(&self) -> Result<Connection, Failure> {
        let (connection, address) = dial(&self.config).await?;
        if self.config.is_prepared.load(Ordering::Acquire) {
            return Ok(connection);
        }
        let is_prepared = Arc::clone(&self.config.is_prepared);
        // An index of many calls takes longer than its caller may wait, and is created all the same.
        let preparation = tokio::spawn(timeout(PREPARATION, async move {
            schema::prepare(&connection.client).await?;
            is_prepared.store(true, Ordering::Release);
            tracing::info!(database = address.place(), "the ledger's database is connected");
            Ok(connection)
        }));
        let silent = || Err(self.limits.silent().into());
        preparation.await.map_err(|_| broke_off())?.unwrap_or_else(|_| silent())
    }

    fn tx(&self, connection: &Connection, now: Timestamp) -> Tx {
        Tx {
            client: Arc::clone(&connection.client),
            clock: self.config.clock.clone(),
            keeper: Arc::clone(&self.config.keeper),
            now,
            is_undone: Arc::default(),
        }
    }

    /// Begins a transaction. A connection that died while it was idle is replaced.
    async fn begin(&self, begin: &str) -> Result<(Connection, Tx), Failure> {
        let (connection, said) = loop {
            let (connection, is_used) = self.connection().await?;
            match connection.client.simple_query(begin).await.map_err(Failure::from) {
                Err(failure) if is_used && failure.is_of_connection() => self.idle.lock().clear(),
                said => break (connection, said?),
            }
        };
        let row = schema::last_row(&said);
        let micros = row.and_then(|row| row.get(0)?.parse().ok());
        let mut tx = self.tx(&connection, Timestamp::UNIX_EPOCH);
        tx.now = tx.instant(micros.ok_or_else(|| damaged("the clock"))?);
        // Each time: behind a pooler each transaction may have another connection.
        if row.and_then(|row| row.get(1)) == Some("off") {
            return Err(Failure::Unfit(COMMITS_ARE_LOST.to_owned()));
        }
        Ok((connection, tx))
    }

    async fn transact<T, F, W>(&self, begin: &str, work: &W) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
        W: Fn(Tx) -> F,
    {
        let mut last = "";
        for _ in 0..TRIES {
            let (connection, tx) = self.begin(begin).await?;
            let is_undone = Arc::clone(&tx.is_undone);
            let outcome = work(tx).await;
            let stands = outcome.is_ok() && !is_undone.load(Ordering::Relaxed);
            let ended = connection.client.batch_execute(if stands { "COMMIT" } else { "ROLLBACK" }).await;
            if ended.is_ok() {
                self.idle.lock().push(connection);
            }
            match (outcome, ended) {
                (Ok(_), Err(error)) if stands => return Err(error.into()),
                (Ok(value), _) => return Ok(value),
                (Err(Failure::Again(what)), _) => last = what,
                (Err(failure), _) => return Err(failure),
            }
        }
        Err(Failure::Again(last))
    }

    async fn ask<T, F, W>(&self, work: &W) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
        W: Fn(Tx) -> F,
    {
        loop {
            let (connection, is_used) = self.connection().await?;
            let found = work(self.tx(&connection, Timestamp::UNIX_EPOCH)).await;
            if !found.as_ref().is_err_and(Failure::is_of_connection) {
                self.idle.lock().push(connection);
            } else if is_used {
                self.idle.lock().clear();
                continue;
            }
            return found;
        }
    }
}

#[derive(Clone)]
pub(super) struct Tx {
    pub(super) client: Arc<Client>,
    pub(super) clock: Option<Clock>,
    pub(super) keeper: Arc<Keeper>,
    /// The begin of the transaction; meaningless in a read.
    pub(super) now: Timestamp,
    pub(super) is_undone: Arc<AtomicBool>,
}
