//! The ledger of a fleet: tables of a PostgreSQL database, kept by several processes at once.
//!
//! What SQLite's one writer gives for free is made here by the database: one row per key and
//! generation by a unique index, budgets by counters that each reservation locks in the same order,
//! a freeze that is exact from its commit by an advisory lock that every spender shares. All locks end
//! with their transaction. There are no wall clocks but the database's, and only people and calendar
//! windows read it.
//!
//! Each process has a random name, the owner of the rows it works on. A row whose reservation was
//! committed and never acknowledged is owned by a process that does not know it; so whoever looks for
//! other owners' calls names those it has in hand, and sees the rest.
//!
//! Signed result URLs rest only in the table `answers`, in rows that are deleted with the state that
//! needs them. PostgreSQL keeps a deleted row until it vacuums, which this table asks for at once, and
//! in its log and its backups as long as those are kept.

mod connect;
mod failure;
mod lease;
mod limits;
mod lock;
mod pool;
mod query;
mod reserve;
mod schema;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use jiff::tz::TimeZone;
use uuid::Uuid;

use self::failure::Failure;
use self::limits::{CHANGE, Limits, REPORT};
use self::lock::key_lock;
use self::pool::{Pool, PoolConfig};
use self::query::Work;
use super::sql::{Keeper, Lock, sql_ledger};
use super::{LedgerError, LedgerObserver, LedgerOp, observed};
use crate::base::clock::Clock;

pub use self::pool::AddressSource;

/// Which database it is, and what is kept there.
#[derive(Clone)]
pub struct PostgresConfig {
    /// Where it is.
    pub address: AddressSource,
    /// Root certificates, in PEM; otherwise the system's.
    pub roots: Option<PathBuf>,
    /// Budgets' days and months are those of this zone.
    pub zone: TimeZone,
    /// Bytes that may wait in the spool.
    pub spool_max: u64,
    /// Instead of the database's clock, for tests.
    pub clock: Option<Clock>,
}

/// Why the ledger cannot be kept in a database.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProofError {
    /// It was asked, and may not be used as it is; a sentence that says what to do.
    #[error("{0}")]
    Unfit(String),
    /// It could not be asked.
    #[error(transparent)]
    Unavailable(LedgerError),
}

/// See the module.
pub struct PostgresLedger {
    pool: Pool,
    /// What reads much, or may wait.
    reports: Pool,
    keeper: Arc<Keeper>,
    observer: Option<Arc<dyn LedgerObserver>>,
}

impl PostgresLedger {
    /// Connects nowhere yet. The tables are made, or brought up to date, over the first connection.
    pub fn new(config: PostgresConfig) -> Self {
        let PostgresConfig { address, roots, zone, spool_max, clock } = config;
        let owner = Uuid::new_v4().simple().to_string();
        let keeper = Arc::new(Keeper::new(owner, spool_max, zone));
        let is_prepared = Arc::default();
        let config = PoolConfig { address, roots, keeper: Arc::clone(&keeper), clock, is_prepared };
        let pool = Pool::new(config.clone(), Limits::CALLS);
        Self { pool, reports: Pool::new(config, Limits::REPORTS), keeper, observer: None }
    }

    /// Lets `observer` see each operation.
    #[must_use]
    pub(crate) fn with_observer(self, observer: Arc<dyn LedgerObserver>) -> Self {
        Self { observer: Some(observer), ..self }
    }

    /// Connects, and finds out whether the ledger may be kept there.
    ///
    /// # Errors
    /// [`ProofError`].
    pub async fn prove(&self) -> Result<(), ProofError> {
        self.pool.prove().await.map_err(|failure| match failure {
            Failure::Unfit(why) => ProofError::Unfit(why),
            other => ProofError::Unavailable(other.into_ledger_error()),
        })
    }

    /// Runs a statement over the connections and in the transaction of its operation, behind these locks.
    async fn ask_behind<A: Send + Sync + 'static, T: Send + 'static>(
        &self,
        locks: &[String],
        op: LedgerOp,
        asked: A,
        work: Work<A, T>,
    ) -> Result<T, LedgerError> {
        let asked = Arc::new(asked);
        let work = move |tx| {
            let asked = Arc::clone(&asked);
            async move { work(&tx, &asked).await }
        };
        let (pool, mode) = match op {
            LedgerOp::LookUp | LedgerOp::Read => (&self.pool, None),
            LedgerOp::Totals | LedgerOp::Report => (&self.reports, Some(REPORT)),
            LedgerOp::Tally => (&self.reports, Some(CHANGE)),
            LedgerOp::Reserve | LedgerOp::Send | LedgerOp::Book(_) | LedgerOp::Write | LedgerOp::Change => {
                (&self.pool, Some(CHANGE))
            }
        };
        observed(self.observer.as_deref(), op, pool.run(mode, locks, work)).await
    }

    async fn ask<A: Send + Sync + 'static, T: Send + 'static>(
        &self,
        op: LedgerOp,
        asked: A,
        work: Work<A, T>,
    ) -> Result<T, LedgerError> {
        let locks = if op == LedgerOp::Send { &[Lock::Freeze.shared()][..] } else { &[] };
        self.ask_behind(locks, op, asked, work).await
    }
}

sql_ledger! { PostgresLedger {
    async fn reserve(&self, wanted: Reservation) -> Result<Reserved, LedgerError> {
        let locks = [Lock::Freeze.shared(), key_lock(&wanted.key)];
        let work: Work<_, _> = |tx, wanted| Box::pin(reserve::reserve(tx, wanted));
        self.ask_behind(&locks, Reserve, wanted, work).await
    }

    /// Settles nothing: other owners may live. A start needs no database.
    async fn recover(&self) -> Result<Recovery, LedgerError> {
        Ok(Recovery::default())
    }
} }
