//! The states of a call, and what each means for its key and its credits.

/// The state of a call. Spec and README show the same table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallState {
    /// Admitted; nothing sent whole.
    Reserved,
    /// Provably not sent whole, or frozen meanwhile.
    Released,
    /// The tail of the paid request may have left.
    Sent,
    /// The upstream's answer is durable; the result is being fetched and kept.
    Answered,
    /// The result is permanent.
    Stored,
    /// A complete refusal; unbilled.
    Refused,
    /// A complete error in the upstream's own envelope; unbilled.
    Failed,
    /// Sent, and no complete answer.
    Unknown,
    /// The result could not be had while its URL lived.
    Unfetchable,
    /// The store no longer has the result.
    Lost,
}

impl CallState {
    /// Every state, in the order of a call's life.
    pub const ALL: [Self; 10] = [
        Self::Reserved,
        Self::Released,
        Self::Sent,
        Self::Answered,
        Self::Stored,
        Self::Refused,
        Self::Failed,
        Self::Unknown,
        Self::Unfetchable,
        Self::Lost,
    ];

    /// The word in ledger, log and label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reserved => "reserved",
            Self::Released => "released",
            Self::Sent => "sent",
            Self::Answered => "answered",
            Self::Stored => "stored",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
            Self::Unfetchable => "unfetchable",
            Self::Lost => "lost",
        }
    }

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
