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

mod admin;
mod audit;
mod book;
mod connect;
mod inspect;
mod lease;
mod limits;
mod membership;
mod pool;
mod reserve;
mod rows;
mod schema;
mod spool;
#[cfg(test)]
mod tests;
mod usage;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::tz::TimeZone;
use uuid::Uuid;

use self::book::Booker;
use self::lease::Taken;
use self::limits::Limits;
use self::pool::{Failure, Lock, Pool, PoolConfig};
use self::reserve::FillRequest;
use self::spool::Room;
use super::budget::{Budget, Scope, Used, Windows};
use super::spool::{SpoolUsage, Spooled};
use super::{
    Booking, CallId, Changes, ForeignOpenCall, Ledger, LedgerError, Orphan, Permit, Recovery, Reservation,
    Reserved, StateTotal,
};
use crate::base::archive::{ArchiveId, Import, Membership};
use crate::base::clock::Clock;
use crate::base::key::CacheKey;
use crate::base::picture::ObjectName;
use crate::base::record::Record;

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
    booker: Booker,
    /// Bytes that [`Ledger::keep_room`] keeps for each open call; 0 when it does not.
    kept_for_each: AtomicU64,
}

impl PostgresLedger {
    /// Connects nowhere yet. The tables are made, or brought up to date, over the first connection.
    pub fn new(config: PostgresConfig) -> Self {
        let PostgresConfig { address, roots, zone, spool_max, clock } = config;
        let pool = Pool::new(PoolConfig { address, roots, clock }, Limits::CALLS);
        Self {
            reports: pool.beside(Limits::REPORTS),
            pool,
            booker: Booker { owner: Uuid::new_v4().simple().to_string(), spool_max, zone },
            kept_for_each: AtomicU64::new(0),
        }
    }

    /// Connects, and finds out whether the ledger may be kept there.
    ///
    /// # Errors
    /// [`ProofError`].
    pub async fn prove(&self) -> Result<(), ProofError> {
        self.pool.prove().await.map_err(|failure| match failure {
            Failure::Unfit(unfit) => ProofError::Unfit(unfit.to_string()),
            other => ProofError::Unavailable(other.into_ledger_error()),
        })
    }
}

#[async_trait]
impl Ledger for PostgresLedger {
    async fn look_up(&self, namespace: &str, key: CacheKey) -> Result<Option<Record>, LedgerError> {
        let namespace: Arc<str> = namespace.into();
        self.pool
            .read(move |tx| {
                let namespace = Arc::clone(&namespace);
                async move { rows::stored(&tx, &namespace, key).await }
            })
            .await
    }

    async fn reserve(&self, reservation: Reservation) -> Result<Reserved, LedgerError> {
        let each = self.kept_for_each.load(Ordering::Relaxed);
        let locks = reserve::locks(&reservation.key);
        let wanted = Arc::new(FillRequest {
            reservation,
            owner: self.booker.owner.clone(),
            room: (each > 0).then_some(Room { each, max: self.booker.spool_max }),
            zone: self.booker.zone.clone(),
        });
        self.pool
            .write(&locks, move |tx| {
                let wanted = Arc::clone(&wanted);
                async move { reserve::reserve(&tx, &wanted).await }
            })
            .await
    }

    async fn mark_sent(&self, id: CallId) -> Result<Permit, LedgerError> {
        let booker = Arc::new(self.booker.clone());
        self.pool
            .write(&[Lock::Freeze.shared()], move |tx| {
                let booker = Arc::clone(&booker);
                async move { reserve::mark_sent(&tx, id, &booker).await }
            })
            .await
    }

    async fn book(&self, id: CallId, booking: Booking) -> Result<(), LedgerError> {
        let what = Arc::new((booking, self.booker.clone()));
        self.pool
            .write(&[], move |tx| {
                let what = Arc::clone(&what);
                async move { book::book(&tx, id, &what.0, &what.1).await }
            })
            .await
    }

    async fn import_record(&self, record: &Record) -> Result<(), LedgerError> {
        let what = Arc::new((record.clone(), self.booker.clone()));
        self.pool
            .write(&[], move |tx| {
                let what = Arc::clone(&what);
                async move {
                    let (record, booker) = &*what;
                    match lease::orphan_of(&tx, record).await? {
                        Some(id) => {
                            let booking =
                                Booking::Stored { record: Box::new(record.clone()), holds_key: true };
                            book::book(&tx, id, &booking, booker).await
                        }
                        None => {
                            let windows = Windows::at(record.stored_at, &booker.zone);
                            book::import_record(&tx, record, &windows).await
                        }
                    }
                }
            })
            .await
    }

    async fn lose(&self, record: &Record) -> Result<(), LedgerError> {
        let what = Arc::new((record.clone(), self.booker.clone()));
        self.pool
            .write(&[], move |tx| {
                let what = Arc::clone(&what);
                async move { book::lose(&tx, &what.0, &what.1).await }
            })
            .await
    }

    /// Settles nothing: other owners may live. It is not even asked, so that a start needs no database.
    async fn recover(&self) -> Result<Recovery, LedgerError> {
        Ok(Recovery::default())
    }

    fn has_leases(&self) -> bool {
        true
    }

    async fn renew(&self, calls: Vec<CallId>) -> Result<Vec<CallId>, LedgerError> {
        let ids: Arc<[i64]> = calls.into_iter().map(|call| call.0).collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let owner: Arc<str> = self.booker.owner.as_str().into();
        self.pool
            .write(&[], move |tx| {
                let (ids, owner) = (Arc::clone(&ids), Arc::clone(&owner));
                async move { lease::renew(&tx, &ids, &owner).await }
            })
            .await
    }

    async fn foreign_calls(&self, in_hand: Vec<CallId>) -> Result<Vec<ForeignOpenCall>, LedgerError> {
        let in_hand: Arc<[i64]> = in_hand.into_iter().map(|call| call.0).collect();
        self.pool
            .read(move |tx| {
                let in_hand = Arc::clone(&in_hand);
                async move { lease::foreign(&tx, &in_hand).await }
            })
            .await
    }

    /// Each in a transaction of its own: counters are locked last, and no two wait for each other.
    async fn take_over(&self, silent: Vec<ForeignOpenCall>) -> Result<Recovery, LedgerError> {
        let mut recovery = Recovery::default();
        for call in silent {
            let booker = self.booker.clone();
            let taken = self.pool.write(&[], move |tx| {
                let booker = booker.clone();
                async move { lease::take_over(&tx, call, &booker).await }
            });
            match taken.await? {
                Taken::Nothing => {}
                Taken::Released => recovery.released += 1,
                Taken::Unknown => recovery.unknown += 1,
                Taken::Unfinished(call) => recovery.unfinished.push(*call),
            }
        }
        Ok(recovery)
    }

    async fn changes(&self, after: Option<u64>) -> Result<Changes, LedgerError> {
        self.pool.read(move |tx| async move { rows::changes(&tx, after).await }).await
    }

    async fn purged(&self, namespace: &str, key: CacheKey) -> Result<Option<u64>, LedgerError> {
        let namespace: Arc<str> = namespace.into();
        self.pool
            .read(move |tx| {
                let namespace = Arc::clone(&namespace);
                async move { admin::purged(&tx, &namespace, key).await }
            })
            .await
    }

    async fn totals(&self) -> Result<Vec<StateTotal>, LedgerError> {
        self.reports.read(|tx| async move { rows::totals(&tx).await }).await
    }

    async fn used(&self, budgets: Vec<Budget>) -> Result<Vec<Used>, LedgerError> {
        let what = Arc::new((budgets, self.booker.zone.clone()));
        self.pool
            .read(move |tx| {
                let what = Arc::clone(&what);
                async move {
                    let (budgets, zone) = &*what;
                    let windows = Windows::at(tx.ask_clock().await?, zone);
                    rows::used(&tx, budgets, &windows).await
                }
            })
            .await
    }

    async fn set_frozen(&self, scope: Scope, frozen: bool) -> Result<(), LedgerError> {
        let scope = Arc::new(scope);
        self.pool
            .write(&[Lock::Freeze.exclusive()], move |tx| {
                let scope = Arc::clone(&scope);
                async move { reserve::set_frozen(&tx, &scope, frozen).await.map(|_| ()) }
            })
            .await
    }

    async fn archive(&self) -> Result<Option<Membership>, LedgerError> {
        self.pool.read(|tx| async move { membership::read(&tx).await }).await
    }

    async fn begin_archive(&self, archive: ArchiveId) -> Result<Membership, LedgerError> {
        self.pool.write(&[], move |tx| async move { membership::begin(&tx, archive).await }).await
    }

    async fn settle_archive(&self, archive: ArchiveId) -> Result<(), LedgerError> {
        self.pool.write(&[], move |tx| async move { membership::settle(&tx, archive).await }).await
    }

    async fn note_import(&self, archive: ArchiveId, import: Import) -> Result<(), LedgerError> {
        let import = Arc::new(import);
        self.pool
            .write(&[], move |tx| {
                let import = Arc::clone(&import);
                async move { membership::note_import(&tx, archive, &import).await }
            })
            .await
    }

    async fn knows_all_of(&self, namespace: &str, key: CacheKey) -> Result<bool, LedgerError> {
        let namespace: Arc<str> = namespace.into();
        self.pool
            .read(move |tx| {
                let namespace = Arc::clone(&namespace);
                async move { lease::knows_all_of(&tx, &namespace, key).await }
            })
            .await
    }

    async fn orphans(&self) -> Result<Vec<Orphan>, LedgerError> {
        self.pool.read(move |tx| async move { lease::orphans(&tx).await }).await
    }

    async fn spooled_object(&self, name: ObjectName) -> Result<Option<Bytes>, LedgerError> {
        self.pool.read(move |tx| async move { spool::object(&tx, name).await }).await
    }

    async fn is_spooled(&self, name: ObjectName) -> Result<bool, LedgerError> {
        self.pool.read(move |tx| async move { spool::has(&tx, name).await }).await
    }

    async fn spooled(&self, after: u64, limit: usize) -> Result<Vec<Spooled>, LedgerError> {
        self.pool.read(move |tx| async move { spool::list(&tx, after, limit).await }).await
    }

    async fn unspool(&self, id: CallId, standing: &Record) -> Result<(), LedgerError> {
        let what = Arc::new((standing.clone(), Windows::at(standing.stored_at, &self.booker.zone)));
        self.pool
            .write(&[], move |tx| {
                let what = Arc::clone(&what);
                async move { spool::remove(&tx, id, &what.0, &what.1).await }
            })
            .await
    }

    async fn spool_usage(&self) -> Result<SpoolUsage, LedgerError> {
        self.pool.read(|tx| async move { spool::usage(&tx).await }).await
    }

    fn keep_room(&self, each: Option<u64>) {
        self.kept_for_each.store(each.unwrap_or(0), Ordering::Relaxed);
    }
}
