//! What a crop request leaves behind on its way, beside its answer: for the log and the metrics.

use std::time::Duration;

use http::StatusCode;

use crate::base::key::CacheKey;
use crate::fill::FillTiming;
use crate::metrics::{Stage, Stages};

/// As far as the request came.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestTiming {
    /// Where its time went, as far as it was not another's fill.
    pub stages: Stages,
    /// Time spent waiting for the client's body.
    pub body_wait: Duration,
    pub body_bytes: u64,
    pub key: Option<CacheKey>,
    /// How long the upstream was called for it, and what it said last.
    pub upstream: Option<(Duration, Option<StatusCode>)>,
    /// Time waited for others in its own fill.
    fill_wait: Duration,
}

impl RequestTiming {
    /// All time that was waited for others: the rest is our own.
    pub fn waited(&self) -> Duration {
        self.body_wait + self.stages.waited() + self.fill_wait
    }

    /// Its fill was waited for in vain, for so long.
    pub(super) fn gave_up(&mut self, waited: Duration) {
        self.fill_wait = waited;
    }

    /// The fill that was made for this request, until its outcome.
    pub(super) fn was_filled(&mut self, timing: &FillTiming) {
        self.fill_wait = timing.stages.waited();
        self.upstream = timing.stages.of(Stage::Upstream).map(|took| (took, timing.upstream_status));
    }
}
