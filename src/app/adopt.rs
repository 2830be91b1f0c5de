//! `granary adopt`: makes ledger and store one archive. A process that is serving has both in its
//! hands, so it is asked over its admin listener; else it is done here.

use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderValue, Request};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;

use super::{ledger, store};
use crate::app::ledger::LedgerHandles;
use crate::base::clock::Clock;
use crate::base::state::{StateDir, StateDirError};
use crate::config::Config;
use crate::http::routes::ADOPT_PATH;
use crate::ledger::admin::Actor;
use crate::ledger::guard::ArchiveGuard;
use crate::upstream::net::exchange::Exchange;

/// How long a process that is serving may take over it.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest answer of its.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// What was found, and the archive that ledger and store belong to now.
#[derive(Debug, Deserialize)]
pub struct Adopted {
    pub found: String,
    pub archive: String,
}

/// What a process says that could not.
#[derive(Deserialize)]
struct Refused {
    error: String,
}

/// Adopts, here or there.
///
/// # Errors
/// In a sentence, why not; nothing has changed then, as far as is known.
pub async fn adopt(config: &Config) -> anyhow::Result<Adopted> {
    let state = match StateDir::open(&config.state.path) {
        Ok(state) => state,
        Err(StateDirError::InUse(_)) => {
            let asked = tokio::time::timeout(PATIENCE, ask_running(config)).await;
            return asked.unwrap_or_else(|_| bail!("the running granary did not answer within {PATIENCE:?}"));
        }
        Err(error) => return Err(error.into()),
    };
    let LedgerHandles { ledger, admin, .. } = ledger::open(config, &state, Clock::system(), None).await?;
    let store = store::open(&config.store).await?;
    let adoption = ArchiveGuard::new(ledger, store).adopt().await?;
    let by = Actor::command_line();
    let noted = admin.note_adoption(adoption.archive, &adoption.to_string(), &by).await;
    noted.context("adopted, but the audit could not be written; adopt again")?;
    Ok(Adopted { found: adoption.to_string(), archive: adoption.archive.to_string() })
}

async fn ask_running(config: &Config) -> anyhow::Result<Adopted> {
    let address = config.server.admin_listen;
    let cannot_ask = || {
        format!("a granary is running on {}, and cannot be asked at {address}", config.state.path.display())
    };
    let stream = TcpStream::connect(address).await.with_context(cannot_ask)?;
    let mut request = Request::post(ADOPT_PATH).header(http::header::HOST, address.to_string());
    if let Some(token) = config.server.admin_token().map_err(anyhow::Error::msg)? {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose()))?;
        value.set_sensitive(true);
        request = request.header(AUTHORIZATION, value);
    }
    let request = request.body(Empty::<Bytes>::new())?;
    let mut exchange = Exchange::start(TokioIo::new(stream), request).await.with_context(cannot_ask)?;
    let head = exchange.head().await.with_context(cannot_ask)?;
    let (head, body) = exchange.whole(head, MAX_ANSWER_BYTES).await.with_context(cannot_ask)?;
    if head.status.is_success() {
        return serde_json::from_slice(&body).with_context(cannot_ask);
    }
    match serde_json::from_slice(&body) {
        Ok(Refused { error }) => bail!(error),
        Err(_) => bail!("{}: it answered {}", cannot_ask(), head.status),
    }
}
