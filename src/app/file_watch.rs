//! Follows files that may change while the program runs. Files are polled by content: a mounted secret
//! changes without a new modification time, and a new time alone is no change. A change counts only if it
//! lasts a moment: half of a file that is being written may look like a whole one.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior};

const POLL: Duration = Duration::from_secs(2);
const SETTLE: Duration = Duration::from_millis(250);

type Read<T, E> = dyn Fn() -> Result<T, E> + Send + Sync;

pub(super) struct FileWatch<T, E> {
    read: Arc<Read<T, E>>,
    last: Option<Result<T, E>>,
    clock: Interval,
}

impl<T, E> FileWatch<T, E>
where
    T: Clone + PartialEq + Send + 'static,
    E: Clone + PartialEq + Send + 'static,
{
    /// `read` may block while it reads small files. Its first result is a change.
    pub(super) fn new(read: impl Fn() -> Result<T, E> + Send + Sync + 'static) -> Self {
        let mut clock = tokio::time::interval(POLL);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { read: Arc::new(read), last: None, clock }
    }

    /// The next change, and whether it follows an error. Cancel-safe.
    pub(super) async fn next(&mut self) -> (Result<T, E>, bool) {
        loop {
            self.clock.tick().await;
            let was_error = self.last.as_ref().is_some_and(Result::is_err);
            if let Some(change) = self.poll().await {
                return (change, was_error);
            }
        }
    }

    /// Reads once; returns a change that lasts.
    pub(super) async fn poll(&mut self) -> Option<Result<T, E>> {
        let found = self.read().await?;
        if self.last.as_ref() == Some(&found) {
            return None;
        }
        tokio::time::sleep(SETTLE).await;
        let lasts = self.read().await? == found;
        lasts.then(|| self.last.insert(found).clone())
    }

    pub(super) async fn now(&mut self) -> Option<Result<T, E>> {
        let found = self.read().await?;
        Some(self.last.insert(found).clone())
    }

    /// On another thread, because a file system may hang; `None` when there is no thread.
    async fn read(&self) -> Option<Result<T, E>> {
        let read = self.read.clone();
        tokio::task::spawn_blocking(move || read()).await.ok()
    }
}
