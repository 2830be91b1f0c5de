//! Keeps the record of a purged key from coming back.
//!
//! A purge is booked before its record is removed from the store. A concurrent writer reads the ledger after
//! its write: either the purge is booked by then, and the writer removes its record; or the purge removes it
//! later.

use std::time::Duration;

use super::{HIT_PATIENCE, Spool, ask};
use crate::base::key::CacheKey;
use crate::base::record::Record;
use crate::ledger::LedgerError;
use crate::ledger::guard::StorageError;
use crate::store::StoreError;

impl Spool {
    /// Returns true if it was purged.
    pub(super) async fn forget_if_purged(
        &self,
        record: &Record,
        patience: Duration,
    ) -> Result<bool, StorageError> {
        let Some(up_to) = self.purged(record, patience).await? else { return Ok(false) };
        self.check_ours().await?;
        self.store.forget_record(&record.namespace, record.key, up_to).await?;
        tracing::info!(key = %record.key, generation = record.generation, "a purged record was removed from the store");
        Ok(true)
    }

    /// The generation up to which the key was purged, if that includes the record.
    pub(super) async fn purged(
        &self,
        record: &Record,
        patience: Duration,
    ) -> Result<Option<u64>, LedgerError> {
        let purged = ask(patience, self.ledger.purged(&record.namespace, record.key)).await?;
        Ok(purged.filter(|&up_to| up_to >= record.generation))
    }

    /// The store's record, unless it was purged. Without the ledger the store decides, because an
    /// acknowledged purge has removed its record.
    pub(super) async fn unpurged(
        &self,
        namespace: &str,
        key: CacheKey,
    ) -> Result<Option<Record>, StoreError> {
        let Some(record) = self.store.record(namespace, key).await? else { return Ok(None) };
        match self.forget_if_purged(&record, HIT_PATIENCE).await {
            Ok(true) => Ok(None),
            Ok(false) | Err(StorageError::Ledger(_)) => Ok(Some(record)),
            Err(StorageError::Store(error)) => {
                tracing::warn!(%error, %key, "a purged record could not be removed from the store yet");
                Ok(None)
            }
        }
    }
}
