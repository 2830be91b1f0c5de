//! A connection's clock: how long it may be silent, by what is expected of it.
//!
//! hyper has one time limit for reading a head, which also cuts connections that are idle between
//! two requests; a load balancer keeps those for a minute. Here a head has seconds and idleness has
//! its own, longer limit. Nothing is limited while a request is being answered: its body has a clock of
//! its own, and so has whoever takes the answer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::GatewayError;

/// What a connection is waiting for, and since when. Shared by its stream and its service.
#[derive(Clone)]
pub(super) struct Phases {
    head: Duration,
    idle: Duration,
    now: Arc<Mutex<Now>>,
}

struct Now {
    phase: Phase,
    /// Whoever reads while no limit applies: it sleeps without a timer, and must be woken when one does.
    reader: Option<Waker>,
    /// Why the request that the service is about to be given was refused.
    refused: Option<GatewayError>,
    /// An idle connection has no future.
    is_closing: bool,
}

/// What a connection is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// A head is to be complete.
    Head { since: Instant },
    /// A request is being read or answered; other limits apply.
    Request,
    /// The next request may begin.
    Idle { since: Instant },
}

/// Alive while a request is being answered.
pub(super) struct InRequest(Phases);

impl Phases {
    /// A connection just accepted: its head is due.
    pub(super) fn new(head: Duration, idle: Duration) -> Self {
        let phase = Phase::Head { since: Instant::now() };
        let now = Now { phase, reader: None, refused: None, is_closing: false };
        Self { head, idle, now: Arc::new(Mutex::new(now)) }
    }

    /// What is waited for now.
    pub(super) fn now(&self) -> Phase {
        self.lock().phase
    }

    /// A head is complete, and goes to the service; perhaps only to be refused there.
    pub(super) fn head_is_complete(&self, refused: Option<GatewayError>) {
        let mut now = self.lock();
        now.phase = Phase::Request;
        now.refused = refused;
    }

    /// The service has a request: from now until the guard is dropped it is being answered. Says why it
    /// was refused, if it was.
    pub(super) fn begin_request(&self) -> (InRequest, Option<GatewayError>) {
        self.set(Phase::Request);
        (InRequest(self.clone()), self.lock().refused.take())
    }

    /// Something came that may become a head.
    pub(super) fn bytes_came(&self) {
        let mut now = self.lock();
        if let Phase::Idle { .. } = now.phase {
            now.phase = Phase::Head { since: Instant::now() };
        }
    }

    /// Nothing of an answer waits to be taken any more: if that was all of it, the rest begins now.
    pub(super) fn all_is_sent(&self) {
        let mut now = self.lock();
        if let Phase::Idle { .. } = now.phase {
            now.phase = Phase::Idle { since: Instant::now() };
            wake(now);
        }
    }

    /// From now on the connection ends as soon as nothing is under way on it.
    pub(super) fn close_when_idle(&self) {
        let mut now = self.lock();
        now.is_closing = true;
        wake(now);
    }

    /// Is there nothing to wait for any more?
    pub(super) fn is_over(&self) -> bool {
        let now = self.lock();
        now.is_closing && matches!(now.phase, Phase::Idle { .. })
    }

    /// When a read that has nothing to read must end; without a limit its task is woken once there is one.
    pub(super) fn deadline(&self, cx: &Context<'_>) -> Option<Instant> {
        let mut now = self.lock();
        // It is woken as well when the phase changes from outside.
        now.reader = Some(cx.waker().clone());
        match now.phase {
            Phase::Head { since } => Some(since + self.head),
            Phase::Idle { since } => Some(since + self.idle),
            Phase::Request => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, phase: Phase) {
        let mut now = self.lock();
        now.phase = phase;
        wake(now);
    }
}

fn wake(mut now: MutexGuard<'_, Now>) {
    let reader = now.reader.take();
    drop(now);
    if let Some(reader) = reader {
        reader.wake();
    }
}

impl Drop for InRequest {
    fn drop(&mut self) {
        self.0.set(Phase::Idle { since: Instant::now() });
    }
}
