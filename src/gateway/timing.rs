//! What a crop request leaves behind on its way, beside its answer: for the log and the metrics.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use crate::base::key::CacheKey;
use crate::fill::FillTiming;
use crate::metrics::{Stage, Stages};

/// As far as the request came.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestTiming {
    /// Where its time went, as far as it was not another's fill.
    pub stages: Stages,
    /// Time spent waiting for the client's body.
    pub body_wait: Duration,
    pub body_bytes: u64,
    pub key: Option<CacheKey>,
    /// How long the upstream was called for it, and what it said last.
    pub upstream: Option<(Duration, Option<StatusCode>)>,
    /// Time waited for others in its own fill.
    fill_wait: Duration,
}

impl RequestTiming {
    /// All time that was waited for others: the rest is our own.
    pub fn waited(&self) -> Duration {
        self.body_wait + self.stages.waited() + self.fill_wait
    }

    /// Its fill was waited for in vain, for so long.
    pub(super) fn gave_up(&mut self, waited: Duration) {
        self.fill_wait = waited;
    }

    /// The fill that was made for this request, until it was told the outcome.
    pub(super) fn was_filled(&mut self, timing: &FillTiming) {
        self.fill_wait = timing.stages.waited();
        self.upstream = timing.stages.of(Stage::Upstream).map(|took| (took, timing.upstream_status));
    }
}

/// A body that knows how many bytes it gave, and how long they were waited for.
pub(super) struct WatchedBody<B> {
    inner: B,
    pub(super) bytes: u64,
    pub(super) waited: Duration,
    /// Since then the next bytes are waited for.
    since: Option<Instant>,
}

impl<B> WatchedBody<B> {
    pub(super) fn new(inner: B) -> Self {
        Self { inner, bytes: 0, waited: Duration::ZERO, since: None }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for WatchedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        // What comes while nobody asks is not waited for: only from a poll in vain to the next one.
        if let Some(since) = self.since.take() {
            self.waited += since.elapsed();
        }
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if polled.is_pending() {
            self.since = Some(Instant::now());
        }
        let frame = ready!(polled);
        if let Some(Ok(frame)) = &frame {
            self.bytes += frame.data_ref().map_or(0, Bytes::len) as u64;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::StreamExt;
    use http_body_util::{BodyExt, StreamBody};
    use tokio_stream::wrappers::IntervalStream;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_tells_how_long_it_was_waited_for_and_no_more() {
        let ticks = IntervalStream::new(tokio::time::interval(Duration::from_secs(2)));
        let frames = ticks.map(|_| Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"four"))));
        let mut body = WatchedBody::new(StreamBody::new(frames));
        for _ in 0..4 {
            body.frame().await.expect("it never ends").expect("it never fails");
        }
        // The first tick is at once.
        assert_eq!((body.bytes, body.waited.as_secs()), (16, 6));
        tokio::time::sleep(Duration::from_secs(100)).await;
        body.frame().await.expect("it never ends").expect("it never fails");
        assert_eq!((body.bytes, body.waited.as_secs()), (20, 6), "it was there, and nobody asked");
    }
}
