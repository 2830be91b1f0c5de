//! The seam to the seller of crops: trait [`Upstream`].
//!
//! A paid call has two halves, because the moment that costs is the last byte of the request. An
//! upstream [`open`](Upstream::open)s a call by sending everything but the tail; the caller makes
//! that durable in the ledger; only then [`send`](HeldCall::send) lets the tail go. Dropping a
//! [`HeldCall`] sends nothing more, and provably never the whole.
//!
//! Implementations: [`ailab`], the paid API, and [`builtin`], our own engine. They never retry and
//! never touch the ledger: what an outcome costs is decided by the fill.

pub(crate) mod ailab;
pub(crate) mod builtin;
pub mod code;
pub(crate) mod download;
pub(crate) mod net;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::StatusCode;

use crate::base::envelope::Answer;

use crate::request::Order;

#[async_trait]
pub trait Upstream: Send + Sync {
    /// Sends all of the order but its last bytes.
    ///
    /// Cancelling the future or dropping the returned call is safe: nothing was sent whole.
    ///
    /// # Errors
    /// [`NotSent`]: the order did not reach the upstream whole, so it cannot have cost anything.
    async fn open(&self, order: Arc<Order>) -> Result<Opened, NotSent>;

    /// The credits that are left, asked for free; `None` when they are not known.
    async fn credits_left(&self) -> Option<u64> {
        None
    }
}

/// How far [`Upstream::open`] came.
pub enum Opened {
    /// All but the tail is with the upstream.
    Held(Box<dyn HeldCall>),
    /// The upstream answered before it had everything: a refusal that cost nothing.
    Answered(Reply),
}

/// A call whose tail is held back.
#[async_trait]
pub trait HeldCall: Send {
    /// Lets the tail go and waits for the complete answer, at most the upstream's hard stop.
    ///
    /// From the first poll on the call may have cost credits. The future must not be dropped before
    /// it is done: the caller is a task that no client can cancel.
    async fn send(self: Box<Self>) -> Reply;
}

/// A part of a paid call whose time is worth knowing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallPhase {
    /// Resolving the name, connecting, and the TLS handshake.
    Connect,
    /// From the order's last byte to the first of the answer.
    FirstByte,
    /// The whole call, but for the time its tail was held back.
    Total,
}

impl CallPhase {
    pub const ALL: [Self; 3] = [Self::Connect, Self::FirstByte, Self::Total];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::FirstByte => "first_byte",
            Self::Total => "total",
        }
    }
}

/// Receives how long the phases of calls took. Must not block.
pub trait CallTimer: Send + Sync {
    /// A phase has ended, and led to the next.
    fn took(&self, phase: CallPhase, time: Duration);
}

/// Why an order provably never reached the upstream whole.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NotSent {
    /// Name resolution, TCP or TLS failed, or took too long.
    #[error("the upstream could not be reached: {0}")]
    Connect(String),
    /// The connection broke, or stalled, while the order was being uploaded.
    #[error("the upload to the upstream broke off: {0}")]
    Upload(String),
    /// The picture could not be read from where it was kept meanwhile; says nothing of the upstream.
    #[error("the picture could not be read back: {0}")]
    Picture(String),
    /// This process slept, or could not reach the ledger, for so long that another may act for it.
    #[error("the lease on the call was about to end before its tail could go")]
    Late,
}

/// What became of a call, as far as money goes.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Success, with a result to fetch: billed.
    Answered(Answer),
    /// A complete refusal: unbilled.
    Refused(Refusal),
    /// A complete error in the upstream's own envelope: unbilled.
    Failed(ErrorReply),
    /// The connection was gone before the tail could be handed over: unbilled.
    NotSent(NotSent),
    /// Sent, and no complete answer that could be understood: may have been billed.
    Unknown(UnknownCause),
}

/// A complete refusal and what it is about.
#[derive(Debug, Clone)]
pub struct Refusal {
    pub kind: RefusalKind,
    pub reply: ErrorReply,
}

/// What a refusal is about, which decides the error and the circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// This picture or these numbers, for ever: 400, 413, 415, 422. Remembered for ten minutes.
    Order,
    /// Our key or account: 401, and 403 about the account.
    Key,
    /// The shared account has no credits left: 429 `ERROR_NOT_ENOUGH_CREDITS`.
    Credits,
    /// Too many calls: 429 otherwise, 503 `AI_SERVICE_FLOW_RESTRICTION`; the header's seconds, if any.
    Flow {
        /// `Retry-After` in seconds; at most 3600.
        retry_after_seconds: Option<u64>,
    },
    /// Any other 4xx, such as a retired path.
    Other,
}

/// A complete error answer of the upstream.
#[derive(Debug, Clone)]
pub struct ErrorReply {
    /// Its HTTP status; 200 when the error stands in the body only.
    pub status: StatusCode,
    /// Its body, when it is the upstream's envelope and may be passed through; `None` for a bare one.
    pub body: Option<Bytes>,
    /// `error_detail.code`, or `error_code_str`; empty when there is none.
    pub code: String,
}

/// Why the outcome of a sent call is not known. The texts are for the ledger and the log: they
/// never contain bytes of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnknownCause {
    /// No complete answer within the hard stop.
    #[error("no complete answer within the hard stop")]
    Timeout,
    /// The connection ended before the answer was complete.
    #[error("the connection ended before the answer was complete")]
    Cut,
    /// A complete answer that is not one of the upstream's.
    #[error("the answer was not in the upstream's format")]
    Garbage,
    #[error("the answer reports success but names no result")]
    NoResult,
    /// The process that sent it died, or lost the answer.
    #[error("the process that sent it died before the answer was booked")]
    Died,
}
