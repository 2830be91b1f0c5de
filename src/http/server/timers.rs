//! The phase of a connection, shared by its stream, its service and the acceptor.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::request::framing::HeadError;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The first byte of a new connection, or the rest of a head.
    Head,
    /// An answer to a request, whose head may be refused.
    Request(Option<HeadError>),
    /// The client reads the rest of a finished answer.
    Answered,
    /// The next request, or the end of a lingering close.
    Idle,
}

pub(super) struct ConnectionTimers {
    head: Duration,
    idle: Duration,
    now: Mutex<(Phase, Instant)>,
    pub(super) evicted: Notify,
}

impl ConnectionTimers {
    pub(super) fn new(head: Duration, idle: Duration) -> Self {
        Self { head, idle, now: Mutex::new((Phase::Head, Instant::now())), evicted: Notify::new() }
    }

    pub(super) fn phase(&self) -> Phase {
        self.now.lock().0
    }

    pub(super) fn enter(&self, phase: Phase) {
        *self.now.lock() = (phase, Instant::now());
    }

    /// Enters `to` if the phase is `from`, and returns true then.
    pub(super) fn change(&self, from: Phase, to: Phase) -> bool {
        let mut now = self.now.lock();
        let is_changed = now.0 == from;
        if is_changed {
            *now = (to, Instant::now());
        }
        is_changed
    }

    /// The end of a phase in which the client is to send something.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match *self.now.lock() {
            (Phase::Head, since) => Some(since + self.head),
            (Phase::Idle, since) => Some(since + self.idle),
            (Phase::Request(_) | Phase::Answered, _) => None,
        }
    }

    /// Since when no request has been under way; `None` if one is.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let (phase, since) = *self.now.lock();
        matches!(phase, Phase::Head | Phase::Idle).then_some(since)
    }
}
