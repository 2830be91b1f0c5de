//! Results while the store is unavailable: the ledger keeps and serves them, and the [`Copier`] copies them.
//! [`Spool`] is a [`Store`] around another one. A failed write is booked as
//! [`Booking::Spooled`](crate::ledger::Booking::Spooled) by its caller. A result leaves the spool only when
//! the store has confirmed object and record, so a read of the spool and then of the store always finds it.
//!
//! The record of a purged key does not come back: a purge is booked before it removes the record from the
//! store, and a writer reads the ledger after its write. So the writer or the purge removes the record.

mod copier;
mod room;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;

pub use self::copier::Copier;
use self::room::Room;
use crate::base::archive::{ArchiveCheck, ArchiveId};
use crate::base::key::CacheKey;
use crate::base::picture::ObjectName;
use crate::base::record::Record;
use crate::ledger::guard::StorageError;
use crate::ledger::{Ledger, LedgerError};
use crate::store::{RecordPage, Store, StoreError, is_object};

/// For the ledger, before a hit reads the store without it.
const HIT_PATIENCE: Duration = Duration::from_millis(200);
/// The same for the bytes of a result.
const READ_PATIENCE: Duration = Duration::from_millis(500);
const LEDGER_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolConfig {
    /// A folder on the ledger's disk; `None` for a ledger on another machine.
    pub disk: Option<PathBuf>,
    pub max_bytes: u64,
    pub result_max_bytes: u64,
    /// The store is a service, which may be unavailable for a time. Once it was proved, results are bought
    /// that only the spool can keep for now; before that, nothing is copied to it.
    pub is_remote: bool,
}

pub struct Spool {
    store: Arc<dyn Store>,
    ledger: Arc<dyn Ledger>,
    room: Room,
    /// The copier could not write to the store, and retries.
    is_away: AtomicBool,
    /// A write failed, so a result will soon be in the spool.
    refused: Notify,
    check: Arc<dyn ArchiveCheck>,
}

impl Spool {
    /// Writes only while `check` says that the store is the ledger's: another one would lose a paid result.
    pub fn new(
        store: Arc<dyn Store>,
        ledger: Arc<dyn Ledger>,
        check: Arc<dyn ArchiveCheck>,
        config: SpoolConfig,
    ) -> Arc<Self> {
        let (is_away, refused) = (AtomicBool::new(false), Notify::new());
        Arc::new(Self { store, ledger, room: Room::new(config), is_away, refused, check })
    }

    async fn check_ours(&self) -> Result<(), StoreError> {
        if self.check.is_ours().await {
            return Ok(());
        }
        Err(StoreError::Unavailable("it is not known to be the store that the ledger belongs to".into()))
    }

    /// While the store is away or does not take a result, a call is reserved only with room in the spool.
    fn set_away(&self, is_away: bool, is_refusing: bool) {
        self.ledger.keep_room(self.room.of_each().filter(|_| is_away || is_refusing));
        self.is_away.store(is_away, Ordering::Relaxed);
    }

    /// Fails at once while the copier retries, so that requests do not wait for the store.
    fn check_not_away(&self) -> Result<(), StoreError> {
        if self.is_away.load(Ordering::Relaxed) {
            return Err(StoreError::Unavailable(
                "it did not take what waits in the spool, and is tried again in the background".into(),
            ));
        }
        Ok(())
    }

    /// Wakes the copier after a failure.
    fn learn<T>(&self, written: Result<T, StoreError>) -> Result<T, StoreError> {
        if written.is_err() {
            self.refused.notify_one();
        }
        written
    }

    async fn forget_if_purged(&self, record: &Record, patience: Duration) -> Result<bool, StorageError> {
        let Some(up_to) = self.purged(record, patience).await? else { return Ok(false) };
        self.check_ours().await?;
        self.store.forget_record(&record.namespace, record.key, up_to).await?;
        tracing::info!(key = %record.key, generation = record.generation, "a purged record was removed from the store");
        Ok(true)
    }

    /// The generation up to which the key was purged, if that includes the record.
    async fn purged(&self, record: &Record, patience: Duration) -> Result<Option<u64>, LedgerError> {
        let purged = ask(patience, self.ledger.purged(&record.namespace, record.key)).await?;
        Ok(purged.filter(|&up_to| up_to >= record.generation))
    }
}

async fn ask<T>(
    patience: Duration,
    question: impl Future<Output = Result<T, LedgerError>>,
) -> Result<T, LedgerError> {
    match tokio::time::timeout(patience, question).await {
        Ok(answer) => answer,
        Err(_) => Err(LedgerError::Unavailable(format!("it did not answer within {patience:?}"))),
    }
}

/// The store has no object, and the spool could not be read.
fn not_said(error: &LedgerError) -> StoreError {
    StoreError::Unavailable(format!(
        "it is not there, and whether it waits in the spool is not known: {error}"
    ))
}

#[async_trait]
impl Store for Spool {
    async fn put_object(&self, name: ObjectName, bytes: Bytes) -> Result<(), StoreError> {
        self.check_not_away()?;
        self.check_ours().await?;
        self.learn(self.store.put_object(name, bytes).await)
    }

    async fn object(&self, name: ObjectName, max: u64) -> Result<Option<Bytes>, StoreError> {
        let spooled = match ask(READ_PATIENCE, self.ledger.is_spooled(name)).await {
            Ok(true) => ask(LEDGER_PATIENCE, self.ledger.spooled_object(name)).await,
            is_spooled => is_spooled.map(|_| None),
        };
        if let Ok(Some(bytes)) = &spooled {
            if bytes.len() as u64 > max {
                return Err(StoreError::TooLong(bytes.len() as u64));
            }
            if is_object(name, bytes) {
                return Ok(Some(bytes.clone()));
            }
            tracing::error!(object = %name.path(), "a result in the spool is damaged");
        }
        match (self.store.object(name, max).await?, spooled) {
            (Some(bytes), _) => Ok(Some(bytes)),
            (None, Ok(None)) => Ok(None),
            (None, Ok(Some(_))) => Err(StoreError::Corrupt(format!("{} in the spool", name.path()))),
            (None, Err(error)) => Err(not_said(&error)),
        }
    }

    async fn has_object(&self, name: ObjectName) -> Result<bool, StoreError> {
        let spooled = ask(HIT_PATIENCE, self.ledger.is_spooled(name)).await;
        if matches!(spooled, Ok(true)) || self.store.has_object(name).await? {
            return Ok(true);
        }
        spooled.map_err(|error| not_said(&error))
    }

    async fn put_record(&self, record: &Record) -> Result<Record, StoreError> {
        self.check_not_away()?;
        self.check_ours().await?;
        let standing = self.learn(self.store.put_record(record).await)?;
        match self.forget_if_purged(&standing, LEDGER_PATIENCE).await {
            // Without the ledger, a later lookup checks for a purge.
            Ok(_) | Err(StorageError::Ledger(_)) => Ok(standing),
            Err(StorageError::Store(error)) => Err(error),
        }
    }

    /// Without the ledger the store decides, because an acknowledged purge has removed its record.
    async fn record(&self, namespace: &str, key: CacheKey) -> Result<Option<Record>, StoreError> {
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

    async fn list_records(&self, after: Option<&str>, limit: usize) -> Result<RecordPage, StoreError> {
        self.store.list_records(after, limit).await
    }

    async fn forget_record(&self, namespace: &str, key: CacheKey, up_to: u64) -> Result<bool, StoreError> {
        self.check_ours().await?;
        self.store.forget_record(namespace, key, up_to).await
    }

    /// Room in the spool is enough, and checked first: it takes no time when the store is slow.
    async fn check_room(&self) -> Result<(), StoreError> {
        let in_spool = self.room.check(&*self.ledger).await;
        if in_spool.is_ok() {
            return Ok(());
        }
        let in_store = match self.check_not_away() {
            Ok(()) => self.store.check_room().await,
            away => away,
        };
        match (in_store, in_spool) {
            (Ok(()), _) => {
                self.room.store_is_proved();
                Ok(())
            }
            (Err(StoreError::Unavailable(store)), Err(StoreError::Full(spool))) => {
                Err(StoreError::Full(format!("{store}; and {spool}")))
            }
            (Err(error), _) => Err(error),
        }
    }

    async fn prove(&self) -> Result<(), StoreError> {
        self.store.prove().await?;
        self.room.store_is_proved();
        Ok(())
    }

    async fn archive(&self) -> Result<Option<ArchiveId>, StoreError> {
        self.store.archive().await
    }

    async fn mark_archive(&self, archive: ArchiveId) -> Result<ArchiveId, StoreError> {
        self.store.mark_archive(archive).await
    }
}
