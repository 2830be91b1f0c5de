//! The paid act as a pure state machine: an event comes in, the next effect goes out. Nothing here waits, spends, or
//! reads a clock: [`fill`](crate::fill) performs the effects, or a simulation with fakes. Exactly one effect is under
//! way at a time, and only its event may come next, so [`Machine::step`] reads as a fill's whole life.
//!
//! ```text
//! TakeSlot → Admit → CheckRoom → EnterCircuit → Reserve → LookAgain → CheckWaiters → Open
//!          → MarkSent → Send → Book(answered) → Fetch → PutObject → PutRecord → Book(stored) → Finish
//!                                                         ↘ Book(spooled) ↗
//! ```
//!
//! What the store refuses goes to the ledger's spool; if that refuses too, both are retried in turns without limit.
//! If the ledger does not take the answer, the result is fetched and kept all the same, then booked as `stored`.

mod book;
mod effect;
mod reply;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

pub use self::effect::{Admission, Effect, Event, FillSource, Filled, Open, Retry, Standing, Verdict};

use crate::base::envelope::Answer;
use crate::base::record::Record;
use crate::error::GatewayError;
use crate::ledger::budget::Scope;
use crate::ledger::{Booking, CallId, LedgerError, Permit, Reservation, Reserved, UnfinishedCall, Won};
use crate::store::StoreError;
use crate::upstream::download::{FetchError, Fetched};
use crate::upstream::{NotSent, Reply, UnknownCause};

/// Attempts to fetch a result before its callers get an error and the fetch goes on in the background.
const FOREGROUND_FETCHES: u32 = 5;
/// A result whose URL was dead for this long without a break is gone.
const DEAD_FOR: Duration = Duration::from_secs(15 * 60);
/// Pause before another look at a key that another fill holds.
const HELD_POLL: Duration = Duration::from_millis(250);

/// One fill. Its fields are what it must remember between two effects.
#[derive(Default)]
pub struct Machine {
    result_url_ttl: Duration,
    pub(super) payer: Option<Reservation>,
    won: Option<Won>,
    /// The row is `sent`, or may be.
    is_marked: bool,
    /// Another fill held the key when this one wanted it.
    has_waited: bool,
    pub(super) answer: Option<Answer>,
    /// The ledger did not take the answer. Each new fetch offers it first; a kept result is booked `stored` instead.
    is_answer_owed: bool,
    fetched: Option<Fetched>,
    record: Option<Arc<Record>>,
    /// The booking under way, and what follows it; kept until it is durable.
    booking: Option<(Booking, Next)>,
    /// The step that failed in the store, while the ledger spools the result.
    unkept: Option<Next>,
    /// What follows an effect without an outcome.
    resume: Option<Next>,
    not_sent_tries: u32,
    flow_retries: u32,
    /// The last failure: the reason for its row, and the error for callers if there is no retry.
    failure: Option<(String, GatewayError)>,
    fetch_tries: u32,
    book_tries: u32,
    keep_tries: u32,
    /// Age of the answer when its URL was first seen dead, if it has been dead since.
    dead_since: Option<Duration>,
}

/// An effect that follows, before what it needs is known.
#[derive(Debug)]
enum Next {
    TakeSlot,
    Admit,
    Retry(Retry),
    Book,
    Fetch,
    /// Offers the ledger the answer that it did not take, if any, then fetches.
    FetchAgain,
    FetchLater(Duration),
    PutObject,
    PutRecord,
    Import(Arc<Record>, FillSource),
    Finish(Box<Verdict>),
    Stop,
}

impl Next {
    /// The verdict for callers, where it is settled.
    fn verdict(&self) -> Option<Verdict> {
        match self {
            Self::Finish(verdict) => Some((**verdict).clone()),
            Self::Import(record, source) => Some(Ok(Filled { record: record.clone(), source: *source })),
            _ => None,
        }
    }
}

impl Machine {
    pub fn new(result_url_ttl: Duration) -> Self {
        Self { result_url_ttl, ..Self::default() }
    }

    /// Continues a fill whose process died after the answer was durable.
    pub fn resume(result_url_ttl: Duration, call: UnfinishedCall, answer: Answer) -> Self {
        let won = Won { id: call.id, generation: call.generation };
        Self {
            payer: Some(call.reservation),
            won: Some(won),
            answer: Some(answer),
            ..Self::new(result_url_ttl)
        }
    }

    /// Takes the outcome of the last effect and returns the next one.
    pub fn step(&mut self, event: Event) -> Effect {
        match event {
            Event::Started if self.answer.is_some() => self.next(Next::Fetch),
            Event::Started => Effect::TakeSlot,

            Event::Slot(Ok(())) => Effect::Admit,
            Event::Slot(Err(error)) => Effect::Finish(Err(error)),

            Event::Admitted(Admission::Nobody) => Effect::Stop,
            Event::Admitted(Admission::Refused(error)) => self.refuse_team(error),
            Event::Admitted(Admission::Unrated) => Effect::TakeSlot,
            Event::Admitted(Admission::Payer(payer)) => {
                self.payer = Some(*payer);
                Effect::CheckRoom
            }

            Event::Room(Ok(())) => Effect::EnterCircuit,
            Event::Room(Err(StoreError::Busy(_))) => Effect::Finish(Err(GatewayError::StoreBusy)),
            Event::Room(Err(error)) => {
                tracing::warn!(%error, "no new result can be kept, so none is bought");
                Effect::Finish(Err(GatewayError::NoRoom))
            }

            Event::Entered(Ok(())) => Effect::Reserve,
            Event::Entered(Err(error)) => Effect::Finish(Err(error)),

            Event::Reserved(Ok(reserved)) => self.reserved(reserved),
            Event::Reserved(Err(LedgerError::SpoolFull { .. })) => Effect::Finish(Err(GatewayError::NoRoom)),
            Event::Reserved(Err(_)) => Effect::Finish(Err(GatewayError::LedgerUnavailable)),

            Event::LookedAgain(standing) => self.looked_again(standing),
            Event::Awaited(true) => Effect::Open,
            Event::Awaited(false) => {
                self.book(Booking::Released { reason: "nobody waited any more".to_owned() }, Next::Stop)
            }

            Event::Opened(opened) => self.opened(opened),
            Event::Marked(permit) => self.marked(permit),
            Event::Replied(reply) => self.replied(reply),
            Event::MayRetry(may) => self.may_retry(may),

            Event::Booked(Ok(())) => self.booked(),
            Event::Booked(Err(error)) => self.not_booked(&error),

            Event::FetchEnded(Ok(fetched), _) => {
                self.fetched = Some(fetched);
                self.next(Next::PutObject)
            }
            Event::FetchEnded(Err(error), age) => self.not_fetched(&error, age),

            Event::ObjectKept(kept, now) => self.object_kept(kept, now),
            Event::RecordKept(Ok(standing)) => self.record_kept(standing),
            Event::RecordKept(Err(error)) => self.not_kept(&error, Next::PutRecord),

            Event::Done => self.resume.take().map_or_else(bug, |next| self.next(next)),
        }
    }

    fn reserved(&mut self, reserved: Reserved) -> Effect {
        match reserved {
            Reserved::Won(won) => {
                self.won = Some(won);
                Effect::LookAgain
            }
            Reserved::Held(_) => {
                self.has_waited = true;
                self.resume = Some(Next::TakeSlot);
                Effect::StepAside(HELD_POLL)
            }
            Reserved::Stored(record) => {
                let filled = Filled { record: Arc::new(*record), source: self.found_in(FillSource::Ledger) };
                Effect::Finish(Ok(filled))
            }
            Reserved::Resting { until, wait } => Effect::Finish(Err(GatewayError::Resting { until, wait })),
            Reserved::OverBudget(refusal) => self.refuse_team(GatewayError::OverBudget(refusal)),
            Reserved::Frozen(Scope::Global) => Effect::Finish(Err(GatewayError::Frozen(Scope::Global))),
            Reserved::Frozen(team) => self.refuse_team(GatewayError::Frozen(team)),
        }
    }

    fn looked_again(&mut self, standing: Result<Standing, StoreError>) -> Effect {
        match standing {
            Ok(Standing::Result(record)) if record.generation >= self.generation() => {
                let next = Next::Import(Arc::new(record), self.found_in(FillSource::Store));
                self.book(Booking::Released { reason: "the store had it by then".to_owned() }, next)
            }
            // Ours could not replace it; the next lookup books the loss first.
            Ok(Standing::OrphanRecord(record)) if record.generation >= self.generation() => {
                self.unkeepable("the store has a record whose object is gone")
            }
            // Nor could it replace one that cannot be read.
            Err(StoreError::Corrupt(reason) | StoreError::Unfit(reason)) => self.unkeepable(&reason),
            Err(error @ StoreError::TooLong(_)) => self.unkeepable(&error.to_string()),
            Err(StoreError::Busy(reason)) => self.release(reason, GatewayError::StoreBusy),
            // If the store cannot be asked, the ledger decides, and it has.
            Ok(_) | Err(StoreError::Unavailable(_) | StoreError::Full(_)) => Effect::CheckWaiters,
        }
    }

    fn unkeepable(&mut self, reason: &str) -> Effect {
        tracing::error!(reason, "a result could not be kept under its key, so none is bought");
        self.release(reason, GatewayError::StoreUnavailable)
    }

    fn opened(&mut self, opened: Result<Open, NotSent>) -> Effect {
        match opened {
            Ok(Open::Held) => Effect::MarkSent(self.id()),
            // A success for an incomplete order makes no sense, and may be charged all the same.
            Ok(Open::Early(Reply::Answered(_))) => self.replied(Reply::Unknown(UnknownCause::Garbage)),
            Ok(Open::Early(reply)) => self.replied(reply),
            Err(error) => self.not_sent(&error),
        }
    }

    fn marked(&mut self, permit: Result<Permit, LedgerError>) -> Effect {
        match permit {
            Ok(Permit::Granted) => {
                self.is_marked = true;
                Effect::Send
            }
            Ok(Permit::Frozen(scope)) => {
                self.release("spending was frozen meanwhile", GatewayError::Frozen(scope))
            }
            // Another process settled the row, so there is nothing to book.
            Ok(Permit::Lost) => Effect::Finish(Err(GatewayError::StillBeingMade)),
            Err(_) => self.release("the ledger did not confirm", GatewayError::LedgerUnavailable),
        }
    }

    fn not_fetched(&mut self, error: &FetchError, age: Duration) -> Effect {
        self.dead_since = error.is_dead().then(|| self.dead_since.unwrap_or(age));
        let gone = self.dead_since.is_some_and(|since| age.saturating_sub(since) >= DEAD_FOR);
        let timed_out = matches!(error, FetchError::Timeout);
        let is_over = gone || age >= self.result_url_ttl;
        if is_over && !self.is_answer_owed {
            tracing::error!(%error, call = self.id().0, "a paid result is lost: its URL does not serve it");
            return self.end(
                Booking::Unfetchable { reason: error.to_string() },
                GatewayError::ResultNotFetched { timed_out },
            );
        }
        self.fetch_tries += 1;
        let pause = backoff(self.fetch_tries);
        if self.fetch_tries == FOREGROUND_FETCHES {
            tracing::warn!(%error, call = self.id().0, "a paid result cannot be fetched; trying on in the background");
            self.resume = Some(Next::FetchLater(pause));
            return Effect::Tell(Err(GatewayError::ResultNotFetched { timed_out }));
        }
        self.pause(pause, Next::FetchAgain)
    }

    fn object_kept(&mut self, kept: Result<(), StoreError>, now: Timestamp) -> Effect {
        let (Some(payer), Some(answer), Some(fetched)) = (&self.payer, &self.answer, &self.fetched) else {
            return bug();
        };
        self.record = Some(Arc::new(Record {
            version: Record::VERSION,
            namespace: payer.namespace.clone(),
            key: payer.key,
            generation: self.generation(),
            answer: answer.keep(&fetched.name),
            digest: fetched.name.digest,
            extension: fetched.name.format.extension().to_owned(),
            bytes: fetched.bytes.len() as u64,
            team: payer.team.clone(),
            credits: payer.credits,
            stored_at: now,
            upstream_request_id: answer.request_id.clone(),
            upstream_log_id: answer.log_id.clone(),
            image: payer.image,
            width: payer.width,
            height: payer.height,
        }));
        match kept {
            Ok(()) => {
                self.keep_tries = 0;
                self.next(Next::PutRecord)
            }
            Err(error) => self.not_kept(&error, Next::PutObject),
        }
    }

    /// The record is the commit mark: from here on the result is permanent.
    fn record_kept(&mut self, standing: Record) -> Effect {
        let Some(ours) = self.record.take().map(Arc::unwrap_or_clone) else { return bug() };
        // This purchase's record may date from before a crash; then only its time differs.
        let ours_then = Record { stored_at: standing.stored_at, ..ours.clone() };
        if ours_then == standing {
            let filled = Filled { record: Arc::new(standing), source: FillSource::Bought };
            let booking = Booking::Stored { record: Box::new(ours_then), holds_key: true };
            return self.book(booking, Next::Finish(Box::new(Ok(filled))));
        }
        // Another result keeps the key; ours is permanent under its own URL.
        let booking = Booking::Stored { record: Box::new(ours), holds_key: false };
        self.book(booking, Next::Import(Arc::new(standing), FillSource::Bought))
    }

    /// The ledger's spool keeps the result until the store takes it.
    fn not_kept(&mut self, error: &StoreError, again: Next) -> Effect {
        tracing::warn!(%error, call = self.id().0, "the store did not take a paid result; it goes to the spool");
        let (Some(record), Some(fetched)) = (&self.record, &self.fetched) else { return bug() };
        let booking = Booking::Spooled { record: Box::new((**record).clone()), bytes: fetched.bytes.clone() };
        let filled = Filled { record: record.clone(), source: FillSource::Bought };
        self.unkept = Some(again);
        self.book(booking, Next::Finish(Box::new(Ok(filled))))
    }

    /// Store and spool are tried in turns: whichever is back first gets the result.
    fn not_spooled(&mut self, error: &LedgerError, again: Next) -> Effect {
        tracing::error!(%error, call = self.id().0, "a paid result could not be kept yet");
        self.booking = None;
        self.keep_tries += 1;
        self.pause(backoff(self.keep_tries), again)
    }

    fn refuse_team(&mut self, error: GatewayError) -> Effect {
        self.resume = Some(Next::Admit);
        Effect::RefuseTeam(error)
    }

    fn pause(&mut self, time: Duration, next: Next) -> Effect {
        self.resume = Some(next);
        Effect::Pause(time)
    }

    fn found_in(&self, source: FillSource) -> FillSource {
        if self.has_waited { FillSource::Awaited } else { source }
    }

    fn next(&mut self, next: Next) -> Effect {
        self.effect(next).unwrap_or_else(bug)
    }

    /// `None` if what the effect needs is not there.
    fn effect(&mut self, next: Next) -> Option<Effect> {
        Some(match next {
            Next::TakeSlot => Effect::TakeSlot,
            Next::Admit => Effect::Admit,
            Next::Retry(retry) => Effect::Retry(retry),
            Next::Book => Effect::Book(self.id(), self.booking.as_ref()?.0.clone()),
            Next::FetchAgain if self.is_answer_owed => self.book_answer(),
            Next::Fetch | Next::FetchAgain => Effect::Fetch(self.answer.as_ref()?.url().clone()),
            Next::FetchLater(pause) => self.pause(pause, Next::FetchAgain),
            Next::PutObject => Effect::PutObject(self.fetched.clone()?),
            Next::PutRecord => Effect::PutRecord(self.record.clone()?),
            Next::Import(record, source) => {
                let filled = Filled { record: record.clone(), source };
                self.resume = Some(Next::Finish(Box::new(Ok(filled))));
                Effect::Import(record)
            }
            Next::Finish(verdict) => Effect::Finish(*verdict),
            Next::Stop => Effect::Stop,
        })
    }

    fn id(&self) -> CallId {
        self.won.map_or(CallId(0), |won| won.id)
    }

    fn generation(&self) -> u64 {
        self.won.map_or(0, |won| won.generation)
    }
}

fn bug() -> Effect {
    tracing::error!("the fill's state machine was stepped out of order");
    Effect::Finish(Err(GatewayError::Bug))
}

/// 0.2 s, doubling up to a minute.
fn backoff(tries: u32) -> Duration {
    Duration::from_millis(100 << tries.min(10)).min(Duration::from_secs(60))
}
