//! What the ledger tells of its spool: results that are paid for and fetched, and wait until the
//! store has them.
//!
//! The bytes lie beside the row that paid for them and come and go in its transactions: they are
//! written with the booking that makes the row `stored`, and removed only when the store has
//! confirmed object and record. The spool is bounded in bytes. Who copies is not the ledger's matter.

use std::time::Duration;

use super::CallId;
use crate::base::record::Record;

/// A result in the spool; its bytes are read by the name of its object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spooled {
    /// Grows from one to the next; never 0.
    pub position: u64,
    pub id: CallId,
    /// What is to be kept under its key.
    pub record: Record,
}

/// What is in the spool, and what may still come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpoolUsage {
    pub objects: u64,
    pub bytes: u64,
    /// How long the oldest has been in it.
    pub oldest_age: Option<Duration>,
    /// Calls that may still bring a result: `reserved`, `sent` and `answered` rows.
    pub open_calls: u64,
    /// The `answered` ones among them: paid for, and kept nowhere yet.
    pub answered_calls: u64,
    /// How long ago the oldest of these was answered.
    pub oldest_answer_age: Option<Duration>,
}
