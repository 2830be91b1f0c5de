//! The states of a call, and the steps between them.

use bytes::Bytes;

use crate::base::record::Record;
use crate::base::secret::Secret;
use crate::base::words::words;

words! {
    /// Spec and README show the same table.
    #[derive(Hash)]
    pub enum CallState {
        /// Admitted; not sent in full.
        Reserved = "reserved",
        /// Provably not sent in full, or frozen meanwhile.
        Released = "released",
        /// The end of the paid request may have left.
        Sent = "sent",
        /// The upstream's answer is durable; the result is being downloaded and stored.
        Answered = "answered",
        /// The result is permanent.
        Stored = "stored",
        /// A complete refusal; unbilled.
        Refused = "refused",
        /// A complete error in the upstream's own envelope; unbilled.
        Failed = "failed",
        /// Sent, and no complete answer.
        Unknown = "unknown",
        /// The result could not be downloaded while its URL lived.
        Unfetchable = "unfetchable",
        /// The store no longer has the result.
        Lost = "lost",
    }
}

impl CallState {
    /// Returns true when no other call may buy the key.
    pub fn holds_key(self) -> bool {
        matches!(self, Self::Reserved | Self::Sent | Self::Answered | Self::Stored)
    }

    pub fn counts_credits(self) -> bool {
        match self {
            Self::Reserved | Self::Sent | Self::Answered | Self::Stored => true,
            Self::Unknown | Self::Unfetchable | Self::Lost => true,
            Self::Released | Self::Refused | Self::Failed => false,
        }
    }

    /// Returns true when the owner still has to act.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Reserved | Self::Sent | Self::Answered)
    }
}

/// Leads to the [`CallState`] of its name, on the call's own row, also when another row holds the key.
#[derive(Clone, Debug)]
pub enum Booking {
    Released {
        reason: String,
    },
    /// The text is the whole answer; it is erased when the state ends.
    Answered {
        text: Secret,
        request_id: String,
        log_id: String,
    },
    /// `holds_key` is false when the result of another call got the key first.
    Stored {
        record: Box<Record>,
        holds_key: bool,
    },
    /// `stored`, although only the ledger has the bytes while the store is unavailable.
    Spooled {
        record: Box<Record>,
        bytes: Bytes,
    },
    /// `for_order` counts against the team's [`Scope::Refused`](super::budget::Scope::Refused).
    Refused {
        reason: String,
        for_order: bool,
    },
    Failed {
        reason: String,
    },
    Unknown {
        reason: String,
    },
    Unfetchable {
        reason: String,
    },
    Lost,
}

impl Booking {
    /// The state it leads to, and those it may come from.
    fn step(&self) -> (CallState, &'static [CallState]) {
        use CallState::*;
        match self {
            // The transaction that booked `sent` may have been durable and its result lost: then the owner
            // still holds the end of the request.
            Self::Released { .. } => (Released, &[Reserved, Sent]),
            // `unknown` for a late answer.
            Self::Answered { .. } => (Answered, &[Sent, Unknown]),
            // Not only `answered`: the ledger may not have taken the answer.
            Self::Stored { .. } | Self::Spooled { .. } => (Stored, &[Sent, Unknown, Answered]),
            // `reserved` for what came before the end of the request, `unknown` for what came late.
            Self::Refused { .. } => (Refused, &[Reserved, Sent, Unknown]),
            Self::Failed { .. } => (Failed, &[Reserved, Sent, Unknown]),
            Self::Unknown { .. } => (Unknown, &[Reserved, Sent]),
            Self::Unfetchable { .. } => (Unfetchable, &[Answered]),
            Self::Lost => (Lost, &[Stored]),
        }
    }

    pub fn state(&self) -> CallState {
        self.step().0
    }

    pub fn may_follow(&self, state: CallState) -> bool {
        self.step().1.contains(&state)
    }
}
