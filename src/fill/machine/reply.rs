//! What a reply means: its booking, the error for callers, and whether the purchase is tried again. Only two kinds of
//! failures are tried again: an order that was provably never sent whole, up to three tries in all, and a refusal by
//! flow control, at most twice. An attempt that passed the last gate ends its own row first, so that one row stays
//! one attempt. The shell decides whether time and budget allow a retry.

use std::time::Duration;

use super::{Effect, Machine, Next, Retry, bug};
use crate::error::GatewayError;
use crate::ledger::Booking;
use crate::metrics::RetryReason;
use crate::upstream::{ErrorReply, NotSent, Refusal, RefusalKind, Reply, UnknownCause};

const NOT_SENT_TRIES: u32 = 3;
const FLOW_RETRIES: u32 = 2;
/// `Retry-After` for callers if the upstream gives none.
const DEFAULT_WAIT: Duration = Duration::from_secs(2);

impl Machine {
    pub(super) fn replied(&mut self, reply: Reply) -> Effect {
        match reply {
            Reply::Answered(answer) => {
                self.answer = Some(answer);
                self.book_answer()
            }
            Reply::Refused(refusal) => self.refused(refusal),
            Reply::Failed(reply) => {
                let reason = describe(&reply);
                let error = if reply.status.is_success() {
                    let detail = format!("the upstream answered 200 with the error code {}", reply.code);
                    GatewayError::UpstreamNonsense { detail }
                } else {
                    passed_through(reply)
                };
                self.end(Booking::Failed { reason }, error)
            }
            Reply::NotSent(error) => self.not_sent(&error),
            Reply::Unknown(cause) => {
                let (reason, detail) = (cause.to_string(), cause.to_string());
                let error = match cause {
                    UnknownCause::Timeout | UnknownCause::Cut | UnknownCause::Died => {
                        GatewayError::UpstreamUnreachable { detail }
                    }
                    UnknownCause::Garbage | UnknownCause::NoResult => {
                        GatewayError::UpstreamNonsense { detail }
                    }
                };
                self.end(Booking::Unknown { reason }, error)
            }
        }
    }

    pub(super) fn not_sent(&mut self, error: &NotSent) -> Effect {
        let reason = error.to_string();
        if let NotSent::Picture(_) = error {
            tracing::error!(%error, "an order cannot be sent");
            // Another try would read the same disk.
            return self.release(reason, GatewayError::NoUploadRoom);
        }
        tracing::warn!(%error, "the order did not reach the upstream");
        let detail = "the upstream could not be reached, nothing was charged".to_owned();
        let error = GatewayError::UpstreamUnreachable { detail };
        self.not_sent_tries += 1;
        if self.not_sent_tries >= NOT_SENT_TRIES {
            return self.release(reason, error);
        }
        self.failure = Some((reason.clone(), error));
        let retry = Retry { reason: RetryReason::NotSent, number: self.not_sent_tries, asked: None };
        if self.is_marked {
            // The row has passed the gate: it ends here, and another try is another row.
            return self.book(Booking::Released { reason }, Next::Retry(retry));
        }
        Effect::Retry(retry)
    }

    fn refused(&mut self, Refusal { kind, reply }: Refusal) -> Effect {
        let reason = describe(&reply);
        let error = match kind {
            RefusalKind::Order | RefusalKind::Other => passed_through(reply),
            RefusalKind::Key => GatewayError::UpstreamKeyRefused,
            RefusalKind::Credits => GatewayError::UpstreamCredits,
            RefusalKind::Flow { retry_after } => {
                GatewayError::UpstreamThrottled { wait: retry_after.unwrap_or(DEFAULT_WAIT) }
            }
        };
        let for_order = kind == RefusalKind::Order;
        if let RefusalKind::Flow { retry_after: asked } = kind
            && self.flow_retries < FLOW_RETRIES
        {
            self.flow_retries += 1;
            self.failure = Some((reason.clone(), error));
            let retry = Retry { reason: RetryReason::RateLimited, number: self.flow_retries, asked };
            return self.book(Booking::Refused { reason, for_order }, Next::Retry(retry));
        }
        self.end(Booking::Refused { reason, for_order }, error)
    }

    /// The shell has waited, or there was no time or no budget for another try.
    pub(super) fn may_retry(&mut self, may: bool) -> Effect {
        let Some((reason, error)) = self.failure.take() else { return bug() };
        let has_row = self.won.is_some();
        match (may, has_row) {
            (true, true) => Effect::CheckWaiters,
            (true, false) => Effect::TakeSlot,
            (false, true) => self.release(reason, error),
            (false, false) => Effect::Finish(Err(error)),
        }
    }
}

/// A reply in a few words, for its row in the ledger.
fn describe(reply: &ErrorReply) -> String {
    format!("{} {}", reply.status.as_u16(), reply.code)
}

/// A complete error of the upstream goes on as it is, if it is in the upstream's envelope.
fn passed_through(reply: ErrorReply) -> GatewayError {
    match reply.body {
        Some(body) => GatewayError::passed_through(reply.status, body),
        None => GatewayError::UpstreamNonsense {
            detail: format!("something before the upstream answered {}", reply.status.as_u16()),
        },
    }
}
