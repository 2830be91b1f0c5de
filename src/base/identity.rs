//! The identity of an entry in ledger, store and cache.

use std::fmt;
use std::sync::Arc;

use crate::base::key::CacheKey;

/// Entries of one key in two namespaces share nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Upstream and operation: see [`Operation::namespace`](crate::base::operation::Operation::namespace).
    pub namespace: Arc<str>,
    pub key: CacheKey,
}

impl Identity {
    pub fn new(namespace: &str, key: CacheKey) -> Self {
        Self { namespace: namespace.into(), key }
    }
}

impl fmt::Display for Identity {
    /// The key alone: log lines and headers name keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key.fmt(f)
    }
}
