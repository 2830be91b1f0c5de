//! `granary adopt`: an operator says that this ledger and this store are one archive. A process that is
//! serving holds both, so it is asked over its admin listener; otherwise it is done here.

use anyhow::Context;
use serde::Deserialize;

use super::admin::AdminClient;
use super::{Failure, block_on};
use crate::app;
use crate::config::{Config, Environment};
use crate::http::routes::ADOPT_PATH;

#[derive(Deserialize)]
struct Adopted {
    found: String,
    archive: String,
}

pub(super) fn run(config: &Config, environment: &Environment) -> Result<String, Failure> {
    let Adopted { found, archive } = match block_on(app::adopt::adopt(config))?? {
        Some(adoption) => Adopted { found: adoption.to_string(), archive: adoption.archive.to_string() },
        None => {
            let answer = AdminClient::of_config(&config.server, environment)?.post(ADOPT_PATH);
            let running = || format!("a granary is running on {}", config.state.path.display());
            serde_json::from_slice(&answer?).with_context(running)?
        }
    };
    Ok(format!(
        "found: {found}\nledger and store are archive {archive} now, and new crops are bought again\n"
    ))
}
