//! The time of a request by stage: [`Stages`] travels with a request or fill, and each step adds its time.
//! *Overhead* is the time without waits: for the client's body, the upstream, the result, ledger, store and
//! other fills.

use std::time::Duration;

use tokio::time::Instant;

use super::labels::labels;

labels! {
    /// `Parse` and `Memory` are our own work; the others wait. `QueueWait` is the wait for a slot or a retry,
    /// `Persist` lasts until the ledger confirms that object and record are stored.
    pub enum Stage {
        Parse = "parse", Memory = "memory", Ledger = "ledger", Store = "store",
        CoalesceWait = "coalesce_wait", Reserve = "reserve", QueueWait = "queue_wait", Upstream = "upstream",
        Download = "download", Persist = "persist",
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stages([Option<Duration>; Stage::ALL.len()]);

impl Stages {
    pub async fn time<T>(&mut self, stage: Stage, work: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let done = work.await;
        self.add(stage, begun.elapsed());
        done
    }

    pub fn add(&mut self, stage: Stage, time: Duration) {
        *self.0[stage as usize].get_or_insert_default() += time;
    }

    pub fn of(&self, stage: Stage) -> Option<Duration> {
        self.0[stage as usize]
    }

    pub fn waited(&self) -> Duration {
        let is_waiting = |stage: &Stage| !matches!(stage, Stage::Parse | Stage::Memory);
        Stage::ALL.into_iter().filter(is_waiting).filter_map(|stage| self.of(stage)).sum()
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
