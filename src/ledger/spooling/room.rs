//! Whether the spool has room for one more result beside those of all open calls.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::SpoolConfig;
use crate::base::disk;
use crate::ledger::Ledger;
use crate::store::StoreError;

/// Bytes that stay free on the ledger's disk for the ledger itself.
const DISK_MARGIN: u64 = 64 << 20;

pub(super) struct Room {
    config: SpoolConfig,
    is_proved: AtomicBool,
}

impl Room {
    pub(super) fn new(config: SpoolConfig) -> Self {
        Self { config, is_proved: AtomicBool::new(false) }
    }

    pub(super) fn store_is_proved(&self) {
        self.is_proved.store(true, Ordering::Relaxed);
    }

    /// A folder needs no proof.
    pub(super) fn is_store_proved(&self) -> bool {
        !self.config.is_remote || self.is_proved.load(Ordering::Relaxed)
    }

    /// Bytes kept for each open call while a remote store is unavailable.
    pub(super) fn of_each(&self) -> Option<u64> {
        self.config.is_remote.then_some(self.config.result_max_bytes)
    }

    /// Reserves nothing. While the store is unavailable, the ledger checks again when it inserts the row.
    pub(super) async fn check(&self, ledger: &dyn Ledger) -> Result<(), StoreError> {
        if !self.config.is_remote || !self.is_store_proved() {
            return Err(StoreError::Unavailable(
                "nothing is bought for the spool before the store is proved".into(),
            ));
        }
        let usage = super::ask(super::LEDGER_PATIENCE, ledger.spool_usage()).await;
        let usage = usage.map_err(|error| StoreError::Unavailable(error.to_string()))?;
        let coming = usage.open_calls + 1;
        let needed = coming.saturating_mul(self.config.result_max_bytes);
        let SpoolConfig { max_bytes, disk, .. } = &self.config;
        if usage.bytes.saturating_add(needed) > *max_bytes {
            return Err(StoreError::Full(format!(
                "the spool has {} of {max_bytes} bytes, and {coming} results may still come",
                usage.bytes
            )));
        }
        // Each result is written to the ledger's log and to its file.
        if let Some(disk) = disk {
            check_disk(disk, needed.saturating_mul(2).saturating_add(DISK_MARGIN)).await?;
        }
        Ok(())
    }
}

async fn check_disk(folder: &Path, wanted: u64) -> Result<(), StoreError> {
    let folder = folder.to_owned();
    let checked = tokio::task::spawn_blocking(move || disk::check_space(&folder, wanted)).await;
    let unknown = |error| StoreError::Unavailable(format!("the disk could not be looked at: {error}"));
    let full = |error| StoreError::Full(format!("the ledger's disk has no room: {error}"));
    checked.map_err(unknown)?.map_err(full)
}
