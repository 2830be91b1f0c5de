//! A [`ResultSource`] whose results hold permits for their bytes from before they are read.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{FetchError, Fetched, ResultSource};
use crate::base::permits::{Party, Permits};
use crate::base::secret::Secret;

const PATIENCE: Duration = Duration::from_secs(30);

pub struct BoundedResults {
    inner: Arc<dyn ResultSource>,
    room: Permits,
    party: Party,
    max_bytes: u64,
}

impl BoundedResults {
    pub fn new(inner: Arc<dyn ResultSource>, room: Permits, max_bytes: u64) -> Self {
        Self { inner, room, party: Party::new("fills"), max_bytes }
    }
}

#[async_trait]
impl ResultSource for BoundedResults {
    async fn fetch(&self, url: &Secret) -> Result<Fetched, FetchError> {
        let Some(mut permit) = self.room.take_within(&self.party, self.max_bytes, PATIENCE).await else {
            return Err(FetchError::Transient("too many results are in memory".to_owned()));
        };
        let Fetched { name, bytes } = self.inner.fetch(url).await?;
        permit.shrink_to(bytes.len() as u64);
        Ok(Fetched { name, bytes: permit.hold(bytes) })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::base::permits::Sharing;
    use crate::base::picture::ObjectName;

    struct Source;

    #[async_trait]
    impl ResultSource for Source {
        async fn fetch(&self, url: &Secret) -> Result<Fetched, FetchError> {
            let bytes = Bytes::from([b"BM", url.expose().as_bytes()].concat());
            let name = ObjectName::of(&bytes).ok_or(FetchError::Timeout)?;
            if url.expose() == "dead" {
                Err(FetchError::Dead(String::new()))
            } else {
                Ok(Fetched { name, bytes })
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn results_that_are_not_kept_yet_bound_how_many_are_fetched() {
        let room = Permits::new(60 << 10, Sharing::Whole);
        let results = BoundedResults::new(Arc::new(Source), room.clone(), 60 << 10);
        let first = results.fetch(&Secret::new("one")).await.expect("room");
        assert_eq!(first.bytes, "BMone");
        assert_eq!(room.used(), 5);
        let refused = results.fetch(&Secret::new("three")).await;
        assert!(matches!(refused, Err(FetchError::Transient(_))), "{refused:?}");
        drop(first);
        assert!(matches!(results.fetch(&Secret::new("dead")).await, Err(FetchError::Dead(_))));
        assert_eq!(room.used(), 0);
    }
}
