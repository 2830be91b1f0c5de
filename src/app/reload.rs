//! Configuration reload: everything that can change without a restart is replaced, or nothing is.
//! [`Reloader::take`] does all steps that can fail first. [`watch`] decides when.

#[cfg(test)]
mod tests;
pub(crate) mod watch;

use std::sync::Arc;

use parking_lot::Mutex;

use super::settings::{policy_config, slots_config};
use super::upstream_key::KeyWatch;
use crate::base::crash::crash_point;
use crate::config::{Config, LogLevel, Problems};
use crate::fill::Filler;
use crate::http::routes::About;
use crate::metrics::Metrics;
use crate::teams::policy::CurrentPolicy;

pub struct Reloader {
    /// The effective configuration; locked during a reload.
    pub(super) config: Mutex<Config>,
    pub(super) about: Arc<About>,
    pub(super) policy: CurrentPolicy,
    pub(super) filler: Filler,
    pub(super) keys: Option<Arc<KeyWatch>>,
    pub(super) metrics: Arc<Metrics>,
}

pub type SetLevel = Box<dyn Fn(LogLevel) + Send + Sync>;

impl Reloader {
    pub(super) fn started(self) -> Arc<Self> {
        self.metrics.config_shown(&self.about.config.load());
        self.metrics.teams_in_force(self.policy.get().teams().iter().map(|team| &**team));
        Arc::new(self)
    }

    /// Replaces the effective configuration and returns the names of changed fields. Admitted requests are
    /// not affected. Blocks while it reads a small file. After an error nothing has changed.
    pub fn take(&self, new: &Config, set_level: &SetLevel) -> Result<Vec<String>, Problems> {
        let mut config = self.config.lock();
        let changes = config.changes_to(new);
        if !changes.restart.is_empty() {
            return Err(changes.restart);
        }
        let key = match &self.keys {
            Some(keys) => {
                let key = new.upstream.key().and_then(|key| key.ok_or_else(|| "is missing".to_owned()));
                Some((keys, key.map_err(|why| Problems::one("upstream.api_key_file", why))?))
            }
            None => None,
        };
        let policy = policy_config(new);
        // The series exist before anyone can call as a new team.
        self.metrics.teams_in_force(policy.teams.iter().map(|team| &**team));
        self.policy.replace(policy);
        if !changes.live.is_empty() {
            crash_point("CP36");
        }
        if config.upstream != new.upstream {
            self.filler.set_slots(slots_config(new));
        }
        if let Some((keys, key)) = key {
            keys.replace(new.upstream.clone(), &key);
        }
        if config.log.level != new.log.level {
            set_level(new.log.level);
        }
        let shown = new.to_commented_toml();
        self.metrics.config_shown(&shown);
        self.about.config.store(Arc::new(shown));
        *config = new.clone();
        Ok(changes.live)
    }
}
