//! Opens the configured upstream: the built-in engine, or AILab.

use std::sync::Arc;

use anyhow::Context;
use arc_swap::ArcSwap;

use crate::base::secret::Secret;
use crate::config::{Config, UpstreamConfig, UpstreamKind};
use crate::metrics::Metrics;
use crate::upstream::Upstream;
use crate::upstream::ailab::{AilabConfig, AilabUpstream};
use crate::upstream::builtin::{BuiltinUpstream, InlineResults};
use crate::upstream::download::http::{DownloadConfig, Downloader};
use crate::upstream::download::{HostRule, ResultSource};

pub(super) type UpstreamHandles = (Arc<dyn Upstream>, Arc<dyn ResultSource>, Option<Arc<ArcSwap<Secret>>>);

pub(super) fn open_upstream(config: &Config, metrics: Arc<Metrics>) -> anyhow::Result<UpstreamHandles> {
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

pub(super) fn open_ailab(settings: &UpstreamConfig) -> anyhow::Result<(AilabUpstream, Arc<ArcSwap<Secret>>)> {
    let key = settings.key().map_err(anyhow::Error::msg)?.context("upstream.api_key is missing")?;
    let key = Arc::new(ArcSwap::from_pointee(key));
    let mut ailab = AilabConfig::new(settings.base_url.as_url().clone(), key.clone());
    ailab.connect_timeout = settings.connect_timeout;
    ailab.upload_timeout = settings.upload_timeout;
    ailab.hard_stop = settings.hard_stop;
    Ok((AilabUpstream::new(ailab)?, key))
}
