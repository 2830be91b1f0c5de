//! `granary check --live`: do store, ledger and upstream work as configured? Spends nothing, except the one
//! crop of `purchase`.

mod purchase;
mod report;

use std::fs::File;

use anyhow::{Context, bail};

use super::upstream::open_ailab;
use super::{ledger, open_state, store};
use crate::app::ledger::LedgerHandles;
use crate::base::clock::Clock;
use crate::config::{Config, StoreKind, UpstreamKind};
use crate::ledger::Ledger;
use crate::ledger::guard;

/// Checks `store`, `ledger`, `archive` and `upstream`. With `spend`, and when all of them work, buys one crop
/// as well, and describes the upstream's answer in `report`.
pub async fn check(
    config: &Config,
    spend: bool,
    report: Option<File>,
) -> Vec<(&'static str, anyhow::Result<String>)> {
    let mut findings = vec![
        ("store", check_store(config).await),
        ("ledger", check_ledger(config).await),
        ("archive", check_archive(config).await),
    ];
    if config.upstream.kind == UpstreamKind::Ailab {
        findings.push(("upstream", check_ailab(config).await));
    }
    if spend && findings.iter().all(|(_, result)| result.is_ok()) {
        findings.push(("purchase", purchase::buy(config, report).await));
    }
    findings
}

async fn check_store(config: &Config) -> anyhow::Result<String> {
    let store = store::open(&config.store).await?;
    store.prove().await?;
    store.check_room().await?;
    let settings = &config.store;
    let place = match settings.kind {
        StoreKind::Local => format!("folder {}", settings.path.display()),
        StoreKind::S3 => format!("bucket {}", settings.bucket.as_deref().unwrap_or_default()),
    };
    Ok(format!("the {place} keeps what is written, and refuses to have it overwritten"))
}

async fn check_ledger(config: &Config) -> anyhow::Result<String> {
    // Other processes may use the database.
    if let Some(database) = ledger::database(config) {
        database.prove().await.context("state.database_url")?;
        let calls = calls(&database).await?;
        return Ok(format!("the database can be used, and has {calls} calls"));
    }
    let Some(state) = open_state(config)? else {
        let path = config.state.path.display();
        return Ok(format!("{path} is in use by a running granary, and was left alone"));
    };
    let LedgerHandles { ledger, .. } = ledger::open(config, &state, Clock::system(), None).await?;
    let calls = calls(&*ledger).await?;
    Ok(format!("{} can be used, and has {calls} calls", state.ledger_file().display()))
}

async fn calls(ledger: &dyn Ledger) -> anyhow::Result<u64> {
    let totals = ledger.totals().await.context("the ledger cannot be read")?;
    Ok(totals.iter().map(|total| total.calls).sum())
}

/// Changes nothing: the first start pairs a new ledger and a new store.
async fn check_archive(config: &Config) -> anyhow::Result<String> {
    let Some(state) = open_state(config)? else {
        return Ok("ledger and store are compared by the running granary: see its /readyz".to_owned());
    };
    let LedgerHandles { ledger, .. } = ledger::open(config, &state, Clock::system(), None).await?;
    let store = store::open(&config.store).await?;
    match guard::compare(&*ledger, &*store).await? {
        None => Ok("ledger and store belong together".to_owned()),
        Some(mismatch) => bail!("{mismatch}; correct that, or run `granary adopt` if it is meant so"),
    }
}

async fn check_ailab(config: &Config) -> anyhow::Result<String> {
    let credits = open_ailab(&config.upstream)?.0.query_credits().await?;
    Ok(format!("{} knows the key; {credits} credits are left", config.upstream.base_url))
}
