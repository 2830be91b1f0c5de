//! A circuit breaker for one dependency. While it is open, calls fail at once, and a probe in the background
//! closes it.
//!
//! One timeout opens it, because every later call would wait as long; other failures open it after `FAILURES`
//! in a row. No call is a probe, so an outage costs callers no time, and the breaker closes without traffic.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::{sleep, timeout};

const FAILURES: u32 = 3;
const PROBE_PAUSE: Duration = Duration::from_secs(1);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

type Probe = Box<dyn Fn() -> Pin<Box<dyn Future<Output = bool> + Send>> + Send + Sync>;

/// Clones share one state.
#[derive(Clone)]
pub struct Breaker(Arc<Inner>);

struct Inner {
    dependency: &'static str,
    /// Failures in a row; open at [`FAILURES`].
    failures: AtomicU32,
    probe: Probe,
}

#[derive(Debug, PartialEq, Eq)]
pub enum CallError<E> {
    /// Nothing was called.
    Open,
    TimedOut,
    Failed(E),
}

impl Breaker {
    /// Starts closed. `probe` returns true when the dependency answers.
    pub fn new<P, F>(dependency: &'static str, probe: P) -> Self
    where
        P: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = bool> + Send + 'static,
    {
        let probe: Probe = Box::new(move || Box::pin(probe()));
        Self(Arc::new(Inner { dependency, failures: AtomicU32::new(0), probe }))
    }

    pub fn is_open(&self) -> bool {
        self.0.failures.load(Ordering::Relaxed) >= FAILURES
    }

    /// Errors for which `is_outage` holds count as failures; a dropped future does not.
    pub async fn call<T, E>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, E>>,
        is_outage: impl Fn(&E) -> bool,
    ) -> Result<T, CallError<E>> {
        if self.is_open() {
            return Err(CallError::Open);
        }
        let done = match timeout(limit, work).await {
            Ok(done) => done.map_err(CallError::Failed),
            Err(_) => Err(CallError::TimedOut),
        };
        match &done {
            Err(CallError::TimedOut) => self.0.add_failures(FAILURES),
            Err(CallError::Failed(error)) if is_outage(error) => self.0.add_failures(1),
            _ => self.0.answered(),
        }
        done
    }
}

impl Inner {
    fn update(&self, change: impl FnMut(u32) -> Option<u32>) -> Result<u32, u32> {
        self.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change)
    }

    /// Resets the failures, unless the breaker is open.
    fn answered(&self) {
        let _ = self.update(|failures| (failures < FAILURES).then_some(0));
    }

    fn add_failures(self: &Arc<Self>, more: u32) {
        let sum = |failures: u32| (failures < FAILURES).then(|| (failures + more).min(FAILURES));
        if self.update(sum).ok().and_then(sum) == Some(FAILURES) {
            tracing::warn!(dependency = self.dependency, "circuit breaker opened");
            tokio::spawn(Self::probe(Arc::downgrade(self)));
        }
    }

    /// Closes the breaker as soon as a probe succeeds; ends with the breaker.
    async fn probe(breaker: std::sync::Weak<Self>) {
        loop {
            sleep(PROBE_PAUSE).await;
            let Some(breaker) = breaker.upgrade() else { return };
            if timeout(PROBE_TIMEOUT, (breaker.probe)()).await == Ok(true) {
                tracing::info!(dependency = breaker.dependency, "circuit breaker closed");
                return breaker.failures.store(0, Ordering::Relaxed);
            }
        }
    }
}

impl std::fmt::Debug for Breaker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (dependency, is_open) = (self.0.dependency, self.is_open());
        f.debug_struct("Breaker").field("dependency", &dependency).field("is_open", &is_open).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(2);

    /// A breaker whose probe succeeds when the test says so, and the probes so far.
    fn breaker() -> (Breaker, Arc<AtomicBool>, Arc<AtomicU32>) {
        let (answers, probes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (answers_probe, counted) = (answers.clone(), probes.clone());
        let breaker = Breaker::new("test", move || {
            counted.fetch_add(1, Ordering::Relaxed);
            std::future::ready(answers_probe.load(Ordering::Relaxed))
        });
        (breaker, answers, probes)
    }

    async fn call(breaker: &Breaker, outcome: Result<(), bool>) -> Result<(), CallError<bool>> {
        breaker.call(LIMIT, std::future::ready(outcome), |is_outage| *is_outage).await
    }

    async fn hang(breaker: &Breaker) -> Result<(), CallError<bool>> {
        breaker.call(LIMIT, std::future::pending(), |is_outage| *is_outage).await
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_open_it_and_refusals_do_not() {
        let (breaker, _, _) = breaker();
        for _ in 0..5 {
            for outcome in [Err(true), Err(true), Ok(()), Err(true), Err(true), Err(false)] {
                assert_eq!(call(&breaker, outcome).await, outcome.map_err(CallError::Failed));
            }
        }
        for _ in 0..FAILURES {
            assert_eq!(call(&breaker, Err(true)).await, Err(CallError::Failed(true)));
        }
        assert_eq!(call(&breaker, Ok(())).await, Err(CallError::Open));
    }

    #[tokio::test(start_paused = true)]
    async fn one_timeout_opens_it_and_later_calls_take_no_time() {
        let (breaker, _, _) = breaker();
        assert_eq!(hang(&breaker).await, Err(CallError::TimedOut));
        let begun = tokio::time::Instant::now();
        for _ in 0..1000 {
            assert_eq!(hang(&breaker).await, Err(CallError::Open));
        }
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_breaker_closes_within_a_second_of_the_return_without_traffic() {
        let (breaker, answers, probes) = breaker();
        hang(&breaker).await.unwrap_err();
        sleep(Duration::from_secs(3600)).await;
        assert!(breaker.is_open());
        let probed = probes.load(Ordering::Relaxed);
        assert!((3500..=3600).contains(&probed), "{probed}");
        answers.store(true, Ordering::Relaxed);
        sleep(PROBE_PAUSE).await;
        assert!(!breaker.is_open());
        assert_eq!(call(&breaker, Ok(())).await, Ok(()));
        let probed = probes.load(Ordering::Relaxed);
        sleep(Duration::from_secs(60)).await;
        assert_eq!(probes.load(Ordering::Relaxed), probed, "a closed breaker does not probe");
    }

    #[tokio::test(start_paused = true)]
    async fn calls_begun_before_it_opened_change_nothing_when_they_end() {
        let (breaker, answers, probes) = breaker();
        let late = |outcome| {
            let breaker = breaker.clone();
            tokio::spawn(async move {
                let work = async {
                    sleep(LIMIT / 2).await;
                    outcome
                };
                breaker.call(LIMIT, work, |is_outage: &bool| *is_outage).await
            })
        };
        let (good, bad) = (late(Ok(())), late(Err(true)));
        tokio::task::yield_now().await;
        for _ in 0..FAILURES {
            call(&breaker, Err(true)).await.unwrap_err();
        }
        good.await.unwrap().unwrap();
        bad.await.unwrap().unwrap_err();
        assert!(breaker.is_open());
        sleep(10 * PROBE_PAUSE).await;
        assert!(probes.load(Ordering::Relaxed) <= 12, "there is one probe at a time");
        answers.store(true, Ordering::Relaxed);
        sleep(PROBE_PAUSE).await;
        assert!(!breaker.is_open());
    }
}
