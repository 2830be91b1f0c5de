//! The seam to the book of all paid calls: trait [`Ledger`], and what stands in it.
//!
//! One row per call is at once the budget reservation, the lock on its key, the journal, the bill
//! and the index of what is stored. A state changes only along [`Booking`]s, each of which is one
//! durable transaction: when a method has returned `Ok`, the change survives a crash.
//!
//! Results that wait for the store rest in the book too, in its [`spool`].
//!
//! Implementations: [`sqlite`] for one process, [`postgres`] for several.
//! This module knows no store, no upstream and no HTTP.

pub mod address;
pub mod admin;
mod booking;
pub mod budget;
pub mod guard;
pub mod postgres;
pub mod spool;
pub mod spooling;
pub mod sqlite;
mod state;
pub mod usage;

use std::time::Duration;

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId(pub i64);

/// What is asked of [`Ledger::reserve`].
#[derive(Clone, Debug)]
pub struct Reservation {
    /// Which upstream and operation.
    pub namespace: String,
    /// The request.
    pub key: CacheKey,
    /// Buy although a result is stored: the call gets the next generation.
    pub refresh: bool,
    /// Who pays.
    pub team: String,
    /// What the call costs.
    pub credits: u64,
    /// Every budget the credits must fit into.
    pub budgets: Vec<Budget>,
    /// BLAKE3 of the picture.
    pub image: Digest,
    /// Target width in pixels.
    pub width: u32,
    /// Target height in pixels.
    pub height: u32,
}

/// What [`Ledger::reserve`] decided, in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reserved {
    /// The key is ours to buy.
    Won(Won),
    /// Another call holds the key and is not done yet.
    Held(CallId),
    /// The result is stored already.
    Stored(Box<Record>),
    /// After an unknown or unfetchable outcome the key rests.
    Resting {
        /// Until then.
        until: Timestamp,
        /// From now.
        wait: Duration,
    },
    /// A budget does not have the credits.
    OverBudget(BudgetRefusal),
    /// Spending is frozen.
    Frozen(Scope),
}

/// A row just reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Won {
    /// The row.
    pub id: CallId,
    /// The generation it will have.
    pub generation: u64,
}

/// The answer to [`Ledger::mark_sent`].
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
    /// The row.
    pub id: CallId,
    /// What was bought, and by whom.
    pub reservation: Reservation,
    /// Its generation.
    pub generation: u64,
    /// The upstream's whole answer.
    pub text: Secret,
    /// When the answer became durable.
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

/// An open row that nobody here has in hand, as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ForeignOpenCall {
    /// The row.
    pub id: CallId,
    /// How far it was: `reserved`, `sent` or `answered`.
    pub state: CallState,
    /// Another one after each change of its state or owner and each [`Ledger::renew`].
    pub heartbeat: u64,
}

/// What was refreshed or purged: answers under these keys that were read before are out of date.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Where to go on from.
    pub position: u64,
    /// Namespaces and keys.
    pub keys: Vec<(String, CacheKey)>,
}

/// A call that is `unknown` because its owner died.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// The row.
    pub id: CallId,
    /// Which upstream and operation.
    pub namespace: String,
    /// The request.
    pub key: CacheKey,
}

/// The number of rows in a state, and the sum of their credits. Imported rows are not in it: they
/// were paid through another ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateTotal {
    /// The state.
    pub state: CallState,
    /// Rows.
    pub calls: u64,
    /// Credits.
    pub credits: u64,
}

/// Keeps the book. All methods may be called concurrently; a dropped future may still take effect.
#[async_trait]
pub trait Ledger: Send + Sync {
    /// The newest result stored under a key.
    ///
    /// # Errors
    /// [`LedgerError`]: whether there is one cannot be said.
    async fn look_up(&self, namespace: &str, key: CacheKey) -> Result<Option<Record>, LedgerError>;

    /// Takes the right to buy a key, with its budgets, or says why not. Exactly one caller wins.
    ///
    /// # Errors
    /// [`LedgerError`]: nothing may be bought.
    async fn reserve(&self, reservation: Reservation) -> Result<Reserved, LedgerError>;

    /// The last gate before money is spent: the row is still ours and nothing is frozen. After
    /// [`Permit::Granted`] the call counts as sent, whatever happens.
    ///
    /// # Errors
    /// [`LedgerError`]: the tail must not go, and the row may say `sent` all the same.
    async fn mark_sent(&self, id: CallId) -> Result<Permit, LedgerError>;

    /// LedgerHandles how a call went on. Booking the state a row already has is success, so that a booking
    /// whose outcome was lost can be repeated.
    ///
    /// # Errors
    /// [`LedgerError`]: not booked, as far as is known. [`LedgerError::SpoolFull`]: certainly not.
    async fn book(&self, id: CallId, booking: Booking) -> Result<(), LedgerError>;

    /// Makes a record of the store known to the ledger. If its call is `unknown` because the owner
    /// died ([`orphans`](Self::orphans)), that row becomes `stored`; otherwise an unpaid row is added.
    /// A result that was booked as lost is not imported again, nor one that was purged.
    ///
    /// # Errors
    /// [`LedgerError`]: not imported yet.
    async fn import_record(&self, record: &Record) -> Result<(), LedgerError>;

    /// Says that the store no longer has what a record names: the row becomes `lost`, and the key
    /// may be bought again. Nothing happens when another result is stored under the key by now.
    ///
    /// # Errors
    /// [`LedgerError`]: it still counts as stored.
    async fn lose(&self, record: &Record) -> Result<(), LedgerError>;

    /// Settles what dead owners left open; called once at start, before anything is reserved. Where
    /// owners live beside each other ([`has_leases`](Self::has_leases)) it settles nothing: see
    /// [`take_over`](Self::take_over).
    ///
    /// # Errors
    /// [`LedgerError`]: nothing may be bought before it succeeds.
    async fn recover(&self) -> Result<Recovery, LedgerError>;

    /// Do several processes keep this ledger at the same time, so that each must say again and again
    /// that it lives? Otherwise a lock says so, and the next four methods are never called.
    fn has_leases(&self) -> bool {
        false
    }

    /// Says that the owner of these calls lives, and tells which of them are open and its own still.
    ///
    /// # Errors
    /// [`LedgerError`]: it has not been said, as far as is known.
    async fn renew(&self, calls: Vec<CallId>) -> Result<Vec<CallId>, LedgerError> {
        Ok(calls)
    }

    /// The open calls that are not among these, which the asker has in hand: other owners', and such
    /// as it made without learning of it. Whoever sees one unchanged for a full lease, by his own
    /// clock, may take it over; a wall clock is never asked.
    ///
    /// # Errors
    /// [`LedgerError`].
    async fn foreign_calls(&self, _in_hand: Vec<CallId>) -> Result<Vec<ForeignOpenCall>, LedgerError> {
        Ok(Vec::new())
    }

    /// Acts for owners that are silent: what is `reserved` becomes `released`, what is `sent`
    /// becomes `unknown`, and what is `answered` becomes ours to finish. A call that is not as it was
    /// seen any more is left alone.
    ///
    /// # Errors
    /// [`LedgerError`]: some may have been taken; what was `answered` is seen as silent again.
    async fn take_over(&self, _silent: Vec<ForeignOpenCall>) -> Result<Recovery, LedgerError> {
        Ok(Recovery::default())
    }

    /// What was refreshed or purged behind a position, by whatever process, in an order in which
    /// nothing appears later behind one that was told; with `None` only the position to begin from.
    ///
    /// # Errors
    /// [`LedgerError`].
    async fn changes(&self, _after: Option<u64>) -> Result<Changes, LedgerError> {
        Ok(Changes::default())
    }

    /// The generation up to which everything under a key counts as absent
    /// ([`LedgerAdmin::purge`](admin::LedgerAdmin::purge)); `None` when it was never purged.
    /// [`look_up`](Self::look_up) finds nothing up to it, [`import_record`](Self::import_record) takes nothing in,
    /// and [`reserve`](Self::reserve) gives a higher one.
    ///
    /// # Errors
    /// [`LedgerError`].
    async fn purged(&self, _namespace: &str, _key: CacheKey) -> Result<Option<u64>, LedgerError> {
        Ok(None)
    }

    /// Calls and credits by state, every state once.
    ///
    /// # Errors
    /// [`LedgerError`].
    async fn totals(&self) -> Result<Vec<StateTotal>, LedgerError>;

    /// What is used of some budgets in their current windows, in the order asked.
    ///
    /// # Errors
    /// [`LedgerError`].
    async fn used(&self, budgets: Vec<Budget>) -> Result<Vec<Used>, LedgerError>;

    /// Stops (`true`) or resumes spending; exact from its return.
    ///
    /// # Errors
    /// [`LedgerError`].
    async fn set_frozen(&self, scope: Scope, frozen: bool) -> Result<(), LedgerError>;

    /// The archive this ledger belongs to; `None` for one that has never met its store.
    ///
    /// # Errors
    /// [`LedgerError`].
    async fn archive(&self) -> Result<Option<Membership>, LedgerError>;

    /// Takes `archive` as its own, not settled yet, unless it has one; returns what stands.
    ///
    /// # Errors
    /// [`LedgerError`].
    async fn begin_archive(&self, archive: ArchiveId) -> Result<Membership, LedgerError>;

    /// From now on it belongs to `archive`, whatever it belonged to, and the store is known to too.
    /// Every record of the store is to be imported.
    ///
    /// # Errors
    /// [`LedgerError`].
    async fn settle_archive(&self, archive: ArchiveId) -> Result<(), LedgerError>;

    /// Notes how far the import is, unless the ledger belongs to another archive by now.
    ///
    /// # Errors
    /// [`LedgerError`]: a part of it is repeated.
    async fn note_import(&self, archive: ArchiveId, import: Import) -> Result<(), LedgerError>;

    /// Returns true when a key that is not found here has no record in the store either: the import
    /// is complete, and no call of the key is an orphan.
    ///
    /// # Errors
    /// [`LedgerError`]: it cannot be said.
    async fn knows_all_of(&self, namespace: &str, key: CacheKey) -> Result<bool, LedgerError>;

    /// Calls that are `unknown` because their owner died: it may have kept a result in the store that
    /// it could not book.
    ///
    /// # Errors
    /// [`LedgerError`].
    async fn orphans(&self) -> Result<Vec<Orphan>, LedgerError>;

    /// The bytes of an object that waits in the spool, as they were given; `None` when it does not.
    ///
    /// # Errors
    /// [`LedgerError`]: whether it waits there cannot be said.
    async fn spooled_object(&self, name: ObjectName) -> Result<Option<Bytes>, LedgerError>;

    /// Does an object of this name wait in the spool?
    ///
    /// # Errors
    /// [`LedgerError`]: it cannot be said.
    async fn is_spooled(&self, name: ObjectName) -> Result<bool, LedgerError>;

    /// What waits in the spool behind a position, oldest first, at most `limit`; from 0 on, all do.
    ///
    /// # Errors
    /// [`LedgerError`].
    async fn spooled(&self, after: u64, limit: usize) -> Result<Vec<Spooled>, LedgerError>;

    /// Takes a call's result out of the spool. Only for one whose object and record the store has
    /// confirmed. `standing` is the record that now stands there under the key: one of another
    /// purchase takes the key, and this row leaves it. Nothing happens when the result is not in
    /// the spool (any more).
    ///
    /// # Errors
    /// [`LedgerError`]: it is still there, as far as is known.
    async fn unspool(&self, id: CallId, standing: &Record) -> Result<(), LedgerError>;

    /// What is in the spool, and what may still come.
    ///
    /// # Errors
    /// [`LedgerError`].
    async fn spool_usage(&self) -> Result<SpoolUsage, LedgerError>;

    /// While it is `Some`, the store is away, and [`reserve`](Self::reserve) takes a call only when the
    /// spool could take a result of so many bytes from each open call and from this one; else
    /// [`LedgerError::SpoolFull`]. Holds for this process. Nothing happens in a ledger without bounds.
    fn keep_room(&self, _each: Option<u64>) {}

    /// Is what it is kept in whole? Nothing is reserved before that is known.
    fn soundness(&self) -> Soundness {
        Soundness::Sound
    }
}

/// What is known of the file a ledger is kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Soundness {
    /// It is still being read.
    Checking,
    /// It is whole.
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
        /// Bytes of the result.
        wanted: u64,
        /// Bytes that wait already, or are kept free for calls under way.
        used: u64,
        /// Bytes that may wait.
        max: u64,
    },
    /// Its file is damaged: nothing may be bought before a person has mended it.
    #[error("the ledger is damaged: {0}")]
    Damaged(String),
    /// The booking contradicts the row: a bug, or a hand in the ledger.
    #[error("call {id} is {state} and cannot become {wanted}")]
    Contradiction {
        /// The row.
        id: i64,
        /// Its state.
        state: String,
        /// The state that was to be booked.
        wanted: &'static str,
    },
}
