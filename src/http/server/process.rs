//! Signals, and the limit of open files.

use std::future::Future;

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Files, the ledger, the bucket, the upstream.
const OTHERS: u64 = 512;

/// Raises the limit as far as allowed, and warns when it is too low for the configuration.
pub(crate) fn make_room(max_connections: usize) {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if setrlimit(Resource::Nofile, limit).is_err() {
            limit = getrlimit(Resource::Nofile);
        }
    }
    let wanted = max_connections as u64 + OTHERS;
    // No limit at all is `None`.
    if let Some(allowed) = limit.current
        && allowed < wanted
    {
        tracing::warn!(
            allowed,
            wanted,
            "this process may open fewer files than server.max_connections needs; raise its limit (ulimit -n, \
             LimitNOFILE) or lower the setting"
        );
    }
}

/// SIGHUP: an operator asks for a reload, or a terminal is closed.
pub struct ReloadSignal(Signal);

impl ReloadSignal {
    /// From now on SIGHUP does not end the process.
    pub fn new() -> std::io::Result<Self> {
        signal(SignalKind::hangup()).map(Self)
    }

    pub async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            // There will be no more.
            std::future::pending::<()>().await;
        }
    }
}

/// Completes at SIGTERM or SIGINT.
pub fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
