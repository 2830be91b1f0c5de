//! Whether the spool could keep one more result, when all calls under way bring theirs.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::SpoolConfig;
use crate::disk;
use crate::ledger::spool::SpoolUsage;
use crate::ledger::{CallId, Ledger};
use crate::store::StoreError;

/// Bytes that stay free on the ledger's disk beside results: the book itself must go on.
const DISK_MARGIN: u64 = 64 << 20;

/// A row is reserved right after room was found. When none comes in this time, none will.
const GRANT_HOLDS: Duration = Duration::from_secs(2);

pub(super) struct Room {
    config: SpoolConfig,
    /// The store has shown in this process that it can do all that is needed.
    is_proved: AtomicBool,
    /// Held while asking, so that two who ask at once are not given the same room.
    granted: Mutex<Granted>,
}

/// To whom room was given whose rows cannot be seen yet.
#[derive(Default)]
struct Granted {
    at: VecDeque<Instant>,
    /// The newest row when that was last looked at.
    newest: CallId,
}

impl Room {
    pub(super) fn new(config: SpoolConfig) -> Self {
        Self { config, is_proved: AtomicBool::new(false), granted: Mutex::default() }
    }

    pub(super) fn store_is_proved(&self) {
        self.is_proved.store(true, Ordering::Relaxed);
    }

    /// Files need no proof beyond their use.
    pub(super) fn is_store_proved(&self) -> bool {
        !self.config.is_remote || self.is_proved.load(Ordering::Relaxed)
    }

    pub(super) async fn check(&self, ledger: &dyn Ledger) -> Result<(), StoreError> {
        if !self.config.is_remote || !self.is_store_proved() {
            return Err(StoreError::Unavailable(
                "nothing is bought for the spool before the store is proved".into(),
            ));
        }
        let mut granted = self.granted.lock().await;
        let usage = super::ask(ledger.spool_usage())
            .await
            .map_err(|error| StoreError::Unavailable(error.to_string()))?;
        granted.forget(&usage);
        let coming = usage.open_calls + granted.at.len() as u64 + 1;
        let needed = coming.saturating_mul(self.config.result_max_bytes);
        let SpoolConfig { max_bytes, disk, .. } = &self.config;
        if usage.bytes.saturating_add(needed) > *max_bytes {
            return Err(StoreError::Full(format!(
                "the spool has {} of {max_bytes} bytes, and {coming} results may still come",
                usage.bytes
            )));
        }
        // Once into the ledger's log and once into its file.
        if let Some(disk) = disk {
            check_disk(disk, needed.saturating_mul(2).saturating_add(DISK_MARGIN)).await?;
        }
        granted.at.push_back(Instant::now());
        Ok(())
    }
}

impl Granted {
    /// Strikes off whose row is there by now, and who never reserved one.
    fn forget(&mut self, usage: &SpoolUsage) {
        let rows = usize::try_from(usage.newest.0 - self.newest.0).unwrap_or(0).min(self.at.len());
        self.at.drain(..rows);
        self.newest = usage.newest;
        self.at.retain(|when| when.elapsed() < GRANT_HOLDS);
    }
}

async fn check_disk(folder: &Path, wanted: u64) -> Result<(), StoreError> {
    let folder = folder.to_owned();
    match tokio::task::spawn_blocking(move || disk::check_space(&folder, wanted)).await {
        Ok(space) => {
            space.map_err(|error| StoreError::Full(format!("the ledger's disk has no room: {error}")))
        }
        Err(error) => Err(StoreError::Unavailable(format!("the disk could not be looked at: {error}"))),
    }
}
