//! Is a key's answer there? Memory, as far as it is [fresh](super::freshness), then the ledger, then the
//! store's record.
//!
//! Only what is known to be absent may be bought. If the store cannot be asked, the ledger decides, provided
//! that it knows every record of the store. A record that the ledger does not know is imported into it, so
//! that a new database over an old bucket buys nothing again; a result that the store no longer has is booked
//! as lost. Nothing here spends a credit.

use std::sync::Arc;
use std::time::Duration;

use super::Gateway;
use crate::cache::Reading;
use crate::error::GatewayError;
use crate::key::CacheKey;
use crate::metrics::{CacheTier, Look, Stage, Stages};
use crate::outcome::CacheStatus;
use crate::store::{Record, StoreError};

/// How long the ledger is asked whether what memory has still stands.
const STALE_PATIENCE: Duration = Duration::from_secs(2);

/// A stored answer and the tier it was found in.
pub(super) struct Found {
    pub(super) record: Arc<Record>,
    pub(super) status: CacheStatus,
}

impl Gateway {
    /// Memory, then ledger, then store. `None` only when the key is known to be absent.
    pub(super) async fn look_up(
        &self,
        key: CacheKey,
        stages: &mut Stages,
    ) -> Result<Option<Found>, GatewayError> {
        let metrics = &self.parts.metrics;
        let reading = self.parts.cache.begin_reading(key);
        let in_memory = stages.time(Stage::Memory, self.parts.cache.answer(key)).await;
        let hit = |record: &Arc<Record>| Found { record: record.clone(), status: CacheStatus::HitMemory };
        metrics.looked(CacheTier::Memory, if in_memory.is_some() { Look::Hit } else { Look::Miss });
        if self.freshness.is_current()
            && let Some(record) = &in_memory
        {
            return Ok(Some(hit(record)));
        }
        let in_ledger = stages.time(Stage::Ledger, self.parts.ledger.look_up(&self.namespace, key));
        let in_ledger = match &in_memory {
            None => in_ledger.await,
            Some(record) => match tokio::time::timeout(STALE_PATIENCE, in_ledger).await {
                Ok(Ok(found)) => Ok(found),
                Ok(Err(_)) | Err(_) => {
                    metrics.looked(CacheTier::Ledger, Look::Error);
                    return Ok(Some(hit(record)));
                }
            },
        };
        metrics.looked(CacheTier::Ledger, look(&in_ledger));
        if let Some(known) = in_memory
            && in_ledger.as_ref().ok().and_then(Option::as_ref) != Some(&*known)
        {
            // Lest it is served when the ledger is away next.
            self.freshness.forget(key).await;
        }
        if let Ok(Some(record)) = &in_ledger
            && stages.time(Stage::Store, self.is_still_there(record)).await?
        {
            return Ok(Some(self.remember(record.clone(), CacheStatus::HitLedger, reading).await));
        }
        let in_store = stages.time(Stage::Store, self.parts.store.record(&self.namespace, key)).await;
        metrics.looked(CacheTier::Store, look(&in_store));
        match (in_ledger, in_store) {
            (in_ledger, Ok(Some(record))) => {
                // Another archive's records serve, but are not taken for ours.
                if in_ledger.is_ok() && self.parts.guard.is_open() {
                    stages.time(Stage::Ledger, self.import_record(&record)).await;
                }
                if stages.time(Stage::Store, self.is_still_there(&record)).await? {
                    // It may have been purged, which the ledger alone would tell.
                    if in_ledger.is_err() && self.freshness.is_shared() {
                        let record = Arc::new(record);
                        return Ok(Some(Found { record, status: CacheStatus::HitStore }));
                    }
                    return Ok(Some(self.remember(record, CacheStatus::HitStore, reading).await));
                }
                in_ledger.map(|_| None).map_err(|_| GatewayError::LedgerUnavailable)
            }
            (Ok(_), Ok(None)) => Ok(None),
            // Something is there: it was paid for, and nothing could be kept in its place.
            (Ok(_), Err(error @ StoreError::Corrupt(_))) => {
                tracing::error!(%error, %key, "a record is damaged, so its key is not bought");
                Err(GatewayError::StoreUnavailable)
            }
            // The store cannot be asked, so the ledger decides, if it knows every record.
            (Ok(_), Err(error)) => {
                tracing::warn!(%error, %key, "the store could not be asked for a record");
                match self.parts.ledger.knows_all_of(&self.namespace, key).await {
                    Ok(true) => Ok(None),
                    Ok(false) => Err(GatewayError::LedgerIncomplete),
                    Err(_) => Err(GatewayError::LedgerUnavailable),
                }
            }
            (Err(error), _) => {
                tracing::error!(%error, %key, "the ledger could not be asked, and the store has no answer");
                Err(GatewayError::LedgerUnavailable)
            }
        }
    }

    /// Is a record's object where it should be? When the store says that it is gone, the row is
    /// `lost` and the key may be bought again; when the store cannot be asked, it counts as there.
    async fn is_still_there(&self, record: &Record) -> Result<bool, GatewayError> {
        let Some(object) = record.object() else { return Ok(false) };
        match self.parts.store.has_object(object).await {
            Ok(true) | Err(_) => Ok(true),
            Ok(false) if !self.parts.guard.confirm().await => Err(GatewayError::ArchiveGuard),
            Ok(false) => {
                tracing::error!(key = %record.key, object = %object.path(), "the store has lost a result");
                // Without the booking, buying again would meet the old row; and its URL is dead.
                self.parts.ledger.lose(record).await.map_err(|error| {
                    tracing::error!(%error, "the loss could not be booked");
                    GatewayError::LedgerUnavailable
                })?;
                Ok(false)
            }
        }
    }

    /// A record the ledger does not know becomes a row, so that the next look-up is shorter.
    async fn import_record(&self, record: &Record) {
        if let Err(error) = self.parts.ledger.import_record(record).await {
            tracing::warn!(%error, key = %record.key, "the ledger could not be told of a record");
        }
    }

    async fn remember(&self, record: Record, status: CacheStatus, reading: Reading) -> Found {
        let record = Arc::new(record);
        self.parts.cache.keep_answer(record.clone(), reading).await;
        Found { record, status }
    }
}

/// What a look into a tier came to.
fn look<E>(found: &Result<Option<Record>, E>) -> Look {
    match found {
        Ok(Some(_)) => Look::Hit,
        Ok(None) => Look::Miss,
        Err(_) => Look::Error,
    }
}
