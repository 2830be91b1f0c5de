//! The families about what this process is: its build, its configuration, and how often that was read
//! again.

use jiff::Timestamp;
use prometheus::{IntCounter, IntGauge};

use super::Metrics;
use super::families::{Each, Families, Rows};
use super::labels::Success;

/// The commit this was built from; the build is told by `GRANARY_COMMIT`.
pub const COMMIT: Option<&str> = option_env!("GRANARY_COMMIT");
/// What is said when it was not.
const UNKNOWN_COMMIT: &str = "unknown";
/// Digits of the configuration's digest that are told: two configurations that differ hardly ever
/// share so many.
const HASH_DIGITS: usize = 16;

/// See the module.
pub(super) struct ConfigFamilies {
    hash: Rows,
    reloads: Each<Success, IntCounter>,
    last_successful: IntGauge,
    last_timestamp: IntGauge,
}

impl ConfigFamilies {
    pub(super) fn new(families: &Families<'_>) -> Self {
        let build = families.gauge(
            "granary_build_info",
            "1, for the version that runs and the commit it was built from",
            &["version", "commit"],
        );
        build.with_label_values(&[env!("CARGO_PKG_VERSION"), COMMIT.unwrap_or(UNKNOWN_COMMIT)]).set(1);
        Self {
            hash: families.rows(
                "granary_config_info",
                "1, for the digest of the configuration in force without its secrets; replicas should agree",
                &["hash"],
            ),
            reloads: families.counters(
                "granary_config_reloads_total",
                "Changes of the configuration file that were noticed, and signals to read it, by what came of them",
                "result",
            ),
            last_successful: families.plain(
                "granary_config_last_reload_successful",
                "1 unless the configuration file, as it was read last, is not the one in force",
            ),
            last_timestamp: families.plain(
                "granary_config_last_reload_timestamp_seconds",
                "When the configuration in force was read, in seconds since 1970",
            ),
        }
    }
}

impl Metrics {
    /// The configuration in force is the one that was read at this moment: the first, or one again.
    pub fn config_in_force(&self, now: Timestamp) {
        self.config.last_successful.set(1);
        self.config.last_timestamp.set(now.as_second());
    }

    /// This is the configuration in force, as operators are shown it: with stars for secrets.
    pub fn config_shown(&self, shown: &str) {
        let hash = blake3::hash(shown.as_bytes()).to_hex();
        self.config.hash.set([(vec![hash[..HASH_DIGITS].to_owned()], 1)].into());
    }

    /// The configuration file was read again; `is_ok` when it is the one in force now.
    pub fn config_reloaded(&self, is_ok: bool) {
        self.config.reloads[Success::of(is_ok)].inc();
        self.config.last_successful.set(i64::from(is_ok));
    }
}
