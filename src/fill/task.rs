//! One fill under way: performs the effects of the [`machine`](super::machine), and returns their outcomes as
//! events. It decides nothing about money; it knows the waiters, their rates and their answers.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::lease::Held;
use super::machine::{Admission, Effect, Event, FillSource, Machine, Open, Standing, Verdict};
use super::{FillOutcome, FillRequest, FillTiming, Inner, MOST_UNSETTLED, Waiter};
use crate::base::crash::crash_point;
use crate::base::identity::Identity;
use crate::base::random::jittered;
use crate::base::secret::Secret;
use crate::cache::FillToken;
use crate::error::{GatewayError, is_about_the_request};
use crate::fill::circuit::Pass;
use crate::fill::coalesce::{Coalescer, WaiterId};
use crate::fill::slots::Slot;
use crate::ledger::{Booking, CallId, CallState, LedgerError, Permit, Reservation, Reserved};
use crate::metrics::{ShedReason, Stage};
use crate::store::{StoreBudget, StoreError};
use crate::teams::policy::Turn;
use crate::upstream::{HeldCall, NotSent, Opened, Reply};

pub(super) struct Task {
    pub(super) shared: Arc<Inner>,
    pub(super) groups: Arc<Coalescer<Identity, Waiter, FillOutcome>>,
    pub(super) identity: Identity,
    /// `None` once nothing is left to buy: a picture is not kept while its result is fetched.
    wanted: Option<FillRequest>,
    /// The waiter of the last admission.
    payer: Option<(WaiterId, Waiter)>,
    pub(super) slot: Option<Slot>,
    /// What may still be waited for the store before the spool takes over.
    budget: StoreBudget,
    /// The right to call the upstream; given back as soon as the fill has nothing more to report.
    pub(super) pass: Option<Pass>,
    /// The team whose rate was reserved, and its time: a fill is one miss, however often it is tried.
    rated: Option<(String, Option<Turn>)>,
    /// An order has gone out before.
    pub(super) is_retry: bool,
    held: Option<Box<dyn HeldCall>>,
    pub(super) lease: Option<Held>,
    /// Counts the fill among those that settle without a slot.
    unsettled: Option<Arc<()>>,
    /// The callers have their answer.
    is_told: bool,
    /// When the fill began, for the memory cache.
    reading: FillToken,
    /// The call was found `answered`, so a purge may be newer.
    is_resumed: bool,
    /// The credits of the answer are counted.
    is_counted: bool,
    /// Another process can finish the fill: the answer is in the ledger, or the record in the store.
    is_durable: bool,
    /// Age of the answer at an instant.
    pub(super) answered: Option<(Duration, Instant)>,
    pub(super) timing: FillTiming,
    /// The stage of the last effect, which a pause belongs to.
    pub(super) stage: Stage,
    /// Another fill holds the key.
    pub(super) is_held: bool,
    /// The group has been answered or dissolved.
    is_over: bool,
}

impl Task {
    pub(super) fn new(shared: Arc<Inner>, identity: Identity, wanted: Option<FillRequest>) -> Self {
        let groups = shared.groups.clone();
        let reading = shared.core.cache.begin_reading(&identity);
        Self {
            shared,
            groups,
            identity,
            payer: None,
            slot: None,
            budget: wanted.as_ref().map_or_else(StoreBudget::default, |wanted| wanted.budget.clone()),
            pass: None,
            rated: None,
            is_retry: false,
            held: None,
            lease: None,
            unsettled: None,
            is_told: false,
            reading,
            is_resumed: wanted.is_none(),
            is_counted: wanted.is_none(),
            is_durable: wanted.is_none(),
            wanted,
            answered: None,
            timing: FillTiming::default(),
            stage: Stage::QueueWait,
            is_held: false,
            is_over: false,
        }
    }

    /// Gives up the callers: the waiters of the key are another task's.
    pub(super) fn work_alone(&mut self) {
        self.groups = Arc::default();
    }

    /// Nothing more is sent; the rest may take long.
    pub(super) fn go_on_without_a_slot(&mut self) {
        self.unsettled.get_or_insert_with(|| self.shared.unsettled.clone());
        self.wanted = None;
        self.slot = None;
    }

    pub(super) async fn run(mut self, mut machine: Machine) {
        let mut event = Event::Started;
        loop {
            event = match machine.step(event) {
                Effect::Finish(verdict) => break self.finish(verdict).await,
                Effect::Stop => break,
                Effect::Pause(time) if self.is_durable && self.shared.draining.is_cancelled() => {
                    tracing::info!(?time, "leaving a paid result to the next process: it is in the ledger");
                    break self.finish(Err(GatewayError::StillBeingMade)).await;
                }
                effect => self.timed(effect, &machine).await,
            };
        }
        self.end_timing();
        self.is_over = true;
    }

    pub(super) async fn perform(&mut self, effect: Effect, machine: &Machine) -> Event {
        let shared = self.shared.clone();
        let core = &shared.core;
        match effect {
            Effect::TakeSlot => self.take_slot().await,
            Effect::Admit => Event::Admitted(self.admit()),
            Effect::CheckRoom => Event::Room(self.check_room().await),
            Effect::EnterCircuit => Event::Entered(self.enter_circuit()),
            Effect::Reserve => self.reserve(machine).await,
            Effect::LookAgain => Event::LookedAgain(self.look_again().await),
            Effect::Import(record) => {
                if let Err(error) = core.ledger.import_record(&record).await {
                    tracing::warn!(%error, key = %self.identity, "the ledger could not be told of a record");
                }
                Event::Done
            }
            Effect::CheckWaiters => Event::Awaited(self.check_waiters()),
            Effect::Open => self.open().await,
            Effect::MarkSent(id) => self.mark_sent(id).await,
            Effect::Send => self.send().await,
            Effect::Retry(retry) => Event::MayRetry(self.retry(retry).await),
            Effect::Book(id, booking) => {
                self.held = None;
                Event::Booked(self.book(id, booking, machine).await)
            }
            Effect::Fetch(url) => self.fetch(&url, machine).await,
            Effect::PutObject(fetched) => {
                crash_point("CP22");
                let kept = self.budget.wait(core.store.put_object(fetched.name, fetched.bytes)).await;
                crash_point("CP24");
                Event::ObjectKept(kept, core.clock.now())
            }
            Effect::PutRecord(record) => {
                let kept = self.budget.wait(core.store.put_record(&record)).await;
                self.is_durable |= kept.is_ok();
                Event::RecordKept(kept)
            }
            Effect::Pause(time) => self.pause(time).await,
            Effect::StepAside(time) => {
                (self.slot, self.pass) = (None, None);
                self.pause(time).await
            }
            Effect::RefuseTeam(error) => {
                self.pass = None;
                if let Some((_, waiter)) = self.payer.take() {
                    self.refuse(&waiter, error);
                }
                Event::Done
            }
            Effect::Tell(verdict) => {
                self.report_settled(&verdict);
                let outcome = self.outcome(verdict).await;
                self.is_told = true;
                self.groups.stall(&self.identity, &outcome);
                Event::Done
            }
            Effect::Finish(_) | Effect::Stop => Event::Done,
        }
    }

    async fn reserve(&mut self, machine: &Machine) -> Event {
        crash_point("CP4");
        let Some(payer) = &machine.payer else { return no_payer() };
        let before = self.shared.core.clock.uptime();
        let reserved = self.shared.core.ledger.reserve(payer.clone()).await;
        if let Ok(Reserved::Won(won)) = &reserved {
            self.lease = Some(self.shared.leases.hold(won.id, before));
        }
        crash_point("CP5");
        self.note_reserved(payer, &reserved);
        Event::Reserved(reserved)
    }

    async fn mark_sent(&mut self, id: CallId) -> Event {
        let before = self.shared.core.clock.uptime();
        let permit = self.shared.core.ledger.mark_sent(id).await;
        if matches!(permit, Ok(Permit::Granted)) {
            self.lease.iter().for_each(|lease| lease.renewed(before));
            crash_point("CP7");
        }
        Event::Marked(permit)
    }

    async fn fetch(&mut self, url: &Secret, machine: &Machine) -> Event {
        crash_point("CP15");
        let fetched = self.shared.results.fetch(url).await;
        self.report_mismatch(&fetched, machine);
        if let Err(error) = &fetched {
            self.shared.core.metrics.cache_store_rejected_total[error.into()].inc();
        }
        Event::FetchEnded(fetched, self.answer_age())
    }

    /// Answers the waiters of one team only.
    pub(super) fn refuse(&self, waiter: &Waiter, error: GatewayError) {
        let outcome = FillOutcome { verdict: Err(error), payer: None, timing: self.timing };
        self.groups.refuse(&self.identity, waiter, &outcome);
    }

    /// Reserves this fill's miss under the rate of a waiter's team.
    pub(super) fn reserve_miss(&mut self, waiter: &Waiter) -> Result<(), GatewayError> {
        let policy = self.shared.core.policy.get();
        if self.is_rated_for(&waiter.team.name) {
            return Ok(());
        }
        self.rated = None;
        // A team that may not pay is refused by `admit`.
        let Ok(team) = policy.payer(&waiter.team.name) else { return Ok(()) };
        let reserved = policy.reserve_miss(team, waiter.deadline);
        self.note_rate(&reserved);
        let turn = reserved.map_err(|wait| GatewayError::RateLimited { wait })?;
        self.rated = Some((team.name.clone(), turn));
        Ok(())
    }

    fn is_rated_for(&self, team: &str) -> bool {
        self.rated.as_ref().is_some_and(|(rated, _)| rated == team)
    }

    /// When the team's rate allows the miss.
    pub(super) fn rate_allows_at(&self) -> Option<Instant> {
        self.rated.as_ref().and_then(|(_, turn)| turn.as_ref()).map(|turn| turn.at)
    }

    /// The longest-waiting caller's team pays, if it may.
    fn admit(&mut self) -> Admission {
        let Some((id, waiter)) = self.groups.candidate(&self.identity) else { return Admission::Nobody };
        let Some(wanted) = &self.wanted else { return Admission::Nobody };
        self.payer = Some((id, waiter.clone()));
        if self.shared.draining.is_cancelled() {
            return Admission::Refused(GatewayError::Draining);
        }
        if !self.shared.core.guard.is_open() {
            return Admission::Refused(GatewayError::ArchiveGuard);
        }
        // The present policy, which may be stricter than when the caller was authenticated.
        let policy = self.shared.core.policy.get();
        let team = match policy.payer(&waiter.team.name) {
            Ok(team) => team,
            Err(error) => return Admission::Refused(GatewayError::Auth(error)),
        };
        if wanted.refresh && waiter.team.may_refresh && !team.may_refresh {
            return Admission::Refused(GatewayError::RefreshNotAllowed);
        }
        if !self.is_rated_for(&team.name) {
            return Admission::Unrated;
        }
        Admission::Payer(Box::new(Reservation {
            namespace: wanted.identity.namespace.to_string(),
            key: wanted.identity.key,
            refresh: wanted.refresh,
            team: team.name.clone(),
            credits: wanted.credits,
            budgets: policy.limits(team, wanted.credits),
            image: wanted.image,
            width: wanted.order.width,
            height: wanted.order.height,
        }))
    }

    /// Checks the store's room for another result, and the memory for another unsettled fill.
    async fn check_room(&mut self) -> Result<(), StoreError> {
        if Arc::strong_count(&self.shared.unsettled) > MOST_UNSETTLED {
            return Err(StoreError::Full("too many paid results are still to be fetched".to_owned()));
        }
        self.budget.wait(self.shared.core.store.check_room()).await
    }

    /// As in a lookup, an object that cannot be looked for counts as there.
    async fn look_again(&mut self) -> Result<Standing, StoreError> {
        let (store, Identity { namespace, key }) = (&self.shared.core.store, &self.identity);
        let Some(record) = self.budget.read(store.record(namespace, *key)).await? else {
            return Ok(Standing::Nothing);
        };
        let is_gone = match record.object() {
            Some(object) => matches!(self.budget.wait(store.has_object(object)).await, Ok(false)),
            None => true,
        };
        Ok(if is_gone { Standing::OrphanRecord(record) } else { Standing::Result(record) })
    }

    /// If no waiter is left, later callers start another fill.
    fn check_waiters(&mut self) -> bool {
        let is_awaited = self.groups.candidate(&self.identity).is_some();
        if !is_awaited {
            self.shared.core.metrics.upstream_shed_total[ShedReason::Deserted].inc();
            (self.slot, self.pass) = (None, None);
            self.work_alone();
        }
        is_awaited
    }

    async fn open(&mut self) -> Event {
        let Some(wanted) = &self.wanted else { return no_payer() };
        if !self.is_retry {
            self.shared.retries.deposit();
        }
        self.is_retry = true;
        Event::Opened(match self.shared.upstream.open(wanted.order.clone()).await {
            Ok(Opened::Held(call)) => {
                self.held = Some(call);
                Ok(Open::Held)
            }
            Ok(Opened::Answered(reply)) => {
                self.report(&reply, false);
                Ok(Open::Early(reply))
            }
            Err(error) => {
                self.report(&Reply::NotSent(error.clone()), false);
                Err(error)
            }
        })
    }

    async fn send(&mut self) -> Event {
        let Some(call) = self.held.take() else { return no_payer() };
        if !self.lease.as_ref().is_some_and(Held::may_send) {
            return Event::Replied(Reply::NotSent(NotSent::Late));
        }
        let reply = call.send().await;
        crash_point("CP12");
        self.report(&reply, true);
        if let Reply::Answered(_) = reply {
            self.answered = Some((Duration::ZERO, Instant::now()));
            self.go_on_without_a_slot();
        }
        Event::Replied(reply)
    }

    async fn book(&mut self, id: CallId, booking: Booking, machine: &Machine) -> Result<(), LedgerError> {
        let state = booking.state();
        let booked = self.shared.core.ledger.book(id, booking).await;
        // A contradiction means that the row was settled meanwhile; the result is fetched all the same.
        if matches!(booked, Ok(()) | Err(LedgerError::Contradiction { .. })) {
            self.is_durable |= state == CallState::Answered;
        }
        booked?;
        self.report_booked(state);
        if let Some(payer) = &machine.payer {
            let metrics = &self.shared.core.metrics;
            // A result may be booked without its answer.
            if state == CallState::Stored && !self.is_counted {
                metrics.booked(CallState::Answered, &payer.team, payer.credits);
            }
            self.is_counted |= matches!(state, CallState::Answered | CallState::Stored);
            metrics.booked(state, &payer.team, payer.credits);
        }
        if state == CallState::Answered {
            crash_point("CP14");
        }
        if state == CallState::Stored {
            crash_point("CP28");
        }
        Ok(())
    }

    /// Waits between tries; a drain ends the wait early if another process can finish the fill.
    async fn pause(&mut self, time: Duration) -> Event {
        tokio::select! {
            biased;
            () = self.shared.draining.cancelled(), if self.is_durable => {}
            () = tokio::time::sleep(jittered(time)) => {}
        }
        if self.answered.is_some() {
            // Neither store nor spool took the result; each further try has its own budget.
            self.budget = StoreBudget::default();
        }
        Event::Done
    }

    fn answer_age(&self) -> Duration {
        self.answered.map_or(Duration::ZERO, |(base, since)| base + since.elapsed())
    }

    async fn finish(&mut self, verdict: Verdict) {
        (self.slot, self.pass) = (None, None);
        let outcome = self.outcome(verdict).await;
        self.groups.finish(&self.identity, &outcome);
    }

    /// Keeps a result in memory before any caller gets it, so that the next request finds it.
    async fn outcome(&mut self, verdict: Verdict) -> FillOutcome {
        let shared = self.shared.clone();
        let cache = &shared.core.cache;
        match &verdict {
            Ok(filled) if self.is_resumed && !shared.is_unpurged(&filled.record).await => {
                cache.forget_answer(&self.identity);
            }
            Ok(filled) => cache.keep_answer(filled.record.clone(), self.reading),
            // It was kept before the callers were answered.
            Err(_) if self.is_told => {}
            Err(GatewayError::Upstream { status, body, .. }) if is_about_the_request(*status) => {
                cache.keep_refusal(&self.identity, *status, body.clone());
            }
            Err(GatewayError::UpstreamThrottled { wait }) => shared.retry_after.note(&self.identity, *wait),
            Err(_) => {}
        }
        let bought = verdict.as_ref().is_ok_and(|filled| filled.source == FillSource::Bought);
        let payer = self.payer.as_ref().filter(|_| bought).map(|(waiter, _)| *waiter);
        FillOutcome { verdict, payer, timing: self.timing }
    }
}

impl Drop for Task {
    /// A panic answers the callers, too.
    fn drop(&mut self) {
        if !self.is_over {
            let verdict = Err(GatewayError::Bug);
            let bug = FillOutcome { verdict, payer: None, timing: FillTiming::default() };
            self.groups.finish(&self.identity, &bug);
        }
    }
}

fn no_payer() -> Event {
    Event::Slot(Err(GatewayError::Bug))
}
