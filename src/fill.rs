//! The paid act: the only place where money can be spent.
//!
//! A [`Filler`] runs one task per key that is being made. The task is tracked and nobody can cancel
//! it: not a client that hangs up, not a deadline, not a drain. It carries out what the pure
//! [`machine`] says, one effect at a time, and reports back what came of it.

pub mod machine;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use governor::DefaultDirectRateLimiter;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::machine::{Admission, Effect, Event, FillLimits, FillSource, Machine, Open, Verdict};
use crate::cache::MemoryCache;
use crate::clock::Clock;
use crate::coalesce::{Coalescer, GroupGuard, Ticket, WaiterId};
use crate::crash::crash_point;
use crate::download::ResultSource;
use crate::envelope::Answer;
use crate::error::GatewayError;
use crate::key::{CacheKey, Digest};
use crate::ledger::budget::{Budget, Scope, Window};
use crate::ledger::{Booking, CallId, Ledger, LedgerError, Permit, Recovery, Reservation, UnfinishedCall};
use crate::metrics::{AttemptOutcome, Metrics};
use crate::slots::{Slot, Slots};
use crate::store::{Record, Store, StoreError};
use crate::teams::{BudgetMode, Team};
use crate::upstream::{HeldCall, Opened, Order, RefusalKind, Reply, Upstream};

/// What a fill works with.
pub struct FillParts {
    /// The book.
    pub ledger: Arc<dyn Ledger>,
    /// Where results rest.
    pub store: Arc<dyn Store>,
    /// Who is paid.
    pub upstream: Arc<dyn Upstream>,
    /// Where results come from.
    pub results: Arc<dyn ResultSource>,
    /// Where answers are kept at hand.
    pub cache: Arc<MemoryCache>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The time of day.
    pub clock: Clock,
}

/// What a fill needs to know of the configuration.
#[derive(Clone, Debug)]
pub struct FillConfig {
    /// Everything is filed under this name.
    pub namespace: String,
    /// What a call costs.
    pub credits_per_call: u64,
    /// Calls at once.
    pub concurrency: usize,
    /// Fills waiting for a turn.
    pub queue: usize,
    /// How long a result's URL lives.
    pub result_url_ttl: Duration,
    /// Credits all teams together may spend in a day.
    pub daily_credits: Option<u64>,
    /// Credits all teams together may spend in a month.
    pub monthly_credits: Option<u64>,
}

/// Makes what is not there yet, once, whoever asks. Cheap to clone.
#[derive(Clone)]
pub struct Filler(Arc<Inner>);

struct Inner {
    parts: FillParts,
    config: FillConfig,
    groups: Arc<Coalescer<CacheKey, Seat, FillOutcome>>,
    slots: Arc<Slots>,
    rates: HashMap<String, DefaultDirectRateLimiter>,
    draining: CancellationToken,
    tasks: TaskTracker,
}

/// What is to be made.
#[derive(Clone)]
pub struct Wanted {
    /// What to buy.
    pub order: Arc<Order>,
    /// The request.
    pub key: CacheKey,
    /// BLAKE3 of the picture.
    pub image: Digest,
    /// Buy although a result is stored.
    pub refresh: bool,
}

/// Who waits, and until when.
#[derive(Clone, Debug)]
pub struct Seat {
    /// Whose budget may be asked.
    pub team: Arc<Team>,
    /// When the caller is answered in any case.
    pub deadline: Instant,
}

impl PartialEq for Seat {
    /// Seats of one team are alike: what refuses one refuses the other.
    fn eq(&self, other: &Self) -> bool {
        self.team.name == other.team.name
    }
}

/// What the callers of one fill share.
#[derive(Clone, Debug)]
pub struct FillOutcome {
    /// The result, or why there is none.
    pub verdict: Verdict,
    /// Who paid for it.
    pub payer: Option<WaiterId>,
}

impl Filler {
    /// Starts with nothing in hand; see [`resume`](Self::resume).
    pub fn new(parts: FillParts, config: FillConfig, teams: &[Arc<Team>]) -> Self {
        let slots = Slots::new(config.concurrency, config.queue);
        Self(Arc::new(Inner {
            parts,
            config,
            groups: Arc::new(Coalescer::new()),
            slots,
            rates: rate_limiters(teams),
            draining: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }))
    }

    /// Joins the fill of a key, or starts it.
    pub fn join(&self, wanted: Wanted, seat: Seat) -> Ticket<FillOutcome> {
        let ticket = self.0.groups.join(wanted.key, seat);
        if ticket.first {
            let machine = Machine::new(self.limits());
            self.spawn(Task::new(self.0.clone(), wanted.key, Some(wanted)), machine);
        }
        ticket
    }

    /// Goes on with what a dead process had paid for. Requests for these keys join.
    pub fn resume(&self, recovery: Recovery) {
        let Recovery { released, unknown, unfinished } = recovery;
        if released + unknown > 0 || !unfinished.is_empty() {
            tracing::warn!(
                released,
                unknown,
                unfinished = unfinished.len(),
                "settled what the last process left open"
            );
        }
        self.0.parts.metrics.fills_recovered(released, unknown);
        for call in unfinished {
            self.resume_one(call);
        }
    }

    fn resume_one(&self, call: UnfinishedCall) {
        let key = call.reservation.key;
        let Ok(answer) = Answer::read(call.text.expose()) else {
            tracing::error!(
                call = call.id.0,
                "the answer in the ledger cannot be read; its row stays as it is"
            );
            return;
        };
        if !self.0.groups.found(key) {
            return;
        }
        let mut task = Task::new(self.0.clone(), key, None);
        task.answered = Some((age(call.answered_at, self.0.parts.clock.now()), Instant::now()));
        self.spawn(task, Machine::resume(self.limits(), call, answer));
    }

    /// Every budget a call of the team must fit into.
    pub fn budgets(&self, team: &Team) -> Vec<Budget> {
        self.0.config.budgets(team)
    }

    /// From now on nothing new is bought; what is under way goes on.
    pub fn drain(&self) {
        self.0.draining.cancel();
        self.0.tasks.close();
    }

    /// Is nothing new bought any more?
    pub fn is_draining(&self) -> bool {
        self.0.draining.is_cancelled()
    }

    /// Waits, after [`drain`](Self::drain), until every fill has come to a durable rest.
    pub async fn settled(&self) {
        self.0.tasks.wait().await;
    }

    /// Fills under way, callers waiting for them, paid calls under way, fills waiting for a turn.
    pub fn load(&self) -> (usize, usize, usize, usize) {
        let (fills, waiters) = self.0.groups.sizes();
        let (calls, queued) = self.0.slots.load();
        (fills, waiters, calls, queued)
    }

    fn limits(&self) -> FillLimits {
        FillLimits { result_url_ttl: self.0.config.result_url_ttl }
    }

    fn spawn(&self, task: Task, machine: Machine) {
        self.0.tasks.spawn(task.run(machine));
    }
}

/// One fill under way: the machine's hands.
struct Task {
    shared: Arc<Inner>,
    key: CacheKey,
    /// `None` for a resumed fill, which has nothing left to buy.
    wanted: Option<Wanted>,
    /// Whom the last admission was about.
    payer: Option<(WaiterId, Seat)>,
    slot: Option<Slot>,
    held: Option<Box<dyn HeldCall>>,
    /// How old the answer was at an instant.
    answered: Option<(Duration, Instant)>,
}

impl Task {
    fn new(shared: Arc<Inner>, key: CacheKey, wanted: Option<Wanted>) -> Self {
        Self { shared, key, wanted, payer: None, slot: None, held: None, answered: None }
    }

    /// Carries out effects until the machine is done. If this panics, its callers are told.
    async fn run(mut self, mut machine: Machine) {
        let bug = FillOutcome { verdict: Err(GatewayError::Bug), payer: None };
        let guard = GroupGuard::new(self.shared.groups.clone(), self.key, bug);
        let mut event = Event::Started;
        loop {
            event = match machine.step(event) {
                Effect::Finish(verdict) => break self.finish(verdict).await,
                Effect::Stop => break,
                Effect::Pause(time) if self.must_leave() => {
                    tracing::info!(?time, "leaving a paid result to the next process: it is in the ledger");
                    break self.finish(Err(GatewayError::StillBeingMade)).await;
                }
                effect => self.perform(effect, &machine).await,
            };
        }
        guard.disarm();
    }

    async fn perform(&mut self, effect: Effect, machine: &Machine) -> Event {
        let shared = self.shared.clone();
        let parts = &shared.parts;
        match effect {
            Effect::TakeSlot => self.take_slot().await,
            Effect::Admit => Event::Admitted(self.admit()),
            Effect::CheckRoom => Event::Room(parts.store.check_room().await),
            Effect::Reserve => {
                crash_point("CP4");
                let Some(payer) = machine.payer() else { return no_payer() };
                let reserved = parts.ledger.reserve(payer.clone()).await;
                crash_point("CP5");
                Event::Reserved(reserved)
            }
            Effect::LookAgain => Event::LookedAgain(self.look_again().await),
            Effect::Adopt(record) => {
                if let Err(error) = parts.ledger.adopt(&record).await {
                    tracing::warn!(%error, key = %self.key, "the ledger could not be told of a record");
                }
                Event::Adopted
            }
            Effect::Open => self.open().await,
            Effect::MarkSent(id) => {
                let permit = parts.ledger.mark_sent(id).await;
                if matches!(permit, Ok(Permit::Granted)) {
                    crash_point("CP7");
                }
                Event::Marked(permit)
            }
            Effect::Send => self.send().await,
            Effect::Book(id, booking) => {
                self.held = None;
                Event::Booked(self.book(id, booking, machine).await)
            }
            Effect::Fetch(url) => {
                crash_point("CP15");
                let fetched = parts.results.fetch(&url).await;
                Event::FetchEnded(fetched, self.answer_age())
            }
            Effect::PutObject(fetched) => {
                crash_point("CP22");
                let kept = parts.store.put_object(fetched.name, fetched.bytes).await;
                crash_point("CP24");
                Event::ObjectKept(kept.map(|()| parts.clock.now()))
            }
            Effect::PutRecord(record) => Event::RecordKept(parts.store.put_record(&record).await),
            Effect::Pause(time) => self.pause(time).await,
            Effect::StepAside(time) => {
                self.slot = None;
                self.pause(time).await
            }
            Effect::RefuseTeam(error) => {
                if let Some((_, seat)) = self.payer.take() {
                    let outcome = FillOutcome { verdict: Err(error), payer: None };
                    self.shared.groups.refuse(self.key, &seat, &outcome);
                }
                Event::Told
            }
            Effect::Tell(verdict) => {
                let outcome = self.outcome(verdict).await;
                self.shared.groups.stall(self.key, &outcome);
                Event::Told
            }
            Effect::Finish(_) | Effect::Stop => Event::Told,
        }
    }

    async fn take_slot(&mut self) -> Event {
        self.slot = None;
        let Some((_, seat)) = self.shared.groups.candidate(self.key) else {
            return Event::Admitted(Admission::Nobody);
        };
        let patience = seat.deadline.saturating_duration_since(Instant::now());
        match self.shared.slots.take(patience).await {
            Ok(slot) => {
                self.slot = Some(slot);
                Event::Slot(Ok(()))
            }
            Err(busy) => Event::Slot(Err(GatewayError::TooBusy { wait: busy.wait })),
        }
    }

    /// The longest-waiting caller's team pays, if it may.
    fn admit(&mut self) -> Admission {
        let Some((waiter, seat)) = self.shared.groups.candidate(self.key) else { return Admission::Nobody };
        let Some(wanted) = &self.wanted else { return Admission::Nobody };
        self.payer = Some((waiter, seat.clone()));
        if self.shared.draining.is_cancelled() {
            return Admission::Refused(GatewayError::Draining);
        }
        if let Err(wait) = self.shared.check_rate(&seat.team) {
            let can_wait = Instant::now() + wait < seat.deadline;
            return if can_wait {
                Admission::TooFast(wait)
            } else {
                Admission::Refused(GatewayError::RateLimited { wait })
            };
        }
        Admission::Payer(Box::new(Reservation {
            namespace: self.shared.config.namespace.clone(),
            key: wanted.key,
            refresh: wanted.refresh,
            team: seat.team.name.clone(),
            credits: self.shared.config.credits_per_call,
            budgets: self.shared.config.budgets(&seat.team),
            image: wanted.image,
            width: wanted.order.width,
            height: wanted.order.height,
        }))
    }

    /// A record without its object is no result: it does not stop a purchase.
    async fn look_again(&mut self) -> Result<Option<Record>, StoreError> {
        let shared = self.shared.clone();
        let store = &shared.parts.store;
        let Some(record) = store.record(&shared.config.namespace, self.key).await? else {
            return Ok(None);
        };
        match record.object() {
            Some(object) if store.has_object(object).await? => Ok(Some(record)),
            _ => Ok(None),
        }
    }

    async fn open(&mut self) -> Event {
        let Some(wanted) = &self.wanted else { return no_payer() };
        let metrics = &self.shared.parts.metrics;
        Event::Opened(match self.shared.parts.upstream.open(wanted.order.clone()).await {
            Ok(Opened::Held(call)) => {
                self.held = Some(call);
                Ok(Open::Held)
            }
            Ok(Opened::Answered(reply)) => {
                metrics.attempt(attempt_outcome(&reply));
                Ok(Open::Early(reply))
            }
            Err(error) => {
                metrics.attempt(AttemptOutcome::Connect);
                Err(error)
            }
        })
    }

    async fn send(&mut self) -> Event {
        let Some(call) = self.held.take() else { return no_payer() };
        let reply = call.send().await;
        crash_point("CP12");
        self.slot = None;
        self.shared.parts.metrics.attempt(attempt_outcome(&reply));
        Event::Replied(reply)
    }

    async fn book(&mut self, id: CallId, booking: Booking, machine: &Machine) -> Result<(), LedgerError> {
        let state = booking.state();
        self.shared.parts.ledger.book(id, booking).await?;
        if let Some(payer) = machine.payer() {
            self.shared.parts.metrics.booked(state, &payer.team, payer.credits);
        }
        if state == crate::ledger::CallState::Answered {
            self.answered = Some((Duration::ZERO, Instant::now()));
            crash_point("CP14");
        }
        if state == crate::ledger::CallState::Stored {
            crash_point("CP28");
        }
        Ok(())
    }

    /// Waits between tries; a drain ends the wait early.
    async fn pause(&mut self, time: Duration) -> Event {
        tokio::select! {
            () = tokio::time::sleep(jittered(time)) => {}
            () = self.shared.draining.cancelled(), if self.answered.is_some() => {}
        }
        Event::Paused
    }

    /// Is the process ending while only free work is left, which the ledger remembers?
    fn must_leave(&self) -> bool {
        self.shared.draining.is_cancelled() && self.answered.is_some()
    }

    fn answer_age(&self) -> Duration {
        self.answered.map_or(Duration::ZERO, |(base, since)| base + since.elapsed())
    }

    async fn finish(&mut self, verdict: Verdict) {
        let outcome = self.outcome(verdict).await;
        self.shared.groups.finish(self.key, &outcome);
    }

    /// Puts a result into memory before anyone is told of it, so that whoever comes next finds it.
    async fn outcome(&mut self, verdict: Verdict) -> FillOutcome {
        let shared = self.shared.clone();
        let cache = &shared.parts.cache;
        match &verdict {
            Ok(filled) => cache.keep_answer(filled.record.clone()).await,
            Err(GatewayError::Upstream { status, body })
                if matches!(status.as_u16(), 400 | 413 | 415 | 422) =>
            {
                cache.keep_refusal(self.key, *status, body.clone()).await;
            }
            Err(_) => {}
        }
        let bought = verdict.as_ref().is_ok_and(|filled| filled.source == FillSource::Bought);
        FillOutcome { verdict, payer: self.payer.as_ref().filter(|_| bought).map(|(waiter, _)| *waiter) }
    }
}

impl Inner {
    /// Lets a miss of the team through, or says how long until the next one.
    fn check_rate(&self, team: &Team) -> Result<(), Duration> {
        use governor::clock::{Clock as _, DefaultClock};
        let Some(limiter) = self.rates.get(&team.name) else { return Ok(()) };
        limiter.check().map_err(|denied| denied.wait_time_from(DefaultClock::default().now()))
    }
}

impl FillConfig {
    /// Every budget a team's call must fit into: the global ones are never in shadow mode.
    fn budgets(&self, team: &Team) -> Vec<Budget> {
        let own = Scope::Team(team.name.clone());
        let enforced = team.mode == BudgetMode::Enforce;
        [
            (Scope::Global, Window::Day, self.daily_credits, true),
            (Scope::Global, Window::Month, self.monthly_credits, true),
            (own.clone(), Window::Day, team.daily_credits, enforced),
            (own, Window::Month, team.monthly_credits, enforced),
        ]
        .into_iter()
        .filter_map(|(scope, window, limit, enforced)| {
            Some(Budget { scope, window, limit: limit?, enforced })
        })
        .collect()
    }
}

fn rate_limiters(teams: &[Arc<Team>]) -> HashMap<String, DefaultDirectRateLimiter> {
    let limiter = |team: &Arc<Team>| {
        let period = Duration::try_from_secs_f64(1.0 / team.misses_per_second?).ok()?;
        let quota = governor::Quota::with_period(period)?;
        Some((team.name.clone(), DefaultDirectRateLimiter::direct(quota)))
    };
    teams.iter().filter_map(limiter).collect()
}

fn attempt_outcome(reply: &Reply) -> AttemptOutcome {
    use crate::upstream::UnknownCause;
    match reply {
        Reply::Answered(_) => AttemptOutcome::Ok,
        Reply::Refused(refusal) => match refusal.kind {
            RefusalKind::Order | RefusalKind::Other => AttemptOutcome::CallerRejected,
            RefusalKind::Key => AttemptOutcome::Auth,
            RefusalKind::Credits => AttemptOutcome::Quota,
            RefusalKind::Flow { .. } => AttemptOutcome::RateLimited,
        },
        Reply::Failed(_) => AttemptOutcome::ServerError,
        Reply::NotSent(_) => AttemptOutcome::Connect,
        Reply::Unknown(UnknownCause::Timeout) => AttemptOutcome::Timeout,
        Reply::Unknown(_) => AttemptOutcome::BadBody,
    }
}

/// Between the half and the whole of a time, so that what failed together does not retry together.
fn jittered(time: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX);
    time.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

fn age(answered_at: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(answered_at)).unwrap_or(Duration::ZERO)
}

fn no_payer() -> Event {
    Event::Slot(Err(GatewayError::Bug))
}
