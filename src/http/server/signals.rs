//! What this process is told from outside.

use std::future::Future;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The hang-ups this process is sent (SIGHUP): by an operator as a signal to read the configuration
/// again, or by a terminal that is closed.
pub struct ReloadSignal(Signal);

impl ReloadSignal {
    /// From now on none of them ends the process by itself.
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

/// Completes when the process is told to stop, by SIGTERM or from the keyboard.
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
