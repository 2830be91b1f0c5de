//! What the operations of a pool may take of the database, and how their transactions begin.

use std::time::Duration;

use crate::ledger::LedgerError;

/// What begins a transaction that changes something.
pub(super) const CHANGE: &str = "ISOLATION LEVEL READ COMMITTED READ WRITE";
/// What begins one whose statements all see the book at the same instant.
pub(super) const REPORT: &str = "ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// Of each pool.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Connections at once.
    pub(super) connections: usize,
    /// How long one operation may take, with waiting for a connection and making one.
    pub(super) operation: Duration,
}

impl Limits {
    /// A team's misses and hits share the connections; each is held for some milliseconds.
    pub(super) const CALLS: Self = Self { connections: 16, operation: Duration::from_secs(5) };
    /// Some read each call of a year; nobody who pays or is served waits for them.
    pub(super) const REPORTS: Self = Self { connections: 2, operation: Duration::from_secs(10) };

    /// Two limits are the server's: one statement, and how long it waits for us in the middle of a
    /// transaction, for a process that stands still must not stop the others.
    pub(super) fn begin(&self, mode: &str) -> String {
        let statement = self.operation.saturating_sub(Duration::from_secs(1)).as_millis();
        format!(
            "BEGIN {mode}; SET LOCAL statement_timeout = {statement}; \
             SET LOCAL idle_in_transaction_session_timeout = '5s'; "
        )
    }

    /// Why an operation failed that took too long.
    pub(super) fn silent(&self) -> LedgerError {
        LedgerError::Unavailable(format!("the database did not answer within {:?}", self.operation))
    }
}
