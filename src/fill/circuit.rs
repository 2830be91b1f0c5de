//! May anything be bought now? [`Circuit`] stands between the fills and the upstream. It is the last
//! check before money is reserved, and learns the outcome of every attempt.
//!
//! It opens on four kinds of [`OpenReason`], which may come together. While it is open nothing is
//! bought; once a trouble's wait is over, exactly one real request goes through as the probe, and
//! its outcome closes the circuit or lengthens the wait. A probe whose result is not there while its
//! callers wait has failed, until that result comes after all. A probe that ends without a verdict,
//! because it has no waiters any more or its team may not pay, leaves its place to the next.
//! Hits and coalesced callers never ask. This module performs no I/O.

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

/// `Retry-After` while a probe is under way, or nearly: its outcome is not known.
const SOON: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenReason {
    /// The upstream refuses our key or account.
    KeyRefused,
    NoCredits,
    /// What was bought could not be fetched, several times in a row.
    Unfetchable,
    /// The upstream cannot be reached, or does not work.
    Outage,
}

impl OpenReason {
    /// In the order in which callers see them.
    pub const ALL: [Self; 4] = [Self::KeyRefused, Self::NoCredits, Self::Unfetchable, Self::Outage];

    /// The error for callers. `wait` is the time until the next probe.
    fn error(self, wait: Duration) -> GatewayError {
        match self {
            Self::KeyRefused => GatewayError::UpstreamKeyRefused,
            Self::NoCredits => GatewayError::UpstreamCredits,
            Self::Unfetchable => GatewayError::PurchaseStopped { wait },
            Self::Outage => GatewayError::CircuitOpen { wait },
        }
    }
}

impl From<OpenReason> for BlockCause {
    fn from(reason: OpenReason) -> Self {
        match reason {
            OpenReason::KeyRefused => Self::KeyRefused,
            OpenReason::NoCredits => Self::NoCredits,
            OpenReason::Unfetchable => Self::Unfetchable,
            OpenReason::Outage => Self::Outage,
        }
    }
}

/// The outcome of one attempt to buy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    Sold,
    /// A complete refusal that is about the order, or about how many there are: the upstream works.
    Refused,
    KeyRefused,
    NoCredits,
    Failed,
    /// The upstream could not be reached, or gave no answer that can be understood.
    Lost,
}

pub struct Circuit {
    state: Mutex<State>,
    opened: Notify,
    metrics: Arc<Metrics>,
}

/// The right to buy one crop: to make one attempt, and more while [`may_retry`](Self::may_retry).
///
/// Dropped without a word, as when the fill ends before anything was tried, it says nothing of the
/// upstream, and leaves the place of a probe to another.
pub struct Pass {
    circuit: Arc<Circuit>,
    identity: Identity,
    /// Which of our keys for the upstream was in use.
    api_key: u64,
    /// Its number, when it is a probe.
    probe: Option<u64>,
}

impl Circuit {
    pub fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        let state = Mutex::new(State::new(Instant::now()));
        Arc::new(Self { state, opened: Notify::new(), metrics })
    }

    /// Asks to buy the crop of a key.
    ///
    /// # Errors
    /// The error for callers while it is open: nothing was spent.
    pub fn enter(self: &Arc<Self>, identity: &Identity) -> Result<Pass, GatewayError> {
        self.change(|state, now| {
            let probe = state.enter(now).map_err(|(trouble, wait)| trouble.error(wait.max(SOON)))?;
            Ok(Pass { circuit: self.clone(), identity: identity.clone(), api_key: state.api_key, probe })
        })
    }

    pub fn is_closed(&self) -> bool {
        self.state().reasons() == [false; OpenReason::ALL.len()]
    }

    /// What [`enter`](Self::enter) would refuse with now; nothing is taken.
    pub fn refusal(&self) -> Option<GatewayError> {
        let (trouble, wait) = self.state().refusal(Instant::now())?;
        Some(trouble.error(wait.max(SOON)))
    }

    /// Waits until it refuses, which may be at once.
    pub async fn refuses(&self) -> GatewayError {
        loop {
            let mut opened = std::pin::pin!(self.opened.notified());
            // Before the look, so that an opening between the two is not missed.
            opened.as_mut().enable();
            if let Some(error) = self.refusal() {
                return error;
            }
            opened.await;
        }
    }

    /// The upstream's key was changed: what was said of the old one is void.
    pub fn key_changed(&self) {
        self.change(|state, now| state.key_changed(now));
    }

    /// Is the account known to be empty?
    pub fn lacks_credits(&self) -> bool {
        self.state().is_open(OpenReason::NoCredits)
    }

    /// The upstream says that the account is filled again: the next real request finds out.
    pub fn credits_are_back(&self) {
        self.change(|state, now| state.credits_are_back(now));
    }

    /// A result that was bought is permanent; `pass` is that of its fill, if it has one.
    pub fn result_kept(&self, pass: Option<Pass>) {
        let probe = pass.as_ref().and_then(|pass| pass.probe);
        self.change(|state, now| state.result_kept(probe, now));
    }

    /// What was bought could not be had while its callers waited; it may be later, so that its fill
    /// keeps `pass`, but no purchase waits for it.
    pub fn result_delayed(&self, pass: &Pass) {
        self.change(|state, now| state.result_delayed(pass.probe, now));
    }

    /// What was bought could not be had while its URL lived.
    pub fn result_lost(&self, pass: Option<Pass>) {
        let probe = pass.as_ref().and_then(|pass| pass.probe);
        self.change(|state, now| state.result_lost(probe, now));
    }

    /// Changes the state and publishes that: a log line and the metrics on every change, and a wake-up
    /// for the fills that watch for a refusal.
    fn change<T>(&self, change: impl FnOnce(&mut State, Instant) -> T) -> T {
        let mut state = self.state();
        let before = (state.reasons(), state.is_probing());
        let outcome = change(&mut state, Instant::now());
        let after = (state.reasons(), state.is_probing());
        for (trouble, (was, is)) in OpenReason::ALL.into_iter().zip(before.0.into_iter().zip(after.0)) {
            if was != is {
                self.metrics.purchases_blocked[trouble.into()].set(i64::from(is));
                tell(trouble, is);
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
        self.circuit.change(|state, now| {
            let is_current_key = state.api_key == self.api_key;
            state.attempted(attempt, &self.identity, is_current_key, self.probe, now);
        });
    }

    /// May the same purchase be tried again? Not while the circuit is open.
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

/// One line for each change, not for each request.
fn tell(trouble: OpenReason, is_open: bool) {
    match (trouble, is_open) {
        (OpenReason::KeyRefused, true) => tracing::error!(
            "alarm: the upstream refuses our key, so nothing is bought; put a valid one into upstream.api_key_file"
        ),
        (OpenReason::NoCredits, true) => {
            tracing::error!(
                "alarm: the upstream account has no credits left, so nothing is bought; top it up"
            );
        }
        (OpenReason::Unfetchable, true) => tracing::error!(
            "alarm: three results in a row were paid for and could not be fetched, so nothing is bought; \
             look at upstream.result_hosts and at the warnings above"
        ),
        (OpenReason::Outage, true) => {
            tracing::error!("alarm: the upstream cannot be reached or does not work, so nothing is bought");
        }
        (trouble, false) => tracing::warn!(trouble = BlockCause::from(trouble).as_str(), "the alarm is over"),
    }
}
