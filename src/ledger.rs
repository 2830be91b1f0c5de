//! The seam to the book of all paid calls: trait [`Ledger`] of five small ones, and what stands in it.
//!
//! One row per call is at once the budget reservation, the lock on its key, the journal, the bill
//! and the index of what is stored. A state changes only along [`Booking`]s, each of which is one
//! durable transaction: when a method has returned `Ok`, the change survives a crash.
//!
//! Results that wait for the store rest in the book too, in its [`spool`].
//!
//! Implementations: [`sqlite`] for one process, [`postgres`] for several. What they decide is in
//! `rules`, what they do alike in `sql`.
//! This module knows no store, no upstream and no HTTP.

pub mod address;
pub mod admin;
mod booking;
pub mod budget;
pub mod guard;
pub mod postgres;
pub(crate) mod rules;
pub mod spool;
pub mod spooling;
mod sql;
pub mod sqlite;
mod state;
pub mod usage;

use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;

pub use self::booking::Booking;
use self::budget::{Budget, BudgetRefusal, Scope, Used};
use self::spool::{SpoolUsage, Spooled};
pub use self::state::CallState;
use crate::base::archive::{ArchiveId, Import, Membership};
use crate::base::key::{CacheKey, Digest};
use crate::base::picture::ObjectName;
use crate::base::record::Record;
use crate::base::secret::Secret;

/// The number of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct CallId(pub i64);

/// What is asked of [`Calls::reserve`].
#[derive(Clone, Debug)]
pub struct Reservation {
    pub namespace: String,
    pub key: CacheKey,
    /// Buy although a result is stored: the call gets the next generation.
    pub refresh: bool,
    pub team: String,
    pub credits: u64,
    /// Every budget the credits must fit into.
    pub budgets: Vec<Budget>,
    /// BLAKE3 of the picture.
    pub image: Digest,
    pub width: u32,
    pub height: u32,
}

impl Reservation {
    /// The budgets that refuse.
    pub fn enforced(&self) -> impl Iterator<Item = &Budget> {
        self.budgets.iter().filter(|budget| budget.enforced)
    }
}

/// What [`Calls::reserve`] decided, in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reserved {
    Won(Won),
    /// Another call holds the key and is not done yet.
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

/// The answer to [`Calls::mark_sent`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permit {
    /// The tail may go: the row says `sent`.
    Granted,
    /// Spending was frozen meanwhile: the tail must not go.
    Frozen(Scope),
    /// The row is no longer ours: the tail must not go.
    Lost,
}

/// An `answered` row whose owner died: its result is paid for and must still be fetched and kept.
#[derive(Clone, Debug)]
pub struct UnfinishedCall {
    pub id: CallId,
    pub reservation: Reservation,
    pub generation: u64,
    pub text: Secret,
    pub answered_at: Timestamp,
}

/// What a start found and settled.
#[derive(Debug, Default)]
pub struct Recovery {
    /// Rows that were `reserved` and are `released` now.
    pub released: u64,
    /// Rows that were `sent` and are `unknown` now.
    pub unknown: u64,
    /// Rows that are `answered` and wait for their result.
    pub unfinished: Vec<UnfinishedCall>,
}

impl Recovery {
    /// Counts a call that was in this state and is settled.
    pub(crate) fn add(&mut self, state: CallState) {
        match state {
            CallState::Reserved => self.released += 1,
            _ => self.unknown += 1,
        }
    }
}

/// An open row that nobody here has in hand, as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ForeignOpenCall {
    pub id: CallId,
    /// How far it was: `reserved`, `sent` or `answered`.
    pub state: CallState,
    /// Another one after each change of its state or owner and each [`Leases::renew`].
    pub heartbeat: u64,
}

/// What was refreshed or purged: answers under these keys that were read before are out of date.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub position: u64,
    pub keys: Vec<(String, CacheKey)>,
}

/// A call that is `unknown` because its owner died.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    pub id: CallId,
    pub namespace: String,
    pub key: CacheKey,
}

/// The number of rows in a state, and the sum of their credits. Imported rows are not in it: they
/// were paid through another ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateTotal {
    pub state: CallState,
    pub calls: u64,
    /// Credits.
    pub credits: u64,
}

/// Takes calls from the reservation to their result. All methods may be called concurrently; a dropped
/// future may still take effect. This holds for the other traits of a ledger too.
#[async_trait]
pub trait Calls: Send + Sync {
    /// The newest result stored under a key. An error says that it is not known whether there is one.
    async fn look_up(&self, namespace: &str, key: CacheKey) -> Result<Option<Record>, LedgerError>;

    /// Takes the right to buy a key, with its budgets, or says why not. Exactly one caller wins; after an
    /// error nothing may be bought.
    async fn reserve(&self, reservation: Reservation) -> Result<Reserved, LedgerError>;

    /// The last gate before money is spent: the row is still ours and nothing is frozen. After
    /// [`Permit::Granted`] the call counts as sent, whatever happens. After an error the tail must not
    /// go, and the row may say `sent` all the same.
    async fn mark_sent(&self, id: CallId) -> Result<Permit, LedgerError>;

    /// Books how a call went on. Booking the state a row already has is success, so that a booking
    /// whose outcome was lost can be repeated. After an error it is not booked, as far as is known;
    /// after [`LedgerError::SpoolFull`] certainly not.
    async fn book(&self, id: CallId, booking: Booking) -> Result<(), LedgerError>;

    /// Settles what dead owners left open; called once at start, before anything is reserved. Where
    /// owners live beside each other ([`Leases::has_leases`]) it settles nothing.
    async fn recover(&self) -> Result<Recovery, LedgerError>;

    /// While it is `Some`, the store is away, and [`reserve`](Self::reserve) takes a call only when the
    /// spool could take a result of so many bytes from each open call and from this one; else
    /// [`LedgerError::SpoolFull`]. Holds for this process. Nothing happens in a ledger without bounds.
    fn keep_room(&self, _each: Option<u64>) {}

    /// Is what it is kept in whole? Nothing is reserved before that is known.
    fn soundness(&self) -> Soundness {
        Soundness::Sound
    }
}

/// Tells whose owners live where several processes keep a ledger at the same time. Elsewhere a lock
/// says so, and there are no leases.
#[async_trait]
pub trait Leases: Send + Sync {
    /// Must each process say again and again that it lives? Otherwise nothing else here is called.
    fn has_leases(&self) -> bool {
        false
    }

    /// Says that the owner of these calls lives, and tells which of them are open and its own still.
    async fn renew(&self, calls: Vec<CallId>) -> Result<Vec<CallId>, LedgerError> {
        Ok(calls)
    }

    /// The open calls that are not among these, which the asker has in hand: other owners', and such
    /// as it made without learning of it. Whoever sees one unchanged for a full lease, by his own
    /// clock, may take it over; a wall clock is never asked.
    async fn foreign_calls(&self, _in_hand: Vec<CallId>) -> Result<Vec<ForeignOpenCall>, LedgerError> {
        Ok(Vec::new())
    }

    /// Acts for owners that are silent: what is `reserved` becomes `released`, what is `sent`
    /// becomes `unknown`, and what is `answered` becomes ours to finish. A call that is not as it was
    /// seen any more is left alone. After an error some may have been taken; what was `answered` is
    /// seen as silent again.
    async fn take_over(&self, _silent: Vec<ForeignOpenCall>) -> Result<Recovery, LedgerError> {
        Ok(Recovery::default())
    }
}

/// Keeps results that wait for the store.
#[async_trait]
pub trait SpoolTable: Send + Sync {
    /// The bytes of an object that waits in the spool, as they were given; `None` when it does not.
    async fn spooled_object(&self, name: ObjectName) -> Result<Option<Bytes>, LedgerError>;

    /// Does an object of this name wait in the spool?
    async fn is_spooled(&self, name: ObjectName) -> Result<bool, LedgerError> {
        Ok(self.spooled_object(name).await?.is_some())
    }

    /// What waits in the spool behind a position, oldest first, at most `limit`; from 0 on, all do.
    async fn spooled(&self, after: u64, limit: usize) -> Result<Vec<Spooled>, LedgerError>;

    /// Takes a call's result out of the spool. Only for one whose object and record the store has
    /// confirmed. `standing` is the record that now stands there under the key: one of another
    /// purchase takes the key, and this row leaves it. Nothing happens when the result is not in
    /// the spool (any more).
    async fn unspool(&self, id: CallId, standing: &Record) -> Result<(), LedgerError>;

    /// What is in the spool, and what may still come.
    async fn spool_usage(&self) -> Result<SpoolUsage, LedgerError>;
}

/// Tells which archive a ledger belongs to, and learns what is in it.
#[async_trait]
pub trait ArchiveIndex: Send + Sync {
    /// The archive this ledger belongs to; `None` for one that has never met its store.
    async fn archive(&self) -> Result<Option<Membership>, LedgerError>;

    /// Takes `archive` as its own, not settled yet, unless it has one; returns what stands.
    async fn begin_archive(&self, archive: ArchiveId) -> Result<Membership, LedgerError>;

    /// From now on it belongs to `archive`, whatever it belonged to, and the store is known to too.
    /// Every record of the store is to be imported.
    async fn settle_archive(&self, archive: ArchiveId) -> Result<(), LedgerError>;

    /// Notes how far the import is, unless the ledger belongs to another archive by now. After an error
    /// a part of it is repeated.
    async fn note_import(&self, archive: ArchiveId, import: Import) -> Result<(), LedgerError>;

    /// Makes a record of the store known to the ledger. If its call is `unknown` because the owner
    /// died ([`orphans`](Self::orphans)), that row becomes `stored`; otherwise an unpaid row is added.
    /// A result that was booked as lost is not imported again, nor one that was purged.
    async fn import_record(&self, record: &Record) -> Result<(), LedgerError>;

    /// Says that the store no longer has what a record names: the row becomes `lost`, and the key
    /// may be bought again. Nothing happens when another result is stored under the key by now.
    async fn lose(&self, record: &Record) -> Result<(), LedgerError>;

    /// Returns true when a key that is not found here has no record in the store either: the import
    /// is complete, and no call of the key is an orphan.
    async fn knows_all_of(&self, namespace: &str, key: CacheKey) -> Result<bool, LedgerError>;

    /// Calls that are `unknown` because their owner died: it may have kept a result in the store that
    /// it could not book.
    async fn orphans(&self) -> Result<Vec<Orphan>, LedgerError>;
}

/// Answers what is asked often and beside the calls.
#[async_trait]
pub trait Queries: Send + Sync {
    /// What was refreshed or purged behind a position, by whatever process, in an order in which
    /// nothing appears later behind one that was told; with `None` only the position to begin from.
    async fn changes(&self, after: Option<u64>) -> Result<Changes, LedgerError>;

    /// The generation up to which everything under a key counts as absent
    /// ([`LedgerAdmin::purge`](admin::LedgerAdmin::purge)); `None` when it was never purged.
    /// [`Calls::look_up`] finds nothing up to it, [`ArchiveIndex::import_record`] takes nothing in,
    /// and [`Calls::reserve`] gives a higher one.
    async fn purged(&self, namespace: &str, key: CacheKey) -> Result<Option<u64>, LedgerError>;

    /// Calls and credits by state, every state once.
    async fn totals(&self) -> Result<Vec<StateTotal>, LedgerError>;

    /// What is used of some budgets in their current windows, in the order asked.
    async fn used(&self, budgets: Vec<Budget>) -> Result<Vec<Used>, LedgerError>;
}

/// A whole ledger. Where only one of its parts is needed, ask for that.
pub trait Ledger: Calls + Leases + SpoolTable + ArchiveIndex + Queries {}

impl<L: Calls + Leases + SpoolTable + ArchiveIndex + Queries + ?Sized> Ledger for L {}

/// What is asked of a ledger, as far as it is told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LedgerOp {
    LookUp,
    Reserve,
    Send,
    /// A booking that leads to this state.
    Book(CallState),
    Read,
    Write,
    /// Reads much, as a report does.
    Totals,
    /// Asked by people, who may wait.
    Report,
    /// A change by an operator.
    Change,
    /// A change for reports, which may wait.
    Tally,
}

impl LedgerOp {
    /// Returns true for changes on the way from a request to its result.
    pub(crate) fn is_write(self) -> bool {
        matches!(self, Self::Reserve | Self::Send | Self::Book(_) | Self::Write)
    }
}

/// Sees each operation of a ledger, with the error of one that failed.
pub(crate) trait LedgerObserver: Send + Sync {
    fn observe(&self, op: LedgerOp, took: Duration, error: Option<&LedgerError>);
}

/// Does what is asked of a ledger before an observer's eyes.
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

/// What is known of the file a ledger is kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Soundness {
    /// It is still being read.
    Checking,
    Sound,
    /// It is damaged, until a person has restored it.
    Damaged,
}

/// Why the ledger could not do what it was asked; safe to log.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LedgerError {
    /// It cannot be asked or written at the moment.
    #[error("the ledger is unavailable: {0}")]
    Unavailable(String),
    /// The spool has no room for a result; nothing was changed.
    #[error("the spool is full: a result of {wanted} bytes does not fit beside {used} of {max}")]
    SpoolFull {
        wanted: u64,
        /// Bytes that wait already, or are kept free for calls under way.
        used: u64,
        max: u64,
    },
    /// Its file is damaged: nothing may be bought before a person has mended it.
    #[error("the ledger is damaged: {0}")]
    Damaged(String),
    /// The booking contradicts the row: a bug, or a hand in the ledger.
    #[error("call {id} is {state} and cannot become {wanted}")]
    Contradiction { id: i64, state: String, wanted: &'static str },
}
