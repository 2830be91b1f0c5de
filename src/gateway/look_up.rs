//! Lookup: memory, as far as it is [fresh](super::freshness), then the ledger, then the store's record.
//!
//! A key is bought only when it is known to be absent. If the store cannot be asked, the ledger decides,
//! provided that it knows every record of the store. A record that the ledger does not know is imported
//! into it, so that a new database over an old bucket buys nothing again; a result that the store no longer
//! has is booked as lost. Nothing here spends a credit.
//!
//! A tier that hangs does not delay a hit in another one by more than [`HIT_PATIENCE`] for each question,
//! and waiting for a record counts against the request's [`StoreBudget`].

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::Gateway;
use crate::base::identity::Identity;
use crate::base::outcome::CacheStatus;
use crate::base::record::Record;
use crate::cache::FillToken;
use crate::error::GatewayError;
use crate::ledger::guard::{Mismatch, Standing};
use crate::ledger::{Absence, LedgerError};
use crate::metrics::{CacheTier, Look, Stage, Stages};
use crate::store::{StoreBudget, StoreError};

/// How long what one tier has waits for another tier's word on it.
const HIT_PATIENCE: Duration = Duration::from_millis(400);

/// What a caller does when nothing is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Intent {
    /// It buys. An open call of the key is met by the reservation.
    Buy,
    /// It says that there is nothing.
    Report,
}

/// A stored answer and the tier it was found in.
pub(super) struct Found {
    pub(super) record: Arc<Record>,
    pub(super) status: CacheStatus,
}

/// What a durable tier says of a key.
type Asked<E> = Result<Option<Record>, E>;

impl Gateway {
    /// Memory, then ledger, then store. `None` only when the key is known to be absent.
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
            Some(record) if self.freshness.is_current() => return Ok(Some(hit(record))),
            Some(record) => match self.confirm(&record, stages).await {
                Ok(in_ledger) => (Ok(in_ledger), None),
                Err(_) => return Ok(Some(hit(record))),
            },
            None => self.ask_ledger(identity, stages, budget).await,
        };
        if let Ok(Some(record)) = &in_ledger
            && stages.time(Stage::Store, self.is_still_there(record)).await?
        {
            return Ok(Some(self.remember(record.clone(), CacheStatus::HitLedger, reading).await));
        }
        let in_store = match in_store {
            Some(in_store) => in_store,
            None => self.ask_store(identity, stages, budget).await,
        };
        match (in_ledger, in_store) {
            (in_ledger, Ok(Some(record))) => {
                // Another archive's records serve, but are not taken for ours.
                if in_ledger.is_ok() && self.core.guard.is_open() {
                    stages.time(Stage::Ledger, self.import_record(&record)).await;
                }
                if stages.time(Stage::Store, self.is_still_there(&record)).await? {
                    // It may have been purged, which the ledger alone knows.
                    if in_ledger.is_err() && self.freshness.is_shared() {
                        let record = Arc::new(record);
                        return Ok(Some(Found { record, status: CacheStatus::HitStore }));
                    }
                    return Ok(Some(self.remember(record, CacheStatus::HitStore, reading).await));
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

    /// What the ledger has instead of an answer in memory that may be out of date.
    async fn confirm(&self, known: &Record, stages: &mut Stages) -> Asked<LedgerError> {
        let asked = timeout(HIT_PATIENCE, self.core.ledger.look_up(&known.namespace, known.key));
        let in_ledger = stages.time(Stage::Ledger, asked).await.unwrap_or_else(|_| Err(slow()));
        self.core.metrics.cache_lookups_total[(CacheTier::Ledger, look(&in_ledger))].inc();
        if in_ledger.as_ref().is_ok_and(|found| found.as_ref() != Some(known)) {
            // It must not be served when the ledger is away next.
            self.freshness.forget(&known.identity());
        }
        in_ledger
    }

    /// What the ledger has; and what the store has, if the ledger took so long that it was asked, too.
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
        let asked = budget.wait(self.core.store.record(&identity.namespace, identity.key));
        let in_store = stages.time(Stage::Store, asked).await;
        self.core.metrics.cache_lookups_total[(CacheTier::Store, look(&in_store))].inc();
        in_store
    }

    /// Is a record's object where it should be? When the store says that it is gone, the row is
    /// `lost` and the key may be bought again; when the store cannot be asked, it counts as there.
    async fn is_still_there(&self, record: &Record) -> Result<bool, GatewayError> {
        let Some(object) = record.object() else { return Ok(false) };
        let is_there = timeout(HIT_PATIENCE, self.core.store.has_object(object)).await;
        match (is_there, self.core.guard.standing()) {
            (Ok(Ok(false)), _) => {}
            // The ledger's results are in another store, so this one has no URL for them.
            (
                Ok(Err(_)) | Err(_),
                Standing::Closed(Mismatch::StoreUnmarked { .. } | Mismatch::Different { .. }),
            ) => {
                return Err(GatewayError::ArchiveGuard);
            }
            // An object that cannot be looked for counts as there.
            _ => return Ok(true),
        }
        if !self.core.guard.confirm().await {
            return Err(GatewayError::ArchiveGuard);
        }
        tracing::error!(key = %record.key, object = %object.path(), "the store has lost a result");
        // Without the booking, buying again would meet the old row; and its URL is dead.
        self.core.ledger.lose(record).await.map_err(|error| {
            tracing::error!(%error, "the loss could not be booked");
            GatewayError::LedgerUnavailable
        })?;
        Ok(false)
    }

    /// A record the ledger does not know becomes a row, so that the next lookup is shorter.
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
            // Something is there: it was paid for, and nothing could be kept in its place.
            StoreError::Corrupt(_) => {
                tracing::error!(%error, key = %identity, "a record is damaged, so its key is not bought");
                Err(GatewayError::StoreUnavailable)
            }
            StoreError::Busy(_) => Err(GatewayError::StoreBusy),
            // The store cannot be asked, so the ledger decides, if it knows every record.
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

    async fn remember(&self, record: Record, status: CacheStatus, reading: FillToken) -> Found {
        let record = Arc::new(record);
        self.core.cache.keep_answer(record.clone(), reading);
        Found { record, status }
    }
}

fn hit(record: Arc<Record>) -> Found {
    Found { record, status: CacheStatus::HitMemory }
}

fn slow() -> LedgerError {
    LedgerError::Unavailable(format!("it did not answer within {HIT_PATIENCE:?}"))
}

/// What a look into a tier came to.
fn look<E>(found: &Result<Option<Record>, E>) -> Look {
    match found {
        Ok(Some(_)) => Look::Hit,
        Ok(None) => Look::Miss,
        Err(_) => Look::Error,
    }
}
