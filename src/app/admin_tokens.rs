//! The operators' tokens, which are replaced by writing their file. A file that cannot be used keeps the
//! previous tokens: access must not change by accident, and least of all open to everyone.

use std::sync::Arc;

use anyhow::Context;
use arc_swap::ArcSwap;

use super::file_watch::FileWatch;
use crate::config::ServerConfig;
use crate::teams::AdminTokens;

pub(super) type CurrentTokens = Arc<ArcSwap<Option<AdminTokens>>>;

pub(super) fn follow(
    settings: &ServerConfig,
) -> anyhow::Result<(CurrentTokens, impl Future<Output = ()> + use<>)> {
    let read = settings.admin_tokens().map_err(anyhow::Error::msg).context("server.admin_token_file")?;
    let current = Arc::new(ArcSwap::from_pointee(read));
    let (tokens, settings) = (current.clone(), settings.clone());
    let task = async move {
        if settings.admin_token_file.is_none() {
            return;
        }
        let mut files = FileWatch::new(move || settings.admin_tokens());
        loop {
            let (read, was_unusable) = files.next().await;
            match &read {
                Ok(read) if *read != **tokens.load() => {
                    tokens.store(Arc::new(read.clone()));
                    tracing::info!("admin tokens changed");
                }
                Ok(_) if was_unusable => {
                    tracing::info!("server.admin_token_file can be read again; the tokens are the same");
                }
                Ok(_) => {}
                Err(why) => {
                    tracing::error!("server.admin_token_file {why}; the tokens read before stay in use");
                }
            }
        }
    };
    Ok((current, task))
}
