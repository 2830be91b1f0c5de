//! What passes between the machine and its shell: an [`Effect`] out, an [`Event`] back in.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::base::record::Record;
use crate::base::secret::Secret;
use crate::error::GatewayError;
use crate::ledger::{Booking, CallId, LedgerError, Permit, Reservation, Reserved};
use crate::metrics::RetryReason;
use crate::store::StoreError;
use crate::upstream::download::{FetchError, Fetched};
use crate::upstream::{NotSent, Reply};

/// What the shell does next. [`Event::Done`] follows if no other event is named.
#[derive(Debug)]
pub enum Effect {
    /// Wait for an upstream slot: [`Event::Slot`], or [`Event::Admitted`] if no waiter is left.
    TakeSlot,
    /// Choose the paying team among the waiters: [`Event::Admitted`].
    Admit,
    /// Check that a result could be kept: [`Event::Room`].
    CheckRoom,
    /// Check that the upstream may be called: [`Event::Entered`].
    EnterCircuit,
    /// Take the key in the ledger: [`Event::Reserved`].
    Reserve,
    /// Read the store once more, now that no other fill can buy: [`Event::LookedAgain`].
    LookAgain,
    /// Make a record known to the ledger; if that fails, a later lookup does.
    Import(Arc<Record>),
    /// Check that a waiter is left, since the reservation may have taken long: [`Event::Awaited`].
    CheckWaiters,
    /// Send all but the tail: [`Event::Opened`].
    Open,
    /// Pass the last gate: [`Event::Marked`].
    MarkSent(CallId),
    /// Release the tail: [`Event::Replied`].
    Send,
    /// Wait for another try, if time and budget allow one: [`Event::MayRetry`].
    Retry(Retry),
    /// Drop the held tail, if any, and book the call's state: [`Event::Booked`].
    Book(CallId, Booking),
    /// [`Event::FetchEnded`].
    Fetch(Secret),
    /// Make the result's bytes durable: [`Event::ObjectKept`].
    PutObject(Fetched),
    /// Make the answer durable: [`Event::RecordKept`].
    PutRecord(Arc<Record>),
    /// The shell adds jitter.
    Pause(Duration),
    /// As `Pause`, but gives the slot back first.
    StepAside(Duration),
    /// Answer the waiters of the payer's team only.
    RefuseTeam(GatewayError),
    /// Answer all waiters, also later ones, and go on.
    Tell(Verdict),
    /// Answer all waiters; the fill is over.
    Finish(Verdict),
    /// No waiter is left; the fill is over, and nothing was spent.
    Stop,
}

#[derive(Debug)]
pub enum Event {
    Started,
    Slot(Result<(), GatewayError>),
    Admitted(Admission),
    Room(Result<(), StoreError>),
    Entered(Result<(), GatewayError>),
    Reserved(Result<Reserved, LedgerError>),
    LookedAgain(Result<Standing, StoreError>),
    /// `false`: no waiter is left, and the group is dissolved.
    Awaited(bool),
    Opened(Result<Open, NotSent>),
    Marked(Result<Permit, LedgerError>),
    Replied(Reply),
    /// The wait for another try is over, or there will be none.
    MayRetry(bool),
    Booked(Result<(), LedgerError>),
    /// With the age of the answer.
    FetchEnded(Result<Fetched, FetchError>, Duration),
    /// With the present time.
    ObjectKept(Result<(), StoreError>, Timestamp),
    /// The record that stands now.
    RecordKept(Result<Record, StoreError>),
    /// The effect has no outcome.
    Done,
}

#[derive(Debug)]
pub enum Admission {
    /// No waiter is left; the group is dissolved.
    Nobody,
    /// The longest-waiting caller's team may not have a miss now.
    Refused(GatewayError),
    /// Its team's rate was not reserved: another team's waiter left meanwhile.
    Unrated,
    Payer(Box<Reservation>),
}

/// What the store has under a key.
#[derive(Debug)]
pub enum Standing {
    Nothing,
    /// A record, and as far as is known its object.
    Result(Record),
    /// A record whose object is gone.
    OrphanRecord(Record),
}

#[derive(Debug)]
pub enum Open {
    /// All but the tail is sent, and the shell holds the tail.
    Held,
    /// The upstream answered before it had everything.
    Early(Reply),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    pub reason: RetryReason,
    /// From 1.
    pub number: u32,
    /// The wait that the upstream asked for.
    pub asked: Option<Duration>,
}

pub type Verdict = Result<Filled, GatewayError>;

#[derive(Clone, Debug)]
pub struct Filled {
    pub record: Arc<Record>,
    pub source: FillSource,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FillSource {
    Bought,
    Ledger,
    Store,
    /// Another fill held the key, and this one waited for it.
    Awaited,
}
