//! The write timeout: how long a client may leave an answer unread.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

#[derive(Clone, Copy, Debug)]
pub struct WriteLimits {
    /// Without progress, over a whole answer.
    pub grace: Duration,
    /// Bytes per second beyond that; 0 for no minimum.
    pub bytes_per_second: u64,
}

/// It runs only while the client blocks our writes, so that no client is cut off for a slow store.
pub(super) struct WriteTimeout {
    limits: WriteLimits,
    /// Bytes of this answer that were written.
    pub(super) bytes: u64,
    blocked: Duration,
    blocked_since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl WriteTimeout {
    pub(super) fn new(limits: WriteLimits) -> Self {
        Self { limits, bytes: 0, blocked: Duration::ZERO, blocked_since: None, timer: None }
    }

    pub(super) fn begin(&mut self) {
        (self.bytes, self.blocked, self.blocked_since) = (0, Duration::ZERO, None);
    }

    /// Counts a write that did not block.
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        if let Some(since) = self.blocked_since.take() {
            self.blocked += since.elapsed();
        }
    }

    /// Counts a blocked write. Ready when the client has blocked for too long.
    pub(super) fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.blocked_since.get_or_insert_with(Instant::now);
        let deadline = since + self.allowance().saturating_sub(self.blocked);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(cx)
    }

    fn allowance(&self) -> Duration {
        match self.limits.bytes_per_second {
            // No limit in practice, and short enough to be added to an instant.
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
    async fn only_blocked_time_counts_and_written_bytes_extend_it() {
        let limits = WriteLimits { grace: Duration::from_secs(30), bytes_per_second: 100 };
        let mut write = WriteTimeout::new(limits);
        let start = Instant::now();
        write.wrote(1000);
        tokio::time::sleep(Duration::from_secs(100)).await;
        poll_fn(|cx| write.poll_expired(cx)).await;
        assert_eq!(start.elapsed(), Duration::from_secs(140));

        write.begin();
        let start = Instant::now();
        // Ten bytes each second: a tenth of the minimum.
        for _ in 0..20 {
            let expired = tokio::time::timeout(Duration::from_secs(1), poll_fn(|cx| write.poll_expired(cx)));
            assert!(expired.await.is_err());
            write.wrote(10);
        }
        poll_fn(|cx| write.poll_expired(cx)).await;
        assert_eq!(start.elapsed(), Duration::from_secs(32));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_minimum_rate_no_client_is_too_slow() {
        let mut write = WriteTimeout::new(WriteLimits { grace: Duration::ZERO, bytes_per_second: 0 });
        let expired = tokio::time::timeout(Duration::from_secs(3600), poll_fn(|cx| write.poll_expired(cx)));
        assert!(expired.await.is_err());
    }
}
