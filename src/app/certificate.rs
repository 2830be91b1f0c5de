//! The listener's certificate, which is renewed by writing its files, without a failed request. Connections
//! keep the certificate they began with. Files that cannot be used, or do not match yet, keep the old one.

use std::sync::Arc;

use anyhow::{Context, anyhow};
use arc_swap::ArcSwap;

use super::file_watch::FileWatch;
use crate::config::ServerConfig;
use crate::http::server::CurrentCertificate;
use crate::metrics::{Metrics, ReloadedFile};

pub(super) fn open(settings: &ServerConfig, metrics: &Metrics) -> anyhow::Result<Option<CurrentCertificate>> {
    let read = settings.certificate().map_err(|(field, why)| anyhow!(why).context(field));
    let Some(certificate) = read.context("the certificate")? else { return Ok(None) };
    metrics.tls_certificate_expiry_timestamp_seconds.set(certificate.expires.as_second());
    Ok(Some(Arc::new(ArcSwap::from_pointee(certificate))))
}

pub(super) async fn follow(settings: ServerConfig, current: CurrentCertificate, metrics: Arc<Metrics>) {
    let mut files = FileWatch::new(move || settings.certificate());
    loop {
        let (read, was_unusable) = files.next().await;
        match &read {
            // Files are configured at the start only.
            Ok(None) => {}
            Ok(Some(certificate)) if *certificate != **current.load() => {
                let expires = certificate.expires;
                current.store(Arc::new(certificate.clone()));
                metrics.tls_certificate_expiry_timestamp_seconds.set(expires.as_second());
                metrics.reloaded(ReloadedFile::Certificate, true);
                tracing::info!(%expires, "certificate changed; new connections use the new one");
            }
            Ok(Some(_)) if was_unusable => {
                metrics.reload_ok[ReloadedFile::Certificate].set(1);
                tracing::info!("the certificate's files can be used again; it is the same");
            }
            Ok(Some(_)) => {}
            Err((field, why)) => {
                tracing::error!("{field} {why}; the certificate read before stays in use");
                metrics.reloaded(ReloadedFile::Certificate, false);
            }
        }
    }
}
