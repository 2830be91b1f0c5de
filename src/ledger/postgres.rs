//! The ledger of a fleet: tables of a PostgreSQL database, shared by several processes. A unique index allows
//! one row per key and generation. Each reservation locks the counters of its budgets in the same order. A
//! freeze is exact from its commit, because spending transactions share an advisory lock. All locks end with
//! their transaction. The only wall clock is the database's.
//!
//! Each process has a random name, the owner of its rows. It does not know its own row when the commit of a
//! reservation was never acknowledged; so searches for foreign calls exclude calls in hand, not the owner.
//!
//! Signed result URLs are only in the table `answers`, in rows that are deleted when their state ends. PostgreSQL
//! keeps deleted rows until a vacuum, for which this table asks at once, and in its log and backups.

mod connect;
mod failure;
mod lease;
mod pool;
mod query;
mod schema;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use jiff::tz::TimeZone;
use uuid::Uuid;

use self::failure::Failure;
use self::pool::{CHANGE, Limits, Pool, PoolConfig, REPORT};
use self::query::{Work, key_lock};
use super::sql::{Keeper, Lock, sql_ledger};
use super::{LedgerError, LedgerObserver, LedgerOp, observed};
use crate::base::clock::Clock;

pub use self::pool::AddressSource;

#[derive(Clone)]
pub struct PostgresConfig {
    pub address: AddressSource,
    /// Root certificates, in PEM; otherwise the system's.
    pub roots: Option<PathBuf>,
    pub zone: TimeZone,
    /// Bytes.
    pub spool_max: u64,
    /// Instead of the database's clock, for tests.
    pub clock: Option<Clock>,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum ProofError {
    #[error("{0}")]
    Unfit(String),
    #[error(transparent)]
    Unavailable(LedgerError),
}

pub struct PostgresLedger {
    pool: Pool,
    /// For large reads, and for writes that may wait.
    reports: Pool,
    keeper: Arc<Keeper>,
    observer: Option<Arc<dyn LedgerObserver>>,
}

impl PostgresLedger {
    /// Does not connect. The first connection creates or migrates the tables.
    pub fn new(config: PostgresConfig) -> Self {
        let PostgresConfig { address, roots, zone, spool_max, clock } = config;
        let owner = Uuid::new_v4().simple().to_string();
        let keeper = Arc::new(Keeper::new(owner, spool_max, zone));
        let is_prepared = Arc::default();
        let config = PoolConfig { address, roots, keeper: Arc::clone(&keeper), clock, is_prepared };
        let pool = Pool::new(config.clone(), Limits::CALLS);
        Self { pool, reports: Pool::new(config, Limits::REPORTS), keeper, observer: None }
    }

    #[must_use]
    pub(crate) fn with_observer(self, observer: Option<Arc<dyn LedgerObserver>>) -> Self {
        Self { observer, ..self }
    }

    /// Connects, and checks that the database is fit.
    pub async fn prove(&self) -> Result<(), ProofError> {
        self.pool.prove().await.map_err(|failure| match failure {
            Failure::Unfit(why) => ProofError::Unfit(why),
            other => ProofError::Unavailable(other.into_ledger_error()),
        })
    }

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
        // Taken with the begin of the transaction, which saves a round trip.
        let locks = [Lock::Freeze.shared(), key_lock(&wanted.key)];
        let work: Work<_, _> = |tx, wanted| Box::pin(reserve::reserve(tx, wanted));
        self.ask_behind(&locks, Reserve, wanted, work).await
    }

    /// Settles nothing, because other owners may be alive.
    async fn recover(&self) -> Result<Recovery, LedgerError> {
        Ok(Recovery::default())
    }
} }
