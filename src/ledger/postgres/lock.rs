//! The names of the locks that transactions take.

use crate::base::key::CacheKey;
use crate::ledger::sql::Lock;

impl Lock {
    /// "gran" in ASCII, so that another program's locks in the same database are others.
    const CLASS: i32 = 0x6772_616e;

    pub(super) fn exclusive(self) -> String {
        format!("SELECT pg_advisory_xact_lock({}, {})", Self::CLASS, self as i32)
    }

    pub(super) fn shared(self) -> String {
        format!("SELECT pg_advisory_xact_lock_shared({}, {})", Self::CLASS, self as i32)
    }
}

/// Held by whoever decides who buys a key. Keys that share a lock wait for each other, and no more.
pub(super) fn key_lock(key: &CacheKey) -> String {
    let [a, b, c, d, e, f, g, h, ..] = *key.as_bytes();
    format!("SELECT pg_advisory_xact_lock({})", i64::from_le_bytes([a, b, c, d, e, f, g, h]))
}
