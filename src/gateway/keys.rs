//! Operators' actions on one key: [`KeyAdmin`] purges it, and [explains](KeyAdmin::explain) it. A purge changes the
//! ledger, the store's record and this process's memory; other processes follow the ledger's changes
//! ([`freshness`](super::freshness)). It can be repeated after any outcome. Objects stay, so URLs go on serving.

mod explain;

use std::sync::Arc;

pub use self::explain::{Explained, Held};
use super::freshness::Freshness;
use crate::base::identity::Identity;
use crate::base::key::CacheKey;
use crate::fill::Core;
use crate::ledger::LedgerError;
use crate::ledger::admin::{Actor, LedgerAdmin, Purge};
use crate::store::StoreError;

pub struct KeyAdmin {
    core: Arc<Core>,
    admin: Arc<dyn LedgerAdmin>,
    freshness: Arc<Freshness>,
    namespace: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Purged {
    /// Results up to this generation count as absent.
    pub generation: u64,
    /// `false`: they did before, and nothing has been stored since.
    pub is_new: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum PurgeError {
    #[error("nothing is stored under this key")]
    Nothing,
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("the ledger has nothing under this key, and whether the store has cannot be said: {0}")]
    Store(StoreError),
    /// All processes follow the purge.
    #[error(
        "the key is purged, but its record is still in the store, where a new ledger would find it: {0}; \
         purge it again when that is mended"
    )]
    RecordStays(StoreError),
}

impl KeyAdmin {
    pub fn new(
        core: Arc<Core>,
        admin: Arc<dyn LedgerAdmin>,
        freshness: Arc<Freshness>,
        namespace: String,
    ) -> Self {
        Self { core, admin, freshness, namespace }
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Makes everything stored under a key count as absent, over all processes.
    pub async fn purge(&self, key: CacheKey, by: &Actor) -> Result<Purged, PurgeError> {
        let Self { core, admin, namespace, .. } = self;
        let Core { ledger, store, cache, guard, .. } = &**core;
        let in_store = store.record(namespace, key).await;
        // Otherwise the next lookup would import a record that only the store knows.
        if let Ok(Some(record)) = &in_store
            && guard.is_open()
        {
            ledger.import_record(record).await?;
        }
        let purge = admin.purge(namespace, key, by).await?;
        let Some(generation) = purge.generation() else {
            return Err(match in_store {
                Ok(None) => PurgeError::Nothing,
                // A call under way has written it, and is not booked yet.
                Ok(Some(_)) if guard.is_open() => PurgeError::Nothing,
                Ok(Some(_)) => PurgeError::Store(StoreError::Unavailable(
                    "it has a record, and is not known to be the store that the ledger belongs to".into(),
                )),
                Err(error) => PurgeError::Store(error),
            });
        };
        cache.forget_answer(&Identity::new(namespace, key));
        store.forget_record(namespace, key, generation).await.map_err(PurgeError::RecordStays)?;
        Ok(Purged { generation, is_new: matches!(purge, Purge::Done { .. }) })
    }
}
