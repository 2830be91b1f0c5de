//! The families about the configuration: how often its file was read again, and what came of it.

use jiff::Timestamp;
use prometheus::{IntCounterVec, IntGauge};

use super::{Families, Metrics};

/// See the module.
pub(super) struct ConfigFamilies {
    reloads: IntCounterVec,
    last_successful: IntGauge,
    last_timestamp: IntGauge,
}

impl ConfigFamilies {
    pub(super) fn new(families: &Families<'_>) -> Self {
        let all = Self {
            reloads: families.counter(
                "granary_config_reloads_total",
                "Changes of the configuration file that were noticed, and signals to read it, by what came of them",
                &["result"],
            ),
            last_successful: families.plain(
                "granary_config_last_reload_successful",
                "1 unless the configuration file, as it was read last, is not the one in force",
            ),
            last_timestamp: families.plain(
                "granary_config_last_reload_timestamp_seconds",
                "When the configuration in force was read, in seconds since 1970",
            ),
        };
        for result in ["ok", "error"] {
            all.reloads.with_label_values(&[result]);
        }
        all
    }
}

impl Metrics {
    /// The configuration in force is the one that was read at this moment: the first, or one again.
    pub fn config_in_force(&self, now: Timestamp) {
        self.config.last_successful.set(1);
        self.config.last_timestamp.set(now.as_second());
    }

    /// The configuration file was read again; `is_ok` when it is the one in force now.
    pub fn config_reloaded(&self, is_ok: bool) {
        self.config.reloads.with_label_values(&[if is_ok { "ok" } else { "error" }]).inc();
        self.config.last_successful.set(i64::from(is_ok));
    }
}
