//! A circuit breaker: what has failed several times in a row is left alone for a while, so that
//! asking a dead service costs no time.
//!
//! After [`BreakerConfig::failures`] failures in a row it opens. When the wait is over one caller
//! may try, alone: its success closes the breaker, its failure doubles the wait. This module
//! performs no I/O and does not know what it protects.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// When a breaker opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerConfig {
    /// This many failures in a row open it.
    pub failures: u32,
    /// The first wait; each failed trial doubles it.
    pub shortest_wait: Duration,
    /// No wait is longer.
    pub longest_wait: Duration,
}

/// See the module.
#[derive(Debug)]
pub struct Breaker {
    config: BreakerConfig,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed {
        failures: u32,
    },
    Open {
        until: Instant,
        wait: Duration,
    },
    /// One caller tries.
    HalfOpen,
}

impl Breaker {
    /// Starts closed.
    pub fn new(config: BreakerConfig) -> Self {
        Self { config, state: Mutex::new(State::Closed { failures: 0 }) }
    }

    /// Asks to call the protected service. The caller says by the pass what came of it.
    ///
    /// # Errors
    /// Not now; it may be asked again after this time.
    pub fn enter(&self) -> Result<Pass<'_>, Duration> {
        let mut state = self.state();
        let trial = match *state {
            State::Closed { .. } => None,
            State::Open { until, wait } if until <= Instant::now() => {
                *state = State::HalfOpen;
                Some(wait)
            }
            State::Open { until, .. } => return Err(until - Instant::now()),
            State::HalfOpen => return Err(self.config.shortest_wait),
        };
        Ok(Pass { breaker: self, trial, told: false })
    }

    /// While it is open: how long it stays so at least.
    pub fn open_for(&self) -> Option<Duration> {
        match *self.state() {
            State::Closed { .. } => None,
            State::Open { until, .. } => {
                Some(until.saturating_duration_since(Instant::now())).filter(|wait| !wait.is_zero())
            }
            State::HalfOpen => Some(self.config.shortest_wait),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, wait: Duration) -> State {
        let wait = wait.min(self.config.longest_wait);
        State::Open { until: Instant::now() + wait, wait }
    }
}

/// The right to one call. Dropped without a word, as when the caller is cancelled, it counts as
/// neither success nor failure.
#[derive(Debug)]
pub struct Pass<'b> {
    breaker: &'b Breaker,
    /// For a trial: the wait that preceded it.
    trial: Option<Duration>,
    told: bool,
}

impl Pass<'_> {
    /// Is this the one trial of a breaker that was open?
    pub fn is_trial(&self) -> bool {
        self.trial.is_some()
    }

    /// The service answered.
    pub fn succeeded(mut self) {
        self.told = true;
        *self.breaker.state() = State::Closed { failures: 0 };
    }

    /// It did not answer at all in all the time it was given: reason enough to open at once, or each
    /// of the next callers would wait as long.
    pub fn timed_out(mut self) {
        let closed = matches!(*self.breaker.state(), State::Closed { .. });
        if self.trial.is_some() || !closed {
            return self.failed();
        }
        self.told = true;
        *self.breaker.state() = self.breaker.open(self.breaker.config.shortest_wait);
    }

    /// It did not.
    pub fn failed(mut self) {
        self.told = true;
        let mut state = self.breaker.state();
        *state = match (*state, self.trial) {
            (_, Some(wait)) => self.breaker.open(wait.saturating_mul(2)),
            (State::Closed { failures }, None) if failures + 1 < self.breaker.config.failures => {
                State::Closed { failures: failures + 1 }
            }
            (State::Closed { .. }, None) => self.breaker.open(self.breaker.config.shortest_wait),
            // It began before the breaker opened, and tells nothing new.
            (state, None) => state,
        };
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if let Some(wait) = self.trial.filter(|_| !self.told) {
            // Whoever comes next tries at once.
            let mut state = self.breaker.state();
            if matches!(*state, State::HalfOpen) {
                *state = State::Open { until: Instant::now(), wait };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn breaker() -> Breaker {
        Breaker::new(BreakerConfig { failures: 3, shortest_wait: SECOND, longest_wait: 5 * SECOND })
    }

    fn fail(breaker: &Breaker) {
        breaker.enter().expect("it is not open").failed();
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_after_failures_in_a_row() {
        let breaker = breaker();
        for _ in 0..5 {
            fail(&breaker);
            fail(&breaker);
            breaker.enter().unwrap().succeeded();
        }
        for _ in 0..3 {
            assert_eq!(breaker.open_for(), None);
            fail(&breaker);
        }
        assert_eq!(breaker.open_for(), Some(SECOND));
        assert_eq!(breaker.enter().unwrap_err(), SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn one_caller_tries_at_a_time_and_each_failure_doubles_the_wait() {
        let breaker = breaker();
        (0..3).for_each(|_| fail(&breaker));
        for wait in [1, 2, 4, 5, 5] {
            assert_eq!(breaker.open_for(), Some(wait * SECOND));
            tokio::time::advance(wait * SECOND).await;
            assert_eq!(breaker.open_for(), None);
            let trial = breaker.enter().unwrap();
            assert!(trial.is_trial() && breaker.enter().is_err() && breaker.open_for().is_some());
            trial.failed();
        }
        tokio::time::advance(5 * SECOND).await;
        breaker.enter().unwrap().succeeded();
        assert!(!breaker.enter().unwrap().is_trial());
    }

    #[tokio::test(start_paused = true)]
    async fn a_trial_that_is_cancelled_leaves_the_next_one_to_another() {
        let breaker = breaker();
        (0..3).for_each(|_| fail(&breaker));
        tokio::time::advance(SECOND).await;
        drop(breaker.enter().unwrap());
        assert!(breaker.enter().unwrap().is_trial());
    }

    #[tokio::test(start_paused = true)]
    async fn silence_opens_it_at_once() {
        let breaker = breaker();
        let other = breaker.enter().unwrap();
        breaker.enter().unwrap().timed_out();
        assert_eq!(breaker.open_for(), Some(SECOND));
        other.timed_out();
        assert_eq!(breaker.open_for(), Some(SECOND), "it began before");
        tokio::time::advance(SECOND).await;
        breaker.enter().unwrap().timed_out();
        assert_eq!(breaker.open_for(), Some(2 * SECOND), "a trial like any other");
    }

    #[tokio::test(start_paused = true)]
    async fn calls_from_before_it_opened_count_only_when_they_succeed() {
        let breaker = breaker();
        let (old, older) = (breaker.enter().unwrap(), breaker.enter().unwrap());
        (0..3).for_each(|_| fail(&breaker));
        older.failed();
        assert_eq!(breaker.open_for(), Some(SECOND));
        old.succeeded();
        assert_eq!(breaker.open_for(), None);
    }
}
