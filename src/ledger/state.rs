//! The states of a call, and what each means for its key and its credits.

use crate::base::words::words;

words! {
    /// The state of a call. Spec and README show the same table.
    #[derive(Hash)]
    pub enum CallState {
        /// Admitted; nothing sent whole.
        Reserved = "reserved",
        /// Provably not sent whole, or frozen meanwhile.
        Released = "released",
        /// The tail of the paid request may have left.
        Sent = "sent",
        /// The upstream's answer is durable; the result is being fetched and kept.
        Answered = "answered",
        /// The result is permanent.
        Stored = "stored",
        /// A complete refusal; unbilled.
        Refused = "refused",
        /// A complete error in the upstream's own envelope; unbilled.
        Failed = "failed",
        /// Sent, and no complete answer.
        Unknown = "unknown",
        /// The result could not be had while its URL lived.
        Unfetchable = "unfetchable",
        /// The store no longer has the result.
        Lost = "lost",
    }
}

impl CallState {
    /// Does a call in this state keep everyone else from buying its key?
    pub fn holds_key(self) -> bool {
        matches!(self, Self::Reserved | Self::Sent | Self::Answered | Self::Stored)
    }

    /// Do its credits count against budgets?
    pub fn counts_credits(self) -> bool {
        match self {
            Self::Reserved | Self::Sent | Self::Answered | Self::Stored => true,
            Self::Unknown | Self::Unfetchable | Self::Lost => true,
            Self::Released | Self::Refused | Self::Failed => false,
        }
    }

    /// May a call in this state still change by itself?
    pub fn is_open(self) -> bool {
        matches!(self, Self::Reserved | Self::Sent | Self::Answered)
    }
}
