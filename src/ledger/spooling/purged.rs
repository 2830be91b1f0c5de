//! A record must not come back after its key was purged.
//!
//! A purge is first a fact in the ledger, and then its record leaves the store. Whoever writes a
//! record meanwhile asks the ledger afterwards: either the purge is there by then, and he removes
//! what he wrote; or it is not, and then the purge's own removal comes later and finds it.

use std::time::Duration;

use super::{HIT_PATIENCE, Spool, ask};
use crate::base::key::CacheKey;
use crate::base::record::Record;
use crate::ledger::LedgerError;
use crate::store::StoreError;

impl Spool {
    /// Removes from the store a record that was purged; says whether it was.
    pub(super) async fn forget_if_purged(
        &self,
        record: &Record,
        patience: Duration,
    ) -> Result<bool, PurgedError> {
        let Some(up_to) = self.purged(record, patience).await? else { return Ok(false) };
        self.check_ours().await?;
        self.store.forget_record(&record.namespace, record.key, up_to).await?;
        tracing::info!(key = %record.key, generation = record.generation, "a purged record was removed from the store");
        Ok(true)
    }

    /// Up to where the key counts as absent, if that reaches the record.
    pub(super) async fn purged(
        &self,
        record: &Record,
        patience: Duration,
    ) -> Result<Option<u64>, LedgerError> {
        let purged = ask(patience, self.ledger.purged(&record.namespace, record.key)).await?;
        Ok(purged.filter(|&up_to| up_to >= record.generation))
    }

    /// What the store has under a key and was not purged. When the ledger cannot be asked, the store
    /// alone decides: a purge that was told as done has been there.
    pub(super) async fn unpurged(
        &self,
        namespace: &str,
        key: CacheKey,
    ) -> Result<Option<Record>, StoreError> {
        let Some(record) = self.store.record(namespace, key).await? else { return Ok(None) };
        match self.forget_if_purged(&record, HIT_PATIENCE).await {
            Ok(true) => Ok(None),
            Ok(false) | Err(PurgedError::Ledger(_)) => Ok(Some(record)),
            Err(PurgedError::Store(error)) => {
                tracing::warn!(%error, %key, "a purged record could not be removed from the store yet");
                Ok(None)
            }
        }
    }
}

/// Whether a record was purged cannot be said, or it is still in the store.
#[derive(Debug, thiserror::Error)]
pub(super) enum PurgedError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Store(#[from] StoreError),
}
