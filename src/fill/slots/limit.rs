//! The number of calls at once that the upstream accepts ([`Limit`]), adapted to its flow control. Pure. Additive
//! increase, multiplicative decrease: each success while the limit is in use adds a fraction of one, each refusal
//! halves it, but all calls under way at a refusal count as one burst. If even single calls are refused, they are
//! spaced out in time.

use std::time::Duration;

/// The first pause after the refusal of a single call; each further refusal doubles it.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// Short enough to notice within seconds that the upstream has recovered.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A longer wait that the upstream asks for is shortened to this.
const LONGEST_ASKED: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub(super) struct Limit {
    current: f64,
    most: usize,
    bursts: u64,
    pauses: u32,
}

/// The calls taken between two refusals that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Burst(u64);

impl Limit {
    pub(super) fn new(start: usize, most: usize) -> Self {
        let most = most.max(1);
        Self { current: start.clamp(1, most) as f64, most, bursts: 0, pauses: 0 }
    }

    pub(super) fn set_bounds(&mut self, start: Option<usize>, most: usize) {
        self.most = most.max(1);
        let wanted = start.map_or(self.current, |start| start as f64);
        self.current = wanted.clamp(1.0, self.most as f64);
    }

    /// At least 1.
    pub(super) fn allowed(&self) -> usize {
        self.current as usize
    }

    /// Returns true while even single calls are refused.
    pub(super) fn is_spaced_out(&self) -> bool {
        self.pauses > 0
    }

    pub(super) fn burst(&self) -> Burst {
        Burst(self.bursts)
    }

    /// Counts a served call; `is_in_use` if no other call was allowed beside those under way.
    pub(super) fn succeeded(&mut self, is_in_use: bool) {
        self.pauses = 0;
        if is_in_use {
            self.current = (self.current + 1.0 / self.allowed() as f64).min(self.most as f64);
        }
    }

    /// Counts a refusal by flow control, which may have asked for a wait. Returns how long no call may begin.
    pub(super) fn throttled(&mut self, taken_in: Burst, asked: Option<Duration>) -> Option<Duration> {
        let asked = asked.map(|wait| wait.min(LONGEST_ASKED)).filter(|wait| !wait.is_zero());
        if taken_in != self.burst() {
            return asked;
        }
        self.bursts += 1;
        if self.allowed() > 1 {
            self.current = (self.current / 2.0).floor().max(1.0);
            return asked;
        }
        self.current = 1.0;
        let own = SHORTEST_PAUSE.saturating_mul(1 << self.pauses.min(8)).min(LONGEST_PAUSE);
        self.pauses += 1;
        Some(asked.unwrap_or_default().max(own))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_grows_by_one_in_a_round_of_successes_up_to_its_bound() {
        let mut limit = Limit::new(4, 6);
        for expected in [4, 4, 4, 4, 5] {
            assert_eq!(limit.allowed(), expected);
            limit.succeeded(true);
        }
        (0..100).for_each(|_| limit.succeeded(true));
        assert_eq!(limit.allowed(), 6);
    }

    #[test]
    fn a_success_that_left_room_says_nothing_about_the_limit() {
        let mut limit = Limit::new(4, 16);
        (0..100).for_each(|_| limit.succeeded(false));
        assert_eq!(limit.allowed(), 4);
    }

    #[test]
    fn it_is_halved_once_per_burst_and_never_below_one() {
        let mut limit = Limit::new(16, 16);
        for expected in [8, 4, 2, 1, 1] {
            let burst = limit.burst();
            for _ in 0..5 {
                limit.throttled(burst, None);
            }
            assert_eq!(limit.allowed(), expected);
        }
    }

    #[test]
    fn calls_are_spaced_out_when_even_one_is_refused() {
        let mut limit = Limit::new(2, 16);
        let mut refuse = |asked: Option<u64>| {
            let burst = limit.burst();
            limit.throttled(burst, asked.map(Duration::from_secs)).map(|pause| pause.as_secs())
        };
        assert_eq!(refuse(None), None, "halving is enough at first");
        assert_eq!([(); 5].map(|()| refuse(None)), [1, 2, 4, 5, 5].map(Some));
        assert_eq!(refuse(Some(20)), Some(20), "what it asks for is honoured");
        assert_eq!(refuse(Some(99_999)), Some(300), "within reason");
        limit.succeeded(false);
        assert_eq!(limit.throttled(limit.burst(), None), Some(Duration::from_secs(1)));
    }

    #[test]
    fn other_bounds_keep_what_was_found_out_within_them() {
        let mut limit = Limit::new(4, 16);
        (0..300).for_each(|_| limit.succeeded(true));
        let mut allowed = |start, most| {
            limit.set_bounds(start, most);
            limit.allowed()
        };
        assert_eq!(allowed(None, 40), 16);
        assert_eq!(allowed(None, 5), 5);
        assert_eq!(allowed(None, 40), 5, "it has to be found out again");
        assert_eq!(allowed(Some(9), 40), 9);
        assert_eq!(allowed(Some(9), 3), 3);
    }

    #[test]
    fn a_wait_that_was_asked_for_is_honoured_at_any_limit() {
        let mut limit = Limit::new(8, 16);
        let (burst, asked) = (limit.burst(), Some(Duration::from_secs(3)));
        assert_eq!(limit.throttled(burst, asked), asked);
        assert_eq!((limit.throttled(burst, asked), limit.allowed()), (asked, 4));
        assert_eq!(limit.throttled(burst, Some(Duration::ZERO)), None);
    }

    proptest! {
        #[test]
        fn it_stays_between_one_and_its_bound(
            start in 0usize..40, most in 0usize..40, steps in proptest::collection::vec(0u8..4, 0..200),
        ) {
            let mut limit = Limit::new(start, most);
            let mut burst = limit.burst();
            for step in steps {
                match step {
                    0 => limit.succeeded(true),
                    1 => limit.succeeded(false),
                    2 => burst = limit.burst(),
                    _ => drop(limit.throttled(burst, None)),
                }
                prop_assert!((1..=most.max(1)).contains(&limit.allowed()));
            }
        }
    }
}
