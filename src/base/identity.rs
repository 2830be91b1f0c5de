//! What an entry is, everywhere: [`Identity`].

use std::fmt;
use std::sync::Arc;

use crate::base::key::CacheKey;

/// Upstream, operation and key. Entries of the same key in two namespaces share nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The upstream's namespace and the operation's segment, as the ledger and the store have it:
    /// see [`Operation::namespace`](crate::base::operation::Operation::namespace).
    pub namespace: Arc<str>,
    /// Picture and numbers.
    pub key: CacheKey,
}

impl Identity {
    /// An entry of the ledger or the store.
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
