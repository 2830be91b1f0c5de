//! The listener's certificate, read anew: its files are polled by content, so that one is renewed without
//! a restart and without a failed request.
//!
//! Connections go on with the certificate they began with. Files that cannot be used, or do not belong
//! together (one of them may just be about to be replaced), keep the old one.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use arc_swap::ArcSwap;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::config::ServerConfig;
use crate::http::certificate::Certificate;
use crate::http::server::CurrentCertificate;
use crate::metrics::{Metrics, ReloadedFile};

/// How often the files are read. By content: a mounted secret changes without a new time of change.
const POLL: Duration = Duration::from_secs(2);

/// Which field, and why.
type Problem = (&'static str, String);

/// Where the certificate is, and the one in use.
pub(super) struct CertificateWatch {
    settings: ServerConfig,
    current: CurrentCertificate,
    metrics: Arc<Metrics>,
}

impl CertificateWatch {
    /// Reads the certificate and follows its files until `stopped`; `None` when none is configured.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub(super) fn start(
        settings: &ServerConfig,
        metrics: &Arc<Metrics>,
        stopped: &CancellationToken,
    ) -> anyhow::Result<Option<CurrentCertificate>> {
        let read = settings.certificate().map_err(|(field, why)| anyhow!(why).context(field));
        let Some(certificate) = read.context("the certificate")? else { return Ok(None) };
        metrics.tls_certificate_expiry_timestamp_seconds.set(certificate.expires().as_second());
        let current = Arc::new(ArcSwap::from_pointee(certificate));
        let watch = Self { settings: settings.clone(), current: current.clone(), metrics: metrics.clone() };
        tokio::spawn(stopped.clone().run_until_cancelled_owned(watch.run()));
        Ok(Some(current))
    }

    async fn run(self) {
        let mut clock = tokio::time::interval(POLL);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut problem = None;
        loop {
            clock.tick().await;
            let settings = self.settings.clone();
            // A file system may hang; that must not stop anything else.
            let Ok(read) = tokio::task::spawn_blocking(move || settings.certificate()).await else {
                continue;
            };
            problem = self.act(read, problem);
        }
    }

    /// Takes a new certificate into use. Returns the problem there is now; each is told once.
    fn act(&self, read: Result<Option<Certificate>, Problem>, known: Option<Problem>) -> Option<Problem> {
        match read {
            // Which files there are is settled at the start.
            Ok(None) => known,
            Ok(Some(certificate)) => {
                if !certificate.is_same(&self.current.load()) {
                    let expires = certificate.expires();
                    self.current.store(Arc::new(certificate));
                    self.metrics.tls_certificate_expiry_timestamp_seconds.set(expires.as_second());
                    self.metrics.reloaded(ReloadedFile::Certificate, true);
                    tracing::info!(%expires, "the certificate has changed; new connections get the new one");
                } else if known.is_some() {
                    self.metrics.reload_ok[ReloadedFile::Certificate].set(1);
                    tracing::info!("the certificate's files can be used again; it is the same");
                }
                None
            }
            Err(problem) => {
                if known.as_ref() != Some(&problem) {
                    let (field, why) = &problem;
                    tracing::error!("{field} {why}; the certificate read before stays in use");
                    self.metrics.reloaded(ReloadedFile::Certificate, false);
                }
                Some(problem)
            }
        }
    }
}
