//! Whatever happens, in whatever order: money is spent once, and what it bought is never let go.
//!
//! [`keeps_promises`] plays the shell. It answers every effect with one of the events that may come
//! of it, chosen by a list of bytes, and compares what the machine asks for with a small model of
//! the row in the ledger. It takes any step function, so that machines with planted mistakes show
//! that it would find them.

use proptest::prelude::*;

use super::*;
use crate::ledger::CallState;
use crate::metrics::RetryReason;

/// What the world knows of a fill.
#[derive(Default)]
struct World {
    /// The state of the row this fill has won and not ended.
    row: Option<CallState>,
    /// The gate has just been passed.
    permit: bool,
    /// The tail has gone.
    sent: bool,
    /// The upstream answered; from here on the result is paid for.
    paid: bool,
    /// The booking that the ledger has not confirmed yet.
    unconfirmed: Option<CallState>,
    /// The ledger was asked to book the answer, and did or could not.
    answer_offered: bool,
    /// `stored` or `unfetchable` is.
    answer_settled: bool,
    object_kept: bool,
    record_kept: bool,
    /// The store did not take the last thing it was given.
    is_refused: bool,
    /// The ledger has the bytes.
    is_spooled: bool,
    /// A result of somebody else's turned up in the ledger, or in the store.
    found: Option<FillSource>,
    /// Another fill held the key.
    has_waited: bool,
    /// Nobody waits.
    deserted: bool,
    /// The callers were told how it ends.
    is_told: bool,
    /// The answer's age in seconds.
    age: u64,
}

impl World {
    /// An answer booked by a process that died.
    fn resumed() -> Self {
        let row = Some(CallState::Answered);
        Self { row, sent: true, paid: true, answer_offered: true, ..Self::default() }
    }

    /// May the machine ask for this now? What came of its last effect is in the world already.
    fn allows(&mut self, effect: &Effect) -> Result<(), String> {
        let permit = std::mem::take(&mut self.permit);
        let demand = |holds: bool, promise: &str| {
            if holds { Ok(()) } else { Err(format!("{}: {promise}", show(effect))) }
        };
        if let Some(state) = self.unconfirmed {
            let repeats = match effect {
                Effect::Book(_, booking) => booking.state() == state,
                Effect::Pause(_) => true,
                // Only a result that is permanent is told before it is booked, and only a failure
                // that this booking ends the call with.
                Effect::Tell(Ok(_)) => match state {
                    CallState::Stored => self.record_kept,
                    CallState::Released => self.found == Some(FillSource::Store),
                    _ => false,
                },
                Effect::Tell(Err(_)) => !state.is_open() && state != CallState::Stored,
                _ => false,
            };
            demand(repeats, "a booking is repeated until it is confirmed")?;
        }
        self.is_told |= matches!(effect, Effect::Tell(_));
        let is_reserved = self.row == Some(CallState::Reserved) && !self.sent;
        match effect {
            Effect::TakeSlot | Effect::Admit | Effect::CheckRoom | Effect::EnterCircuit | Effect::Reserve => {
                demand(self.row.is_none() && !self.sent && !self.is_told, "one row, and one call")
            }
            Effect::StepAside(_) | Effect::RefuseTeam(_) => {
                demand(self.row.is_none() && !self.sent, "only before anything is reserved")
            }
            Effect::LookAgain => demand(is_reserved, "only with the key in hand"),
            Effect::Retry(_) => {
                let is_over = self.row.is_none() || self.row == Some(CallState::Reserved);
                demand(is_over && !self.sent && !self.is_told, "another try only of what cost nothing")
            }
            Effect::CheckWaiters => demand(is_reserved, "before anything is sent"),
            Effect::Open => demand(is_reserved && !self.deserted, "nothing is sent without a row, nor again"),
            Effect::MarkSent(id) => demand(*id == WON.id && is_reserved, "the gate is for our row"),
            Effect::Send => demand(permit && !self.sent, "one tail, and only through the gate"),
            Effect::Book(id, booking) => {
                let row = self.row.ok_or_else(|| format!("{}: there is no row", show(effect)))?;
                demand(*id == WON.id && booking.may_follow(row), "a booking follows from its row")?;
                let (is_backed, is_kept) = match booking {
                    Booking::Answered { .. } | Booking::Unfetchable { .. } => (true, true),
                    Booking::Stored { .. } => (self.record_kept, true),
                    Booking::Spooled { record, bytes } => (
                        self.is_refused
                            && (record.digest, bytes) == (fetched().name.digest, &fetched().bytes),
                        true,
                    ),
                    _ => (true, false),
                };
                demand(!self.paid || is_kept, "what is paid for is not booked as if it were not")?;
                demand(is_backed, "stored means kept, by the store or by the ledger when the store fails")
            }
            Effect::Fetch(_) | Effect::PutObject(_) => {
                demand(self.answer_offered, "the answer is offered to the ledger first")
            }
            Effect::PutRecord(_) => demand(self.object_kept, "object first, then record"),
            Effect::Import(record) => {
                let is_found = self.found == Some(FillSource::Store) && **record == other_record(0);
                demand(self.record_kept || is_found, "only what is in the store")
            }
            Effect::Pause(_) => Ok(()),
            Effect::Tell(verdict) => self.may_tell(effect, verdict),
            Effect::Finish(verdict) => {
                self.may_tell(effect, verdict)?;
                self.may_end()
            }
            Effect::Stop => {
                demand(self.deserted, "someone waits")?;
                self.may_end()
            }
        }
    }

    fn may_tell(&self, effect: &Effect, verdict: &Verdict) -> Result<(), String> {
        let (holds, promise) = match verdict {
            Ok(filled) if filled.source == FillSource::Bought => {
                (self.record_kept || self.is_spooled, "a result is told once it is permanent")
            }
            Ok(filled) => {
                let place = |found| if self.has_waited { FillSource::Awaited } else { found };
                (self.found.map(place) == Some(filled.source), "a result is told where it was found")
            }
            Err(GatewayError::Bug) => (false, "no order of events is a bug"),
            Err(_) => (!self.record_kept && !self.is_spooled, "a permanent result is told"),
        };
        if holds { Ok(()) } else { Err(format!("{}: {promise}", show(effect))) }
    }

    fn may_end(&self) -> Result<(), String> {
        if self.paid && !self.answer_settled {
            return Err("ended with a paid result in hand".to_owned());
        }
        match self.row {
            Some(state) => Err(format!("ended with its row {}", state.as_str())),
            None => Ok(()),
        }
    }

    /// One of the events that may come of an effect; a `choice` below 160 is success.
    fn answers(&mut self, effect: &Effect, choice: u8) -> Event {
        let event = match choice.checked_sub(160) {
            Some(choice) => self.mishap(effect, choice),
            None => success(effect),
        };
        self.note(effect, &event);
        event
    }

    fn mishap(&mut self, effect: &Effect, choice: u8) -> Event {
        // Up to some forty minutes: both ends of a URL's life are reached by some lives.
        self.age += u64::from(choice) * 30;
        let pick = |count: u8| choice % count;
        match effect {
            Effect::TakeSlot => match pick(2) {
                0 => Event::Slot(Err(GatewayError::TooBusy { wait: Duration::ZERO })),
                _ => Event::Admitted(Admission::Nobody),
            },
            Effect::Admit => Event::Admitted(match pick(3) {
                0 => Admission::Nobody,
                1 => Admission::Refused(GatewayError::Draining),
                _ => Admission::Unrated,
            }),
            Effect::CheckRoom => Event::Room(store_away()),
            Effect::EnterCircuit => Event::Entered(Err(GatewayError::CircuitOpen { wait: Duration::ZERO })),
            Effect::Retry(_) => Event::MayRetry(false),
            Effect::Reserve => Event::Reserved(match pick(7) {
                0 => Ok(Reserved::Held(CallId(1))),
                1 => Ok(Reserved::Stored(Box::new(other_record(0)))),
                2 => Ok(resting()),
                3 => Ok(over_budget()),
                4 => Ok(Reserved::Frozen(Scope::Global)),
                5 => Ok(Reserved::Frozen(Scope::Team("web".to_owned()))),
                _ => away(),
            }),
            Effect::LookAgain => Event::LookedAgain(match pick(4) {
                0 => Ok(Standing::Result(other_record(0))),
                2 => Ok(Standing::OrphanRecord(other_record(0))),
                1 => Err(StoreError::Corrupt("planted".to_owned())),
                _ => store_away(),
            }),
            Effect::CheckWaiters => Event::Awaited(false),
            Effect::Open => Event::Opened(match pick(4) {
                0 => Err(NotSent::Connect("planted".to_owned())),
                1 => Err(NotSent::Upload("planted".to_owned())),
                2 => Ok(Open::Early(Reply::Answered(answer()))),
                _ => Ok(Open::Early(failed_reply(choice / 4))),
            }),
            Effect::MarkSent(_) => Event::Marked(match pick(3) {
                0 => Ok(Permit::Frozen(Scope::Global)),
                1 => Ok(Permit::Lost),
                _ => away(),
            }),
            Effect::Send => Event::Replied(failed_reply(choice)),
            Effect::Book(_, Booking::Spooled { .. }) if pick(2) == 0 => Event::Booked(spool_full()),
            Effect::Book(..) => Event::Booked(match pick(8) {
                0 => Err(contradiction()),
                _ => away(),
            }),
            Effect::Fetch(_) => {
                let error = match pick(5) {
                    0 => FetchError::Timeout,
                    1 => FetchError::NotAllowed("planted"),
                    2 => transient(),
                    _ => dead(),
                };
                Event::FetchEnded(Err(error), Duration::from_secs(self.age))
            }
            Effect::PutObject(_) => Event::ObjectKept(store_away(), now()),
            Effect::PutRecord(_) => Event::RecordKept(match pick(2) {
                0 => Ok(other_record(0)),
                _ => store_away(),
            }),
            effect => success(effect),
        }
    }

    fn note(&mut self, effect: &Effect, event: &Event) {
        match event {
            Event::Admitted(admission) => self.deserted = matches!(admission, Admission::Nobody),
            Event::Awaited(awaited) => self.deserted = !awaited,
            Event::Reserved(Ok(Reserved::Won(_))) => self.row = Some(CallState::Reserved),
            Event::Reserved(Ok(Reserved::Held(_))) => self.has_waited = true,
            Event::Reserved(Ok(Reserved::Stored(_))) => self.found = Some(FillSource::Ledger),
            Event::LookedAgain(Ok(Standing::Result(_))) => self.found = Some(FillSource::Store),
            Event::Marked(Ok(Permit::Granted)) => {
                self.permit = true;
                self.row = Some(CallState::Sent);
            }
            // The transaction may have been durable and its outcome lost.
            Event::Marked(Err(_)) => self.row = Some(CallState::Sent),
            // Whoever took the row settles it.
            Event::Marked(Ok(Permit::Lost)) => self.row = None,
            Event::Replied(reply) => {
                self.sent = true;
                self.paid = matches!(reply, Reply::Answered(_));
            }
            Event::Booked(outcome) => {
                let Effect::Book(_, booking) = effect else { return };
                let state = booking.state();
                let is_spooling = matches!(booking, Booking::Spooled { .. });
                // The store may take it after all, and then it is booked as stored.
                if is_spooling
                    && outcome.is_err()
                    && !matches!(outcome, Err(LedgerError::Contradiction { .. }))
                {
                    return;
                }
                self.is_spooled |= is_spooling;
                self.answer_offered |= state == CallState::Answered;
                // The result goes to the store, or to the spool, before the row is booked.
                if state == CallState::Answered && matches!(outcome, Err(LedgerError::Unavailable(_))) {
                    return;
                }
                if matches!(outcome, Err(LedgerError::Unavailable(_))) {
                    self.unconfirmed = Some(state);
                    return;
                }
                self.unconfirmed = None;
                self.answer_settled |= matches!(state, CallState::Stored | CallState::Unfetchable);
                self.row = Some(state).filter(|state| state.is_open());
                // Neither costs anything, and another row may follow.
                if matches!(state, CallState::Refused | CallState::Released) {
                    self.sent = false;
                }
            }
            Event::ObjectKept(Ok(()), _) => self.object_kept = true,
            Event::RecordKept(Ok(_)) => self.record_kept = true,
            Event::ObjectKept(Err(_), _) | Event::RecordKept(Err(_)) => self.is_refused = true,
            _ => {}
        }
    }
}

fn failed_reply(choice: u8) -> Reply {
    match choice % 5 {
        0 => refusal(RefusalKind::Order, 415),
        1 => refusal(RefusalKind::Flow { retry_after: None }, 429),
        2 => Reply::Failed(error_reply(500, "", Some("{}"))),
        3 => Reply::NotSent(NotSent::Upload("planted".to_owned())),
        _ => Reply::Unknown(UnknownCause::Timeout),
    }
}

/// Plays a whole life; after the last choice, all is success.
///
/// # Errors
/// The promise that was broken, and the life so far.
fn keeps_promises(
    mut world: World,
    choices: &[u8],
    mut step: impl FnMut(Event) -> Effect,
) -> Result<(), String> {
    let mut life = Vec::new();
    let mut event = Event::Started;
    let mut choices = choices.iter().copied();
    // From anywhere, success after success leads to the end within so many steps.
    let mut left = 40;
    while left > 0 {
        let effect = step(event);
        life.push(show(&effect));
        world.allows(&effect).map_err(|broken| format!("{broken}\nafter {}", life.join(" ")))?;
        if matches!(effect, Effect::Finish(_) | Effect::Stop) {
            return Ok(());
        }
        let choice = choices.next().unwrap_or_else(|| {
            left -= 1;
            0
        });
        event = world.answers(&effect, choice);
    }
    Err(format!("no end in sight\nafter {}", life.join(" ")))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn no_order_of_events_spends_twice_or_lets_go_of_what_is_paid(
        choices in proptest::collection::vec(any::<u8>(), 0..80), is_resumed in any::<bool>(),
    ) {
        let (world, mut machine) = if is_resumed {
            (World::resumed(), resumed())
        } else {
            (World::default(), Machine::new(URL_TTL))
        };
        let kept = keeps_promises(world, &choices, |event| machine.step(event));
        prop_assert!(kept.is_ok(), "{}", kept.unwrap_err());
    }
}

/// Bytes that look random, the same in every run.
fn choices(seed: u32) -> Vec<u8> {
    let mut bytes = vec![0; 60];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Lives machines with a mistake in them: `spoil` sees each event, and the state of the last
/// booking asked for, before the machine does, and may answer in its place.
#[track_caller]
fn is_found(promise: &str, spoil: impl Fn(&mut Machine, &Event, Option<CallState>) -> Option<Effect>) {
    let found = (0..2000).any(|seed| {
        let mut machine = Machine::new(URL_TTL);
        let mut booking = None;
        let kept = keeps_promises(World::default(), &choices(seed), |event| {
            let spoiled = spoil(&mut machine, &event, booking);
            let effect = spoiled.unwrap_or_else(|| machine.step(event));
            if let Effect::Book(_, asked) = &effect {
                booking = Some(asked.state());
            }
            effect
        });
        kept.is_err_and(|broken| broken.contains(promise))
    });
    assert!(found, "nobody noticed that this was broken: {promise}");
}

fn gives_up() -> Option<Effect> {
    Some(Effect::Finish(Err(GatewayError::LedgerUnavailable)))
}

#[test]
fn planted_mistakes_are_found() {
    is_found("only through the gate", |machine, event, _| {
        let is_lost = matches!(event, Event::Marked(Ok(Permit::Lost)));
        is_lost.then(|| machine.step(Event::Marked(Ok(Permit::Granted))))
    });
    is_found("ended with a paid result in hand", |_, event, booking| match (event, booking) {
        (Event::Booked(Err(_)), Some(CallState::Answered)) => gives_up(),
        _ => None,
    });
    is_found("a booking is repeated", |_, event, booking| match (event, booking) {
        (Event::Booked(Err(_)), Some(CallState::Stored)) => gives_up(),
        _ => None,
    });
    is_found("a booking is repeated", |machine, event, booking| match (event, booking) {
        (Event::Booked(Err(_)), Some(CallState::Released)) => Some(machine.step(Event::Booked(Ok(())))),
        _ => None,
    });
    is_found("ended with a paid result in hand", |_, event, booking| match (event, booking) {
        (Event::Booked(Ok(())), Some(CallState::Answered)) => gives_up(),
        _ => None,
    });
    is_found("the gate is for our row", |machine, event, _| {
        let is_unfetched = matches!(event, Event::FetchEnded(Err(_), _));
        is_unfetched.then(|| machine.step(Event::Opened(Ok(Open::Held))))
    });
    is_found("nor again", |_, event, _| {
        matches!(event, Event::Replied(Reply::Unknown(_))).then_some(Effect::Open)
    });
    is_found("another try only of what cost nothing", |_, event, _| {
        let retry = Retry { reason: RetryReason::RateLimited, number: 1, asked: None };
        matches!(event, Event::Replied(Reply::Unknown(_))).then_some(Effect::Retry(retry))
    });
    is_found("ended with its row reserved", |_, event, _| match event {
        Event::Opened(Err(_)) => gives_up(),
        _ => None,
    });
    is_found("object first, then record", |machine, event, _| {
        let is_unkept = matches!(event, Event::ObjectKept(Err(_), _));
        is_unkept.then(|| machine.step(Event::ObjectKept(Ok(()), now())))
    });
    is_found("a result is told once it is permanent", |_, event, _| {
        let filled = Filled { record: Arc::new(bought_record()), source: FillSource::Bought };
        matches!(event, Event::ObjectKept(Ok(()), _)).then_some(Effect::Tell(Ok(filled)))
    });
    is_found("a result is told once it is permanent", |_, event, booking| {
        let is_refused = matches!(event, Event::Booked(Err(LedgerError::SpoolFull { .. })));
        let filled = Filled { record: Arc::new(bought_record()), source: FillSource::Bought };
        (is_refused && booking == Some(CallState::Stored)).then_some(Effect::Tell(Ok(filled)))
    });
    is_found("by the store or by the ledger when the store fails", |_, event, _| {
        let booking = Booking::Spooled { record: Box::new(bought_record()), bytes: fetched().bytes };
        matches!(event, Event::FetchEnded(Ok(_), _)).then_some(Effect::Book(WON.id, booking))
    });
    is_found("not booked as if it were not", |machine, event, _| {
        let not_sent = Reply::NotSent(NotSent::Upload("planted".to_owned()));
        let is_answered = matches!(event, Event::Replied(Reply::Answered(_)));
        is_answered.then(|| machine.step(Event::Replied(not_sent)))
    });
}

#[test]
fn without_a_mistake_nothing_is_found() {
    for seed in 0..2000 {
        let mut machine = Machine::new(URL_TTL);
        let kept = keeps_promises(World::default(), &choices(seed), |event| machine.step(event));
        assert_eq!(kept, Ok(()), "seed {seed}");
    }
}
