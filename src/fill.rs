//! The paid act: the only place where money can be spent.
//!
//! A [`Filler`] runs one task per key that is being made. The task is tracked and cannot be
//! cancelled: not a client that hangs up, not a deadline, not a drain. What it does is decided by the pure
//! [`machine`]; the task itself is its hands.

mod access;
pub mod circuit;
pub mod coalesce;
mod lease;
pub mod machine;
mod retry;
pub mod slots;
mod suspect;
mod task;
mod timing;
mod unsettled;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::StatusCode;
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::lease::Leases;
use self::machine::{FillLimits, Machine, Verdict};
use self::retry::{RetryAfterCache, RetryBudget};
use self::task::Task;
use self::unsettled::Unsettled;
use crate::base::clock::Clock;
use crate::base::envelope::Answer;
use crate::base::identity::Identity;
use crate::base::key::Digest;
use crate::base::operation::Operation;
use crate::base::record::Record;
use crate::cache::MemoryCache;
use crate::fill::circuit::Circuit;
use crate::fill::coalesce::{Coalescer, Ticket, WaiterId};
use crate::fill::slots::{Slots, SlotsConfig, SlotsLoad};
use crate::ledger::guard::ArchiveGuard;
use crate::ledger::{Ledger, Recovery, UnfinishedCall};
use crate::metrics::{Metrics, Stages};
use crate::request::Order;
use crate::store::{Store, StoreBudget};
use crate::teams::Team;
use crate::teams::policy::CurrentPolicy;
use crate::upstream::Upstream;
use crate::upstream::download::ResultSource;

/// What fills and the requests that wait for them share.
pub struct Core {
    pub ledger: Arc<dyn Ledger>,
    pub store: Arc<dyn Store>,
    pub cache: Arc<MemoryCache>,
    pub metrics: Arc<Metrics>,
    /// Says whether ledger and store belong together, and so whether what is missing was ever here.
    pub guard: Arc<ArchiveGuard>,
    /// Says who may pay, and how much.
    pub policy: CurrentPolicy,
    pub clock: Clock,
}

/// What a fill needs to know of the configuration.
#[derive(Clone, Debug)]
pub struct FillConfig {
    /// Credits of the cheapest call.
    pub least_credits: u64,
    /// Calls at once, and who may wait for a turn.
    pub slots: SlotsConfig,
    pub result_url_ttl: Duration,
    /// How long a paid call's answer is waited for; the same in every process that keeps the ledger.
    pub hard_stop: Duration,
}

/// Buys what is absent, once for all callers. Cheap to clone.
#[derive(Clone)]
pub struct Filler(Arc<Inner>);

struct Inner {
    core: Arc<Core>,
    upstream: Arc<dyn Upstream>,
    results: Arc<dyn ResultSource>,
    config: FillConfig,
    groups: Arc<Coalescer<Identity, Waiter, FillOutcome>>,
    slots: Arc<Slots>,
    circuit: Arc<Circuit>,
    retries: RetryBudget,
    told_to_wait: RetryAfterCache,
    unsettled: Unsettled,
    leases: Leases,
    /// Is the balance asked for again and again?
    watches_balance: AtomicBool,
    draining: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Clone)]
pub struct FillRequest {
    pub order: Arc<Order>,
    pub identity: Identity,
    pub credits: u64,
    /// BLAKE3 of the picture.
    pub image: Digest,
    /// Buy although a result is stored.
    pub refresh: bool,
    /// What the request that starts the fill may still wait for the store.
    pub budget: StoreBudget,
}

#[derive(Clone, Debug)]
pub struct Waiter {
    /// Whose budget may be asked; as it was when the caller was let in.
    pub team: Arc<Team>,
    /// When the caller is answered in any case.
    pub deadline: Instant,
}

impl PartialEq for Waiter {
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
    pub payer: Option<WaiterId>,
    /// What it has come through until then.
    pub timing: FillTiming,
}

/// Where the time of a fill went, and what the upstream said.
#[derive(Clone, Copy, Debug, Default)]
pub struct FillTiming {
    pub stages: Stages,
    /// The status of the upstream's last answer, if there was one.
    pub upstream_status: Option<StatusCode>,
}

impl Filler {
    /// Starts without calls; see [`resume`](Self::resume).
    pub fn new(
        core: Arc<Core>,
        upstream: Arc<dyn Upstream>,
        results: Arc<dyn ResultSource>,
        config: FillConfig,
    ) -> Self {
        let slots = Slots::new(config.slots);
        let circuit = Circuit::new(core.metrics.clone());
        let leases = Leases::new(&*core.ledger, core.clock.clone());
        Self(Arc::new(Inner {
            core,
            upstream,
            results,
            config,
            groups: Arc::new(Coalescer::new()),
            slots,
            circuit,
            retries: RetryBudget::default(),
            told_to_wait: RetryAfterCache::default(),
            unsettled: Unsettled::default(),
            leases,
            watches_balance: AtomicBool::new(false),
            draining: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }))
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.0.core
    }

    /// Joins the fill of a key, or starts it.
    pub fn join(&self, wanted: FillRequest, waiter: Waiter) -> Ticket<FillOutcome> {
        let ticket = self.0.groups.join(&wanted.identity, waiter);
        if ticket.first {
            let machine = Machine::new(self.limits());
            self.spawn(Task::new(self.0.clone(), wanted.identity.clone(), Some(wanted)), machine);
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
                "settled what a dead process left open"
            );
        }
        self.0.core.metrics.fills_recovered(released, unknown);
        for call in unfinished {
            self.resume_one(call);
        }
    }

    fn resume_one(&self, call: UnfinishedCall) {
        let identity = Identity::new(&call.reservation.namespace, call.reservation.key);
        // A call that was ours, then another's, and is ours again may still have its task.
        let Some(lease) = self.0.leases.resume(call.id) else { return };
        let operation = Operation::of_namespace(&identity.namespace);
        let Some(Ok(answer)) = operation.map(|operation| Answer::read(call.text.expose(), operation)) else {
            tracing::error!(
                call = call.id.0,
                "the answer in the ledger cannot be read; its row stays as it is"
            );
            return;
        };
        let mut task = Task::new(self.0.clone(), identity.clone(), None);
        // A key may have two, when the answer to a call that was thought unknown came late. Each is
        // paid for, and each is kept.
        if !self.0.groups.found(&identity) {
            task.work_alone();
        }
        task.go_on_without_a_slot();
        task.lease = Some(lease);
        task.answered = Some((age(call.answered_at, self.0.core.clock.now()), Instant::now()));
        self.spawn(task, Machine::resume(self.limits(), call, answer));
    }

    /// From now on nothing new is bought; what is under way goes on.
    pub fn drain(&self) {
        self.0.draining.cancel();
        self.0.tasks.close();
    }

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
        let slots = self.0.slots.load();
        (fills, waiters, slots.in_flight, slots.queued.values().sum())
    }

    /// From now on so many calls may run at once, and so many fills wait for a turn.
    pub fn set_slots(&self, bounds: SlotsConfig) {
        self.0.slots.set_bounds(bounds);
    }

    /// The upstream's slots, and who waits for one.
    pub fn slots(&self) -> SlotsLoad {
        self.0.slots.load()
    }

    /// Our key for the upstream was changed: what it said of the old one is void.
    pub fn key_changed(&self) {
        self.0.circuit.key_changed();
    }

    /// Is anything bought, as far as the upstream is concerned?
    pub fn upstream_is_called(&self) -> bool {
        self.0.circuit.is_closed()
    }

    fn limits(&self) -> FillLimits {
        FillLimits { result_url_ttl: self.0.config.result_url_ttl }
    }

    fn spawn(&self, task: Task, machine: Machine) {
        self.0.tasks.spawn(task.run(machine));
    }
}

/// How often the balance of an empty account is queried, which is free.
const BALANCE_POLL: Duration = Duration::from_secs(10);

impl Inner {
    /// Asks for the balance until a real request has found that the account is filled again. The
    /// circuit is to know of the lack by now.
    fn watch_balance(self: &Arc<Self>) {
        if self.watches_balance.swap(true, Ordering::SeqCst) {
            return;
        }
        let shared = self.clone();
        tokio::spawn(self.draining.clone().run_until_cancelled_owned(async move {
            loop {
                while shared.circuit.lacks_credits() {
                    tokio::time::sleep(BALANCE_POLL).await;
                    if !shared.circuit.lacks_credits() {
                        break;
                    }
                    let left = shared.upstream.credits_left().await;
                    if left.is_some_and(|left| left >= shared.config.least_credits) {
                        shared.circuit.credits_are_back();
                    }
                }
                shared.watches_balance.store(false, Ordering::SeqCst);
                // Whoever found a new lack in between may have relied on this watch.
                if !shared.circuit.lacks_credits() || shared.watches_balance.swap(true, Ordering::SeqCst) {
                    break;
                }
            }
        }));
    }

    /// Is a result known to have been bought after the last purge of its key?
    async fn is_unpurged(&self, record: &Record) -> bool {
        let purged = self.core.ledger.purged(&record.namespace, record.key).await;
        purged.is_ok_and(|up_to| up_to.is_none_or(|up_to| up_to < record.generation))
    }
}

fn age(answered_at: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(answered_at)).unwrap_or(Duration::ZERO)
}
