//! `misses_per_second`: each miss of a team reserves a time of its own, evenly spaced.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The `Retry-After` times of refused clients are spread over at most this long.
const SPREAD: Duration = Duration::from_secs(120);

/// The generic cell rate algorithm, without a burst.
#[derive(Debug)]
pub(super) struct Rate {
    pub(super) period: Duration,
    times: Mutex<Times>,
}

#[derive(Debug)]
struct Times {
    /// The first time that has never been reserved.
    next: Instant,
    /// Times whose waiters left.
    returned: BTreeSet<Instant>,
    /// The last time given to a refused client.
    refused_until: Instant,
}

/// Another miss gets the time if this is dropped before.
#[derive(Debug)]
pub struct Turn {
    rate: Arc<Rate>,
    pub at: Instant,
}

impl Rate {
    pub(super) fn new(period: Duration) -> Arc<Self> {
        let next = Instant::now();
        let times = Mutex::new(Times { next, returned: BTreeSet::new(), refused_until: next });
        Arc::new(Self { period, times })
    }

    /// The first free time; or, if that is not before `deadline`, how long until there is one.
    pub(super) fn reserve(self: &Arc<Self>, deadline: Instant) -> Result<Turn, Duration> {
        let now = Instant::now();
        let mut times = self.times.lock();
        times.returned = times.returned.split_off(&now);
        times.next = times.next.max(now);
        let at = times.returned.first().copied().unwrap_or(times.next);
        if at < deadline {
            if !times.returned.remove(&at) {
                times.next = at + self.period;
            }
            return Ok(Turn { rate: self.clone(), at });
        }
        let following = times.refused_until + self.period;
        let is_near = at <= following && following < at + SPREAD;
        times.refused_until = if is_near { following } else { at };
        Err(times.refused_until - now)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.at > Instant::now() {
            self.rate.times.lock().returned.insert(self.at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn twice_a_second() -> Arc<Rate> {
        Rate::new(Duration::from_millis(500))
    }

    fn within(seconds: u64) -> Instant {
        Instant::now() + Duration::from_secs(seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn burst_beyond_the_deadline_is_served_in_order_or_refused_with_its_own_time() {
        let (rate, start) = (twice_a_second(), Instant::now());
        let (mut served, mut refused) = (Vec::new(), Vec::new());
        for _ in 0..150 {
            match rate.reserve(within(28)) {
                Ok(turn) => served.push(turn),
                Err(wait) => refused.push(wait),
            }
        }
        let evenly = |from: u32, to| (from..to).map(|n| n * Duration::from_millis(500)).collect::<Vec<_>>();
        assert_eq!(served.iter().map(|turn| turn.at - start).collect::<Vec<_>>(), evenly(0, 56));
        assert_eq!(refused, evenly(56, 150));
        // Each client that comes back when it was told finds its time free.
        for wait in refused {
            tokio::time::advance((start + wait).duration_since(Instant::now())).await;
            served.push(rate.reserve(Instant::now() + Duration::from_millis(1)).expect("its time is free"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_of_a_waiter_that_leaves_goes_to_the_next() {
        let rate = twice_a_second();
        let mut turns: Vec<_> = (0..4).map(|_| rate.reserve(within(2)).expect("there is time")).collect();
        let freed = turns.remove(2).at;
        assert_eq!(rate.reserve(within(2)).expect("a time was given back").at, freed);
        assert!(rate.reserve(within(2)).is_ok_and(|turn| turn.at == freed), "and again");
        tokio::time::advance(Duration::from_secs(10)).await;
        drop(turns);
        assert!(rate.reserve(within(1)).is_ok(), "after a rest there is no wait");
        assert!(
            rate.reserve(Instant::now() + Duration::from_millis(1)).is_err(),
            "times that have come are used"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_ignores_its_time_does_not_send_others_away_for_long() {
        let rate = twice_a_second();
        let _served = rate.reserve(within(1));
        let told = (0..10_000).filter_map(|_| rate.reserve(Instant::now()).err());
        assert!(told.max().expect("all are refused") <= SPREAD + Duration::from_millis(500));
    }
}
