//! The families about what uploads and results take of memory and disk, and what became of uploads that
//! memory had no room for.

use std::sync::{Mutex, PoisonError};

use prometheus::{IntCounter, IntGauge};

use super::{Families, Metrics};
use crate::request::uploads::UploadLoad;

/// See the module.
pub(super) struct UploadFamilies {
    memory: IntGauge,
    memory_limit: IntGauge,
    spill: IntGauge,
    spill_limit: IntGauge,
    spilled: Mutex<IntCounter>,
    refused: Mutex<IntCounter>,
    results: IntGauge,
    results_limit: IntGauge,
}

impl UploadFamilies {
    pub(super) fn new(families: &Families<'_>) -> Self {
        Self {
            memory: families.plain(
                "granary_upload_memory_bytes",
                "Memory that the pictures of uploads take, as far as they have come",
            ),
            memory_limit: families
                .plain("granary_upload_memory_limit_bytes", "Memory that they may take together"),
            spill: families
                .plain("granary_upload_spill_bytes", "What uploads take on the disk, for want of memory"),
            spill_limit: families
                .plain("granary_upload_spill_limit_bytes", "What they may take there together"),
            spilled: Mutex::new(families.count(
                "granary_uploads_spilled_total",
                "Uploads that went on in a file, for want of memory (grain: requests)",
            )),
            refused: Mutex::new(families.count(
                "granary_uploads_refused_total",
                "Uploads refused because neither memory nor disk had room for them (grain: requests)",
            )),
            results: families.plain(
                "granary_result_memory_bytes",
                "Memory that results take while they are sent, or fetched and kept",
            ),
            results_limit: families
                .plain("granary_result_memory_limit_bytes", "Memory that they may take together"),
        }
    }
}

impl Metrics {
    /// Sets what uploads take and have taken.
    pub fn observe_uploads(&self, load: &UploadLoad) {
        set(&self.uploads.memory, load.memory);
        set(&self.uploads.memory_limit, load.memory_limit);
        set(&self.uploads.spill, load.spill);
        set(&self.uploads.spill_limit, load.spill_limit);
        catch_up(&self.uploads.spilled, load.spilled);
        catch_up(&self.uploads.refused, load.refused);
    }

    /// Sets what results take.
    pub fn observe_results(&self, used: u64, limit: u64) {
        set(&self.uploads.results, used);
        set(&self.uploads.results_limit, limit);
    }
}

fn set(gauge: &IntGauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

/// Brings a counter to what was counted elsewhere; one scrape at a time, lest two add the same.
fn catch_up(counter: &Mutex<IntCounter>, total: u64) {
    let counter = counter.lock().unwrap_or_else(PoisonError::into_inner);
    counter.inc_by(total.saturating_sub(counter.get()));
}
