//! The operators' tokens, read anew: their file is polled by content, as the upstream's key is, so that
//! a token is replaced or taken away without a restart.
//!
//! A file that cannot be used keeps the tokens that were read before: who may is not to change by
//! accident, and least of all to everyone.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::MissedTickBehavior;

use crate::config::ServerConfig;
use crate::teams::AdminTokens;

/// How often the file is read.
const POLL: Duration = Duration::from_secs(2);

/// Where the tokens are, and who is let in.
pub(super) struct AdminTokenWatch {
    /// Names the file.
    pub settings: ServerConfig,
    /// The tokens in use.
    pub tokens: Arc<ArcSwap<Option<AdminTokens>>>,
}

impl AdminTokenWatch {
    /// Polls for ever; returns at once when there is no file.
    pub(super) async fn run(self) {
        if self.settings.admin_token_file.is_none() {
            return;
        }
        let mut clock = tokio::time::interval(POLL);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut problem = None;
        loop {
            clock.tick().await;
            let settings = self.settings.clone();
            // A file system may hang; that must not stop anything else.
            let Ok(read) = tokio::task::spawn_blocking(move || settings.admin_tokens()).await else {
                continue;
            };
            problem = self.act(read, problem);
        }
    }

    /// Takes new tokens into use. Returns the problem there is now; each is told once.
    fn act(&self, read: Result<Option<AdminTokens>, String>, known: Option<String>) -> Option<String> {
        match read {
            Ok(tokens) => {
                if tokens != **self.tokens.load() {
                    self.tokens.store(Arc::new(tokens));
                    tracing::info!("the admin tokens have changed");
                } else if known.is_some() {
                    tracing::info!("server.admin_token_file can be read again; the tokens are the same");
                }
                None
            }
            Err(problem) => {
                if known.as_ref() != Some(&problem) {
                    tracing::error!("server.admin_token_file {problem}; the tokens read before stay in use");
                }
                Some(problem)
            }
        }
    }
}
