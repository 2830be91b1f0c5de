//! Bookings, which are repeated for as long as the ledger is away. If the first attempt of a booking that ends the
//! call fails, the waiters are answered and it is repeated in the background. A retry that needs a new row is then
//! given up, since the ledger cannot give one.

use super::{Effect, Machine, Next, Verdict, backoff, bug};
use crate::error::GatewayError;
use crate::ledger::{Booking, LedgerError};

impl Machine {
    pub(super) fn end(&mut self, booking: Booking, error: GatewayError) -> Effect {
        self.book(booking, Next::Finish(Box::new(Err(error))))
    }

    pub(super) fn release(&mut self, reason: impl Into<String>, error: GatewayError) -> Effect {
        self.end(Booking::Released { reason: reason.into() }, error)
    }

    pub(super) fn book(&mut self, booking: Booking, next: Next) -> Effect {
        self.booking = Some((booking, next));
        self.next(Next::Book)
    }

    pub(super) fn book_answer(&mut self) -> Effect {
        let Some(answer) = &self.answer else { return bug() };
        let booking = Booking::Answered {
            text: answer.text().clone(),
            request_id: answer.request_id.clone(),
            log_id: answer.log_id.clone(),
        };
        self.book(booking, Next::Fetch)
    }

    pub(super) fn booked(&mut self) -> Effect {
        self.book_tries = 0;
        self.unkept = None;
        self.is_answer_owed = false;
        let Some((_, next)) = self.booking.take() else { return bug() };
        if let Next::Retry(_) = next {
            // Its row has ended; another try is another row.
            (self.won, self.is_marked) = (None, false);
        }
        self.next(next)
    }

    pub(super) fn not_booked(&mut self, error: &LedgerError) -> Effect {
        // A result that the spool did not take is kept nowhere yet.
        if let Some(again) = self.unkept.take() {
            return self.not_spooled(error, again);
        }
        if matches!(error, LedgerError::Contradiction { .. }) {
            tracing::error!(%error, "a booking contradicts the ledger");
            return self.booked();
        }
        let is_answer = |booking: &mut (Booking, Next)| matches!(booking.0, Booking::Answered { .. });
        if let Some((_, next)) = self.booking.take_if(is_answer) {
            tracing::error!(%error, call = self.id().0, "answer not booked: its result is kept first");
            self.is_answer_owed = true;
            return self.next(next);
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

    /// The verdict for callers, if the booking under way ends the call.
    fn settled(&mut self) -> Option<Verdict> {
        let (_, next) = self.booking.as_mut()?;
        if let Next::Retry(_) = next {
            let (_, error) = self.failure.take()?;
            *next = Next::Finish(Box::new(Err(error)));
        }
        next.verdict()
    }
}
