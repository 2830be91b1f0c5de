//! The start, step by step: storage, upstream, recovery, background tasks, the two listeners. An error ends
//! the process before it listens. With an unavailable dependency, hits are served and nothing is bought.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::ledger::LedgerHandles;
use super::listen::{bind, connection_limits};
use super::reload::Reloader;
use super::settings::{fill_config, offers, policy_config};
use super::upstream::open_upstream;
use super::upstream_key::KeyWatch;
use super::{App, STOP_MARGIN, admin_tokens, certificate};
use crate::base::clock::Clock;
use crate::base::crash::crash_point;
use crate::base::permits::{Permits, Sharing};
use crate::base::secret::Secret;
use crate::base::state::StateDir;
use crate::billing::balance::BalanceWatch;
use crate::billing::metering::Meter;
use crate::cache::MemoryCache;
use crate::config::{Config, ServerConfig, StoreKind, UpstreamKind};
use crate::error;
use crate::fill::{Core, Filler};
use crate::gateway::Gateway;
use crate::gateway::keys::KeyAdmin;
use crate::http::routes::{About, AdminState, Memory, PublicParts, admin_router, from_router, public_routes};
use crate::http::server::{ConnectionLimits, Listener, Stops};
use crate::ledger::Ledger;
use crate::ledger::admin::LedgerAdmin;
use crate::ledger::guard::ArchiveGuard;
use crate::ledger::spooling::{Copier, Spool, SpoolConfig};
use crate::ledger::usage::UsageBook;
use crate::metrics::store::MeteredStore;
use crate::metrics::{ListenerName, Metrics, Space};
use crate::request::RequestLimits;
use crate::request::body::Pace;
use crate::request::uploads::{UploadConfig, UploadRoom};
use crate::store::Store;
use crate::teams::policy::CurrentPolicy;
use crate::upstream::Upstream;
use crate::upstream::download::ResultSource;
use crate::upstream::download::bounded::BoundedResults;

/// The minimum pace of an upload holds after this time.
const UPLOAD_GRACE: Duration = Duration::from_secs(5);
/// Bytes that uploads leave free on the disk of the state, because paid results come first.
const SPILL_MIN_FREE: u64 = 1 << 30;
/// Of operators, load balancers and Prometheus.
const ADMIN_CONNECTIONS: usize = 256;
/// For a dependency that hangs.
const START_PATIENCE: Duration = Duration::from_secs(8);
const GUARD_PERIOD: Duration = Duration::from_secs(30);
const IMPORT_PERIOD: Duration = Duration::from_secs(5);

struct Process {
    config: Config,
    clock: Clock,
    metrics: Arc<Metrics>,
    policy: CurrentPolicy,
    memory: Memory,
    cache: Arc<MemoryCache>,
    stops: Stops,
    /// Cancelled when nothing is bought any more.
    stopped: CancellationToken,
}

struct Storage {
    ledger: Arc<dyn Ledger>,
    usage: Arc<dyn UsageBook>,
    admin: Arc<dyn LedgerAdmin>,
    store: Arc<dyn Store>,
    spool: Arc<Spool>,
    guard: Arc<ArchiveGuard>,
}

struct Services {
    filler: Filler,
    meter: Arc<Meter>,
    balance: Arc<BalanceWatch>,
    about: Arc<About>,
    reloader: Arc<Reloader>,
}

impl App {
    pub async fn start(config: Config, clock: Clock) -> anyhow::Result<Self> {
        let state = StateDir::open(&config.state.path)?;
        let public = bind(config.server.listen, "server.listen")?;
        let admin = bind(config.server.admin_listen, "server.admin_listen")?;
        let (public_addr, admin_addr) = (public.local_addr()?, admin.local_addr()?);
        let public_root = config.server.public_origin(public_addr).to_string();

        let process = Process::new(config, clock, &state)?;
        let storage = process.open_storage(&state).await?;
        let (upstream, results, key) = open_upstream(&process.config, process.metrics.clone())?;
        let filler = process.start_recovery(&storage, upstream.clone(), results).await?;
        let copier = Copier::start(storage.spool.clone());
        let services = process.start_services(&storage, upstream, filler, key);
        let gateway = process.gateway(&services, &public_root);
        let on_admin = process.admin_listener(&storage, &services, &gateway)?;
        let on_public = process.public_listener(&services, gateway, &public_root)?;
        let listeners = vec![tokio::spawn(on_public.serve(public)), tokio::spawn(on_admin.serve(admin))];
        tracing::info!(
            public = %public_addr,
            admin = %admin_addr,
            url = public_root,
            upstream = process.config.upstream.kind.as_str(),
            namespace = process.config.upstream.namespace,
            version = env!("CARGO_PKG_VERSION"),
            "listening"
        );
        Ok(Self {
            public_addr,
            admin_addr,
            stops: process.stops,
            stopped: process.stopped.drop_guard(),
            reloader: services.reloader,
            filler: services.filler,
            copier,
            meter: services.meter,
            usage: storage.usage,
            drain_grace: process.config.server.drain_grace,
            longest_call: process.config.upstream.hard_stop + STOP_MARGIN,
            listeners,
            metrics: process.metrics,
            _state: state,
        })
    }
}

fn open_memory(server: &ServerConfig, folder: PathBuf) -> anyhow::Result<Memory> {
    let (memory, spill) = (server.upload_memory.0, server.upload_spill.0);
    let uploads = UploadConfig { memory, spill, folder: folder.clone(), min_free: SPILL_MIN_FREE };
    let uploads = UploadRoom::open(uploads)
        .with_context(|| format!("the folder {} cannot be used", folder.display()))?;
    let results = |sharing| Permits::new(server.result_memory.0, sharing);
    Ok(Memory { uploads, sent: results(Sharing::Headroom), fetched: results(Sharing::Whole) })
}

impl Process {
    fn new(config: Config, clock: Clock, state: &StateDir) -> anyhow::Result<Self> {
        let policy = CurrentPolicy::new(policy_config(&config));
        let metrics = Arc::new(Metrics::new(policy.get().teams().names()));
        metrics.expect_errors(error::kinds().map(|(fault, code)| (fault.as_str(), code.name)));
        metrics.observe_space(Space::Cache, 0, config.cache.memory.0);
        metrics.observe_space(Space::Spool, 0, config.state.spool_max.0);
        let memory = open_memory(&config.server, state.upload_folder())?;
        let cache = MemoryCache::new(config.cache.memory.0, memory.sent.clone(), metrics.clone());
        let (stops, stopped) = (Stops::default(), CancellationToken::new());
        Ok(Self { config, clock, metrics, policy, memory, cache: Arc::new(cache), stops, stopped })
    }

    fn spawn_until_stopping(&self, task: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(self.stops.stopping.clone().run_until_cancelled_owned(task));
    }

    /// Runs `task` while anything may be bought.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(self.stopped.clone().run_until_cancelled_owned(task));
    }

    async fn open_storage(&self, state: &StateDir) -> anyhow::Result<Storage> {
        let config = &self.config;
        let LedgerHandles { ledger, usage, admin } =
            super::ledger::open(config, state, self.clock.clone(), Some(self.metrics.clone())).await?;
        let bare = super::store::open(&config.store).await?;
        let bare: Arc<dyn Store> = Arc::new(MeteredStore::new(bare, self.metrics.clone()));
        let guard = Arc::new(ArchiveGuard::new(ledger.clone(), bare.clone()));
        let spool_config = SpoolConfig {
            disk: Some(state.path().to_owned()),
            max_bytes: config.state.spool_max.0,
            result_max_bytes: config.upstream.result_max_bytes.0,
            is_remote: config.store.kind == StoreKind::S3,
        };
        let spool = Spool::new(bare, ledger.clone(), guard.clone(), spool_config);
        let store: Arc<dyn Store> = spool.clone();
        let prove = async {
            match config.store.kind {
                StoreKind::S3 => super::store::prove_bucket(store.clone(), self.stops.stopping.clone()).await,
                StoreKind::Local => Ok(()),
            }
        };
        let look = tokio::time::timeout(START_PATIENCE, guard.look());
        let (proved, looked) = tokio::join!(prove, look);
        proved?;
        if looked.is_err() {
            tracing::warn!("the archive's markers could not be compared yet; nothing is bought");
        }
        let watched = guard.clone();
        self.spawn_until_stopping(async move { watched.watch(GUARD_PERIOD).await });
        Ok(Storage { ledger, usage, admin, store, spool, guard })
    }

    async fn start_recovery(
        &self,
        storage: &Storage,
        upstream: Arc<dyn Upstream>,
        results: Arc<dyn ResultSource>,
    ) -> anyhow::Result<Filler> {
        let Storage { ledger, guard, .. } = storage;
        // Settles nothing where several processes keep the ledger: there, leases show which owners are dead.
        let recovery = ledger.recover().await.context("the ledger cannot be read")?;
        crash_point("CP33");
        // A new store has one page: its ledger is complete before anything is bought.
        let _ = tokio::time::timeout(START_PATIENCE, guard.import_page()).await;
        let importer = guard.clone();
        self.spawn_until_stopping(async move { importer.import_records(IMPORT_PERIOD).await });
        let max_bytes = self.config.upstream.result_max_bytes.0;
        let core = Core {
            ledger: ledger.clone(),
            store: storage.store.clone(),
            cache: self.cache.clone(),
            metrics: self.metrics.clone(),
            guard: guard.clone(),
            policy: self.policy.clone(),
            clock: self.clock.clone(),
        };
        let results = Arc::new(BoundedResults::new(results, self.memory.fetched.clone(), max_bytes));
        let filler = Filler::new(Arc::new(core), upstream, results, fill_config(&self.config));
        filler.resume(recovery);
        let leases = filler.clone();
        self.spawn(async move { leases.keep_leases().await });
        Ok(filler)
    }

    fn start_services(
        &self,
        storage: &Storage,
        upstream: Arc<dyn Upstream>,
        filler: Filler,
        key: Option<Arc<ArcSwap<Secret>>>,
    ) -> Services {
        let Self { config, metrics, .. } = self;
        let keys =
            key.map(|key| KeyWatch::new(config.upstream.clone(), key, filler.clone(), metrics.clone()));
        if let Some(keys) = keys.clone() {
            self.spawn(keys.follow());
        }
        let about = Arc::new(About {
            config: ArcSwap::from_pointee(config.to_commented_toml()),
            started_at: self.clock.now(),
            namespace: config.upstream.namespace.clone(),
            upstream: config.upstream.kind.as_str(),
        });
        let reloader = Reloader {
            config: Mutex::new(config.clone()),
            about: about.clone(),
            policy: self.policy.clone(),
            filler: filler.clone(),
            keys,
            metrics: metrics.clone(),
        };
        let meter = Arc::new(Meter::new(self.clock.clone(), config.budget.time_zone.clone()));
        self.spawn(meter.clone().run(storage.usage.clone()));
        let balance = Arc::new(BalanceWatch::new(upstream, self.clock.clone()));
        let interval = config.upstream.balance_interval;
        if config.upstream.kind == UpstreamKind::Ailab && !interval.is_zero() {
            let filler = filler.clone();
            let watching = balance.clone().run(interval, move || filler.upstream_is_called());
            self.spawn_until_stopping(watching);
        }
        Services { filler, meter, balance, about, reloader: reloader.started() }
    }

    fn gateway(&self, services: &Services, public_root: &str) -> Gateway {
        let config = &self.config;
        let gateway = Gateway::new(
            services.filler.clone(),
            services.meter.clone(),
            self.memory.uploads.clone(),
            public_root.to_owned(),
        )
        .with_store_root(config.store.public_url.as_ref().map(ToString::to_string))
        // The other connections are for clients that only read what is stored.
        .with_waiting_places((config.server.max_connections * 3 / 4).max(1));
        let freshness = gateway.freshness();
        self.spawn(async move { freshness.follow().await });
        gateway
    }

    fn admin_listener(
        &self,
        storage: &Storage,
        services: &Services,
        gateway: &Gateway,
    ) -> anyhow::Result<Listener> {
        let config = &self.config;
        let keys = KeyAdmin::new(
            services.filler.core().clone(),
            storage.admin.clone(),
            gateway.freshness(),
            config.upstream.namespace.clone(),
        );
        let (tokens, following) = admin_tokens::follow(&config.server)?;
        self.spawn(following);
        let state = AdminState {
            metrics: self.metrics.clone(),
            cache: self.cache.clone(),
            memory: self.memory.clone(),
            ledger: storage.ledger.clone(),
            admin: storage.admin.clone(),
            keys: Arc::new(keys),
            guard: storage.guard.clone(),
            filler: services.filler.clone(),
            stopping: self.stops.stopping.clone(),
            policy: self.policy.clone(),
            usage: storage.usage.clone(),
            meter: services.meter.clone(),
            balance: services.balance.clone(),
            clock: self.clock.clone(),
            zone: config.budget.time_zone.clone(),
            price: config.upstream.credit_price,
            tokens,
            about: services.about.clone(),
        };
        let limits =
            ConnectionLimits { max_connections: ADMIN_CONNECTIONS, ..connection_limits(&config.server) };
        Ok(Listener {
            name: ListenerName::Admin,
            routes: from_router(admin_router(state)),
            limits,
            certificate: None,
            metrics: self.metrics.clone(),
            stops: self.stops.clone(),
        })
    }

    fn public_listener(
        &self,
        services: &Services,
        gateway: Gateway,
        public_root: &str,
    ) -> anyhow::Result<Listener> {
        let config = &self.config;
        let parts = PublicParts {
            gateway,
            policy: self.policy.clone(),
            metrics: self.metrics.clone(),
            clock: self.clock.clone(),
            answer_within: config.server.answer_within,
            pace: Pace {
                total: config.server.body_timeout,
                grace: UPLOAD_GRACE,
                bytes_per_second: config.server.min_upload_rate.0,
            },
            limits: RequestLimits::default(),
            public_root: public_root.to_owned(),
            is_builtin: config.upstream.kind == UpstreamKind::Builtin,
            offers: offers(config),
            trusted_proxies: config.server.trusted_proxies.clone(),
            balance: services.balance.clone(),
        };
        let certificate = certificate::open(&config.server, &self.metrics)?;
        if let Some(current) = certificate.clone() {
            self.spawn(certificate::follow(config.server.clone(), current, self.metrics.clone()));
        }
        Ok(Listener {
            name: ListenerName::Public,
            routes: public_routes(parts),
            limits: connection_limits(&config.server),
            certificate,
            metrics: self.metrics.clone(),
            stops: self.stops.clone(),
        })
    }
}
