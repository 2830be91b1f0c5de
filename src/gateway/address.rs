//! Whose URL an answer names: ours, or that of another server of the store's objects.
//!
//! A result may wait in the ledger's spool, and is served by us alone until the store has it. The
//! ledger says whether it does. A result never goes back to the spool, so what is in the store may be
//! remembered, and what is in the spool must be looked up again. When it is not known, the URL is
//! ours, which serves from both.

use std::sync::Arc;
use std::time::Duration;

use super::Gateway;
use crate::base::record::Record;
use crate::ledger::guard::Standing;

/// How long an answer waits for the ledger. A hit has waited for it before, and must be answered within a
/// second even when the ledger hangs.
const LEDGER_PATIENCE: Duration = Duration::from_millis(200);

impl Gateway {
    /// What the URL of a record's result begins with.
    pub(super) async fn root_of(&self, record: &Arc<Record>) -> &str {
        match &self.store_root {
            Some(root) if self.is_in_store(record).await => root,
            Some(_) | None => &self.public_root,
        }
    }

    async fn is_in_store(&self, record: &Arc<Record>) -> bool {
        // What the ledger knows is then about another store than this one.
        if matches!(self.core.guard.standing(), Standing::Closed(_)) {
            return false;
        }
        if self.core.cache.is_in_store(record) {
            return true;
        }
        let Some(object) = record.object() else { return false };
        match tokio::time::timeout(LEDGER_PATIENCE, self.core.ledger.is_spooled(object)).await {
            // No result is answered before store or spool has it.
            Ok(Ok(false)) => {
                self.core.cache.know_in_store(record);
                true
            }
            Ok(Ok(true)) => false,
            Ok(Err(error)) => {
                tracing::warn!(%error, key = %record.key, "the ledger cannot say where a result is, so its URL is ours");
                false
            }
            Err(_) => {
                tracing::warn!(key = %record.key, "the ledger is slow to say where a result is, so its URL is ours");
                false
            }
        }
    }
}
