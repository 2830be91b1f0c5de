//! The composition root: only this folder names concrete stores, ledgers and upstreams.

mod admin_tokens;
mod certificate;
mod file_watch;
mod ledger;
mod listen;
pub(crate) mod live;
pub(crate) mod reload;
mod settings;
mod start;
mod store;
mod upstream;
mod upstream_key;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio_util::task::AbortOnDropHandle;

use self::ledger::LedgerHandles;
use self::reload::watch::Watch;
use self::reload::{Reloader, SetLevel};
use crate::base::clock::Clock;
use crate::base::crash::crash_point;
use crate::base::state::{StateDir, StateDirError};
use crate::billing::metering::Meter;
use crate::config::{Config, Environment, Loaded};
use crate::fill::Filler;
use crate::http::server::{self, ReloadSignal, Stops};
use crate::ledger::admin::Actor;
use crate::ledger::guard::{Adoption, ArchiveGuard};
use crate::ledger::spooling::Copier;
use crate::ledger::usage::UsageBook;
use crate::metrics::Metrics;

/// Wait for a paid call at a stop, beyond the upstream's hard stop.
const STOP_MARGIN: Duration = Duration::from_secs(10);

pub struct App {
    pub public_addr: SocketAddr,
    pub admin_addr: SocketAddr,
    stops: Stops,
    /// Ends the background tasks that run while anything may be bought.
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

/// Serves until a stop signal, and watches the configuration file. `started` is called once.
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
        // Without a file, SIGHUP stops the process: the terminal is gone.
        None => tokio::select! {
            () = stop => {}
            () = hang_ups.next() => {}
        },
    }
    app.stop().await;
    Ok(())
}

fn open_state(config: &Config) -> anyhow::Result<Option<StateDir>> {
    match StateDir::open(&config.state.path) {
        Ok(state) => Ok(Some(state)),
        Err(StateDirError::InUse(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// `None` while a running granary holds the state; that one must be asked instead.
pub async fn adopt(config: &Config) -> anyhow::Result<Option<Adoption>> {
    let Some(state) = open_state(config)? else { return Ok(None) };
    let LedgerHandles { ledger, admin, .. } =
        self::ledger::open(config, &state, Clock::system(), None).await?;
    let store = self::store::open(&config.store).await?;
    let adoption = ArchiveGuard::new(ledger, store).adopt().await?;
    let by = Actor::command_line();
    let noted = admin.note_adoption(adoption.archive, &adoption.to_string(), &by).await;
    noted.context("adopted, but the audit could not be written; adopt again")?;
    Ok(Some(adoption))
}

impl App {
    pub fn count_dropped_lines(&self, dropped: impl Fn() -> u64 + Send + Sync + 'static) {
        self.metrics.count_dropped_lines(dropped);
    }

    /// Graceful stop: not ready at once, full service for a grace, then no new connections and no new
    /// purchases; every accepted request is answered, every paid call booked.
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
