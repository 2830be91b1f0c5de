//! One crop request, top to bottom: [`Gateway::handle`].
//!
//! | step | where |
//! |---|---|
//! | parse, key | [`request`]: the picture is hashed while it arrives |
//! | look up | `look_up`: memory, if it is [fresh](freshness), then ledger, then store; only what is known to be absent is bought |
//! | coalesce, admit, pay, fetch, persist | [`fill`](crate::fill): one tracked task per key |
//! | rewrite | [`rewrite`], with our URL or the one of the bucket's server |
//! | respond | [`routes`](crate::http::routes) |
//!
//! Hits and coalesced callers spend nothing, and work when everything else is down.

pub(crate) mod freshness;
pub(crate) mod keys;
mod look_up;
pub mod rewrite;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tokio::time::Instant;

use self::freshness::Freshness;
use self::look_up::{Found, Intent};
use crate::base::crash::crash_point;
use crate::base::identity::Identity;
use crate::base::key::CacheKey;
use crate::base::operation::Offer;
use crate::base::outcome::{CacheStatus, SavingCause};
use crate::base::permits::{Party, Permits, Sharing};
use crate::base::picture::ObjectName;
use crate::base::record::Record;
use crate::billing::metering::Meter;
use crate::cache::ObjectError;
use crate::error::{Fault, GatewayError};
use crate::fill::machine::FillSource;
use crate::fill::{Core, FillOutcome, FillRequest, FillTiming, Filler, Waiter};
use crate::ledger::budget::{Budget, Used};
use crate::ledger::guard::Standing;
use crate::ledger::usage::Payer;
use crate::metrics::{CoalesceScope, Stage, Stages};
use crate::request::body::ClientBody;
use crate::request::uploads::UploadRoom;
use crate::request::{self, FormHead};
use crate::store::{StoreBudget, StoreError};
use crate::teams::Team;

/// How long a caller waits whose body arrived after its deadline: it could never buy otherwise.
const LATE_BODY_PATIENCE: Duration = Duration::from_secs(2);

/// Short, because a hit may have waited before, and is answered within a second if the ledger hangs.
const LEDGER_PATIENCE: Duration = Duration::from_millis(200);

/// At once, for lookups and fills of all teams: fewer than the store's own limit, so that teams wait here, in turns.
const RECORD_READS: u64 = 48;

/// `Retry-After` if too many callers wait.
const CROWDED: Duration = Duration::from_secs(2);

pub struct Gateway {
    core: Arc<Core>,
    filler: Filler,
    meter: Arc<Meter>,
    uploads: UploadRoom,
    freshness: Arc<Freshness>,
    public_root: String,
    store_root: Option<String>,
    /// Places for callers that wait for a fill.
    waiting: Permits,
    /// Turns to read a record from the store.
    reads: Permits,
}

pub struct Caller {
    pub team: Arc<Team>,
    /// `Granary-Refresh: 1`.
    pub refresh: bool,
    /// `Cache-Control: only-if-cached`.
    pub only_if_cached: bool,
    pub deadline: Instant,
}

pub struct CropReply {
    pub body: Bytes,
    pub record: Arc<Record>,
    pub status: CacheStatus,
    /// Credits that this request cost its team.
    pub charged: u64,
    /// Credits that it would have cost as a miss.
    pub saved: u64,
    /// Since the result was stored.
    pub age_seconds: u64,
    pub ignored: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct RequestTiming {
    pub stages: Stages,
    pub body_wait: Duration,
    pub body_bytes: u64,
    pub key: Option<CacheKey>,
    /// Time of the upstream's calls, and its last status.
    pub upstream: Option<(Duration, Option<StatusCode>)>,
    /// Waits for others within the request's own fill.
    fill_wait: Duration,
}

impl RequestTiming {
    pub fn waited(&self) -> Duration {
        self.body_wait + self.stages.waited() + self.fill_wait
    }
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
            waiting: Permits::new(u64::MAX, Sharing::Headroom),
            reads: Permits::new(RECORD_READS, Sharing::Whole),
        }
    }

    /// Must [follow](Freshness::follow) the ledger.
    pub fn freshness(&self) -> Arc<Freshness> {
        self.freshness.clone()
    }

    /// Another server has the store's objects below `root`, which has no trailing slash: answers name its
    /// URLs for results that are in the store.
    pub fn with_store_root(self, root: Option<String>) -> Self {
        Self { store_root: root, ..self }
    }

    /// Maximum number of callers waiting for fills; more are refused, so that hits find a connection. Some places
    /// are kept for teams that have none.
    pub fn with_waiting_places(self, places: usize) -> Self {
        self.waiting.set_capacity(places as u64);
        self
    }

    /// The life of a request. Sets `timing` however it ends.
    ///
    /// # Errors
    /// The client's answer. A fill that has begun goes on all the same.
    pub async fn handle<B>(
        &self,
        offer: &Offer,
        caller: &Caller,
        head: FormHead,
        mut body: ClientBody<B>,
        timing: &mut RequestTiming,
    ) -> Result<CropReply, GatewayError>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: Into<request::BoxError>,
    {
        crash_point("CP1");
        let begun = Instant::now();
        let request = request::read(head, &mut body, &self.uploads.of(Party::new(&caller.team.name))).await;
        // The wait for the body is the client's time.
        (timing.body_bytes, timing.body_wait) = (body.bytes, body.waited);
        timing.stages.add(Stage::Parse, begun.elapsed().saturating_sub(timing.body_wait));
        let request = request?;
        timing.key = Some(request.key);
        crash_point("CP3");
        let now = Instant::now();
        let deadline = if caller.deadline > now { caller.deadline } else { now + LATE_BODY_PATIENCE };
        let mut budget = self.store_budget(&caller.team);
        let identity = offer.identity(request.key);
        let intent = if caller.only_if_cached { Intent::Report } else { Intent::Buy };
        let look_up = self.look_up(&identity, intent, &mut timing.stages, &mut budget);
        let found =
            tokio::time::timeout_at(deadline, look_up).await.map_err(|_| {
                tracing::error!(key = %request.key, "neither ledger nor store said in time whether they have a key");
                GatewayError::StillBeingMade
            })??;
        if let Some(found) = found.filter(|_| !caller.refresh) {
            // Makes room for other uploads at once.
            drop(request.order);
            return self.reply(found, request.ignored).await;
        }
        self.may_be_bought(caller, &identity)?;
        let wanted = FillRequest {
            order: Arc::new(request.order),
            identity,
            credits: offer.credits,
            image: request.image_digest,
            refresh: caller.refresh,
            budget,
        };
        let waiter = Waiter { team: caller.team.clone(), deadline };
        let filled = self.fill(wanted, waiter, timing).await?;
        self.reply(filled, request.ignored).await
    }

    /// The stored answer under a key; never spends a credit.
    ///
    /// # Errors
    /// [`GatewayError::KeyNotFound`], or why the lookup failed.
    pub async fn look_up_key(
        &self,
        team: &Team,
        identity: &Identity,
        timing: &mut RequestTiming,
    ) -> Result<CropReply, GatewayError> {
        timing.key = Some(identity.key);
        let mut budget = self.store_budget(team);
        let found = self.look_up(identity, Intent::Report, &mut timing.stages, &mut budget).await?;
        self.reply(found.ok_or(GatewayError::KeyNotFound)?, Vec::new()).await
    }

    /// A permanent result's bytes, checked against its name. They take `client`'s share of memory and reads.
    pub async fn result(&self, object: ObjectName, client: &Party) -> Result<Bytes, GatewayError> {
        match self.core.cache.object(object, client, &*self.core.store).await {
            Ok(Some(bytes)) => Ok(bytes),
            // In another archive's bucket nothing is known to be absent.
            Ok(None) if !self.core.guard.confirm().await => Err(GatewayError::ArchiveGuard),
            Ok(None) => Err(GatewayError::ResultNotFound),
            Err(ObjectError::NoRoom) => Err(GatewayError::NoResultRoom),
            Err(ObjectError::Store(StoreError::Busy(_))) => Err(GatewayError::StoreBusy),
            Err(ObjectError::Store(error)) => {
                tracing::error!(%error, object = %object.path(), "a result cannot be read");
                Err(GatewayError::StoreUnavailable)
            }
        }
    }

    pub fn is_draining(&self) -> bool {
        self.filler.is_draining()
    }

    fn store_budget(&self, team: &Team) -> StoreBudget {
        StoreBudget::of(self.reads.clone(), Party::new(&team.name))
    }

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

    /// Joins the fill of a key and waits until the waiter's deadline.
    async fn fill(
        &self,
        wanted: FillRequest,
        waiter: Waiter,
        timing: &mut RequestTiming,
    ) -> Result<Found, GatewayError> {
        let Some(_place) = self.waiting.try_take(&Party::new(&waiter.team.name), 1) else {
            return Err(GatewayError::TooBusy { wait: CROWDED });
        };
        let metrics = &self.core.metrics;
        let (is_refresh, deadline) = (wanted.refresh, waiter.deadline);
        let ticket = self.filler.join(wanted, waiter);
        let (id, is_first) = (ticket.id, ticket.first);
        if !is_first {
            metrics.coalesce_followers_total[CoalesceScope::Local].inc();
        }
        let begun = Instant::now();
        let outcome = tokio::time::timeout_at(deadline, ticket.outcome()).await;
        match &outcome {
            Ok(Some(FillOutcome { timing: FillTiming { stages, upstream_status }, .. })) if is_first => {
                timing.fill_wait = stages.waited();
                timing.upstream = stages.of(Stage::Upstream).map(|took| (took, *upstream_status));
            }
            Ok(None) | Err(_) if is_first => timing.fill_wait = begun.elapsed(),
            _ => timing.stages.add(Stage::CoalesceWait, begun.elapsed()),
        }
        if outcome.is_err() && !is_first {
            metrics.coalesce_timeouts_total[CoalesceScope::Local].inc();
        }
        let outcome = outcome.map_err(|_| GatewayError::StillBeingMade)?.ok_or(GatewayError::Bug)?;
        let filled = outcome.verdict?;
        let status = match filled.source {
            FillSource::Ledger => CacheStatus::HitLedger,
            FillSource::Store => CacheStatus::HitStore,
            FillSource::Awaited => CacheStatus::Coalesced,
            FillSource::Bought if outcome.payer != Some(id) => CacheStatus::Coalesced,
            FillSource::Bought if is_refresh => CacheStatus::Refresh,
            FillSource::Bought => CacheStatus::Miss,
        };
        Ok((filled.record, status))
    }

    async fn reply(&self, (record, status): Found, ignored: Vec<String>) -> Result<CropReply, GatewayError> {
        // Another server has the store's objects below its root. A result in the ledger's spool is served by
        // Granary alone until then; it never goes back to the spool, so "in the store" may be remembered.
        let root = match &self.store_root {
            Some(root) if self.is_in_store(&record).await => Some(root),
            _ => None,
        };
        let render = || rewrite::answer(&record, root.unwrap_or(&self.public_root)).map(Bytes::from);
        let body = self.core.cache.body(&record, root.is_some(), render).ok_or(GatewayError::Bug)?;
        let (charged, saved) = if status.is_free() { (0, record.credits) } else { (record.credits, 0) };
        let age = self.core.clock.now().duration_since(record.stored_at).as_secs();
        let age_seconds = u64::try_from(age).unwrap_or(0);
        Ok(CropReply { body, record, status, charged, saved, age_seconds, ignored })
    }

    async fn is_in_store(&self, record: &Arc<Record>) -> bool {
        // The ledger may then belong to another store.
        if matches!(self.core.guard.standing(), Standing::Closed(_)) {
            return false;
        }
        if self.core.cache.is_in_store(record) {
            return true;
        }
        let Some(object) = record.object() else { return false };
        match tokio::time::timeout(LEDGER_PATIENCE, self.core.ledger.is_spooled(object)).await {
            // Store or spool has every answered result.
            Ok(Ok(false)) => {
                self.core.cache.know_in_store(record);
                true
            }
            Ok(Ok(true)) => false,
            Ok(Err(error)) => {
                tracing::warn!(%error, key = %record.key, "the ledger cannot say where a result is, so its URL is ours");
                false
            }
            Err(_) => {
                tracing::warn!(key = %record.key, "the ledger is slow to say where a result is, so its URL is ours");
                false
            }
        }
    }

    /// The enforced budget with the fewest credits left, if there is one.
    pub async fn tightest_budget(&self, budgets: Vec<Budget>) -> Result<Option<Used>, GatewayError> {
        let used = self.core.ledger.used(budgets).await.map_err(|error| {
            tracing::error!(%error, "the ledger could not be asked for a team's budgets");
            GatewayError::LedgerUnavailable
        })?;
        Ok(used.into_iter().filter(|used| used.budget.enforced).min_by_key(Used::left))
    }

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

    /// Counts a hash-first hit: it saves a `POST`'s credits once per key, team and day; polling and `HEAD` save none.
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
