//! Which failures of a purchase are tried again by itself, and how: two kinds, and no other.
//!
//! An order that was provably never sent whole goes out again, up to three tries in all. What flow
//! control refused is bought anew at most twice. Each attempt that passed the last gate ends its own
//! row first, so that one row stays one attempt. Whether there is time, and budget, for a retry is
//! the shell's to say.

use super::{Effect, Machine, Next, Retry, errors};
use crate::error::GatewayError;
use crate::ledger::Booking;
use crate::upstream::{NotSent, Refusal, RefusalKind};

/// Times an order is sent that never goes out whole.
const NOT_SENT_TRIES: u32 = 3;
/// Times an order is bought anew that flow control refuses.
const FLOW_RETRIES: u32 = 2;

/// The attempts so far, and the error when there is no other.
#[derive(Debug, Default)]
pub(super) struct Tries {
    not_sent: u32,
    refused: u32,
    /// The last failure, for the row, and for the callers.
    pub(super) failure: Option<(String, GatewayError)>,
}

impl Machine {
    pub(super) fn not_sent(&mut self, error: &NotSent) -> Effect {
        if let NotSent::Picture(_) = error {
            tracing::error!(%error, "an order cannot be sent");
            // Another try would read the same disk.
            return self.end(Booking::Released { reason: error.to_string() }, GatewayError::NoUploadRoom);
        }
        tracing::warn!(%error, "the order did not reach the upstream");
        let detail = "the upstream could not be reached, nothing was charged".to_owned();
        let told = GatewayError::UpstreamUnreachable { detail };
        let reason = error.to_string();
        self.tries.not_sent += 1;
        if self.tries.not_sent >= NOT_SENT_TRIES {
            return self.end(Booking::Released { reason }, told);
        }
        self.tries.failure = Some((reason.clone(), told));
        let retry = Retry::NotSent { retry: self.tries.not_sent };
        if self.is_marked {
            // The row has passed the gate: it ends here, and another try is another row.
            return self.book(Booking::Released { reason }, Next::Retry(retry));
        }
        Effect::Retry(retry)
    }

    pub(super) fn refused(&mut self, refusal: Refusal) -> Effect {
        let reason = errors::describe(&refusal.reply);
        let kind = refusal.kind;
        let told = errors::refused(refusal);
        match kind {
            RefusalKind::Flow { retry_after_seconds } if self.tries.refused < FLOW_RETRIES => {
                self.tries.refused += 1;
                self.tries.failure = Some((reason.clone(), told));
                let asked = retry_after_seconds.map(std::time::Duration::from_secs);
                let retry = Retry::Throttled { retry: self.tries.refused, asked };
                self.book(Booking::Refused { reason, for_order: false }, Next::Retry(retry))
            }
            kind => self.end(Booking::Refused { reason, for_order: kind == RefusalKind::Order }, told),
        }
    }

    /// The shell has waited, or there was no time or no budget for another try.
    pub(super) fn may_retry(&mut self, may: bool) -> Effect {
        let Some((reason, told)) = self.tries.failure.take() else { return super::bug() };
        let has_row = self.won.is_some();
        match (may, has_row) {
            (true, true) => Effect::CheckWaiters,
            (true, false) => Effect::TakeSlot,
            (false, true) => self.end(Booking::Released { reason }, told),
            (false, false) => Effect::Finish(Err(told)),
        }
    }
}
