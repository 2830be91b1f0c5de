//! The composition root: it and its children alone name concrete stores, ledgers and upstreams.

mod admin_tokens;
pub mod adopt;
mod certificate;
mod ledger;
mod listen;
pub mod live;
mod memory;
pub mod reload;
mod secrets;
mod store;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use http::HeaderValue;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use self::admin_tokens::AdminTokenWatch;
use self::certificate::CertificateWatch;
use self::listen::{bind, connection_limits};
use self::reload::watch::Watch;
use self::reload::{ReloadParts, Reloader, SetLevel};
use self::secrets::KeyWatch;
use crate::app::ledger::LedgerHandles;
use crate::base::clock::Clock;
use crate::base::crash::crash_point;
use crate::base::secret::Secret;
use crate::base::state::StateDir;
use crate::billing::metering::Meter;
use crate::billing::reconcile::Reconciler;
use crate::cache::MemoryCache;
use crate::config::{Config, Environment, Loaded, StoreKind, UpstreamConfig, UpstreamKind};
use crate::error;
use crate::fill::slots::SlotsConfig;
use crate::fill::{FillConfig, FillParts, Filler};
use crate::gateway::keys::{KeyAdmin, KeyAdminParts};
use crate::gateway::{Gateway, GatewayParts};
use crate::http::routes::body::Pace;
use crate::http::routes::usage::{UsageParts, UsageState};
use crate::http::routes::{About, AdminState, PublicParts, PublicState, admin_router, public_router};
use crate::http::server::{self, ConnectionLimits, Listener, ReloadSignal, Stops};
use crate::ledger::guard::ArchiveGuard;
use crate::ledger::spooling::{Copier, Spool, SpoolConfig};
use crate::ledger::usage::UsageBook;
use crate::metrics::store::MeteredStore;
use crate::metrics::{ListenerName, Metrics};
use crate::request::RequestLimits;
use crate::store::Store;
use crate::teams::policy::{CurrentPolicy, PolicyConfig};
use crate::upstream::Upstream;
use crate::upstream::ailab::{AilabConfig, AilabUpstream};
use crate::upstream::builtin::{BuiltinUpstream, InlineResults};
use crate::upstream::download::bounded::BoundedResults;
use crate::upstream::download::http::{DownloadConfig, Downloader};
use crate::upstream::download::{HostRule, ResultSource};

/// Nothing is asked of an upload's pace for this long.
const UPLOAD_GRACE: Duration = Duration::from_secs(5);
/// How much longer than its upstream's hard stop a stopping process waits for a paid call.
const STOP_MARGIN: Duration = Duration::from_secs(10);

/// Connections of operators, of load balancers that ask after our health, and of who reads metrics.
const ADMIN_CONNECTIONS: usize = 256;
/// How long a start waits for the archive's markers.
const START_PATIENCE: Duration = Duration::from_secs(8);
/// How often the archive's markers are compared.
const GUARD_PERIOD: Duration = Duration::from_secs(30);

/// How often it is asked whether the store has records that the ledger does not know.
const IMPORT_PERIOD: Duration = Duration::from_secs(5);

/// A running Granary.
pub struct App {
    /// Where clients call.
    pub public_addr: SocketAddr,
    /// Where operators look.
    pub admin_addr: SocketAddr,
    stops: Stops,
    /// Ends what goes on beside the requests for as long as anything is bought.
    stopped: tokio_util::sync::DropGuard,
    reloader: Arc<Reloader>,
    filler: Filler,
    copier: Copier,
    meter: Arc<Meter>,
    usage: Arc<dyn UsageBook>,
    drain_grace: Duration,
    longest_call: Duration,
    listeners: Vec<tokio::task::JoinHandle<()>>,
    metrics: Arc<Metrics>,
    _state: StateDir,
}

/// Serves until the process is told to stop, and watches the file the configuration is from;
/// `started` is shown the running program once.
///
/// # Errors
/// Whatever keeps it from starting, in a sentence that says what to do.
pub async fn serve(
    loaded: Loaded,
    environment: Environment,
    set_level: SetLevel,
    started: impl FnOnce(&App),
) -> anyhow::Result<()> {
    let stop = server::stop_signal().context("cannot listen to signals")?;
    let mut hang_ups = ReloadSignal::new().context("cannot listen to signals")?;
    server::make_room(loaded.config.server.max_connections);
    let app = App::start(loaded.config.clone(), Clock::system()).await?;
    started(&app);
    match Watch::new(&loaded, environment, app.reloader.clone(), set_level) {
        Some(watch) => {
            let _watching = AbortOnDropHandle::new(tokio::spawn(watch.run(hang_ups)));
            stop.await;
        }
        // With nothing to read again it means what it always did: the terminal is gone.
        None => tokio::select! {
            () = stop => {}
            () = hang_ups.next() => {}
        },
    }
    app.stop().await;
    Ok(())
}

impl App {
    /// Builds every part, settles what the last process left open, and starts to listen.
    ///
    /// # Errors
    /// As [`serve`].
    pub async fn start(config: Config, clock: Clock) -> anyhow::Result<Self> {
        let state = StateDir::open(&config.state.path)?;
        let public = bind(config.server.listen, "server.listen")?;
        let admin = bind(config.server.admin_listen, "server.admin_listen")?;
        let (public_addr, admin_addr) = (public.local_addr()?, admin.local_addr()?);
        let public_root = config.server.public_origin(public_addr).to_string();

        let policy = CurrentPolicy::new(terms(&config));
        let metrics = Arc::new(Metrics::new(policy.get().teams().names(), config.cache.memory.0));
        metrics.expect_errors(error::kinds().map(|(fault, code)| (fault.as_str(), code.name)));
        metrics.spool_may_hold(config.state.spool_max.0);
        let memory = memory::open(&config, &state)?;
        let cache = MemoryCache::counted(config.cache.memory.0, memory.sent.clone(), metrics.clone());
        let cache = Arc::new(cache);
        let LedgerHandles { ledger, usage, admin: ledger_admin } =
            ledger::open(&config, &state, clock.clone(), Some(metrics.clone())).await?;
        let bare = store::open(&config.store).await?;
        let bare: Arc<dyn Store> = Arc::new(MeteredStore::new(bare, metrics.clone()));
        let guard = Arc::new(ArchiveGuard::new(ledger.clone(), bare.clone()));
        let spool = Spool::new(bare, ledger.clone(), guard.clone(), spool_config(&config, &state));
        let store: Arc<dyn Store> = spool.clone();
        let stops = Stops::default();
        let stopping = stops.stopping.clone();
        let stopped = CancellationToken::new();
        let prove = async {
            match config.store.kind {
                StoreKind::S3 => store::prove_bucket(store.clone(), stopping.clone()).await,
                StoreKind::Local => Ok(()),
            }
        };
        // A dependency that hangs must not keep hits from being served.
        let look = tokio::time::timeout(START_PATIENCE, guard.look());
        let (proved, looked) = tokio::join!(prove, look);
        proved?;
        if looked.is_err() {
            tracing::warn!("the archive's markers could not be compared yet; nothing is bought");
        }
        let watched = guard.clone();
        tokio::spawn(
            stopping.clone().run_until_cancelled_owned(async move { watched.watch(GUARD_PERIOD).await }),
        );
        let (upstream, results, key) = open_upstream(&config, metrics.clone())?;
        let max_bytes = config.upstream.result_max_bytes.0;
        let results = Arc::new(BoundedResults::new(results, memory.fetched.clone(), max_bytes));

        // Where several processes keep the ledger, it settles nothing: leases say whose owner is dead.
        let recovery = ledger.recover().await.context("the ledger cannot be read")?;
        crash_point("CP33");
        // A new store has one page: its ledger is complete before anything is bought.
        let _ = tokio::time::timeout(START_PATIENCE, guard.import_page()).await;
        let importer = guard.clone();
        tokio::spawn(
            stopping
                .clone()
                .run_until_cancelled_owned(async move { importer.import_records(IMPORT_PERIOD).await }),
        );
        let parts = FillParts {
            ledger: ledger.clone(),
            store: store.clone(),
            upstream: upstream.clone(),
            results,
            cache: cache.clone(),
            metrics: metrics.clone(),
            guard: guard.clone(),
            policy: policy.clone(),
            clock: clock.clone(),
        };
        let filler = Filler::new(parts, fill_config(&config));
        filler.resume(recovery);
        let leases = filler.clone();
        tokio::spawn(stopped.clone().run_until_cancelled_owned(async move { leases.keep_leases().await }));
        let copier = Copier::start(spool);
        let keys =
            key.map(|key| KeyWatch::new(config.upstream.clone(), key, filler.clone(), metrics.clone()));
        if let Some(keys) = keys.clone() {
            tokio::spawn(stopped.clone().run_until_cancelled_owned(keys.run()));
        }
        let about = Arc::new(About {
            config: ArcSwap::from_pointee(config.to_commented_toml()),
            started_at: clock.now(),
            namespace: config.upstream.namespace.clone(),
            upstream: config.upstream.kind.as_str(),
        });
        let reload_parts = ReloadParts {
            about: about.clone(),
            policy: policy.clone(),
            filler: filler.clone(),
            keys,
            metrics: metrics.clone(),
            clock: clock.clone(),
        };
        let reloader = Arc::new(Reloader::new(config.clone(), reload_parts));

        let meter = Arc::new(Meter::new(clock.clone(), config.budget.time_zone.clone()));
        let metering = meter.clone().run(usage.clone());
        tokio::spawn(stopped.clone().run_until_cancelled_owned(metering));
        let namespace = config.upstream.namespace.clone();
        let reconciler = Arc::new(Reconciler::new(usage.clone(), upstream, namespace, clock.clone()));
        let interval = config.upstream.balance_interval;
        if config.upstream.kind == UpstreamKind::Ailab && !interval.is_zero() {
            let filler = filler.clone();
            let reconciling = reconciler.clone().run(interval, move || filler.upstream_is_called());
            tokio::spawn(stopping.clone().run_until_cancelled_owned(reconciling));
        }

        let gateway_parts = GatewayParts {
            cache: cache.clone(),
            ledger: ledger.clone(),
            store: store.clone(),
            filler: filler.clone(),
            metrics: metrics.clone(),
            meter: meter.clone(),
            guard: guard.clone(),
            uploads: memory.uploads.clone(),
            clock: clock.clone(),
        };
        let usage_state = UsageState::new(UsageParts {
            book: usage.clone(),
            ledger: ledger.clone(),
            meter: meter.clone(),
            reconciler: reconciler.clone(),
            policy: policy.clone(),
            clock: clock.clone(),
            zone: config.budget.time_zone.clone(),
            price: config.upstream.credit_price,
        });
        let gateway = Gateway::new(gateway_parts, config.upstream.namespace.clone(), public_root.clone())
            .with_store_root(config.store.public_url.as_ref().map(ToString::to_string))
            // The rest of the connections is for those who only want what is stored.
            .with_waiting_places((config.server.max_connections * 3 / 4).max(1));
        let freshness = gateway.freshness();
        let following = freshness.clone();
        tokio::spawn(stopped.clone().run_until_cancelled_owned(async move { following.follow().await }));
        let keys = KeyAdmin::new(KeyAdminParts {
            admin: ledger_admin.clone(),
            ledger: ledger.clone(),
            store,
            cache: cache.clone(),
            freshness,
            guard: guard.clone(),
            clock: clock.clone(),
            namespace: config.upstream.namespace.clone(),
        });
        let tokens = config.server.admin_tokens().map_err(anyhow::Error::msg);
        let tokens = Arc::new(ArcSwap::from_pointee(tokens.context("server.admin_token_file")?));
        let watch = AdminTokenWatch { settings: config.server.clone(), tokens: tokens.clone() };
        tokio::spawn(stopped.clone().run_until_cancelled_owned(watch.run()));
        let state_of_routes = PublicState::new(PublicParts {
            gateway,
            policy: policy.clone(),
            metrics: metrics.clone(),
            clock,
            answer_within: config.server.answer_within,
            pace: Pace {
                total: config.server.body_timeout,
                grace: UPLOAD_GRACE,
                bytes_per_second: config.server.min_upload_rate.0,
            },
            limits: RequestLimits::default(),
            public_root: public_root.clone(),
            is_builtin: config.upstream.kind == UpstreamKind::Builtin,
            reconciler,
        });
        let admin_state = AdminState {
            metrics: metrics.clone(),
            cache,
            memory,
            ledger,
            admin: ledger_admin,
            keys: Arc::new(keys),
            guard,
            filler: filler.clone(),
            stopping,
            policy,
            usage: usage_state,
            tokens,
            about,
        };
        let certificate = CertificateWatch::start(&config.server, &metrics, &stopped)?;
        let public = Listener {
            socket: public,
            name: ListenerName::Public,
            routes: server::public_service(public_router(state_of_routes.clone()), state_of_routes),
            limits: connection_limits(&config.server),
            certificate,
            metrics: metrics.clone(),
            stops: stops.clone(),
        };
        let admin = Listener {
            socket: admin,
            name: ListenerName::Admin,
            routes: admin_router(admin_state),
            limits: ConnectionLimits { max_connections: ADMIN_CONNECTIONS, ..public.limits },
            certificate: None,
            metrics: metrics.clone(),
            stops: stops.clone(),
        };
        let listeners = vec![tokio::spawn(public.serve()), tokio::spawn(admin.serve())];
        tracing::info!(
            public = %public_addr,
            admin = %admin_addr,
            url = public_root,
            upstream = config.upstream.kind.as_str(),
            namespace = config.upstream.namespace,
            version = env!("CARGO_PKG_VERSION"),
            "listening"
        );
        Ok(Self {
            public_addr,
            admin_addr,
            stops,
            stopped: stopped.drop_guard(),
            reloader,
            filler,
            copier,
            meter,
            usage,
            drain_grace: config.server.drain_grace,
            longest_call: config.upstream.hard_stop + STOP_MARGIN,
            listeners,
            metrics,
            _state: state,
        })
    }

    /// What gives the running program another configuration.
    pub fn reloader(&self) -> Arc<Reloader> {
        self.reloader.clone()
    }

    /// Says how many lines of the log were lost, whenever the metrics are asked for it.
    pub fn count_dropped_lines(&self, dropped: impl Fn() -> u64 + Send + Sync + 'static) {
        self.metrics.count_dropped_lines(dropped);
    }

    /// Stops in good order: not ready at once, full service for a grace, then no new connections
    /// and no new purchases; every accepted request is answered, every paid call booked.
    pub async fn stop(self) {
        self.stops.stopping.cancel();
        tracing::info!(grace = ?self.drain_grace, "stopping: not ready any more, still serving");
        tokio::time::sleep(self.drain_grace).await;
        crash_point("CP35");
        self.filler.drain();
        self.stops.closed.cancel();
        let settled = async {
            for listener in self.listeners {
                if let Err(error) = listener.await {
                    tracing::error!(%error, "a listener panicked");
                }
            }
            self.filler.settled().await;
        };
        if tokio::time::timeout(self.longest_call, settled).await.is_err() {
            tracing::error!("not everything came to rest in time; the ledger has what is open");
        }
        self.copier.stop().await;
        self.meter.close(&*self.usage).await;
        drop(self.stopped);
        tracing::info!("stopped");
    }
}

fn spool_config(config: &Config, state: &StateDir) -> SpoolConfig {
    SpoolConfig {
        disk: Some(state.path().to_owned()),
        max_bytes: config.state.spool_max.0,
        result_max_bytes: config.upstream.result_max_bytes.0,
        is_remote: config.store.kind == StoreKind::S3,
    }
}

type UpstreamHandles = (Arc<dyn Upstream>, Arc<dyn ResultSource>, Option<Arc<ArcSwap<Secret>>>);

fn open_upstream(config: &Config, metrics: Arc<Metrics>) -> anyhow::Result<UpstreamHandles> {
    let settings = &config.upstream;
    match settings.kind {
        UpstreamKind::Builtin => {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            Ok((Arc::new(BuiltinUpstream::new(cores)), Arc::new(InlineResults), None))
        }
        UpstreamKind::Ailab => {
            let mut download = DownloadConfig::default();
            if !settings.result_hosts.is_empty() {
                let rules = settings.result_hosts.iter().map(|text| {
                    text.parse::<HostRule>().with_context(|| format!("upstream.result_hosts: {text}"))
                });
                download.hosts = rules.collect::<anyhow::Result<_>>()?;
            }
            download.max_bytes = usize::try_from(settings.result_max_bytes.0).unwrap_or(usize::MAX);
            download.total_timeout = settings.result_timeout;
            let (ailab, key) = open_ailab(settings)?;
            Ok((Arc::new(ailab.timed_by(metrics)), Arc::new(Downloader::new(download)), Some(key)))
        }
    }
}

/// With the key it will use, which may be swapped.
fn open_ailab(settings: &UpstreamConfig) -> anyhow::Result<(AilabUpstream, Arc<ArcSwap<Secret>>)> {
    let key = settings.key().map_err(anyhow::Error::msg)?.context("upstream.api_key is missing")?;
    let base_url = Url::parse(&settings.base_url.to_string()).context("upstream.base_url")?;
    let key = Arc::new(ArcSwap::from_pointee(key));
    let mut ailab = AilabConfig::new(base_url, key.clone());
    ailab.connect_timeout = settings.connect_timeout;
    ailab.upload_timeout = settings.upload_timeout;
    ailab.hard_stop = settings.hard_stop;
    Ok((AilabUpstream::new(ailab)?, key))
}

fn fill_config(config: &Config) -> FillConfig {
    FillConfig {
        namespace: config.upstream.namespace.clone(),
        credits_per_call: config.upstream.credits_per_call,
        slots: slots_config(config),
        result_url_ttl: config.upstream.result_url_ttl,
        hard_stop: config.upstream.hard_stop,
    }
}

fn slots_config(config: &Config) -> SlotsConfig {
    SlotsConfig {
        concurrency: config.upstream.concurrency,
        max_concurrency: config.upstream.max_concurrency,
        queue: config.upstream.queue,
    }
}

fn terms(config: &Config) -> PolicyConfig {
    let origins = config.server.cors_origins.iter();
    PolicyConfig {
        teams: config.to_teams(),
        daily_credits: config.budget.daily_credits,
        monthly_credits: config.budget.monthly_credits,
        origins: origins.filter_map(|origin| HeaderValue::from_str(origin.as_str()).ok()).collect(),
    }
}
