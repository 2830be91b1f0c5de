//! The paid act: the only place where money can be spent. A [`Filler`] runs one tracked task per key. No hang-up,
//! deadline or drain cancels it. The pure [`machine`] decides, and the task performs its effects.

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

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::lease::Leases;
use self::machine::{Machine, Verdict};
use self::retry::{RetryAfterCache, RetryBudget};
use self::task::Task;
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
    pub guard: Arc<ArchiveGuard>,
    pub policy: CurrentPolicy,
    pub clock: Clock,
}

#[derive(Clone, Debug)]
pub struct FillConfig {
    /// Credits of the cheapest call.
    pub least_credits: u64,
    pub slots: SlotsConfig,
    pub result_url_ttl: Duration,
    /// Maximum wait for a paid call's answer; the same in every process on the ledger.
    pub hard_stop: Duration,
}

/// Fills that may be settling without a slot when another purchase begins: each needs memory for as long as
/// its result's URL may live. Calls under way may exceed it.
const MOST_UNSETTLED: usize = 256;

/// Buys absent results, once for all callers. Cheap to clone.
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
    retry_after: RetryAfterCache,
    /// Has a clone in each fill that is settling without a slot.
    unsettled: Arc<()>,
    leases: Leases,
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
    /// Buys although a result is stored.
    pub refresh: bool,
    /// The rest of the budget of the request that starts the fill.
    pub budget: StoreBudget,
}

#[derive(Clone, Debug)]
pub struct Waiter {
    /// As it was when the caller was authenticated.
    pub team: Arc<Team>,
    pub deadline: Instant,
}

impl PartialEq for Waiter {
    /// What refuses one waiter of a team refuses the others.
    fn eq(&self, other: &Self) -> bool {
        self.team.name == other.team.name
    }
}

#[derive(Clone, Debug)]
pub struct FillOutcome {
    pub verdict: Verdict,
    pub payer: Option<WaiterId>,
    pub timing: FillTiming,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct FillTiming {
    pub stages: Stages,
    /// Of the upstream's last answer.
    pub upstream_status: Option<StatusCode>,
}

impl Filler {
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
            groups: Arc::default(),
            slots,
            circuit,
            retries: RetryBudget::default(),
            retry_after: RetryAfterCache::default(),
            unsettled: Arc::default(),
            leases,
            watches_balance: AtomicBool::new(false),
            draining: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }))
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.0.core
    }

    /// Joins the fill of a key, or starts one.
    pub fn join(&self, wanted: FillRequest, waiter: Waiter) -> Ticket<FillOutcome> {
        let ticket = self.0.groups.join(&wanted.identity, waiter);
        if ticket.first {
            let machine = Machine::new(self.0.config.result_url_ttl);
            let task = Task::new(self.0.clone(), wanted.identity.clone(), Some(wanted));
            self.0.tasks.spawn(task.run(machine));
        }
        ticket
    }

    /// Continues the calls that a dead process had paid for. Requests for these keys join.
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
        // A call that this process lost and took over again may still have its task.
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
        // A key has two if the answer to an `unknown` call came late. Both are paid for and kept.
        if !self.0.groups.found(&identity) {
            task.work_alone();
        }
        task.go_on_without_a_slot();
        task.lease = Some(lease);
        let age = self.0.core.clock.now().duration_since(call.answered_at);
        task.answered = Some((Duration::try_from(age).unwrap_or(Duration::ZERO), Instant::now()));
        self.0.tasks.spawn(task.run(Machine::resume(self.0.config.result_url_ttl, call, answer)));
    }

    /// Stops new purchases; fills under way go on.
    pub fn drain(&self) {
        self.0.draining.cancel();
        self.0.tasks.close();
    }

    pub fn is_draining(&self) -> bool {
        self.0.draining.is_cancelled()
    }

    /// Waits until every fill has ended or can be continued by another process.
    pub async fn settled(&self) {
        self.0.tasks.wait().await;
    }

    /// Fills under way, their waiters, paid calls under way, fills waiting for a slot.
    pub fn load(&self) -> (usize, usize, usize, usize) {
        let (fills, waiters) = self.0.groups.sizes();
        let slots = self.0.slots.load();
        (fills, waiters, slots.in_flight, slots.queued.values().sum())
    }

    pub fn set_slots(&self, bounds: SlotsConfig) {
        self.0.slots.set_bounds(bounds);
    }

    pub fn slots(&self) -> SlotsLoad {
        self.0.slots.load()
    }

    /// Our key for the upstream was replaced.
    pub fn key_changed(&self) {
        self.0.circuit.key_changed();
    }

    /// Returns false while the circuit is open.
    pub fn upstream_is_called(&self) -> bool {
        self.0.circuit.is_closed()
    }
}

/// Interval of the free balance queries while the account is empty.
const BALANCE_POLL: Duration = Duration::from_secs(10);

impl Inner {
    /// Polls the balance until a real purchase has closed the circuit, which must be open for it.
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
                // Another lack that was found in between may have relied on this watch.
                if !shared.circuit.lacks_credits() || shared.watches_balance.swap(true, Ordering::SeqCst) {
                    break;
                }
            }
        }));
    }

    /// Returns true if the result is known to be newer than the last purge of its key.
    async fn is_unpurged(&self, record: &Record) -> bool {
        let purged = self.core.ledger.purged(&record.namespace, record.key).await;
        purged.is_ok_and(|up_to| up_to.is_none_or(|up_to| up_to < record.generation))
    }
}
