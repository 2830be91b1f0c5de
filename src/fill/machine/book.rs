//! What happened must be written down, however long the ledger is away.
//!
//! Nobody waits for that where the outcome no longer depends on it: at the first failure of a
//! booking that ends the call its callers are told, and it is repeated behind their backs. A retry
//! that needs a new row is given up then, since the ledger has none to give.

use super::{Effect, Machine, Next, Verdict, backoff, bug};
use crate::error::GatewayError;
use crate::ledger::{Booking, LedgerError};

impl Machine {
    pub(super) fn end(&mut self, booking: Booking, error: GatewayError) -> Effect {
        self.book(booking, Next::Finish(Box::new(Err(error))))
    }

    pub(super) fn book(&mut self, booking: Booking, next: Next) -> Effect {
        self.booking = Some((booking, next));
        self.next(Next::Book)
    }

    pub(super) fn booked(&mut self) -> Effect {
        self.book_tries = 0;
        self.unkept = None;
        match self.booking.take() {
            Some((_, next)) => {
                if let Next::Retry(_) = next {
                    // Its row has ended; another try is another row.
                    (self.won, self.is_marked) = (None, false);
                }
                self.next(next)
            }
            None => bug(),
        }
    }

    pub(super) fn not_booked(&mut self, error: &LedgerError) -> Effect {
        // Whatever the reason, what the spool did not take is kept nowhere yet.
        if let Some(again) = self.unkept.take() {
            return self.not_spooled(error, again);
        }
        if matches!(error, LedgerError::Contradiction { .. }) {
            tracing::error!(%error, "a booking contradicts the ledger");
            return self.booked();
        }
        if self.booking.is_none() {
            return bug();
        }
        self.book_tries += 1;
        if self.book_tries == 1
            && let Some(verdict) = self.settled()
        {
            self.resume = Some(Next::Book);
            return Effect::Tell(verdict);
        }
        self.pause(backoff(self.book_tries), Next::Book)
    }

    /// What callers are told whatever comes of the booking under way, if it ends the call.
    fn settled(&mut self) -> Option<Verdict> {
        let (_, next) = self.booking.as_mut()?;
        if let Next::Retry(_) = next {
            let (_, told) = self.tries.failure.take()?;
            *next = Next::Finish(Box::new(Err(told)));
        }
        next.verdict()
    }
}
