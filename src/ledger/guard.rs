//! The archive guard: nothing is bought unless ledger and store are known to belong together. Both carry the
//! id of their [`archive`](crate::base::archive). With a typo in the prefix, an emptied or recreated bucket,
//! or a foreign database, everything would look absent and be bought again; so a marker that is missing or
//! differs stops all paying, while hits go on. Only `granary adopt` pairs those.
//!
//! A new ledger and a new store are paired at once, ledger first: its id is *settled* only after the store
//! has been seen to carry it, so that a crash between the two does not look like a loss.

mod import;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

pub use self::import::ImportStatus;
use self::import::Progress;
use crate::base::archive::{ArchiveCheck, ArchiveId, Membership};
use crate::ledger::{Ledger, LedgerError};
use crate::store::{Store, StoreError};

/// Between two comparisons for [`ArchiveGuard::confirm`], at least.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

pub struct ArchiveGuard {
    ledger: Arc<dyn Ledger>,
    store: Arc<dyn Store>,
    standing: watch::Sender<Standing>,
    /// The last comparison; locked during one, so that concurrent callers share it.
    looked: Mutex<Option<Look>>,
    progress: Mutex<Progress>,
    import: watch::Sender<ImportStatus>,
}

/// When ledger and store were compared, and whether both could be read.
#[derive(Clone, Copy)]
struct Look {
    when: Instant,
    was_answered: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// They could not be compared since the start. Nothing is bought.
    Unknown,
    Open(ArchiveId),
    Closed(Mismatch),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    #[error(
        "the ledger belongs to archive {ledger}, and the store has no marker: the bucket was emptied or \
         recreated, a folder is not mounted, or store.bucket, store.prefix or store.path is mistyped"
    )]
    StoreUnmarked { ledger: ArchiveId },
    #[error(
        "the store is archive {store}, and the ledger is a new one: the database was replaced, or \
         state.path or the store's place is mistyped"
    )]
    LedgerUnmarked { store: ArchiveId },
    #[error(
        "what the store has under the name `archive` is no marker of ours: it is damaged, or somebody else's; \
         look at it, and remove it before adopting"
    )]
    StoreMarkedOtherwise,
    #[error(
        "the ledger belongs to archive {ledger}, and the store is archive {store}: one of them is of another \
         world, or the store's place is mistyped"
    )]
    Different { ledger: ArchiveId, store: ArchiveId },
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum StorageError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adoption {
    /// `None` when ledger and store belonged together, or both were new.
    pub found: Option<Mismatch>,
    pub archive: ArchiveId,
}

impl fmt::Display for Adoption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.found {
            Some(mismatch) => mismatch.fmt(f),
            None => f.write_str("ledger and store belong together"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    New,
    /// The ledger's id has not reached the store yet.
    Begun(ArchiveId),
    /// Both have this id, and whether that is settled.
    Pair(ArchiveId, bool),
    Apart(Mismatch),
}

impl Finding {
    fn mismatch(self) -> Option<Mismatch> {
        if let Self::Apart(mismatch) = self { Some(mismatch) } else { None }
    }
}

impl ArchiveGuard {
    pub fn new(ledger: Arc<dyn Ledger>, store: Arc<dyn Store>) -> Self {
        Self {
            ledger,
            store,
            standing: watch::Sender::new(Standing::Unknown),
            looked: Mutex::default(),
            progress: Mutex::default(),
            import: watch::Sender::new(ImportStatus::NotBegun),
        }
    }

    /// The result of the last comparison that succeeded.
    pub fn standing(&self) -> Standing {
        *self.standing.borrow()
    }

    pub fn is_open(&self) -> bool {
        matches!(self.standing(), Standing::Open(_))
    }

    /// Compares the markers, and pairs a new ledger with a new store. After an error the last standing holds.
    pub async fn look(&self) -> Standing {
        let mut looked = self.looked.lock().await;
        self.look_now(&mut looked).await
    }

    /// Ledger and store belonged together a moment ago. For writes, and when something is missing.
    pub async fn confirm(&self) -> bool {
        let mut looked = self.looked.lock().await;
        if looked.is_none_or(|look| look.when.elapsed() >= LOOK_PAUSE) {
            self.look_now(&mut looked).await;
        }
        looked.is_some_and(|look| look.was_answered) && self.is_open()
    }

    pub async fn watch(&self, period: Duration) {
        loop {
            let is_unknown = self.standing() == Standing::Unknown;
            tokio::time::sleep(if is_unknown { period.min(LOOK_PAUSE) } else { period }).await;
            self.look().await;
        }
    }

    /// Makes ledger and store one archive, with the store's id if it has one. May be repeated.
    pub async fn adopt(&self) -> Result<Adoption, StorageError> {
        let mut looked = self.looked.lock().await;
        let (membership, store) = (self.ledger.archive().await?, self.store.archive().await?);
        let found = judge(membership.as_ref(), store).mismatch();
        let wanted = membership.map_or_else(ArchiveId::random, |membership| membership.archive);
        let archive = match store {
            Some(archive) => archive,
            None => self.store.mark_archive(wanted).await?,
        };
        self.ledger.settle_archive(archive).await?;
        *looked = Some(Look { when: Instant::now(), was_answered: true });
        self.learn(Standing::Open(archive));
        Ok(Adoption { found, archive })
    }

    async fn look_now(&self, looked: &mut Option<Look>) -> Standing {
        let found = self.found().await;
        let was_answered = found.is_ok();
        match found {
            Ok(standing) => self.learn(standing),
            Err(error) => tracing::warn!(%error, "the archive's markers cannot be compared"),
        }
        *looked = Some(Look { when: Instant::now(), was_answered });
        self.standing()
    }

    async fn found(&self) -> Result<Standing, StorageError> {
        let membership = self.membership().await?;
        let archive = match find(membership.as_ref(), &*self.store).await? {
            Finding::Apart(mismatch) => return Ok(Standing::Closed(mismatch)),
            Finding::Pair(archive, true) => return Ok(Standing::Open(archive)),
            Finding::Pair(archive, false) | Finding::Begun(archive) => archive,
            // Of several replicas that start at once, the id of one stands for all.
            Finding::New => self.ledger.begin_archive(ArchiveId::random()).await?.archive,
        };
        let standing = self.store.mark_archive(archive).await?;
        if standing != archive {
            return Ok(Standing::Closed(Mismatch::Different { ledger: archive, store: standing }));
        }
        self.ledger.settle_archive(archive).await?;
        tracing::info!(%archive, "ledger and store are one archive from now on");
        Ok(Standing::Open(archive))
    }

    /// The ledger's archive. Only an adoption changes it, so while the ledger is away the last one is
    /// compared: a paid result may then be written to the store.
    async fn membership(&self) -> Result<Option<Membership>, LedgerError> {
        match (self.ledger.archive().await, self.standing()) {
            (Err(_), Standing::Open(archive)) => Ok(Some(Membership::new(archive, true))),
            (read, _) => read,
        }
    }

    fn learn(&self, standing: Standing) {
        let before = self.standing.send_replace(standing);
        match standing {
            Standing::Closed(mismatch) if before != standing => {
                tracing::error!(
                    alarm = "archive_guard",
                    "nothing is bought: {mismatch}; correct that, or run `granary adopt` if it is meant so"
                );
            }
            Standing::Open(archive) if matches!(before, Standing::Closed(_)) => {
                tracing::warn!(%archive, "ledger and store belong together again; buying goes on");
            }
            Standing::Open(_) | Standing::Closed(_) | Standing::Unknown => {}
        }
    }
}

#[async_trait]
impl ArchiveCheck for ArchiveGuard {
    async fn is_ours(&self) -> bool {
        self.confirm().await
    }
}

/// Compares ledger and store, and changes nothing.
pub async fn compare(ledger: &dyn Ledger, store: &dyn Store) -> Result<Option<Mismatch>, StorageError> {
    Ok(find(ledger.archive().await?.as_ref(), store).await?.mismatch())
}

async fn find(membership: Option<&Membership>, store: &dyn Store) -> Result<Finding, StoreError> {
    match store.archive().await {
        Err(StoreError::Corrupt(_)) => Ok(Finding::Apart(Mismatch::StoreMarkedOtherwise)),
        read => Ok(judge(membership, read?)),
    }
}

fn judge(membership: Option<&Membership>, store: Option<ArchiveId>) -> Finding {
    let Some(&Membership { archive, is_settled, .. }) = membership else {
        return store.map_or(Finding::New, |store| Finding::Apart(Mismatch::LedgerUnmarked { store }));
    };
    match store {
        Some(store) if archive == store => Finding::Pair(archive, is_settled),
        Some(store) => Finding::Apart(Mismatch::Different { ledger: archive, store }),
        None if is_settled => Finding::Apart(Mismatch::StoreUnmarked { ledger: archive }),
        None => Finding::Begun(archive),
    }
}
