//! Lookup, without spending: memory, if it is [fresh](super::freshness), then ledger, then store. A key is bought
//! only when it is known to be absent. If the store cannot be asked, the ledger decides, provided that it knows every
//! record of the store. A record that the ledger does not know is imported, so that a new database over an old bucket
//! buys nothing again; a result that the store has lost is booked so.
//!
//! A tier that hangs delays a hit in another one by at most [`HIT_PATIENCE`] for each question, and waiting
//! for a record counts against the request's [`StoreBudget`].

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::Gateway;
use crate::base::identity::Identity;
use crate::base::outcome::CacheStatus;
use crate::base::record::Record;
use crate::error::GatewayError;
use crate::ledger::guard::{Mismatch, Standing};
use crate::ledger::{Absence, LedgerError};
use crate::metrics::{CacheTier, Look, Stage, Stages};
use crate::store::{StoreBudget, StoreError};

/// How long a hit in one tier waits for another tier.
const HIT_PATIENCE: Duration = Duration::from_millis(400);

/// What a caller does if nothing is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Intent {
    /// The reservation meets an open call of the key.
    Buy,
    Report,
}

pub(super) type Found = (Arc<Record>, CacheStatus);

type Asked<E> = Result<Option<Record>, E>;

impl Gateway {
    /// `None` only if the key is known to be absent.
    pub(super) async fn look_up(
        &self,
        identity: &Identity,
        intent: Intent,
        stages: &mut Stages,
        budget: &mut StoreBudget,
    ) -> Result<Option<Found>, GatewayError> {
        let metrics = &self.core.metrics;
        let reading = self.core.cache.begin_reading(identity);
        let in_memory = stages.time(Stage::Memory, async { self.core.cache.answer(identity) }).await;
        let found = if in_memory.is_some() { Look::Hit } else { Look::Miss };
        metrics.cache_lookups_total[(CacheTier::Memory, found)].inc();
        let (in_ledger, in_store) = match in_memory {
            Some(record) if self.freshness.is_current() => return Ok(Some((record, CacheStatus::HitMemory))),
            Some(record) => match self.confirm(&record, stages).await {
                Ok(in_ledger) => (Ok(in_ledger), None),
                Err(_) => return Ok(Some((record, CacheStatus::HitMemory))),
            },
            None => self.ask_ledger(identity, stages, budget).await,
        };
        if let Ok(Some(record)) = &in_ledger
            && stages.time(Stage::Store, self.is_still_there(record)).await?
        {
            let record = Arc::new(record.clone());
            self.core.cache.keep_answer(record.clone(), reading);
            return Ok(Some((record, CacheStatus::HitLedger)));
        }
        let in_store = match in_store {
            Some(in_store) => in_store,
            None => self.ask_store(identity, stages, budget).await,
        };
        match (in_ledger, in_store) {
            (in_ledger, Ok(Some(record))) => {
                // Another archive's records serve, but are not imported.
                if in_ledger.is_ok() && self.core.guard.is_open() {
                    stages.time(Stage::Ledger, self.import_record(&record)).await;
                }
                if stages.time(Stage::Store, self.is_still_there(&record)).await? {
                    let record = Arc::new(record);
                    // Without the ledger it is not remembered: another process may have purged it.
                    if in_ledger.is_ok() || !self.freshness.is_shared {
                        self.core.cache.keep_answer(record.clone(), reading);
                    }
                    return Ok(Some((record, CacheStatus::HitStore)));
                }
                in_ledger.map(|_| None).map_err(|_| GatewayError::LedgerUnavailable)
            }
            (Ok(_), Ok(None)) => Ok(None),
            (Ok(_), Err(error)) => self.without_the_store(identity, intent, &error).await.map(|()| None),
            (Err(error), _) => {
                tracing::error!(%error, key = %identity, "the ledger could not be asked, and the store has no answer");
                Err(GatewayError::LedgerUnavailable)
            }
        }
    }

    /// Asks the ledger about an answer in memory that may be out of date.
    async fn confirm(&self, known: &Record, stages: &mut Stages) -> Asked<LedgerError> {
        let asked = timeout(HIT_PATIENCE, self.core.ledger.look_up(&known.namespace, known.key));
        let in_ledger = stages.time(Stage::Ledger, asked).await.unwrap_or_else(|_| Err(slow()));
        self.core.metrics.cache_lookups_total[(CacheTier::Ledger, look(&in_ledger))].inc();
        if in_ledger.as_ref().is_ok_and(|found| found.as_ref() != Some(known)) {
            // It must not be served when the ledger is away next time.
            self.core.cache.forget_answer(&known.identity());
        }
        in_ledger
    }

    /// Asks the ledger, and also the store if the ledger is slow.
    async fn ask_ledger(
        &self,
        identity: &Identity,
        stages: &mut Stages,
        budget: &mut StoreBudget,
    ) -> (Asked<LedgerError>, Option<Asked<StoreError>>) {
        let mut asked = pin!(self.core.ledger.look_up(&identity.namespace, identity.key));
        let (in_ledger, in_store) = match stages.time(Stage::Ledger, timeout(HIT_PATIENCE, &mut asked)).await
        {
            Ok(in_ledger) => (in_ledger, None),
            Err(_) => match self.ask_store(identity, stages, budget).await {
                Ok(Some(record)) => (Err(slow()), Some(Ok(Some(record)))),
                in_store => (stages.time(Stage::Ledger, asked).await, Some(in_store)),
            },
        };
        self.core.metrics.cache_lookups_total[(CacheTier::Ledger, look(&in_ledger))].inc();
        (in_ledger, in_store)
    }

    async fn ask_store(
        &self,
        identity: &Identity,
        stages: &mut Stages,
        budget: &mut StoreBudget,
    ) -> Asked<StoreError> {
        let asked = budget.read(self.core.store.record(&identity.namespace, identity.key));
        let in_store = stages.time(Stage::Store, asked).await;
        self.core.metrics.cache_lookups_total[(CacheTier::Store, look(&in_store))].inc();
        in_store
    }

    /// Checks a record's object. If it is gone, the row becomes `lost` and the key may be bought again; if
    /// the store cannot be asked, the object counts as there.
    async fn is_still_there(&self, record: &Record) -> Result<bool, GatewayError> {
        let Some(object) = record.object() else { return Ok(false) };
        match timeout(HIT_PATIENCE, self.core.store.has_object(object)).await {
            Ok(Ok(false)) => {}
            Ok(Ok(true)) => return Ok(true),
            Ok(Err(_)) | Err(_) => match self.core.guard.standing() {
                // The ledger's results are in another store, so their URLs do not serve.
                Standing::Closed(Mismatch::StoreUnmarked { .. } | Mismatch::Different { .. }) => {
                    return Err(GatewayError::ArchiveGuard);
                }
                _ => return Ok(true),
            },
        }
        if !self.core.guard.confirm().await {
            return Err(GatewayError::ArchiveGuard);
        }
        tracing::error!(key = %record.key, object = %object.path(), "the store has lost a result");
        // Without the booking, a new purchase would meet the old row.
        self.core.ledger.lose(record).await.map_err(|error| {
            tracing::error!(%error, "the loss could not be booked");
            GatewayError::LedgerUnavailable
        })?;
        Ok(false)
    }

    async fn import_record(&self, record: &Record) {
        if let Err(error) = self.core.ledger.import_record(record).await {
            tracing::warn!(%error, key = %record.key, "the ledger did not import a record");
        }
    }

    /// The ledger has nothing under a key, and the store did not say whether it has.
    async fn without_the_store(
        &self,
        identity: &Identity,
        intent: Intent,
        error: &StoreError,
    ) -> Result<(), GatewayError> {
        match error {
            // The record was paid for, and another could not replace it.
            StoreError::Corrupt(_) | StoreError::TooLong(_) => {
                tracing::error!(%error, key = %identity, "a record is damaged, so its key is not bought");
                Err(GatewayError::StoreUnavailable)
            }
            StoreError::Busy(_) => Err(GatewayError::StoreBusy),
            // The ledger decides, if it knows every record.
            StoreError::Unavailable(_) | StoreError::Full(_) | StoreError::Unfit(_) => {
                tracing::warn!(%error, key = %identity, "the store could not be asked for a record");
                match self.core.ledger.absence(&identity.namespace, identity.key).await {
                    Ok(Absence::Certain) => Ok(()),
                    Ok(Absence::OpenCall) if intent == Intent::Buy => Ok(()),
                    Ok(Absence::OpenCall | Absence::Uncertain) => Err(GatewayError::LedgerIncomplete),
                    Err(_) => Err(GatewayError::LedgerUnavailable),
                }
            }
        }
    }
}

fn slow() -> LedgerError {
    LedgerError::Unavailable(format!("it did not answer within {HIT_PATIENCE:?}"))
}

fn look<E>(found: &Result<Option<Record>, E>) -> Look {
    match found {
        Ok(Some(_)) => Look::Hit,
        Ok(None) => Look::Miss,
        Err(_) => Look::Error,
    }
}
