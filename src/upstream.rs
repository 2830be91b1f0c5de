//! The seam to the upstream: trait [`Upstream`], implemented by [`ailab`] (the paid API) and [`builtin`].
//!
//! A paid call has two halves, because the last byte of the request is the one that costs.
//! [`open`](Upstream::open) sends all but the tail; the caller makes that durable in the ledger; only then
//! [`send`](HeldCall::send) releases the tail. A dropped [`HeldCall`] was provably never sent whole.
//! Implementations never retry and never touch the ledger: the fill decides what an outcome costs.

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
    /// Sends all of the order but its tail. An error, a cancelled future and a dropped call cost nothing.
    async fn open(&self, order: Arc<Order>) -> Result<Opened, NotSent>;

    /// The balance, by a free call; `None` if it is not known.
    async fn credits_left(&self) -> Option<u64> {
        None
    }
}

pub enum Opened {
    /// All but the tail was handed to the kernel.
    Held(Box<dyn HeldCall>),
    /// The upstream answered before it had everything.
    Answered(Reply),
}

#[async_trait]
pub trait HeldCall: Send {
    /// Releases the tail and waits for the complete answer, at most until the hard stop. The call may cost
    /// credits from the first poll on, so the future must not be dropped before it ends.
    async fn send(self: Box<Self>) -> Reply;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallPhase {
    /// Name resolution, TCP and TLS.
    Connect,
    /// From the order's last byte to the answer's first.
    FirstByte,
    /// The whole call without the time its tail was held back.
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

/// Receives the durations of completed phases. Must not block.
pub trait CallTimer: Send + Sync {
    fn took(&self, phase: CallPhase, time: Duration);
}

/// An order that provably never reached the upstream whole.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NotSent {
    #[error("the upstream could not be reached: {0}")]
    Connect(String),
    #[error("the upload to the upstream broke off: {0}")]
    Upload(String),
    /// Says nothing about the upstream.
    #[error("the picture could not be read back: {0}")]
    Picture(String),
    #[error("the lease on the call was about to end before its tail could go")]
    Late,
}

/// The outcome of a call, by what it costs.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Billed.
    Answered(Answer),
    /// Complete and unbilled.
    Refused(Refusal),
    /// A complete error in the upstream's own envelope: unbilled.
    Failed(ErrorReply),
    /// Unbilled.
    NotSent(NotSent),
    /// Sent, without a complete and understandable answer: may be billed.
    Unknown(UnknownCause),
}

impl Reply {
    /// `None` without a complete answer.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Answered(_) => Some(StatusCode::OK),
            Self::Refused(Refusal { reply, .. }) | Self::Failed(reply) => Some(reply.status),
            Self::NotSent(_) | Self::Unknown(_) => None,
        }
    }
}

#[derive(Debug, Clone)]
pub struct Refusal {
    pub kind: RefusalKind,
    pub reply: ErrorReply,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// This picture or these numbers: 400, 413, 415, 422.
    Order,
    /// Our key or account: 401, or 403 about the account.
    Key,
    /// The account has no credits: 429 `ERROR_NOT_ENOUGH_CREDITS`.
    Credits,
    /// Too many calls: any other 429, or 503 `AI_SERVICE_FLOW_RESTRICTION`; `Retry-After` is at most an hour.
    Flow { retry_after: Option<Duration> },
    /// Any other 4xx.
    Other,
}

#[derive(Debug, Clone)]
pub struct ErrorReply {
    /// 200 if only the body reports the error.
    pub status: StatusCode,
    /// The upstream's envelope, which may be passed through; `None` for any other body.
    pub body: Option<Bytes>,
    /// `error_detail.code` or `error_code_str`, or empty.
    pub code: String,
}

/// Why the outcome of a sent call is unknown. The texts contain no byte of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnknownCause {
    #[error("no complete answer within the hard stop")]
    Timeout,
    #[error("the connection ended before the answer was complete")]
    Cut,
    #[error("the answer was not in the upstream's format")]
    Garbage,
    #[error("the answer reports success but names no result")]
    NoResult,
    #[error("the process that sent it died before the answer was booked")]
    Died,
}
