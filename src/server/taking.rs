//! How long a client may leave an answer untaken.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// How slow a client may be in taking an answer.
#[derive(Clone, Copy, Debug)]
pub struct TakingLimits {
    /// How long nothing may be taken, over a whole answer, whatever its size.
    pub grace: Duration,
    /// Bytes per second beyond that; 0 for no minimum.
    pub bytes_per_second: u64,
}

/// The clock of one answer. It runs only while the client keeps us from writing, so that no client pays
/// for a slow store.
pub(super) struct Taking {
    limits: TakingLimits,
    bytes: u64,
    waited: Duration,
    waiting_since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Taking {
    pub(super) fn new(limits: TakingLimits) -> Self {
        Self { limits, bytes: 0, waited: Duration::ZERO, waiting_since: None, timer: None }
    }

    /// Another answer begins.
    pub(super) fn begin(&mut self) {
        (self.bytes, self.waited, self.waiting_since) = (0, Duration::ZERO, None);
    }

    /// Bytes of this answer that were handed over.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// So much could be handed over.
    pub(super) fn took(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        if let Some(since) = self.waiting_since.take() {
            self.waited += since.elapsed();
        }
    }

    /// Nothing can be handed over. Ready when that has gone on for too long.
    pub(super) fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        let deadline = since + self.allowance().saturating_sub(self.waited);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(cx)
    }

    fn allowance(&self) -> Duration {
        match self.limits.bytes_per_second {
            // As good as for ever, and still a time that can be added to now.
            0 => Duration::from_secs(365 * 24 * 3600),
            rate => self.limits.grace + Duration::from_millis(self.bytes.saturating_mul(1000) / rate),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_the_time_in_which_nothing_is_taken_counts_and_bytes_buy_more_of_it() {
        let limits = TakingLimits { grace: Duration::from_secs(30), bytes_per_second: 100 };
        let mut taking = Taking::new(limits);
        let start = Instant::now();
        taking.took(1000);
        tokio::time::sleep(Duration::from_secs(100)).await;
        poll_fn(|cx| taking.poll_overdue(cx)).await;
        assert_eq!(start.elapsed(), Duration::from_secs(140));

        taking.begin();
        let start = Instant::now();
        // Takes ten bytes each second: a tenth of what is asked for.
        for _ in 0..20 {
            let overdue = tokio::time::timeout(Duration::from_secs(1), poll_fn(|cx| taking.poll_overdue(cx)));
            assert!(overdue.await.is_err());
            taking.took(10);
        }
        poll_fn(|cx| taking.poll_overdue(cx)).await;
        assert_eq!(start.elapsed(), Duration::from_secs(32));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_minimum_nobody_is_too_slow() {
        let mut taking = Taking::new(TakingLimits { grace: Duration::ZERO, bytes_per_second: 0 });
        let overdue = tokio::time::timeout(Duration::from_secs(3600), poll_fn(|cx| taking.poll_overdue(cx)));
        assert!(overdue.await.is_err());
    }
}
