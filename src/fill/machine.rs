//! The paid act as a pure state machine: an event comes in, the next effect goes out.
//!
//! Nothing here waits, spends, or reads a clock: [`fill`](crate::fill) carries the effects out, and
//! a simulation can do so with fakes. At any time exactly one effect is under way, and its event is
//! the only one that may come next; so a fill's whole life can be read from [`Machine::step`], top
//! to bottom.
//!
//! ```text
//! TakeSlot → Admit → CheckRoom → EnterCircuit → Reserve → LookAgain → CheckWaiters → Open
//!          → MarkSent → Send → Book(answered) → Fetch → PutObject → PutRecord → Book(stored) → Finish
//!                                                         ↘ Book(spooled) ↗
//! ```
//!
//! A store that does not take object or record is given up for the ledger's spool; when that does
//! not take it either, both are tried again, in turns, for ever. A ledger that does not take the answer
//! holds nothing up: the result is fetched and kept, and then it is booked as `stored` at once.

mod book;
mod effect;
mod errors;
mod retry;
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

/// Attempts to fetch a result while its callers wait; then they get an error, and it goes on.
const FOREGROUND_FETCHES: u32 = 5;
/// How long a URL may be dead in a row before the result counts as gone.
const DEAD_FOR: Duration = Duration::from_secs(15 * 60);
/// How often a key that another process holds is looked at.
const HELD_POLL: Duration = Duration::from_millis(250);

/// One fill. Its fields are what it must remember between two effects.
pub struct Machine {
    limits: FillLimits,
    payer: Option<Reservation>,
    won: Option<Won>,
    /// The row has passed the gate, or may have.
    is_marked: bool,
    /// Another fill held the key when this one wanted it.
    has_waited: bool,
    answer: Option<Answer>,
    /// The ledger did not take the answer yet. It is offered again before each new fetch; once the
    /// result is kept, that is booked instead.
    is_answer_owed: bool,
    fetched: Option<Fetched>,
    record: Option<Arc<Record>>,
    /// The booking under way, and what follows it; kept until it is durable.
    booking: Option<(Booking, Next)>,
    /// The step that failed in the store, while the ledger spools the result.
    unkept: Option<Next>,
    /// What follows a pause or a word to the waiters.
    resume: Option<Next>,
    tries: retry::Tries,
    fetch_tries: u32,
    book_tries: u32,
    keep_tries: u32,
    /// The age of the answer when its URL was first seen dead, if it has been dead since.
    dead_since: Option<Duration>,
}

/// What a machine needs to know of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct FillLimits {
    pub result_url_ttl: Duration,
}

/// An effect that is to follow, before it can be made.
#[derive(Debug)]
enum Next {
    TakeSlot,
    Admit,
    Retry(Retry),
    Book,
    /// Offers the ledger the answer that it did not take, if any, and fetches.
    FetchAgain,
    Fetch,
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
            Self::TakeSlot | Self::Admit | Self::Retry(_) | Self::Book | Self::Stop => None,
            Self::Fetch | Self::FetchAgain | Self::FetchLater(_) | Self::PutObject | Self::PutRecord => None,
        }
    }
}

impl Machine {
    pub fn new(limits: FillLimits) -> Self {
        Self {
            limits,
            payer: None,
            won: None,
            is_marked: false,
            has_waited: false,
            answer: None,
            is_answer_owed: false,
            fetched: None,
            record: None,
            booking: None,
            unkept: None,
            resume: None,
            tries: retry::Tries::default(),
            fetch_tries: 0,
            book_tries: 0,
            keep_tries: 0,
            dead_since: None,
        }
    }

    /// A fill whose owner died after the answer was durable: it goes on with the result.
    pub fn resume(limits: FillLimits, call: UnfinishedCall, answer: Answer) -> Self {
        let won = Won { id: call.id, generation: call.generation };
        Self { payer: Some(call.reservation), won: Some(won), answer: Some(answer), ..Self::new(limits) }
    }

    /// Who pays; known from [`Event::Admitted`] on.
    pub fn payer(&self) -> Option<&Reservation> {
        self.payer.as_ref()
    }

    /// What was sold; known from a successful [`Event::Replied`] on.
    pub fn answer(&self) -> Option<&Answer> {
        self.answer.as_ref()
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
            Event::Imported => self.after_pause(),
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

            Event::Paused | Event::Notified => self.after_pause(),
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
            // Ours could not take its place; the next look-up books the loss first.
            Ok(Standing::OrphanRecord(record)) if record.generation >= self.generation() => {
                self.unkeepable("the store has a record whose object is gone")
            }
            // Nor the place of one that cannot be read.
            Err(StoreError::Corrupt(reason) | StoreError::Unfit(reason)) => self.unkeepable(&reason),
            // Nothing was learned, neither of the store nor of the key.
            Err(StoreError::Busy(reason)) => self.end(Booking::Released { reason }, GatewayError::StoreBusy),
            // When the store cannot be asked, the ledger decides, and it has.
            Ok(_) | Err(StoreError::Unavailable(_) | StoreError::Full(_)) => Effect::CheckWaiters,
        }
    }

    fn unkeepable(&mut self, reason: &str) -> Effect {
        tracing::error!(reason, "a result could not be kept under its key, so none is bought");
        self.end(Booking::Released { reason: reason.to_owned() }, GatewayError::StoreUnavailable)
    }

    fn opened(&mut self, opened: Result<Open, NotSent>) -> Effect {
        match opened {
            Ok(Open::Held) => Effect::MarkSent(self.id()),
            // A success for what was not sent whole makes no sense, and may be charged all the same.
            Ok(Open::Early(Reply::Answered(_))) => self.replied(Reply::Unknown(UnknownCause::Garbage)),
            Ok(Open::Early(reply)) => self.replied(reply),
            Err(error) => self.not_sent(&error),
        }
    }

    fn marked(&mut self, permit: Result<Permit, LedgerError>) -> Effect {
        let released = |reason: &str| Booking::Released { reason: reason.to_owned() };
        match permit {
            Ok(Permit::Granted) => {
                self.is_marked = true;
                Effect::Send
            }
            Ok(Permit::Frozen(scope)) => {
                self.end(released("spending was frozen meanwhile"), GatewayError::Frozen(scope))
            }
            // Somebody else settled the row; there is nothing of ours to book.
            Ok(Permit::Lost) => Effect::Finish(Err(GatewayError::StillBeingMade)),
            Err(_) => self.end(released("the ledger did not confirm"), GatewayError::LedgerUnavailable),
        }
    }

    fn replied(&mut self, reply: Reply) -> Effect {
        match reply {
            Reply::Answered(answer) => {
                self.answer = Some(answer);
                self.book_answer()
            }
            Reply::Refused(refusal) => self.refused(refusal),
            Reply::Failed(reply) => {
                let reason = errors::describe(&reply);
                self.end(Booking::Failed { reason }, errors::failed(reply))
            }
            Reply::NotSent(error) => self.not_sent(&error),
            Reply::Unknown(cause) => {
                let (detail, error) = (cause.to_string(), errors::unknown(cause));
                self.end(Booking::Unknown { reason: detail }, error)
            }
        }
    }

    fn not_fetched(&mut self, error: &FetchError, age: Duration) -> Effect {
        let is_dead = error.is_dead();
        self.dead_since = if is_dead { self.dead_since.or(Some(age)) } else { None };
        let gone = self.dead_since.is_some_and(|since| age.saturating_sub(since) >= DEAD_FOR);
        let timed_out = matches!(error, FetchError::Timeout);
        let is_over = gone || age >= self.limits.result_url_ttl;
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
        // A record of this very purchase may stand since before a crash; only its time differs then.
        let ours_then = Record { stored_at: standing.stored_at, ..ours.clone() };
        if ours_then == standing {
            let filled = Filled { record: Arc::new(standing), source: FillSource::Bought };
            let booking = Booking::Stored { record: Box::new(ours_then), holds_key: true };
            return self.book(booking, Next::Finish(Box::new(Ok(filled))));
        }
        // Another result keeps the key; ours is permanent under its own URL, and paid for.
        let booking = Booking::Stored { record: Box::new(ours), holds_key: false };
        self.book(booking, Next::Import(Arc::new(standing), FillSource::Bought))
    }

    /// The store did not take it, so the ledger is to keep it until it does.
    fn not_kept(&mut self, error: &StoreError, again: Next) -> Effect {
        tracing::warn!(%error, call = self.id().0, "the store did not take a paid result; it goes to the spool");
        let (Some(record), Some(fetched)) = (&self.record, &self.fetched) else { return bug() };
        let booking = Booking::Spooled { record: Box::new((**record).clone()), bytes: fetched.bytes.clone() };
        let filled = Filled { record: record.clone(), source: FillSource::Bought };
        self.unkept = Some(again);
        self.book(booking, Next::Finish(Box::new(Ok(filled))))
    }

    /// Neither did the ledger. Whichever is back first gets it.
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

    /// Where a result was found that this fill did not buy.
    fn found_in(&self, source: FillSource) -> FillSource {
        if self.has_waited { FillSource::Awaited } else { source }
    }

    fn after_pause(&mut self) -> Effect {
        match self.resume.take() {
            Some(next) => self.next(next),
            None => bug(),
        }
    }

    fn next(&mut self, next: Next) -> Effect {
        match next {
            Next::TakeSlot => Effect::TakeSlot,
            Next::Admit => Effect::Admit,
            Next::Retry(retry) => Effect::Retry(retry),
            Next::Book => match &self.booking {
                Some((booking, _)) => Effect::Book(self.id(), booking.clone()),
                None => bug(),
            },
            Next::Fetch => match &self.answer {
                Some(answer) => Effect::Fetch(answer.url().clone()),
                None => bug(),
            },
            Next::PutObject => match &self.fetched {
                Some(fetched) => Effect::PutObject(fetched.clone()),
                None => bug(),
            },
            Next::FetchAgain if self.is_answer_owed => self.book_answer(),
            Next::FetchAgain => self.next(Next::Fetch),
            Next::FetchLater(pause) => self.pause(pause, Next::FetchAgain),
            Next::PutRecord => match &self.record {
                Some(record) => Effect::PutRecord(record.clone()),
                None => bug(),
            },
            Next::Import(record, source) => {
                let filled = Filled { record: record.clone(), source };
                self.resume = Some(Next::Finish(Box::new(Ok(filled))));
                Effect::Import(record)
            }
            Next::Finish(verdict) => Effect::Finish(*verdict),
            Next::Stop => Effect::Stop,
        }
    }

    fn id(&self) -> CallId {
        self.won.map_or(CallId(0), |won| won.id)
    }

    fn generation(&self) -> u64 {
        self.won.map_or(0, |won| won.generation)
    }
}

/// An effect was asked for before what it needs was there.
fn bug() -> Effect {
    tracing::error!("the fill's state machine was stepped out of order");
    Effect::Finish(Err(GatewayError::Bug))
}

/// 0.2 s, doubling up to a minute.
fn backoff(tries: u32) -> Duration {
    Duration::from_millis(100 << tries.min(10)).min(Duration::from_secs(60))
}
