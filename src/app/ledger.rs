//! Opens the configured ledger.

use std::sync::Arc;

use anyhow::{Context, bail};

use crate::base::clock::Clock;
use crate::base::state::StateDir;
use crate::config::Config;
use crate::ledger::admin::LedgerAdmin;
use crate::ledger::postgres::{PostgresConfig, PostgresLedger, ProofError};
use crate::ledger::sqlite::SqliteLedger;
use crate::ledger::usage::UsageBook;
use crate::ledger::{Ledger, LedgerObserver};

pub(super) struct LedgerHandles {
    pub(super) ledger: Arc<dyn Ledger>,
    pub(super) usage: Arc<dyn UsageBook>,
    pub(super) admin: Arc<dyn LedgerAdmin>,
}

impl LedgerHandles {
    fn of(book: Arc<impl Ledger + UsageBook + LedgerAdmin + 'static>) -> Self {
        Self { ledger: book.clone(), usage: book.clone(), admin: book }
    }
}

/// Refuses bookings that an earlier version left in files, before this program migrates the ledger.
fn check_no_spilled_bookings(state: &StateDir) -> anyhow::Result<()> {
    let folder = state.path().join("spill");
    let names = std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let is_booking = |name: &std::ffi::OsString| {
        name.to_string_lossy().ends_with(".answered") || name.to_string_lossy().ends_with(".spooled")
    };
    match names.filter(is_booking).count() {
        0 => Ok(()),
        files => bail!(
            "{} has {files} paid results that an earlier version could not book yet: start that version once more, or \
             move the files away if they are of no use",
            folder.display()
        ),
    }
}

/// An unavailable database is tried again with each use: hits are served and nothing is bought.
pub(super) async fn open(
    config: &Config,
    state: &StateDir,
    clock: Clock,
    observer: Option<Arc<dyn LedgerObserver>>,
) -> anyhow::Result<LedgerHandles> {
    check_no_spilled_bookings(state)?;
    match database(config) {
        Some(database) => {
            match database.prove().await {
                Ok(()) => {}
                Err(ProofError::Unfit(why)) => bail!("state.database_url: {why}"),
                Err(ProofError::Unavailable(error)) => tracing::error!(
                    %error,
                    "starting without the database: hits are served from the bucket, nothing is bought"
                ),
            }
            Ok(LedgerHandles::of(Arc::new(database.with_observer(observer))))
        }
        None => {
            let file = state.ledger_file();
            let ledger = SqliteLedger::open(&file, clock, config.budget.time_zone.clone())
                .with_context(|| format!("state.path: the ledger {} cannot be opened", file.display()))?;
            let ledger = ledger.with_spool_max(config.state.spool_max.0).with_observer(observer);
            Ok(LedgerHandles::of(Arc::new(ledger)))
        }
    }
}

/// Not yet connected; `None` when the ledger is a file.
pub(super) fn database(config: &Config) -> Option<PostgresLedger> {
    let settings = config.state.clone();
    if !settings.has_database() {
        return None;
    }
    let roots = settings.database_ca.clone();
    let address = move || {
        let field = if settings.database_url.is_some() { "database_url" } else { "database_url_file" };
        let found = settings.database().map_err(|why| format!("state.{field} {why}"))?;
        found.ok_or_else(|| format!("state.{field} is not set any more"))
    };
    Some(PostgresLedger::new(PostgresConfig {
        address: Arc::new(address),
        roots,
        zone: config.budget.time_zone.clone(),
        spool_max: config.state.spool_max.0,
        clock: None,
    }))
}
