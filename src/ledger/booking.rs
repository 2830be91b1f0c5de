//! The steps by which a call goes on, and from which state each may be taken.

use bytes::Bytes;

use super::CallState;
use crate::base::record::Record;
use crate::base::secret::Secret;

/// How a call goes on. Each is booked on the call's own row, whatever has happened to its key.
#[derive(Clone, Debug)]
pub enum Booking {
    /// From `reserved` or `sent`, by the owner that still holds the tail: provably not sent whole.
    Released { reason: String },
    /// From `sent` (or `unknown`, when the answer came late).
    Answered {
        /// The whole answer; erased when the state ends.
        text: Secret,
        request_id: String,
        log_id: String,
    },
    /// Object and record are durable. From `answered`; from `sent` or `unknown` when the ledger could
    /// not take the answer.
    Stored {
        record: Box<Record>,
        /// Does this row keep the key? Not when another result got there first.
        holds_key: bool,
    },
    /// The store does not take the result now, so the ledger keeps its bytes. The state is `stored`,
    /// because the result is permanent from here on. From the same states as `Stored`.
    Spooled {
        record: Box<Record>,
        /// The object the record names.
        bytes: Bytes,
    },
    /// From `sent`, from `reserved` when the refusal came early, or from `unknown` when it came late.
    Refused {
        reason: String,
        /// Was it refused for its picture or numbers? Then it counts against the team's
        /// [`Scope::Refused`](super::budget::Scope::Refused).
        for_order: bool,
    },
    /// From `sent`, from `reserved` when the error came early, or from `unknown` when it came late.
    Failed { reason: String },
    /// From `sent`, or from `reserved` when something that is no answer came early.
    Unknown { reason: String },
    /// From `answered`.
    Unfetchable { reason: String },
    /// From `stored`: the store no longer has the object.
    Lost,
}

impl Booking {
    /// The state it leads to.
    pub fn state(&self) -> CallState {
        match self {
            Self::Released { .. } => CallState::Released,
            Self::Answered { .. } => CallState::Answered,
            Self::Stored { .. } | Self::Spooled { .. } => CallState::Stored,
            Self::Refused { .. } => CallState::Refused,
            Self::Failed { .. } => CallState::Failed,
            Self::Unknown { .. } => CallState::Unknown,
            Self::Unfetchable { .. } => CallState::Unfetchable,
            Self::Lost => CallState::Lost,
        }
    }

    /// The states it may come from.
    pub fn may_follow(&self, state: CallState) -> bool {
        match self {
            // From `sent` too: when the transaction that marked it was durable and its outcome lost,
            // the tail is still in our hands, and whoever holds it knows.
            Self::Released { .. } => matches!(state, CallState::Reserved | CallState::Sent),
            Self::Answered { .. } => matches!(state, CallState::Sent | CallState::Unknown),
            Self::Stored { .. } | Self::Spooled { .. } => {
                matches!(state, CallState::Sent | CallState::Unknown | CallState::Answered)
            }
            Self::Unfetchable { .. } => matches!(state, CallState::Answered),
            Self::Refused { .. } | Self::Failed { .. } => {
                matches!(state, CallState::Reserved | CallState::Sent | CallState::Unknown)
            }
            Self::Unknown { .. } => {
                matches!(state, CallState::Reserved | CallState::Sent | CallState::Unknown)
            }
            Self::Lost => matches!(state, CallState::Stored),
        }
    }
}
