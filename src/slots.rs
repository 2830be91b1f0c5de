//! How many paid calls run at once, and who may wait for a turn: [`Slots`].
//!
//! A turn that cannot be expected within the caller's time is refused at once, with the wait, since
//! a client that waits in vain costs both sides more than one that comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Bounded concurrency with a bounded, first-come-first-served queue.
pub struct Slots {
    permits: Arc<Semaphore>,
    concurrency: usize,
    queue: usize,
    waiting: AtomicUsize,
    /// A moving mean of how long a slot is held, in milliseconds.
    held_ms: AtomicU64,
}

/// The queue is too long to be served in time; the wait that is to be expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooBusy {
    /// When a slot may be expected to be free.
    pub wait: Duration,
}

/// The right to make one paid call; given back on drop.
pub struct Slot {
    _permit: OwnedSemaphorePermit,
    slots: Arc<Slots>,
    since: Instant,
}

impl Slots {
    /// `concurrency` calls at once, and at most `queue` waiting for a turn.
    pub fn new(concurrency: usize, queue: usize) -> Arc<Self> {
        Arc::new(Self {
            permits: Arc::new(Semaphore::new(concurrency)),
            concurrency,
            queue,
            waiting: AtomicUsize::new(0),
            held_ms: AtomicU64::new(2000),
        })
    }

    /// Waits for a slot, if one can be expected within `patience`.
    ///
    /// # Errors
    /// [`TooBusy`], at once.
    pub async fn take(self: &Arc<Self>, patience: Duration) -> Result<Slot, TooBusy> {
        let permit = match self.permits.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let ahead = self.waiting.fetch_add(1, Ordering::Relaxed);
                let _leave = Leave(&self.waiting);
                let wait = self.expected_wait(ahead);
                if ahead >= self.queue || wait > patience {
                    return Err(TooBusy { wait });
                }
                self.permits.clone().acquire_owned().await.expect("the semaphore is never closed")
            }
        };
        Ok(Slot { _permit: permit, slots: self.clone(), since: Instant::now() })
    }

    /// Calls under way, and fills waiting for a turn.
    pub fn load(&self) -> (usize, usize) {
        (self.concurrency - self.permits.available_permits(), self.waiting.load(Ordering::Relaxed))
    }

    /// With `ahead` waiting before us, all slots must turn over once per `concurrency` of them.
    fn expected_wait(&self, ahead: usize) -> Duration {
        let rounds = (ahead / self.concurrency + 1) as u64;
        Duration::from_millis(self.held_ms.load(Ordering::Relaxed).saturating_mul(rounds))
    }
}

struct Leave<'a>(&'a AtomicUsize);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let held = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mean = self.slots.held_ms.load(Ordering::Relaxed);
        // A lost update between the two costs nothing but a sample.
        self.slots.held_ms.store((mean * 7).saturating_add(held) / 8, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_turn_that_cannot_come_in_time_is_refused_at_once() {
        let slots = Slots::new(1, 256);
        let taken = slots.take(Duration::ZERO).await.expect("a free slot needs no patience");
        assert!(slots.take(Duration::from_millis(1)).await.is_err());
        assert_eq!(slots.load(), (1, 0), "who was refused does not count as waiting");
        drop(taken);
        assert!(slots.take(Duration::ZERO).await.is_ok());
    }

    #[tokio::test]
    async fn the_queue_is_bounded() {
        let slots = Slots::new(1, 1);
        let taken = slots.take(Duration::ZERO).await.expect("free");
        let patient = Duration::from_secs(3600);
        let waiting = tokio::spawn({
            let slots = slots.clone();
            async move { slots.take(patient).await.is_ok() }
        });
        while slots.load().1 == 0 {
            tokio::task::yield_now().await;
        }
        assert!(slots.take(patient).await.is_err());
        drop(taken);
        assert!(waiting.await.expect("no panic"));
    }
}
