//! Errors for callers, of replies without a result; pure.

use std::time::Duration;

use crate::error::GatewayError;
use crate::upstream::{ErrorReply, Refusal, RefusalKind, UnknownCause};

/// A reply in a few words, for its row in the ledger.
pub(super) fn describe(reply: &ErrorReply) -> String {
    format!("{} {}", reply.status.as_u16(), reply.code)
}

pub(super) fn refused(refusal: Refusal) -> GatewayError {
    let Refusal { kind, reply } = refusal;
    match kind {
        RefusalKind::Order | RefusalKind::Other => passed_through(reply),
        RefusalKind::Key => GatewayError::UpstreamKeyRefused,
        RefusalKind::Credits => GatewayError::UpstreamCredits,
        RefusalKind::Flow { retry_after_seconds } => {
            GatewayError::UpstreamThrottled { wait: Duration::from_secs(retry_after_seconds.unwrap_or(2)) }
        }
    }
}

pub(super) fn failed(reply: ErrorReply) -> GatewayError {
    if reply.status.is_success() {
        return GatewayError::UpstreamNonsense {
            detail: format!("the upstream answered 200 with the error code {}", reply.code),
        };
    }
    passed_through(reply)
}

/// A complete error of the upstream, as it is where it speaks the envelope.
fn passed_through(reply: ErrorReply) -> GatewayError {
    match reply.body {
        Some(body) => GatewayError::passed_through(reply.status, body),
        None => GatewayError::UpstreamNonsense {
            detail: format!("something before the upstream answered {}", reply.status.as_u16()),
        },
    }
}

/// A call whose outcome is not known.
pub(super) fn unknown(cause: UnknownCause) -> GatewayError {
    let detail = cause.to_string();
    match cause {
        UnknownCause::Timeout | UnknownCause::Cut | UnknownCause::Died => {
            GatewayError::UpstreamUnreachable { detail }
        }
        UnknownCause::Garbage | UnknownCause::NoResult => GatewayError::UpstreamNonsense { detail },
    }
}
