//! The paid API's client and the downloader, against a fake of the vendor: what every upstream must do.

use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use granary_kit::ailab::FakeAilab;
use url::Url;

use super::{AilabConfig, AilabUpstream};
use crate::base::secret::Secret;
use crate::testing::upstream_contract::{UpstreamFixture, upstream_contract};
use crate::upstream::Upstream;
use crate::upstream::download::ResultSource;
use crate::upstream::download::http::{DownloadConfig, Downloader};

struct Fixture(FakeAilab);

#[async_trait]
impl UpstreamFixture for Fixture {
    fn upstream(&self) -> Arc<dyn Upstream> {
        let url = Url::parse(&self.0.base_url()).unwrap();
        let key = Arc::new(ArcSwap::from_pointee(Secret::new(self.0.api_key())));
        Arc::new(AilabUpstream::new(AilabConfig::new(url, key)).unwrap())
    }

    fn results(&self) -> Arc<dyn ResultSource> {
        let hosts = vec![self.0.result_host().parse().unwrap()];
        Arc::new(Downloader::new(DownloadConfig { hosts, ..DownloadConfig::default() }))
    }

    async fn charges(&self) -> Option<u64> {
        Some(self.0.charges())
    }
}

upstream_contract!(async { Fixture(FakeAilab::start().await) });
