//! The circuit breaker between the fills and the upstream ([`Circuit`]): the last check before money is
//! reserved. It learns the outcome of every attempt, and performs no I/O.
//!
//! It opens for four kinds of [`OpenReason`], which may come together. While it is open nothing is bought;
//! once all waits are over, exactly one real request goes through as the probe, and its outcome closes the
//! circuit or lengthens the wait. A probe whose result is not there while its callers wait has failed, until
//! that result comes after all. A probe that ends without a verdict, because it has no waiters or its team
//! may not pay, leaves its place to the next purchase.
//!
//! Complete errors about one team's pictures are no outage: that team rests, and the others go on.

mod state;
#[cfg(test)]
mod tests;
mod window;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use self::state::State;
use crate::base::identity::Identity;
use crate::error::GatewayError;
use crate::metrics::{BlockCause, Metrics};

/// The shortest `Retry-After`: a probe is under way, or soon will be.
const SOON: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenReason {
    /// The upstream refuses our key or account.
    KeyRefused,
    NoCredits,
    /// Several paid results in a row could not be fetched.
    Unfetchable,
    /// The upstream cannot be reached, or does not work.
    Outage,
}

impl OpenReason {
    /// In the order in which callers see them.
    pub const ALL: [Self; 4] = [Self::KeyRefused, Self::NoCredits, Self::Unfetchable, Self::Outage];

    /// `wait` is the time until the next probe.
    fn error(self, wait: Duration) -> GatewayError {
        match self {
            Self::KeyRefused => GatewayError::UpstreamKeyRefused,
            Self::NoCredits => GatewayError::UpstreamCredits,
            Self::Unfetchable => GatewayError::PurchaseStopped { wait },
            Self::Outage => GatewayError::CircuitOpen { wait },
        }
    }

    fn cause(self) -> BlockCause {
        match self {
            Self::KeyRefused => BlockCause::KeyRefused,
            Self::NoCredits => BlockCause::NoCredits,
            Self::Unfetchable => BlockCause::Unfetchable,
            Self::Outage => BlockCause::Outage,
        }
    }

    fn alarm(self) -> &'static str {
        match self {
            Self::KeyRefused => {
                "alarm: the upstream refuses our key, so nothing is bought; put a valid one into \
                 upstream.api_key_file"
            }
            Self::NoCredits => {
                "alarm: the upstream account has no credits left, so nothing is bought; top it up"
            }
            Self::Unfetchable => {
                "alarm: three results in a row were paid for and could not be fetched, so nothing is bought; \
                 look at upstream.result_hosts and at the warnings above"
            }
            Self::Outage => "alarm: the upstream cannot be reached or does not work, so nothing is bought",
        }
    }
}

/// The outcome of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    Sold,
    /// A complete refusal that is about the order or the rate: the upstream works.
    Refused,
    KeyRefused,
    NoCredits,
    /// A complete error, perhaps about the picture.
    Failed,
    /// An error without the upstream's envelope, perhaps of something before it.
    Broken,
    /// The upstream could not be reached, or gave no understandable answer.
    Lost,
}

pub struct Circuit {
    state: Mutex<State>,
    opened: Notify,
    metrics: Arc<Metrics>,
}

/// The right to buy one crop: one attempt, and more while [`may_retry`](Self::may_retry). Dropped without a
/// report, a probe leaves its place to another.
pub struct Pass {
    circuit: Arc<Circuit>,
    identity: Identity,
    /// Its team, if there are others.
    team: Option<String>,
    /// The number of our key for the upstream.
    api_key: u64,
    /// The number of the probe, if it is one.
    probe: Option<u64>,
}

impl Circuit {
    pub fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        let state = Mutex::new(State::new(Instant::now()));
        Arc::new(Self { state, opened: Notify::new(), metrics })
    }

    /// `team` is `None` if there is only one.
    ///
    /// # Errors
    /// The error for callers while it is open, or the team rests.
    pub fn enter(self: &Arc<Self>, identity: &Identity, team: Option<&str>) -> Result<Pass, GatewayError> {
        self.change(|state, now| {
            let probe = state.enter(team, now).map_err(|(reason, wait)| reason.error(wait.max(SOON)))?;
            let (identity, team) = (identity.clone(), team.map(str::to_owned));
            Ok(Pass { circuit: self.clone(), identity, team, api_key: state.api_key, probe })
        })
    }

    pub fn is_closed(&self) -> bool {
        self.state().reasons() == [false; OpenReason::ALL.len()]
    }

    /// The error [`enter`](Self::enter) would return now; takes nothing.
    pub fn refusal(&self) -> Option<GatewayError> {
        let (reason, wait) = self.state().refusal(Instant::now())?;
        Some(reason.error(wait.max(SOON)))
    }

    /// Waits until it is open.
    pub async fn refuses(&self) -> GatewayError {
        loop {
            let mut opened = std::pin::pin!(self.opened.notified());
            // Enabled before the check, so that an opening between the two is not missed.
            opened.as_mut().enable();
            if let Some(error) = self.refusal() {
                return error;
            }
            opened.await;
        }
    }

    pub fn key_changed(&self) {
        self.change(|state, now| state.key_changed(now));
    }

    pub fn lacks_credits(&self) -> bool {
        self.state().is_open(OpenReason::NoCredits)
    }

    /// The balance allows a purchase again: the next real request is the probe.
    pub fn credits_are_back(&self) {
        self.change(|state, now| state.credits_are_back(now));
    }

    /// A paid result is permanent; `pass` is its fill's, if it has one.
    pub fn result_kept(&self, pass: Option<Pass>) {
        self.change(|state, now| state.result_kept(pass.as_ref().and_then(|pass| pass.probe), now));
    }

    /// A paid result could not be fetched while its callers waited; it may be later.
    pub fn result_delayed(&self, pass: &Pass) {
        self.change(|state, now| state.result_delayed(pass.probe, now));
    }

    /// A paid result could not be fetched while its URL lived.
    pub fn result_lost(&self, pass: Option<Pass>) {
        self.change(|state, now| state.result_lost(pass.as_ref().and_then(|pass| pass.probe), now));
    }

    /// Changes the state, and publishes a change by log line, metrics and a wake-up of `refuses`.
    fn change<T>(&self, change: impl FnOnce(&mut State, Instant) -> T) -> T {
        let mut state = self.state();
        let before = (state.reasons(), state.is_probing());
        let outcome = change(&mut state, Instant::now());
        let after = (state.reasons(), state.is_probing());
        for (reason, (was, is)) in OpenReason::ALL.into_iter().zip(before.0.into_iter().zip(after.0)) {
            if was != is {
                self.metrics.purchases_blocked[reason.cause()].set(i64::from(is));
                if is {
                    tracing::error!("{}", reason.alarm());
                } else {
                    tracing::warn!(trouble = reason.cause().as_str(), "the alarm is over");
                }
            }
        }
        drop(state);
        if before != after {
            self.opened.notify_waiters();
        }
        outcome
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass {
    pub fn tell(&self, attempt: Attempt) {
        if self.circuit.change(|state, now| state.attempted(attempt, self, now)) {
            tracing::warn!(team = self.team, "the upstream fails for pictures of this team, which rests");
        }
    }

    /// Returns false while the circuit is open.
    pub fn may_retry(&self) -> bool {
        self.circuit.is_closed()
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.probe.is_some() {
            self.circuit.change(|state, _| state.leave(self.probe));
        }
    }
}
