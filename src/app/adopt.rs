//! `granary adopt`: makes ledger and store one archive.

use anyhow::Context;

use super::ledger::LedgerHandles;
use super::{ledger, open_state, store};
use crate::base::clock::Clock;
use crate::config::Config;
use crate::ledger::admin::Actor;
use crate::ledger::guard::{Adoption, ArchiveGuard};

/// `None` while a running granary holds the state; that one must be asked instead.
pub async fn adopt(config: &Config) -> anyhow::Result<Option<Adoption>> {
    let Some(state) = open_state(config)? else { return Ok(None) };
    let LedgerHandles { ledger, admin, .. } = ledger::open(config, &state, Clock::system(), None).await?;
    let store = store::open(&config.store).await?;
    let adoption = ArchiveGuard::new(ledger, store).adopt().await?;
    let by = Actor::command_line();
    let noted = admin.note_adoption(adoption.archive, &adoption.to_string(), &by).await;
    noted.context("adopted, but the audit could not be written; adopt again")?;
    Ok(Some(adoption))
}
