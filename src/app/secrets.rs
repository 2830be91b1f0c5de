//! The upstream's key, read anew: its file is polled by content, so that a key is rotated without a
//! restart and without a failed request.
//!
//! Calls under way finish with the key they began with. A file that cannot be used keeps the old key.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::MissedTickBehavior;

use crate::config::UpstreamConfig;
use crate::fill::Filler;
use crate::metrics::Metrics;
use crate::secret::Secret;

/// How often the file is read. By content: a mounted secret changes without a new time of change.
const POLL: Duration = Duration::from_secs(2);

/// What a change of the key has to reach.
pub(super) struct KeyWatch {
    /// Where the key's file is.
    pub settings: UpstreamConfig,
    /// The key in use.
    pub key: Arc<ArcSwap<Secret>>,
    /// Has to forget what the upstream said of the old one.
    pub filler: Filler,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

impl KeyWatch {
    /// Polls for ever; returns at once when the key is not in a file.
    pub(super) async fn run(self) {
        if self.settings.api_key_file.is_none() {
            return;
        }
        let mut clock = tokio::time::interval(POLL);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut problem = None;
        loop {
            clock.tick().await;
            let settings = self.settings.clone();
            // A file system may hang; that must not stop anything else.
            let Ok(read) = tokio::task::spawn_blocking(move || settings.key()).await else { continue };
            let found = match read {
                Ok(Some(key)) => Ok(key),
                Ok(None) => Err("is not set any more".to_owned()),
                Err(found) => Err(found),
            };
            problem = self.act(found, problem);
        }
    }

    /// Takes a new key into use. Returns the problem there is now; each is told once.
    fn act(&self, found: Result<Secret, String>, known: Option<String>) -> Option<String> {
        match found {
            Ok(key) if key == **self.key.load() => {
                if known.is_some() {
                    tracing::info!("upstream.api_key_file can be read again; the key is the same");
                    self.metrics.key_is_current(true);
                }
                None
            }
            Ok(key) => {
                self.key.store(Arc::new(key));
                self.filler.key_changed();
                self.metrics.key_reloaded(true);
                tracing::info!("the upstream's key has changed; new calls carry the new one");
                None
            }
            Err(problem) if known.as_ref() == Some(&problem) => known,
            Err(problem) => {
                tracing::error!("upstream.api_key_file {problem}; the key read before stays in use");
                self.metrics.key_reloaded(false);
                Some(problem)
            }
        }
    }
}
