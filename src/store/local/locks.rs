//! The locks of records.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::base::key::CacheKey;

/// What makes reading and replacing a record one step in this process.
#[derive(Debug)]
pub(super) struct RecordLocks {
    /// A key has one lock; a lock has many keys, so that their number is bounded.
    shards: [Mutex<()>; 64],
    /// Folders of records that are known to survive a power cut; at most 257 for each namespace.
    durable: Mutex<HashSet<PathBuf>>,
}

impl Default for RecordLocks {
    fn default() -> Self {
        Self { shards: [const { Mutex::new(()) }; 64], durable: Mutex::default() }
    }
}

impl RecordLocks {
    pub(super) fn of(&self, key: CacheKey) -> MutexGuard<'_, ()> {
        let shard = usize::from(key.as_bytes()[0]) % self.shards.len();
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn durable(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
