//! The seam to the journal of all paid calls: trait [`Ledger`] of five small ones, and its rows.
//!
//! One row per call is at once the budget reservation, the lock on its key, the journal, the bill and the
//! index of stored results. A state changes only by a [`Booking`], which is one durable transaction: when a
//! method has returned `Ok`, the change survives a crash.
//!
//! [`sqlite`] is for one process, [`postgres`] for several. Only [`guard`] and [`spooling`] know the store.

pub mod address;
pub mod admin;
mod booking;
pub mod budget;
pub mod guard;
pub mod postgres;
pub(crate) mod rules;
pub mod spooling;
mod sql;
pub mod sqlite;
pub mod usage;

use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;

pub use self::booking::{Booking, CallState};
use self::budget::{Budget, BudgetRefusal, Scope, Used};
use crate::base::archive::{ArchiveId, Import, Membership};
use crate::base::key::{CacheKey, Digest};
use crate::base::picture::ObjectName;
use crate::base::record::Record;
use crate::base::secret::Secret;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct CallId(pub i64);

#[derive(Clone, Debug)]
pub struct Reservation {
    pub namespace: String,
    pub key: CacheKey,
    /// Buy the next generation although a result is stored.
    pub refresh: bool,
    pub team: String,
    pub credits: u64,
    pub budgets: Vec<Budget>,
    pub image: Digest,
    pub width: u32,
    pub height: u32,
}

impl Reservation {
    pub fn enforced(&self) -> impl Iterator<Item = &Budget> {
        self.budgets.iter().filter(|budget| budget.enforced)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reserved {
    Won(Won),
    /// Another open call holds the key.
    Held(CallId),
    Stored(Box<Record>),
    /// After an unknown or unfetchable outcome the key rests.
    Resting {
        until: Timestamp,
        wait: Duration,
    },
    OverBudget(BudgetRefusal),
    Frozen(Scope),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Won {
    pub id: CallId,
    pub generation: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permit {
    /// The row is `sent`, and the end of the request may be sent.
    Granted,
    Frozen(Scope),
    /// The row is no longer ours.
    Lost,
}

/// Paid for by an owner that died; the result must still be downloaded and stored.
#[derive(Clone, Debug)]
pub struct UnfinishedCall {
    pub id: CallId,
    pub reservation: Reservation,
    pub generation: u64,
    pub text: Secret,
    pub answered_at: Timestamp,
}

#[derive(Debug, Default)]
pub struct Recovery {
    pub released: u64,
    pub unknown: u64,
    pub unfinished: Vec<UnfinishedCall>,
}

impl Recovery {
    /// Counts a settled call by its state before.
    pub(crate) fn add(&mut self, state: CallState) {
        match state {
            CallState::Reserved => self.released += 1,
            _ => self.unknown += 1,
        }
    }
}

/// An open row that this process does not work on, as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ForeignOpenCall {
    pub id: CallId,
    pub state: CallState,
    /// Changes with the state, with the owner, and with each [`Leases::renew`].
    pub heartbeat: u64,
}

/// Keys that were refreshed or purged: answers read before are out of date.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub position: u64,
    pub keys: Vec<(String, CacheKey)>,
}

/// What a ledger that has no result under a key knows of the store's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// The store has none either: the import is complete, and no owner of a call may have written one.
    Certain,
    /// An open call may have written one that is not booked yet. A reservation meets that call.
    OpenCall,
    /// The import is not complete, or a call of the key is an [orphan](ArchiveIndex::orphans).
    Uncertain,
}

impl Absence {
    pub(crate) fn of(is_complete: bool, has_orphan: bool, has_open_call: bool) -> Self {
        match (is_complete && !has_orphan, has_open_call) {
            (false, _) => Self::Uncertain,
            (true, true) => Self::OpenCall,
            (true, false) => Self::Certain,
        }
    }
}

/// A call that is `unknown` because its owner died, which may have stored a result that it could not book.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    pub id: CallId,
    pub namespace: String,
    pub key: CacheKey,
}

/// The rows in a state, without imported ones, which were paid through another ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateTotal {
    pub state: CallState,
    pub calls: u64,
    pub credits: u64,
}

/// All methods of a ledger may be called concurrently; a dropped future may still take effect.
#[async_trait]
pub trait Calls: Send + Sync {
    /// The newest result stored under a key. After an error it is not known whether there is one.
    async fn look_up(&self, namespace: &str, key: CacheKey) -> Result<Option<Record>, LedgerError>;

    /// Takes the right to buy a key, and its budgets. Exactly one reservation wins; after an error none has.
    async fn reserve(&self, reservation: Reservation) -> Result<Reserved, LedgerError>;

    /// The last check before money is spent. Without [`Permit::Granted`] the end of the request must not be
    /// sent; after an error the row may be `sent` all the same.
    async fn mark_sent(&self, id: CallId) -> Result<Permit, LedgerError>;

    /// May be repeated. After an error it may be booked, except after [`LedgerError::SpoolFull`].
    async fn book(&self, id: CallId, booking: Booking) -> Result<(), LedgerError>;

    /// Settles the open calls of dead owners at start; with [`Leases::has_leases`], none.
    async fn recover(&self) -> Result<Recovery, LedgerError>;

    /// With `Some`, [`reserve`](Self::reserve) takes a call only when the spool has room for a result of this
    /// many bytes from each open call and this one; else [`LedgerError::SpoolFull`].
    fn keep_room(&self, _each: Option<u64>) {}

    /// Nothing is reserved unless the file is known to be sound.
    fn soundness(&self) -> Soundness {
        Soundness::Sound
    }
}

/// Shows which owners are alive where several processes keep one ledger; else a file lock does.
#[async_trait]
pub trait Leases: Send + Sync {
    /// Returns true when calls have leases; otherwise nothing else here is called.
    fn has_leases(&self) -> bool {
        false
    }

    /// Renews the leases of these calls; returns those that are still open and our own.
    async fn renew(&self, calls: Vec<CallId>) -> Result<Vec<CallId>, LedgerError> {
        Ok(calls)
    }

    /// The open calls except `in_hand`: those of other owners, and our own whose reservation was never
    /// acknowledged. One that is unchanged for a full lease, by our own clock, may be taken over.
    async fn foreign_calls(&self, _in_hand: Vec<CallId>) -> Result<Vec<ForeignOpenCall>, LedgerError> {
        Ok(Vec::new())
    }

    /// Takes over calls that are unchanged since they were read: `reserved` becomes `released`, `sent` `unknown`,
    /// `answered` ours to finish. After an error some may have been taken; `answered` ones become silent again.
    async fn take_over(&self, _silent: Vec<ForeignOpenCall>) -> Result<Recovery, LedgerError> {
        Ok(Recovery::default())
    }
}

/// A paid result that waits in the ledger until the store has it ([`spooling`]). Its bytes, which are not read here,
/// are written in the transaction that makes its row `stored`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spooled {
    /// Ascending; never 0.
    pub position: u64,
    pub id: CallId,
    pub record: Record,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpoolUsage {
    pub objects: u64,
    pub bytes: u64,
    pub oldest_age: Option<Duration>,
    pub open_calls: u64,
    pub answered_calls: u64,
    pub oldest_answer_age: Option<Duration>,
}

#[async_trait]
pub trait SpoolTable: Send + Sync {
    async fn spooled_object(&self, name: ObjectName) -> Result<Option<Bytes>, LedgerError>;

    async fn is_spooled(&self, name: ObjectName) -> Result<bool, LedgerError> {
        Ok(self.spooled_object(name).await?.is_some())
    }

    /// At most `limit` results behind a position, oldest first; 0 is before all.
    async fn spooled(&self, after: u64, limit: usize) -> Result<Vec<Spooled>, LedgerError>;

    /// Removes a result whose object and record the store has confirmed, if it is in the spool. `standing` is
    /// the store's record under the key: one of another purchase takes the key from this row.
    async fn unspool(&self, id: CallId, standing: &Record) -> Result<(), LedgerError>;

    async fn spool_usage(&self) -> Result<SpoolUsage, LedgerError>;
}

/// Knows which archive a ledger belongs to, and imports its records.
#[async_trait]
pub trait ArchiveIndex: Send + Sync {
    /// `None` before the ledger has met a store.
    async fn archive(&self) -> Result<Option<Membership>, LedgerError>;

    /// Joins `archive`, not settled yet, unless the ledger belongs to one; returns what stands.
    async fn begin_archive(&self, archive: ArchiveId) -> Result<Membership, LedgerError>;

    /// Joins `archive`, whose marker the store carries, and restarts the import.
    async fn settle_archive(&self, archive: ArchiveId) -> Result<(), LedgerError>;

    /// Notes the progress of the import, unless the ledger belongs to another archive by now.
    async fn note_import(&self, archive: ArchiveId, import: Import) -> Result<(), LedgerError>;

    /// Imports a record of the store. If its call is an [orphan](Self::orphans), that row becomes `stored`;
    /// otherwise an unpaid row is added. Lost and purged results are not imported.
    async fn import_record(&self, record: &Record) -> Result<(), LedgerError>;

    /// Makes the row `lost`, so that the key may be bought again, unless the key has another result by now.
    async fn lose(&self, record: &Record) -> Result<(), LedgerError>;

    async fn absence(&self, namespace: &str, key: CacheKey) -> Result<Absence, LedgerError>;

    async fn orphans(&self) -> Result<Vec<Orphan>, LedgerError>;
}

#[async_trait]
pub trait Queries: Send + Sync {
    /// The keys that any process refreshed or purged behind a position; nothing appears later before a
    /// returned position. `None` returns only the position to begin from.
    async fn changes(&self, after: Option<u64>) -> Result<Changes, LedgerError>;

    /// The generation up to which everything under a key counts as absent after a
    /// [purge](admin::LedgerAdmin::purge). Lookups and imports ignore it; the next call gets a higher one.
    async fn purged(&self, namespace: &str, key: CacheKey) -> Result<Option<u64>, LedgerError>;

    /// Calls and credits by state, every state once.
    async fn totals(&self) -> Result<Vec<StateTotal>, LedgerError>;

    /// The credits used of these budgets in their current windows, in their order.
    async fn used(&self, budgets: Vec<Budget>) -> Result<Vec<Used>, LedgerError>;
}

pub trait Ledger: Calls + Leases + SpoolTable + ArchiveIndex + Queries {}

impl<L: Calls + Leases + SpoolTable + ArchiveIndex + Queries + ?Sized> Ledger for L {}

/// The operations of a ledger that metrics and databases distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LedgerOp {
    LookUp,
    Reserve,
    Send,
    Book(CallState),
    Read,
    Write,
    /// A large read of the metrics.
    Totals,
    /// A read of an operator or a team, which may wait.
    Report,
    /// A change by an operator.
    Change,
    /// A change of usage counts, which may wait.
    Tally,
}

impl LedgerOp {
    /// Returns true for changes on the way from a request to its result.
    pub(crate) fn is_write(self) -> bool {
        matches!(self, Self::Reserve | Self::Send | Self::Book(_) | Self::Write)
    }
}

pub(crate) trait LedgerObserver: Send + Sync {
    fn observe(&self, op: LedgerOp, took: Duration, error: Option<&LedgerError>);
}

async fn observed<T>(
    observer: Option<&dyn LedgerObserver>,
    op: LedgerOp,
    work: impl Future<Output = Result<T, LedgerError>>,
) -> Result<T, LedgerError> {
    let begun = Instant::now();
    let done = work.await;
    if let Some(observer) = observer {
        observer.observe(op, begun.elapsed(), done.as_ref().err());
    }
    done
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Soundness {
    Checking,
    Sound,
    Damaged(String),
}

/// An error of the ledger; safe to log.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("the ledger is unavailable: {0}")]
    Unavailable(String),
    /// Nothing was changed.
    #[error("the spool is full: a result of {wanted} bytes does not fit beside {used} of {max}")]
    SpoolFull {
        wanted: u64,
        /// Bytes in the spool, or kept free for open calls.
        used: u64,
        max: u64,
    },
    /// Nothing is bought before an operator has restored the file.
    #[error("the ledger is damaged: {0}")]
    Damaged(String),
    /// A bug, or a manual change of the ledger.
    #[error("call {id} is {state} and cannot become {wanted}")]
    Contradiction { id: i64, state: String, wanted: &'static str },
}
