//! Retries of purchases: their waits, and a budget over all fills ([`RetryBudget`]). An order that was provably never
//! sent whole is retried freely. A refusal by flow control is retried only for every tenth purchase, because retries
//! of all refusals would keep an upstream overloaded.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::base::identity::Identity;
use crate::base::random::fraction;

/// Purchases per retry.
const SHARE: u32 = 10;
/// Retries that may be saved up.
const MOST: u32 = 10;
const SHORTEST_WAIT: Duration = Duration::from_millis(50);
/// The longest wait before the first retry; before the second it is twice as long.
const LONGEST_WAIT: Duration = Duration::from_millis(400);

/// Retries of flow-control refusals: at most a tenth of all purchases. Counts shares of a retry.
#[derive(Debug, Default)]
pub(super) struct RetryBudget(AtomicU32);

impl RetryBudget {
    /// Counts the first attempt of a purchase.
    pub(super) fn deposit(&self) {
        self.update(|saved| Some((saved + 1).min(MOST * SHARE)));
    }

    pub(super) fn take(&self) -> bool {
        self.update(|saved| saved.checked_sub(SHARE))
    }

    fn update(&self, change: impl Fn(u32) -> Option<u32>) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok()
    }
}

/// Until when a key's callers were sent away: a client that retries at once gets the same answer without a call.
#[derive(Debug, Default)]
pub(super) struct RetryAfterCache(Mutex<HashMap<Identity, Instant>>);

impl RetryAfterCache {
    pub(super) fn note(&self, identity: &Identity, wait: Duration) {
        let now = Instant::now();
        let mut keys = self.keys();
        // One for each refusal of the upstream, so there are few.
        keys.retain(|_, until| *until > now);
        if let Some(until) = now.checked_add(wait) {
            keys.insert(identity.clone(), until);
        }
    }

    pub(super) fn remaining(&self, identity: &Identity) -> Option<Duration> {
        let until = *self.keys().get(identity)?;
        until.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero())
    }

    fn keys(&self) -> MutexGuard<'_, HashMap<Identity, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The wait before a retry, the first being 1: fully jittered, and no shorter than `asked`.
pub(super) fn wait_before(retry: u32, asked: Option<Duration>) -> Duration {
    let longest = LONGEST_WAIT * retry.clamp(1, 2);
    let jittered = SHORTEST_WAIT + (longest - SHORTEST_WAIT).mul_f64(fraction());
    jittered.max(asked.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::key::CacheKey;

    #[test]
    fn retries_are_a_tenth_of_purchases_and_saved_up_to_ten() {
        let budget = RetryBudget::default();
        assert!(!budget.take(), "nothing is given in advance");
        for _ in 0..3 {
            (0..9).for_each(|_| budget.deposit());
            assert!(!budget.take());
            budget.deposit();
            assert!(budget.take() && !budget.take());
        }
        (0..1000).for_each(|_| budget.deposit());
        assert_eq!((0..100).filter(|_| budget.take()).count(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_was_told_is_remembered_until_it_is_over() {
        let (told, key) =
            (RetryAfterCache::default(), |tag: u8| Identity::new("ailab-v1", CacheKey::of(&[tag], 1, 1)));
        told.note(&key(1), Duration::from_secs(2));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!((told.remaining(&key(1)), told.remaining(&key(2))), (Some(Duration::from_secs(1)), None));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(told.remaining(&key(1)), None);
        told.note(&key(2), Duration::from_secs(2));
        assert_eq!(told.0.lock().unwrap().len(), 1, "what is over is forgotten");
        told.note(&key(3), Duration::MAX);
        assert_eq!(told.remaining(&key(3)), None, "and no wait is too long to add");
    }

    #[test]
    fn waits_are_jittered_over_their_whole_range_and_no_shorter_than_asked_for() {
        for (retry, longest) in [(1, 400), (2, 800), (3, 800)] {
            let waits: Vec<_> = (0..500).map(|_| wait_before(retry, None).as_millis()).collect();
            assert!(waits.iter().all(|wait| (50..=longest).contains(wait)), "{waits:?}");
            assert!(
                waits.iter().any(|wait| *wait < longest / 4) && waits.iter().any(|wait| *wait > longest / 2)
            );
        }
        assert_eq!(wait_before(1, Some(Duration::from_secs(7))).as_secs(), 7);
    }
}
