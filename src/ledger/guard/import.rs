//! The import of records that the ledger did not book itself: those of an archive that it did not create, and
//! the result of a call whose owner stored it and died before it was booked. Until they are imported, a key
//! that is not found is bought only if the store says that it has no record
//! ([`ArchiveIndex::absence`](crate::ledger::ArchiveIndex::absence)).
//!
//! The ledger keeps the position. Every replica reads it before each page, so they repeat at most one page.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::time::Instant;

use super::{ArchiveGuard, Standing, StorageError};
use crate::base::archive::{ArchiveId, Import};
use crate::base::key::CacheKey;
use crate::ledger::{CallId, Orphan};
use crate::store::StoreError;

/// Records of one page, and the pause after it: at most 200 records each second.
const PAGE: usize = 100;
const PAGE_PAUSE: Duration = Duration::from_millis(500);
/// Records read at once.
const AT_ONCE: usize = 4;
/// The time within which a write of a dead process has arrived.
const WRITES_ARRIVE_WITHIN: Duration = Duration::from_secs(30);
const SAY_EVERY: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Progress {
    begun: Option<Instant>,
    said: Option<Instant>,
    /// When an orphan's record was first read, and whether it was read again.
    orphans: HashMap<CallId, (Instant, bool)>,
}

/// As far as this process knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportStatus {
    NotBegun,
    Running(u64),
    Complete,
}

impl fmt::Display for ImportStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotBegun => f.write_str("not begun"),
            Self::Running(records) => write!(f, "{records} records so far"),
            Self::Complete => f.write_str("complete"),
        }
    }
}

impl ArchiveGuard {
    pub async fn import_records(&self, period: Duration) {
        loop {
            self.import_page().await;
            let is_complete = self.import_status() == ImportStatus::Complete;
            tokio::time::sleep(if is_complete { period } else { PAGE_PAUSE }).await;
        }
    }

    /// Returns true when more pages follow.
    pub async fn import_page(&self) -> bool {
        let Standing::Open(archive) = self.standing() else { return false };
        let mut progress = self.progress.lock().await;
        let imported = match self.settle_orphans(&mut progress.orphans).await {
            Ok(()) => self.import_next(&mut progress, archive).await,
            Err(error) => Err(error),
        };
        imported.unwrap_or_else(|error| {
            let is_due = progress.said.is_none_or(|said| said.elapsed() >= SAY_EVERY);
            if is_due && self.import_status() != ImportStatus::Complete {
                tracing::error!(%error, "record import failed; it is repeated, and misses need the store");
                progress.said = Some(Instant::now());
            }
            false
        })
    }

    pub fn import_status(&self) -> ImportStatus {
        *self.import.borrow()
    }

    async fn import_next(&self, progress: &mut Progress, archive: ArchiveId) -> Result<bool, StorageError> {
        let Some(membership) = self.ledger.archive().await? else { return Ok(false) };
        let after = match membership.import {
            Import::Complete => {
                self.import.send_replace(ImportStatus::Complete);
                return Ok(false);
            }
            Import::UpTo(after) => after,
        };
        if membership.archive != archive {
            return Ok(false);
        }
        let before = if let ImportStatus::Running(before) = self.import_status() { before } else { 0 };
        let page = self.store.list_records(after.as_deref(), PAGE).await?;
        if !page.records.is_empty() && progress.begun.is_none() {
            tracing::info!(%archive, after, "record import begins: the ledger does not know the whole archive");
            (progress.begun, progress.said) = (Some(Instant::now()), Some(Instant::now()));
        }
        self.import_all(&page.records).await?;
        let is_last = page.next.is_none();
        let import = if is_last { Import::Complete } else { Import::UpTo(page.next) };
        self.ledger.note_import(archive, import).await?;
        let records = before + page.records.len() as u64;
        let status = if is_last { ImportStatus::Complete } else { ImportStatus::Running(records) };
        self.import.send_replace(status);
        say(progress, records, is_last);
        Ok(!is_last)
    }

    async fn import_all(&self, records: &[(String, CacheKey)]) -> Result<(), StorageError> {
        for some in records.chunks(AT_ONCE) {
            let imports: Vec<_> = some.iter().map(|(namespace, key)| self.import(namespace, *key)).collect();
            try_join_all(imports).await?;
        }
        Ok(())
    }

    async fn import(&self, namespace: &str, key: CacheKey) -> Result<(), StorageError> {
        match self.store.record(namespace, key).await {
            Ok(Some(record)) => self.ledger.import_record(&record).await?,
            Ok(None) => {}
            // One damaged record must not stop the import of the others.
            Err(error @ StoreError::Corrupt(_)) => tracing::error!(%error, %key, "record not imported"),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Looks twice in the store for the result of each orphan.
    async fn settle_orphans(&self, asked: &mut HashMap<CallId, (Instant, bool)>) -> Result<(), StorageError> {
        let orphans = self.ledger.orphans().await?;
        asked.retain(|id, _| orphans.iter().any(|orphan| orphan.id == *id));
        for Orphan { id, namespace, key } in orphans {
            let is_due = asked.get(&id).is_none_or(|&(first, is_asked_again)| {
                !is_asked_again && first.elapsed() >= WRITES_ARRIVE_WITHIN
            });
            if is_due {
                self.import(&namespace, key).await?;
                asked.entry(id).and_modify(|one| one.1 = true).or_insert((Instant::now(), false));
            }
        }
        Ok(())
    }
}

fn say(progress: &mut Progress, records: u64, is_last: bool) {
    let Some(took) = progress.begun.map(|begun| begun.elapsed()) else { return };
    if is_last {
        tracing::info!(records, ?took, "record import complete: the ledger knows the whole archive");
        (progress.begun, progress.said) = (None, None);
    } else if progress.said.is_none_or(|said| said.elapsed() >= SAY_EVERY) {
        tracing::info!(records, ?took, "record import goes on");
        progress.said = Some(Instant::now());
    }
}
