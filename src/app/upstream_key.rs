//! The upstream's key, which is rotated by writing its file, without a failed request, or by a reload. Calls
//! in flight finish with their key. A file that cannot be used keeps the old key.

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::file_watch::FileWatch;
use crate::base::secret::Secret;
use crate::config::UpstreamConfig;
use crate::fill::Filler;
use crate::metrics::{Metrics, ReloadedFile};

pub(super) struct KeyWatch {
    /// Locked while a key is replaced.
    settings: Mutex<Arc<UpstreamConfig>>,
    key: Arc<ArcSwap<Secret>>,
    /// Remembers the upstream's refusal of the old key.
    filler: Filler,
    metrics: Arc<Metrics>,
}

impl KeyWatch {
    /// `key` is in use and came from `settings`.
    pub(super) fn new(
        settings: UpstreamConfig,
        key: Arc<ArcSwap<Secret>>,
        filler: Filler,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self { settings: Mutex::new(Arc::new(settings)), key, filler, metrics })
    }

    /// Follows the key's file, or what a reload names in its place.
    pub(super) async fn follow(self: Arc<Self>) {
        let source = self.clone();
        let mut files = FileWatch::new(move || {
            let settings = source.settings.lock().clone();
            match settings.key() {
                Ok(Some(key)) => Ok((settings, key)),
                Ok(None) => Err("is not set any more".to_owned()),
                Err(why) => Err(why),
            }
        });
        loop {
            let (read, was_unusable) = files.next().await;
            match &read {
                Ok((settings, key)) => {
                    let current = self.settings.lock();
                    // A reload may have named another file meanwhile.
                    if Arc::ptr_eq(&current, settings) && !self.use_key(key) && was_unusable {
                        tracing::info!("the upstream's key can be read again; it is the same");
                        self.metrics.reload_ok[ReloadedFile::UpstreamKey].set(1);
                    }
                }
                Err(why) => {
                    tracing::error!("upstream.api_key_file {why}; the key read before stays in use");
                    self.metrics.reloaded(ReloadedFile::UpstreamKey, false);
                }
            }
        }
    }

    /// `key` came from `settings`, which are followed from now on.
    pub(super) fn replace(&self, settings: UpstreamConfig, key: &Secret) {
        let mut current = self.settings.lock();
        *current = Arc::new(settings);
        self.use_key(key);
    }

    /// Returns false if `key` is in use already.
    fn use_key(&self, key: &Secret) -> bool {
        if *key == **self.key.load() {
            return false;
        }
        self.key.store(Arc::new(key.clone()));
        self.filler.key_changed();
        self.metrics.reloaded(ReloadedFile::UpstreamKey, true);
        tracing::info!("upstream key changed; new calls use the new one");
        true
    }

    #[cfg(test)]
    pub(super) fn current(&self) -> Arc<Secret> {
        self.key.load_full()
    }
}
