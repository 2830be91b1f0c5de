//! Another configuration for a running program: all of what can change without a restart is replaced,
//! or nothing is.
//!
//! [`Reloader::take`] first finds out everything that can go wrong, and then only does what cannot: so
//! there is no half of a reload. When it happens is the business of [`watch`].

#[cfg(test)]
mod tests;
pub(crate) mod watch;

use std::sync::{Arc, Mutex, PoisonError};

use super::settings::{policy_config, slots_config};
use super::upstream_key::KeyWatch;
use crate::base::crash::crash_point;
use crate::config::{Config, LogLevel, Problems};
use crate::fill::Filler;
use crate::http::routes::About;
use crate::metrics::Metrics;
use crate::teams::policy::CurrentPolicy;

/// What of a running program a reload reaches.
pub struct Reloader {
    /// The configuration in force; held while another takes its place.
    config: Mutex<Config>,
    parts: ReloadParts,
}

pub(super) struct ReloadParts {
    pub(super) about: Arc<About>,
    pub policy: CurrentPolicy,
    pub filler: Filler,
    /// `None` when no key is needed.
    pub keys: Option<Arc<KeyWatch>>,
    pub metrics: Arc<Metrics>,
}

pub type SetLevel = Box<dyn Fn(LogLevel) + Send + Sync>;

impl Reloader {
    pub(super) fn new(config: Config, parts: ReloadParts) -> Self {
        parts.metrics.config_shown(&parts.about.config.load());
        parts.metrics.teams_in_force(parts.policy.get().teams().iter().map(|team| &**team));
        Self { config: Mutex::new(config), parts }
    }

    /// Puts `new` in force, and names what has changed. Requests that were admitted are not affected. Blocks for
    /// as long as reading a small file does. After an error everything is as it was.
    pub fn take(&self, new: &Config, set_level: &SetLevel) -> Result<Vec<String>, Problems> {
        let mut config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = config.changes_to(new);
        if !changes.restart.is_empty() {
            return Err(changes.restart);
        }
        let key = match &self.parts.keys {
            Some(keys) => {
                let key = new.upstream.key().and_then(|key| key.ok_or_else(|| "is missing".to_owned()));
                Some((keys, key.map_err(|why| Problems::one("upstream.api_key_file", why))?))
            }
            None => None,
        };
        let policy = policy_config(new);
        // Before anyone can call as a new team, its series are there.
        self.parts.metrics.teams_in_force(policy.teams.iter().map(|team| &**team));
        self.parts.policy.replace(policy);
        if !changes.live.is_empty() {
            crash_point("CP36");
        }
        if config.upstream != new.upstream {
            self.parts.filler.set_slots(slots_config(new));
        }
        if let Some((keys, key)) = key {
            keys.replace(new.upstream.clone(), &key);
        }
        if config.log.level != new.log.level {
            set_level(new.log.level);
        }
        let shown = new.to_commented_toml();
        self.parts.metrics.config_shown(&shown);
        self.parts.about.config.store(Arc::new(shown));
        *config = new.clone();
        Ok(changes.live)
    }
}
