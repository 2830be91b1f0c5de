//! Which ledger it is, and how a start goes on without its database.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::clock::Clock;
use crate::config::Config;
use crate::fill::Filler;
use crate::ledger::Ledger;
use crate::ledger::admin::LedgerAdmin;
use crate::ledger::postgres::{PostgresConfig, PostgresLedger, ProofError};
use crate::ledger::spill::SpillLedger;
use crate::ledger::sqlite::SqliteLedger;
use crate::ledger::usage::UsageBook;
use crate::state::StateDir;

/// The pauses between attempts to book what lies in files.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// One book, as each of those sees it who use it.
pub(super) struct Books {
    /// Who pays.
    pub(super) ledger: Arc<dyn Ledger>,
    /// Who asks who paid.
    pub(super) usage: Arc<dyn UsageBook>,
    /// Operators.
    pub(super) admin: Arc<dyn LedgerAdmin>,
}

impl Books {
    fn of(book: Arc<impl Ledger + UsageBook + LedgerAdmin + 'static>, state: &StateDir) -> Self {
        let ledger = Arc::new(SpillLedger::new(book.clone(), state.spill_folder()));
        Self { ledger, usage: book.clone(), admin: book }
    }
}

/// Opens the configured ledger. A database that cannot be asked now is asked again with each use: hits
/// are served meanwhile, and nothing is bought.
///
/// # Errors
/// In a sentence, what keeps it from opening; or that the database may not be used as it is.
pub(super) async fn open(config: &Config, state: &StateDir, clock: Clock) -> anyhow::Result<Books> {
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
            Ok(Books::of(Arc::new(database), state))
        }
        None => {
            let file = state.ledger_file();
            let ledger = SqliteLedger::open(&file, clock, config.budget.time_zone.clone())
                .with_context(|| format!("state.path: the ledger {} cannot be opened", file.display()))?;
            Ok(Books::of(Arc::new(ledger.with_spool_max(config.state.spool_max.0)), state))
        }
    }
}

/// The configured database's ledger, not yet connected; `None` when the ledger is a file.
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

/// Books what the last process left in files, when the database can be asked; until then it is asked
/// again. What it left open in the ledger itself is for whoever finds its lease run out.
pub(super) async fn recover_late(ledger: Arc<dyn Ledger>, filler: Filler) {
    let mut pause = SHORTEST_PAUSE;
    loop {
        match ledger.recover().await {
            Ok(recovery) => return filler.resume(recovery),
            Err(error) => tracing::warn!(%error, "what lies in files cannot be booked yet"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
