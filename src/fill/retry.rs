//! When a purchase may be tried again: the waits, and a budget over all fills ([`RetryBudget`]).
//!
//! What was provably never sent whole costs nothing and is tried again freely. What the upstream's
//! flow control refused is tried again only for every tenth purchase, since retries of all that is
//! refused would keep an overloaded upstream overloaded.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::base::identity::Identity;
use crate::base::random::fraction;

/// What one purchase adds to the budget, of what one retry costs.
const SHARE: u32 = 10;
/// Retries that may have been saved up.
const MOST: u32 = 10;
const SHORTEST_WAIT: Duration = Duration::from_millis(50);
/// The longest wait before the first retry; before the second it is twice as long.
const LONGEST_WAIT: Duration = Duration::from_millis(400);

/// Retries of flow-control refusals: at most a tenth of all purchases.
#[derive(Debug, Default)]
pub(super) struct RetryBudget {
    /// In shares of a retry.
    saved: Mutex<u32>,
}

impl RetryBudget {
    /// A purchase is tried for the first time.
    pub(super) fn deposit(&self) {
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        *saved = (*saved + 1).min(MOST * SHARE);
    }

    /// Takes one retry, if there is one.
    pub(super) fn take(&self) -> bool {
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let left = saved.checked_sub(SHARE);
        *saved = left.unwrap_or(*saved);
        left.is_some()
    }
}

/// Until when the callers of a key were sent away: a client that retries at once, as many do, gets the
/// same answer without a call to the upstream.
#[derive(Debug, Default)]
pub(super) struct RetryAfterCache(Mutex<HashMap<Identity, Instant>>);

impl RetryAfterCache {
    pub(super) fn note(&self, identity: &Identity, wait: Duration) {
        let now = Instant::now();
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // There is one for each refusal of the upstream, of which there are few within such a time.
        keys.retain(|_, until| *until > now);
        if let Some(until) = now.checked_add(wait) {
            keys.insert(identity.clone(), until);
        }
    }

    /// What is left of that time.
    pub(super) fn remaining(&self, identity: &Identity) -> Option<Duration> {
        let keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        keys.get(identity)?.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero())
    }
}

/// How long to wait before a retry, the first being 1: fully jittered, and no shorter than asked for.
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
