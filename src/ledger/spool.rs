//! The spool: paid results that wait in the ledger until the store has them ([`spooling`](super::spooling)).
//! The bytes are written in the transaction that makes their row `stored`.

use std::time::Duration;

use super::CallId;
use crate::base::record::Record;

/// Without its bytes.
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
