//! One crop request, top to bottom: [`Gateway::handle`].
//!
//! | step | where |
//! |---|---|
//! | parse, key | [`request`]: the picture is hashed while it arrives |
//! | look up | `look_up`: memory, as far as it is [fresh](freshness), then ledger, then store; only what is known to be absent is bought |
//! | coalesce, admit, pay, fetch, persist | [`fill`](crate::fill): one tracked task per key |
//! | rewrite | [`rewrite`], with our URL or the one of the bucket's server |
//! | respond | [`routes`](crate::http::routes) |
//!
//! Hits and coalesced callers spend nothing, and work when everything else is down.

mod address;
pub(crate) mod freshness;
pub(crate) mod keys;
mod look_up;
pub mod rewrite;
#[cfg(test)]
mod tests;
mod timing;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio::time::error::Elapsed;

use self::freshness::Freshness;
use self::look_up::Intent;
pub use self::timing::RequestTiming;
use crate::base::crash::crash_point;
use crate::base::identity::Identity;
use crate::base::operation::Offer;
use crate::base::outcome::{CacheStatus, SavingCause};
use crate::base::picture::ObjectName;
use crate::base::record::Record;
use crate::billing::metering::Meter;
use crate::cache::ObjectError;
use crate::error::{Fault, GatewayError};
use crate::fill::coalesce::Ticket;
use crate::fill::machine::FillSource;
use crate::fill::{Core, FillOutcome, FillRequest, Filler, Waiter};
use crate::ledger::budget::{Budget, Used};
use crate::ledger::usage::Payer;
use crate::metrics::{CoalesceScope, Stage};
use crate::request::body::ClientBody;
use crate::request::uploads::UploadRoom;
use crate::request::{self, CropRequest, FormHead};
use crate::store::{StoreBudget, StoreError};
use crate::teams::Team;

/// How long a caller waits whose body took longer than its deadline to arrive.
const LATE_BODY_PATIENCE: Duration = Duration::from_secs(2);

/// `Retry-After` when too many wait.
const CROWDED: Duration = Duration::from_secs(2);

pub struct Gateway {
    core: Arc<Core>,
    filler: Filler,
    meter: Arc<Meter>,
    /// Where pictures are until they are bought, or need not be.
    uploads: UploadRoom,
    freshness: Arc<Freshness>,
    public_root: String,
    store_root: Option<String>,
    /// Places for callers who wait for a fill.
    waiting: Semaphore,
}

pub struct Caller {
    /// Whose budget a miss is counted against.
    pub team: Arc<Team>,
    /// `Granary-Refresh: 1`.
    pub refresh: bool,
    /// `Cache-Control: only-if-cached`.
    pub only_if_cached: bool,
    /// When the caller is answered in any case.
    pub deadline: Instant,
}

/// A crop, as a client gets it.
pub struct CropReply {
    pub body: String,
    pub record: Arc<Record>,
    pub status: CacheStatus,
    /// Credits this call cost its team.
    pub charged: u64,
    /// Credits it would have cost, had the result not been there or in the making.
    pub saved: u64,
    /// Whole seconds since the result was stored.
    pub age_seconds: u64,
    /// Form fields that mean nothing here.
    pub ignored: Vec<String>,
}

impl Gateway {
    /// `public_root` is the scheme and host clients reach us at, without a trailing slash.
    pub fn new(filler: Filler, meter: Arc<Meter>, uploads: UploadRoom, public_root: String) -> Self {
        let core = filler.core().clone();
        let freshness = Arc::new(Freshness::new(core.ledger.clone(), core.cache.clone()));
        Self {
            core,
            filler,
            meter,
            uploads,
            freshness,
            public_root,
            store_root: None,
            waiting: Semaphore::new(Semaphore::MAX_PERMITS),
        }
    }

    /// Decides whether memory is believed; it must [follow](Freshness::follow) the ledger.
    pub fn freshness(&self) -> Arc<Freshness> {
        self.freshness.clone()
    }

    /// Answers name URLs below `root` for what the store has confirmed: another server has the store's
    /// objects there. Without a trailing slash.
    pub fn with_store_root(self, root: Option<String>) -> Self {
        Self { store_root: root, ..self }
    }

    /// So many callers may wait for fills at the same time; more are refused at once. Waiting is what
    /// takes long: those who only want what is stored must always find a connection.
    pub fn with_waiting_places(self, places: usize) -> Self {
        Self { waiting: Semaphore::new(places.min(Semaphore::MAX_PERMITS)), ..self }
    }

    /// The life of a request, which leaves its `timing` however it ends.
    ///
    /// # Errors
    /// [`GatewayError`]: the client's answer. Whatever it says, a fill that has begun
    /// goes on, and what is paid for is kept.
    pub async fn handle<B>(
        &self,
        offer: &Offer,
        caller: &Caller,
        head: FormHead,
        body: ClientBody<B>,
        timing: &mut RequestTiming,
    ) -> Result<CropReply, GatewayError>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: Into<request::BoxError>,
    {
        crash_point("CP1");
        let request = self.read(head, body, timing).await?;
        crash_point("CP3");
        let deadline = deadline_of(caller);
        let mut budget = StoreBudget::default();
        let identity = offer.identity(request.key);
        let intent = if caller.only_if_cached { Intent::Report } else { Intent::Buy };
        let look_up = self.look_up(&identity, intent, &mut timing.stages, &mut budget);
        let found =
            tokio::time::timeout_at(deadline, look_up).await.map_err(|_| {
                tracing::error!(key = %request.key, "neither ledger nor store said in time whether they have a key");
                GatewayError::StillBeingMade
            })??;
        if let Some(found) = found.filter(|_| !caller.refresh) {
            // What is not bought makes room for other uploads at once.
            drop(request.order);
            return self.reply(found.record, found.status, request.ignored).await;
        }
        self.may_be_bought(caller, &identity)?;
        let (record, status, ignored) =
            self.fill(caller, (request, identity, offer.credits), budget, deadline, timing).await?;
        self.reply(record, status, ignored).await
    }

    /// The stored answer under a key; never spends a credit.
    ///
    /// # Errors
    /// [`GatewayError::KeyNotFound`], or whatever keeps us from knowing.
    pub async fn look_up_key(
        &self,
        identity: &Identity,
        timing: &mut RequestTiming,
    ) -> Result<CropReply, GatewayError> {
        timing.key = Some(identity.key);
        let mut budget = StoreBudget::default();
        let found = self.look_up(identity, Intent::Report, &mut timing.stages, &mut budget).await?;
        let found = found.ok_or(GatewayError::KeyNotFound)?;
        self.reply(found.record, found.status, Vec::new()).await
    }

    /// A permanent result's bytes, checked against its name.
    ///
    /// # Errors
    /// [`GatewayError::ResultNotFound`], [`GatewayError::ArchiveGuard`],
    /// [`GatewayError::NoResultRoom`], [`GatewayError::StoreBusy`] or [`GatewayError::StoreUnavailable`].
    pub async fn result(&self, object: ObjectName) -> Result<Bytes, GatewayError> {
        match self.core.cache.object(object, &*self.core.store).await {
            Ok(Some(bytes)) => Ok(bytes),
            // In another bucket than ours nothing is known to be absent.
            Ok(None) if !self.core.guard.confirm().await => Err(GatewayError::ArchiveGuard),
            Ok(None) => Err(GatewayError::ResultNotFound),
            Err(ObjectError::NoRoom(_)) => Err(GatewayError::NoResultRoom),
            Err(ObjectError::Store(StoreError::Busy(_))) => Err(GatewayError::StoreBusy),
            Err(ObjectError::Store(error)) => {
                tracing::error!(%error, object = %object.path(), "a result cannot be read");
                Err(GatewayError::StoreUnavailable)
            }
        }
    }

    /// Is nothing new bought any more, because the process is stopping?
    pub fn is_draining(&self) -> bool {
        self.filler.is_draining()
    }

    /// Reads the form; the wait for its bytes is the client's time.
    async fn read<B>(
        &self,
        head: FormHead,
        mut body: ClientBody<B>,
        timing: &mut RequestTiming,
    ) -> Result<CropRequest, GatewayError>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: Into<request::BoxError>,
    {
        let begun = Instant::now();
        let request = request::read(head, &mut body, &self.uploads).await;
        (timing.body_bytes, timing.body_wait) = (body.bytes, body.waited);
        timing.stages.add(Stage::Parse, begun.elapsed().saturating_sub(timing.body_wait));
        let request = request?;
        timing.key = Some(request.key);
        Ok(request)
    }

    /// Checks that forbid a purchase to every team.
    fn may_be_bought(&self, caller: &Caller, identity: &Identity) -> Result<(), GatewayError> {
        if caller.only_if_cached {
            return Err(GatewayError::NotCached);
        }
        if caller.refresh && !caller.team.may_refresh {
            return Err(GatewayError::RefreshNotAllowed);
        }
        if let Some((status, body)) = self.core.cache.refusal(identity) {
            return Err(GatewayError::passed_through(status, body));
        }
        if self.is_draining() {
            return Err(GatewayError::Draining);
        }
        Ok(())
    }

    /// Joins the fill of the request's key and waits, at most until the deadline.
    async fn fill(
        &self,
        caller: &Caller,
        (request, identity, credits): (CropRequest, Identity, u64),
        budget: StoreBudget,
        deadline: Instant,
        timing: &mut RequestTiming,
    ) -> Result<(Arc<Record>, CacheStatus, Vec<String>), GatewayError> {
        let Ok(_place) = self.waiting.try_acquire() else {
            return Err(GatewayError::TooBusy { wait: CROWDED });
        };
        let wanted = FillRequest {
            order: Arc::new(request.order),
            identity,
            credits,
            image: request.image_digest,
            refresh: caller.refresh,
            budget,
        };
        let waiter = Waiter { team: caller.team.clone(), deadline };
        let ticket = self.filler.join(wanted, waiter);
        let (waiter, is_first) = (ticket.id, ticket.first);
        let begun = Instant::now();
        let outcome = match is_first {
            true => tokio::time::timeout_at(deadline, ticket.outcome()).await,
            false => self.follow(ticket, deadline, timing).await,
        };
        if is_first {
            match &outcome {
                Ok(Some(outcome)) => timing.was_filled(&outcome.timing),
                Ok(None) | Err(_) => timing.gave_up(begun.elapsed()),
            }
        }
        let outcome = outcome.map_err(|_| GatewayError::StillBeingMade)?.ok_or(GatewayError::Bug)?;
        let filled = outcome.verdict?;
        let status = match filled.source {
            FillSource::Ledger => CacheStatus::HitLedger,
            FillSource::Store => CacheStatus::HitStore,
            FillSource::Awaited => CacheStatus::Coalesced,
            FillSource::Bought if outcome.payer != Some(waiter) => CacheStatus::Coalesced,
            FillSource::Bought if caller.refresh => CacheStatus::Refresh,
            FillSource::Bought => CacheStatus::Miss,
        };
        Ok((filled.record, status, request.ignored))
    }

    /// Waits for what another request has begun.
    async fn follow(
        &self,
        ticket: Ticket<FillOutcome>,
        deadline: Instant,
        timing: &mut RequestTiming,
    ) -> Result<Option<FillOutcome>, Elapsed> {
        let metrics = &self.core.metrics;
        metrics.coalesce_followers_total[CoalesceScope::Local].inc();
        let begun = Instant::now();
        let outcome = tokio::time::timeout_at(deadline, ticket.outcome()).await;
        timing.stages.add(Stage::CoalesceWait, begun.elapsed());
        if outcome.is_err() {
            metrics.coalesce_timeouts_total[CoalesceScope::Local].inc();
        }
        outcome
    }

    async fn reply(
        &self,
        record: Arc<Record>,
        status: CacheStatus,
        ignored: Vec<String>,
    ) -> Result<CropReply, GatewayError> {
        let body = rewrite::answer(&record, self.root_of(&record).await).ok_or(GatewayError::Bug)?;
        let (charged, saved) = if status.is_free() { (0, record.credits) } else { (record.credits, 0) };
        let age = self.core.clock.now().duration_since(record.stored_at).as_secs();
        let age_seconds = u64::try_from(age).unwrap_or(0);
        Ok(CropReply { body, record, status, charged, saved, age_seconds, ignored })
    }

    /// Which of a team's budgets limits it most at the moment; `None` when nothing does.
    pub async fn tightest_budget(&self, budgets: Vec<Budget>) -> Result<Option<Used>, GatewayError> {
        let used = self.core.ledger.used(budgets).await.map_err(|error| {
            tracing::error!(%error, "the ledger could not be asked for a team's budgets");
            GatewayError::LedgerUnavailable
        })?;
        Ok(used.into_iter().filter(|used| used.budget.enforced).min_by_key(Used::left))
    }

    /// Counts how a crop request of a known team ended.
    pub fn count(&self, team: &Team, outcome: &Result<CropReply, GatewayError>) {
        match outcome {
            Ok(reply) => {
                self.core.metrics.answered(&team.name, reply.status, reply.saved);
                if let Some(cause) = reply.status.saving() {
                    self.meter(team, cause, reply, reply.saved);
                }
            }
            Err(error) => {
                let is_refusal = matches!(error.response().fault, Fault::Caller | Fault::Policy);
                self.core.metrics.not_answered(&team.name, is_refusal);
            }
        }
    }

    /// Counts a hash-first lookup that found its answer. It saves what a `POST` would have cost, once
    /// for each key, team and day: neither polling nor `HEAD` would have been a `POST`.
    pub fn count_look_up(&self, team: &Team, reply: &CropReply, is_get: bool) {
        let is_saving = is_get && self.meter.is_first_look_up(&team.name, &reply.record.identity());
        let saved = if is_saving { reply.saved } else { 0 };
        self.core.metrics.looked_up(&team.name, saved);
        self.meter(team, SavingCause::HashFirst, reply, saved);
    }

    fn meter(&self, team: &Team, cause: SavingCause, reply: &CropReply, saved: u64) {
        let payer = if reply.record.team == team.name { Payer::Own } else { Payer::Other };
        self.meter.served(&team.name, cause, payer, saved);
    }
}

/// When the caller of a body that has just come in is answered in any case. One whose body came
/// after its deadline is a patient client, which could never buy if it did not count as waiting.
fn deadline_of(caller: &Caller) -> Instant {
    let now = Instant::now();
    if caller.deadline > now { caller.deadline } else { now + LATE_BODY_PATIENCE }
}
