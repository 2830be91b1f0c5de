//! A [`ResultSource`] whose results take room in a [`ResultRoom`] from before they are read.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{FetchError, Fetched, ResultSource};
use crate::base::results::ResultRoom;
use crate::base::secret::Secret;

const PATIENCE: Duration = Duration::from_secs(30);

pub struct BoundedResults {
    inner: Arc<dyn ResultSource>,
    room: ResultRoom,
    max_bytes: u64,
}

impl BoundedResults {
    /// `max_bytes` is the largest result of `inner`.
    pub fn new(inner: Arc<dyn ResultSource>, room: ResultRoom, max_bytes: u64) -> Self {
        Self { inner, room, max_bytes }
    }
}

#[async_trait]
impl ResultSource for BoundedResults {
    async fn fetch(&self, url: &Secret) -> Result<Fetched, FetchError> {
        let share = self.room.take(self.max_bytes, PATIENCE).await;
        let share = share.map_err(|error| FetchError::Transient(error.to_string()))?;
        let Fetched { name, bytes } = self.inner.fetch(url).await?;
        Ok(Fetched { name, bytes: share.hold(bytes) })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
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
        let room = ResultRoom::new(64 << 10);
        let results = BoundedResults::new(Arc::new(Source), room.clone(), 60 << 10);
        let first = results.fetch(&Secret::new("one")).await.expect("room");
        assert_eq!(first.bytes, "BMone");
        assert_eq!(room.used(), 4096);
        let second = results.fetch(&Secret::new("two")).await.expect("room for the largest");
        assert_eq!(room.used(), 8192);
        let refused = results.fetch(&Secret::new("three")).await;
        assert!(matches!(refused, Err(FetchError::Transient(_))), "{refused:?}");
        drop((first, second));
        assert!(matches!(results.fetch(&Secret::new("dead")).await, Err(FetchError::Dead(_))));
        assert_eq!(room.used(), 0);
    }
}
