//! The spool: paid results that wait in the ledger until the store has them.
//!
//! The bytes are written in the transaction that makes their row `stored`, and removed only when the store
//! has confirmed object and record. The spool is bounded in bytes. [`spooling`](super::spooling) copies.

use std::time::Duration;

use super::CallId;
use crate::base::record::Record;

/// A result in the spool, without its bytes.
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
    /// Calls that may still need room: `reserved`, `sent` and `answered` ones.
    pub open_calls: u64,
    pub answered_calls: u64,
    /// The time since the oldest of these was answered.
    pub oldest_answer_age: Option<Duration>,
}
