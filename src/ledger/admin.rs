//! What operators ask of the ledger and change in it: trait [`LedgerAdmin`], beside the money path.
//!
//! Every change is one durable transaction, like a booking.

use async_trait::async_trait;

use super::LedgerError;
use crate::key::CacheKey;

/// What came of [`LedgerAdmin::purge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purge {
    /// Everything up to this generation counts as absent from now on.
    Done {
        /// The highest that was found.
        generation: u64,
    },
    /// So it did before, and nothing has been stored since.
    Repeated {
        /// The highest that was ever purged.
        generation: u64,
    },
    /// Nothing is stored under the key, and nothing was ever purged there.
    Nothing,
}

impl Purge {
    /// Up to where everything counts as absent; `None` when nothing is purged.
    pub fn generation(self) -> Option<u64> {
        match self {
            Self::Done { generation } | Self::Repeated { generation } => Some(generation),
            Self::Nothing => None,
        }
    }
}

/// Lets an operator look and change. All methods may be called concurrently.
#[async_trait]
pub trait LedgerAdmin: Send + Sync {
    /// Makes everything that is stored under a key by now count as absent, for everyone
    /// ([`Ledger::changes`](super::Ledger::changes) tells of it). Rows, credits and objects stay as
    /// they are. A call under way is not touched: its result will be the new one.
    ///
    /// # Errors
    /// [`LedgerError`]: not purged, as far as is known; it may be repeated.
    async fn purge(&self, namespace: &str, key: CacheKey) -> Result<Purge, LedgerError>;
}
