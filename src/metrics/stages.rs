//! Where the time of a request goes: [`Stages`], a value that a request and a fill carry along and
//! write their times into. Nothing here is global, and nothing is allocated for it.
//!
//! *Overhead* is what is left of a request's time when all is taken away that was waited for others:
//! the client's body, the upstream, the result, ledger and store, and other requests' fills.

use std::time::Duration;

use prometheus::Histogram;
use tokio::time::Instant;

use super::Metrics;
use super::families::{Each, Families};
use super::http::REQUEST_BUCKETS;
use super::labels::{Label, labels};
use crate::base::outcome::CacheStatus;

/// Times in a stage, in seconds: from a look into memory to an upstream's hard stop.
const STAGE_BUCKETS: [f64; 16] =
    [0.00005, 0.0001, 0.0005, 0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0];
/// Our own share of a request's time, in seconds.
const OVERHEAD_BUCKETS: [f64; 12] =
    [0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25];

labels! {
    /// What a request or its fill is doing.
    pub enum Stage {
        /// Reading the form and hashing the picture, without the wait for its bytes.
        Parse = "parse",
        /// Looking into memory.
        Memory = "memory",
        /// Asking the ledger, or writing into it.
        Ledger = "ledger",
        /// Asking the store.
        Store = "store",
        /// Waiting for what another request, or another process, is making.
        CoalesceWait = "coalesce_wait",
        /// Taking the right to buy, with its budgets.
        Reserve = "reserve",
        /// Waiting for a turn to call the upstream, or to call it again.
        QueueWait = "queue_wait",
        /// Calling the upstream.
        Upstream = "upstream",
        /// Fetching the result.
        Download = "download",
        /// Writing object and record, until the ledger says that they are kept.
        Persist = "persist",
    }
}

impl Stage {
    /// Is something done for the request meanwhile, or somebody waited for?
    fn is_ours(self) -> bool {
        matches!(self, Self::Parse | Self::Memory)
    }
}

/// How long something spent in each stage it came through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stages([Option<Duration>; Stage::ALL.len()]);

impl Stages {
    /// Awaits work of a stage, and adds the time it took.
    pub async fn time<T>(&mut self, stage: Stage, work: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let done = work.await;
        self.add(stage, begun.elapsed());
        done
    }

    /// Adds time that was spent in a stage.
    pub fn add(&mut self, stage: Stage, time: Duration) {
        *self.0[stage.position()].get_or_insert_default() += time;
    }

    /// The time spent in a stage; `None` when it was not come through.
    pub fn of(&self, stage: Stage) -> Option<Duration> {
        self.0[stage.position()]
    }

    /// All time that was waited for others.
    pub fn waited(&self) -> Duration {
        Stage::ALL.iter().filter(|stage| !stage.is_ours()).filter_map(|stage| self.of(*stage)).sum()
    }
}

/// See the module.
pub(super) struct StageFamilies {
    stages: Each<Stage, Histogram>,
    overhead: Each<CacheStatus, Histogram>,
    duration: Each<CacheStatus, Histogram>,
}

impl StageFamilies {
    pub(super) fn new(families: &Families<'_>) -> Self {
        Self {
            stages: families.histograms(
                "granary_stage_duration_seconds",
                "Time spent in a stage, once for each request or fill that came through it",
                "stage",
                &STAGE_BUCKETS,
            ),
            overhead: families.histograms(
                "granary_overhead_seconds",
                "Time of an answered crop request that was not waited for its client, the upstream, the result, \
                 ledger, store or other fills (grain: requests)",
                "outcome",
                &OVERHEAD_BUCKETS,
            ),
            duration: families.histograms(
                "granary_request_duration_seconds",
                "Time from an answered crop request's head to its answer, without the wait for its body, by where \
                 the answer came from (grain: requests)",
                "outcome",
                &REQUEST_BUCKETS,
            ),
        }
    }
}

impl Metrics {
    /// A request, or a fill, has come to its end.
    pub fn staged(&self, stages: &Stages) {
        for stage in Stage::ALL {
            if let Some(time) = stages.of(*stage) {
                self.stages.stages[*stage].observe(time.as_secs_f64());
            }
        }
    }

    /// A crop request was answered after so long, and had waited for others so long. In neither is the wait
    /// for its body: how fast a client sends is not for us to answer for.
    pub fn answered_after(&self, outcome: CacheStatus, took: Duration, waited: Duration) {
        self.stages.duration[outcome].observe(took.as_secs_f64());
        self.stages.overhead[outcome].observe(took.saturating_sub(waited).as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn times_of_a_stage_add_up_and_only_our_own_are_no_waiting() {
        let mut stages = Stages::default();
        let sleep = |seconds| tokio::time::sleep(Duration::from_secs(seconds));
        stages.time(Stage::Parse, sleep(1)).await;
        stages.time(Stage::Memory, sleep(2)).await;
        stages.time(Stage::Upstream, sleep(3)).await;
        stages.time(Stage::Upstream, sleep(4)).await;
        stages.add(Stage::Download, Duration::from_secs(5));
        assert_eq!(stages.of(Stage::Upstream).map(|time| time.as_secs()), Some(7));
        assert_eq!(stages.of(Stage::Store), None);
        assert_eq!(stages.waited().as_secs(), 12);
    }
}
