//! Signals.

use std::future::Future;

use tokio::signal::unix::{Signal, SignalKind, signal};

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
