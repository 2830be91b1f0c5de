//! What passes between the machine and its shell: an [`Effect`] out, an [`Event`] back in.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::base::record::Record;
use crate::base::secret::Secret;
use crate::error::GatewayError;
use crate::ledger::{Booking, CallId, LedgerError, Permit, Reservation, Reserved};
use crate::store::StoreError;
use crate::upstream::download::{FetchError, Fetched};
use crate::upstream::{NotSent, Reply};

/// What the shell is to do next; each has its event.
#[derive(Debug)]
pub enum Effect {
    /// Wait for an upstream slot: [`Event::Slot`], or [`Event::Admitted`] when no waiter is left.
    TakeSlot,
    /// Choose who pays among those who wait: [`Event::Admitted`].
    Admit,
    /// Ask whether a result could be kept: [`Event::Room`].
    CheckRoom,
    /// Ask whether the upstream may be called: [`Event::Entered`].
    EnterCircuit,
    /// Take the key in the ledger: [`Event::Reserved`].
    Reserve,
    /// Read the store once more, now that no other fill can buy: [`Event::LookedAgain`].
    LookAgain,
    /// Make a record known to the ledger: [`Event::Imported`].
    Import(Arc<Record>),
    /// Ask whether anybody waits still, now that it may have taken long: [`Event::Awaited`].
    CheckWaiters,
    /// Send all but the tail: [`Event::Opened`].
    Open,
    /// Pass the last gate: [`Event::Marked`].
    MarkSent(CallId),
    /// Let the tail go: [`Event::Replied`].
    Send,
    /// Wait for another try, if there is time and budget for one: [`Event::MayRetry`].
    Retry(Retry),
    /// Write down how the call went on, giving up the held tail first, if any: [`Event::Booked`].
    Book(CallId, Booking),
    /// Get the result: [`Event::FetchEnded`].
    Fetch(Secret),
    /// Make its bytes durable: [`Event::ObjectKept`].
    PutObject(Fetched),
    /// Make the answer durable: [`Event::RecordKept`].
    PutRecord(Arc<Record>),
    /// Let some time pass; the shell adds jitter: [`Event::Paused`].
    Pause(Duration),
    /// As `Pause`, and give the slot back first.
    StepAside(Duration),
    /// Answer the payer's team only: [`Event::Notified`].
    RefuseTeam(GatewayError),
    /// Answer all waiters, also later ones, and go on: [`Event::Notified`].
    Tell(Verdict),
    /// Answer everyone; the fill is over.
    Finish(Verdict),
    /// Nobody waits; the fill is over, and nothing was spent.
    Stop,
}

#[derive(Debug)]
pub enum Event {
    Started,
    /// A slot, or the reason why there is none.
    Slot(Result<(), GatewayError>),
    Admitted(Admission),
    /// A new result could be kept, or not.
    Room(Result<(), StoreError>),
    /// The upstream may be called, or not.
    Entered(Result<(), GatewayError>),
    Reserved(Result<Reserved, LedgerError>),
    LookedAgain(Result<Standing, StoreError>),
    /// The ledger knows the record, or a later lookup imports it.
    Imported,
    /// `false`: no waiter is left, and the group is dissolved.
    Awaited(bool),
    Opened(Result<Open, NotSent>),
    Marked(Result<Permit, LedgerError>),
    Replied(Reply),
    /// It has been waited for another try, or there will be none.
    MayRetry(bool),
    Booked(Result<(), LedgerError>),
    /// The result, or why not, and how long ago the answer was booked.
    FetchEnded(Result<Fetched, FetchError>, Duration),
    /// The object is durable, or not, at this instant.
    ObjectKept(Result<(), StoreError>, Timestamp),
    /// The record that stands now.
    RecordKept(Result<Record, StoreError>),
    Paused,
    Notified,
}

#[derive(Debug)]
pub enum Admission {
    /// Nobody waits any more; the group is dissolved.
    Nobody,
    /// The longest-waiting caller's team may not have a miss now.
    Refused(GatewayError),
    /// Its team's rate has not been asked: another team's waiter left meanwhile.
    Unrated,
    /// This team, for this reservation.
    Payer(Box<Reservation>),
}

/// What stands under a key in the store.
#[derive(Debug)]
pub enum Standing {
    Nothing,
    /// A result: its record, and for all that is known its object.
    Result(Record),
    /// A record whose object is gone.
    OrphanRecord(Record),
}

#[derive(Debug)]
pub enum Open {
    /// All but the tail is sent, and the tail is in the shell's hands.
    Held,
    /// The upstream answered without having had the whole.
    Early(Reply),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// An order that did not reach the upstream whole.
    NotSent {
        /// Which retry it is, from 1.
        retry: u32,
    },
    /// A purchase that the upstream's flow control refused; its row has ended.
    Throttled {
        /// Which retry it is, from 1.
        retry: u32,
        /// The wait the upstream asked for.
        asked: Option<Duration>,
    },
}

pub type Verdict = Result<Filled, GatewayError>;

#[derive(Clone, Debug)]
pub struct Filled {
    /// The record that stands under the key.
    pub record: Arc<Record>,
    /// Did this fill buy it?
    pub source: FillSource,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FillSource {
    Bought,
    /// It was in the ledger by then.
    Ledger,
    /// It was in the store by then.
    Store,
    /// Another fill held the key, and this one waited for it.
    Awaited,
}
