//! The families about what is kept: the tiers an answer is looked for in, and results that were not.

use prometheus::{IntCounter, IntGauge};

use super::Metrics;
use super::families::{Each, Families, gauge_value};
use super::labels::labels;
use crate::upstream::download::FetchError;

labels! {
    /// Where an answer is looked for.
    pub enum CacheTier {
        /// In this process.
        Memory = "memory",
        /// In the book.
        Ledger = "ledger",
        /// Where results rest.
        Store = "store",
    }
}

labels! {
    /// What a look into a tier found.
    pub enum Look {
        /// An answer.
        Hit = "hit",
        /// None.
        Miss = "miss",
        /// It could not be asked.
        Error = "error",
    }
}

labels! {
    /// Why something left memory.
    pub enum Eviction {
        /// Others needed the room, or it was too large.
        Size = "size",
        /// Its time was over.
        Expired = "expired",
        /// Something newer took its place.
        Replaced = "replaced",
        /// It was refreshed or purged.
        Explicit = "explicit",
    }
}

labels! {
    /// A tier that is kept in memory, with a size.
    enum SizedTier {
        Memory = "memory",
    }
}

labels! {
    /// Why a fetched result was not kept.
    enum Rejection {
        NotImage = "not_image",
        TooLarge = "too_large",
        Incomplete = "incomplete",
        DeadUrl = "dead_url",
        Unreachable = "unreachable",
    }
}

impl From<&FetchError> for Rejection {
    fn from(error: &FetchError) -> Self {
        match error {
            FetchError::NotPicture => Self::NotImage,
            FetchError::TooLarge(_) => Self::TooLarge,
            FetchError::Incomplete(_) => Self::Incomplete,
            FetchError::Dead(_) => Self::DeadUrl,
            FetchError::NotAllowed(_) | FetchError::Transient(_) | FetchError::Timeout => Self::Unreachable,
        }
    }
}

/// See the module.
pub(super) struct CacheFamilies {
    entries: Each<SizedTier, IntGauge>,
    bytes: Each<SizedTier, IntGauge>,
    lookups: Each<CacheTier, Each<Look, IntCounter>>,
    evictions: Each<SizedTier, Each<Eviction, IntCounter>>,
    rejected: Each<Rejection, IntCounter>,
}

impl CacheFamilies {
    pub(super) fn new(families: &Families<'_>, memory_capacity: u64) -> Self {
        let capacity: Each<SizedTier, IntGauge> =
            families.gauges("granary_cache_capacity_bytes", "Bytes a cache tier may hold", "tier");
        capacity[SizedTier::Memory].set(gauge_value(memory_capacity));
        Self {
            entries: families.gauges("granary_cache_entries", "Entries in a cache tier", "tier"),
            bytes: families.gauges("granary_cache_bytes", "Bytes in a cache tier", "tier"),
            lookups: families.counter_pairs(
                "granary_cache_lookups_total",
                "Looks for an answer, by tier and what was found (grain: requests)",
                ["tier", "result"],
            ),
            evictions: families.counter_pairs(
                "granary_cache_evictions_total",
                "Entries that left a cache tier, by why",
                ["tier", "cause"],
            ),
            rejected: families.counters(
                "granary_cache_store_rejected_total",
                "Fetches of a paid result that brought nothing to keep, by why; each is tried again (grain: attempts)",
                "reason",
            ),
        }
    }

    /// Sets what is read at scrape time.
    pub(super) fn observe(&self, entries: u64, bytes: u64) {
        self.entries[SizedTier::Memory].set(gauge_value(entries));
        self.bytes[SizedTier::Memory].set(gauge_value(bytes));
    }
}

impl Metrics {
    /// An answer was looked for.
    pub fn looked(&self, tier: CacheTier, found: Look) {
        self.cache.lookups[tier][found].inc();
    }

    /// Something left memory.
    pub fn evicted(&self, cause: Eviction) {
        self.cache.evictions[SizedTier::Memory][cause].inc();
    }

    /// A result was fetched in vain.
    pub fn result_rejected(&self, error: &FetchError) {
        self.cache.rejected[error.into()].inc();
    }
}
