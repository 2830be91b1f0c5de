//! What a connection waits for and since when; shared by its stream, its service and the acceptor.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::framing::HeadError;

/// The phase of a connection, with its time limits.
pub(super) struct ConnectionTimers {
    head: Duration,
    idle: Duration,
    phase: Mutex<Phase>,
    evicted: Notify,
}

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The rest of a head, or the first byte of a new connection.
    Head { since: Instant },
    /// An answer to the request. `refused` says why its head is refused.
    Request { refused: Option<HeadError> },
    /// The client, to read the rest of an answer that hyper has finished with.
    Answered,
    /// The next request, or the end of a lingering close.
    Idle { since: Instant },
}

/// Held until the last byte of an answer has been handed to hyper.
pub(super) struct Answering(Arc<ConnectionTimers>);

impl ConnectionTimers {
    pub(super) fn new(head: Duration, idle: Duration) -> Self {
        let phase = Mutex::new(Phase::Head { since: Instant::now() });
        Self { head, idle, phase, evicted: Notify::new() }
    }

    pub(super) fn phase(&self) -> Phase {
        *self.lock()
    }

    /// The end of a phase in which the client is to send something.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.phase() {
            Phase::Head { since } => Some(since + self.head),
            Phase::Idle { since } => Some(since + self.idle),
            Phase::Request { .. } | Phase::Answered => None,
        }
    }

    /// Starts the timer of the first head, once a connection has its place and its TLS session.
    pub(super) fn begin(&self) {
        *self.lock() = Phase::Head { since: Instant::now() };
    }

    /// Starts the timer of a further head, at its first byte.
    pub(super) fn begin_head(&self) {
        let mut phase = self.lock();
        if let Phase::Idle { .. } = *phase {
            *phase = Phase::Head { since: Instant::now() };
        }
    }

    /// A whole head goes to hyper.
    pub(super) fn begin_request(&self, refused: Option<HeadError>) {
        *self.lock() = Phase::Request { refused };
    }

    /// The service has got the request. Returns why its head is refused.
    pub(super) fn begin_answer(self: &Arc<Self>) -> (Answering, Option<HeadError>) {
        let refused = match self.phase() {
            Phase::Request { refused } => refused,
            _ => None,
        };
        (Answering(self.clone()), refused)
    }

    /// All that hyper wrote is with the kernel. True if that ends an answer.
    pub(super) fn flushed(&self) -> bool {
        let mut phase = self.lock();
        let is_end = *phase == Phase::Answered;
        if is_end {
            *phase = Phase::Idle { since: Instant::now() };
        }
        is_end
    }

    /// A lingering close begins: the connection may be evicted.
    pub(super) fn begin_linger(&self) {
        *self.lock() = Phase::Idle { since: Instant::now() };
    }

    /// Since when no request has been under way; `None` if one is.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        match self.phase() {
            Phase::Head { since } | Phase::Idle { since } => Some(since),
            Phase::Request { .. } | Phase::Answered => None,
        }
    }

    /// Ends the connection, from outside.
    pub(super) fn evict(&self) {
        self.evicted.notify_one();
    }

    /// Completes when the connection is to make way for another one.
    pub(super) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        *self.0.lock() = Phase::Answered;
    }
}
