//! The upstream's key, read anew: its file is polled by content, so that a key is rotated without a
//! restart and without a failed request. A reload may name another key, or another file.
//!
//! Calls under way finish with the key they began with. A file that cannot be used keeps the old key.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::MissedTickBehavior;

use crate::base::secret::Secret;
use crate::config::UpstreamConfig;
use crate::fill::Filler;
use crate::metrics::{Metrics, ReloadedFile};

/// How often the file is read. By content: a mounted secret changes without a new time of change.
const POLL: Duration = Duration::from_secs(2);

/// The key in use, and where it comes from.
pub(super) struct KeyWatch {
    /// Held while a key is taken into use.
    source: Mutex<Source>,
    key: Arc<ArcSwap<Secret>>,
    /// Has to forget what the upstream said of the old key.
    filler: Filler,
    metrics: Arc<Metrics>,
}

struct Source {
    settings: Arc<UpstreamConfig>,
    /// Why the key's file could not be used the last time it was read; each problem is told once.
    problem: Option<String>,
}

impl KeyWatch {
    /// For `key`, which is in use and came from `settings`.
    pub(super) fn new(
        settings: UpstreamConfig,
        key: Arc<ArcSwap<Secret>>,
        filler: Filler,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let source = Source { settings: Arc::new(settings), problem: None };
        Arc::new(Self { source: Mutex::new(source), key, filler, metrics })
    }

    /// Polls the file for ever, if the key is in one.
    pub(super) async fn run(self: Arc<Self>) {
        let mut clock = tokio::time::interval(POLL);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            clock.tick().await;
            let settings = self.source().settings.clone();
            if settings.api_key_file.is_none() {
                continue;
            }
            let reading = settings.clone();
            // A file system may hang; that must not stop anything else.
            let Ok(read) = tokio::task::spawn_blocking(move || reading.key()).await else { continue };
            let found = match read {
                Ok(Some(key)) => Ok(key),
                Ok(None) => Err("is not set any more".to_owned()),
                Err(found) => Err(found),
            };
            let mut source = self.source();
            // Unless a reload has named another one meanwhile.
            if Arc::ptr_eq(&source.settings, &settings) {
                self.act(&mut source, found);
            }
        }
    }

    /// Takes `key`, which came from `settings`, into use, and watches those from now on.
    pub(super) fn replace(&self, settings: UpstreamConfig, key: Secret) {
        let mut source = self.source();
        source.settings = Arc::new(settings);
        self.act(&mut source, Ok(key));
    }

    /// Takes a new key into use.
    fn act(&self, source: &mut Source, found: Result<Secret, String>) {
        let known = source.problem.take();
        match found {
            Ok(key) if key == **self.key.load() => {
                if known.is_some() {
                    tracing::info!("the upstream's key can be read again; it is the same");
                    self.metrics.reload_ok[ReloadedFile::UpstreamKey].set(1);
                }
            }
            Ok(key) => {
                self.key.store(Arc::new(key));
                self.filler.key_changed();
                self.metrics.reloaded(ReloadedFile::UpstreamKey, true);
                tracing::info!("the upstream's key has changed; new calls carry the new one");
            }
            Err(problem) => {
                if known.as_ref() != Some(&problem) {
                    tracing::error!("upstream.api_key_file {problem}; the key read before stays in use");
                    self.metrics.reloaded(ReloadedFile::UpstreamKey, false);
                }
                source.problem = Some(problem);
            }
        }
    }

    /// The key in use.
    #[cfg(test)]
    pub(super) fn current(&self) -> Arc<Secret> {
        self.key.load_full()
    }

    fn source(&self) -> MutexGuard<'_, Source> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
