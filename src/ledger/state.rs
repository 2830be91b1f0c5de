//! The states of a call.

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

    /// Returns true when the credits count against budgets.
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
