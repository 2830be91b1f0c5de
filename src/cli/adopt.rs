//! `granary adopt`: a person has looked, and says that this ledger and this store are one archive.

use anyhow::Context;

use super::{CANNOT_WRITE, Console, Failure};
use crate::app;
use crate::config::Loaded;

pub(super) fn run(loaded: &Loaded, console: &mut Console<'_>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start what is needed to connect")?;
    let adopted = runtime.block_on(app::adopt::adopt(&loaded.config))?;
    writeln!(
        console.stdout,
        "found: {}\nledger and store are archive {} now, and new crops are bought again",
        adopted.found, adopted.archive
    )
    .context(CANNOT_WRITE)?;
    Ok(())
}
