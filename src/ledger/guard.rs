//! The archive guard: nothing is bought unless ledger and store are known to belong together.
//!
//! Both carry the id of their [`archive`](crate::base::archive). With a typo in the prefix, an emptied or
//! recreated bucket, or a database of another world, everything would look absent and be bought
//! anew; so a marker that is missing or differs stops all paying, while hits go on where there are
//! bytes. Only `granary adopt` makes a new pair of them, when a person has looked.
//!
//! What is new in both is paired at once, ledger first: its id is *settled* only after the store has
//! been seen to carry it, so that a crash between the two is not taken for a loss.

mod import;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

pub use self::import::ImportStatus;
use self::import::Progress;
use crate::base::archive::{ArchiveCheck, ArchiveId, Membership};
use crate::ledger::{Ledger, LedgerError};
use crate::store::{Store, StoreError};

/// Whoever finds something missing may ask for a look, but not more often than this.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// See the module.
pub struct ArchiveGuard {
    ledger: Arc<dyn Ledger>,
    store: Arc<dyn Store>,
    standing: Mutex<Standing>,
    /// When it was last looked, and whether both could be asked; held while looking, so that many who
    /// ask share one look.
    looked: tokio::sync::Mutex<Option<Look>>,
    progress: tokio::sync::Mutex<Progress>,
    import: Mutex<ImportStatus>,
}

/// A look, and whether both could be asked.
#[derive(Clone, Copy)]
struct Look {
    when: Instant,
    was_answered: bool,
}

/// What is known of ledger and store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// They could not be asked since the start. Nothing is bought.
    Unknown,
    /// They belong together.
    Open(ArchiveId),
    /// They do not. Nothing is bought.
    Closed(Mismatch),
}

/// How ledger and store do not belong together; the texts say what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The store has no marker.
    #[error(
        "the ledger belongs to archive {ledger}, and the store has no marker: the bucket was emptied or \
         recreated, a folder is not mounted, or store.bucket, store.prefix or store.path is mistyped"
    )]
    StoreUnmarked {
        /// The ledger's archive.
        ledger: ArchiveId,
    },
    /// The ledger has no archive.
    #[error(
        "the store is archive {store}, and the ledger is a new one: the database was replaced, or \
         state.path or the store's place is mistyped"
    )]
    LedgerUnmarked {
        /// The store's archive.
        store: ArchiveId,
    },
    /// What is under the marker's name is not one.
    #[error(
        "what the store has under the name `archive` is no marker of ours: it is damaged, or somebody else's; \
         look at it, and remove it before adopting"
    )]
    StoreMarkedOtherwise,
    /// Each has another.
    #[error(
        "the ledger belongs to archive {ledger}, and the store is archive {store}: one of them is of another \
         world, or the store's place is mistyped"
    )]
    Different {
        /// The ledger's archive.
        ledger: ArchiveId,
        /// The store's archive.
        store: ArchiveId,
    },
}

/// Why ledger or store could not be asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GuardError {
    /// The ledger could not.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The store could not.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What an adoption found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adoption {
    /// What was found; `None` when ledger and store belonged together, or both were new.
    pub found: Option<Mismatch>,
    /// The archive that both belong to now.
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

/// What the two ids mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    /// Neither has one.
    New,
    /// The ledger's id never reached the store.
    Begun(ArchiveId),
    /// Both have this one; is that settled?
    Pair(ArchiveId, bool),
    Apart(Mismatch),
}

impl ArchiveGuard {
    /// Knows nothing yet: see [`look`](Self::look).
    pub fn new(ledger: Arc<dyn Ledger>, store: Arc<dyn Store>) -> Self {
        let (standing, looked) = (Mutex::new(Standing::Unknown), tokio::sync::Mutex::new(None));
        let (progress, import) = (tokio::sync::Mutex::default(), Mutex::new(ImportStatus::NotBegun));
        Self { ledger, store, standing, looked, progress, import }
    }

    /// What was found at the last look that could be made.
    pub fn standing(&self) -> Standing {
        *self.lock()
    }

    /// May something be bought, as far as is known?
    pub fn is_open(&self) -> bool {
        matches!(self.standing(), Standing::Open(_))
    }

    /// Compares the markers, and pairs what is new. Where they cannot be asked, what was known holds.
    pub async fn look(&self) -> Standing {
        let mut looked = self.looked.lock().await;
        self.look_now(&mut looked).await
    }

    /// Do they belong together, as of a moment ago? For whoever finds something missing, or is about to
    /// write: what cannot be asked is not known, whatever it was before.
    pub async fn confirm(&self) -> bool {
        let mut looked = self.looked.lock().await;
        if looked.is_none_or(|look| look.when.elapsed() >= LOOK_PAUSE) {
            self.look_now(&mut looked).await;
        }
        looked.is_some_and(|look| look.was_answered) && self.is_open()
    }

    /// Looks from time to time, for ever; more often while nothing is known.
    pub async fn watch(&self, period: Duration) {
        loop {
            let is_unknown = self.standing() == Standing::Unknown;
            tokio::time::sleep(if is_unknown { period.min(LOOK_PAUSE) } else { period }).await;
            self.look().await;
        }
    }

    /// Makes ledger and store one archive, whatever they were: the store's id stands, if it has one.
    ///
    /// # Errors
    /// [`GuardError`]: nothing is bought yet; it may be repeated.
    pub async fn adopt(&self) -> Result<Adoption, GuardError> {
        let mut looked = self.looked.lock().await;
        let (membership, store) = (self.ledger.archive().await?, self.store.archive().await?);
        let found = match judge(membership.as_ref(), store) {
            Finding::Apart(mismatch) => Some(mismatch),
            Finding::New | Finding::Begun(_) | Finding::Pair(..) => None,
        };
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

    async fn found(&self) -> Result<Standing, GuardError> {
        let membership = self.membership().await?;
        let store = match self.store.archive().await {
            Err(StoreError::Corrupt(_)) => return Ok(Standing::Closed(Mismatch::StoreMarkedOtherwise)),
            read => read?,
        };
        let archive = match judge(membership.as_ref(), store) {
            Finding::Apart(mismatch) => return Ok(Standing::Closed(mismatch)),
            Finding::Pair(archive, true) => return Ok(Standing::Open(archive)),
            Finding::Pair(archive, false) | Finding::Begun(archive) => archive,
            // Of several replicas that begin at once, one's id stands for all.
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

    /// The ledger's archive. Only an adoption changes it, so while the ledger is away, what it said
    /// last is compared: a result that is paid for may then be written to the store.
    async fn membership(&self) -> Result<Option<Membership>, LedgerError> {
        match (self.ledger.archive().await, self.standing()) {
            (Err(_), Standing::Open(archive)) => Ok(Some(Membership::new(archive, true))),
            (read, _) => read,
        }
    }

    fn learn(&self, standing: Standing) {
        let before = std::mem::replace(&mut *self.lock(), standing);
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

    fn lock(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl ArchiveCheck for ArchiveGuard {
    async fn is_ours(&self) -> bool {
        self.confirm().await
    }
}

/// Says whether ledger and store belong together, and changes nothing.
///
/// # Errors
/// [`GuardError`]: one of them could not be asked.
pub async fn compare(ledger: &dyn Ledger, store: &dyn Store) -> Result<Option<Mismatch>, GuardError> {
    let store = match store.archive().await {
        Err(StoreError::Corrupt(_)) => return Ok(Some(Mismatch::StoreMarkedOtherwise)),
        read => read?,
    };
    match judge(ledger.archive().await?.as_ref(), store) {
        Finding::Apart(mismatch) => Ok(Some(mismatch)),
        Finding::New | Finding::Begun(_) | Finding::Pair(..) => Ok(None),
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
