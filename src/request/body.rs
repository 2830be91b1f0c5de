//! The body of a client's request ([`ClientBody`]): enforces a minimum pace, and measures the waits.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::{BodyTooSlow, BoxError};

#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// For the whole body, from its first poll.
    pub total: Duration,
    /// The minimum rate holds after this time.
    pub grace: Duration,
    /// The minimum rate, on average since the first poll; 0 for none.
    pub bytes_per_second: u64,
}

impl Pace {
    #[cfg(test)]
    pub(crate) fn of_tests() -> Self {
        Self { total: Duration::from_hours(1), grace: Duration::ZERO, bytes_per_second: 0 }
    }

    /// How long after its first poll a body may have only `bytes` bytes.
    fn allowance(&self, bytes: u64) -> Duration {
        if self.bytes_per_second == 0 {
            return self.total;
        }
        let at_pace = Duration::from_millis(bytes.saturating_mul(1000) / self.bytes_per_second);
        self.total.min(self.grace.saturating_add(at_pace))
    }
}

/// Fails with [`BodyTooSlow`] below its [`Pace`].
pub struct ClientBody<B> {
    inner: B,
    pace: Pace,
    /// Bytes so far.
    pub bytes: u64,
    /// Total time from a `Pending` poll to the next poll.
    pub waited: Duration,
    started: Option<Instant>,
    waiting_since: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

impl<B> ClientBody<B> {
    pub fn new(inner: B, pace: Pace) -> Self {
        Self {
            inner,
            pace,
            bytes: 0,
            waited: Duration::ZERO,
            started: None,
            waiting_since: None,
            timer: Box::pin(tokio::time::sleep_until(Instant::now())),
        }
    }
}

impl<B> Body for ClientBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let started = *self.started.get_or_insert_with(Instant::now);
        if let Some(since) = self.waiting_since.take() {
            self.waited += since.elapsed();
        }
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) {
            if let Some(Ok(frame)) = &frame
                && let Some(data) = frame.data_ref()
            {
                self.bytes += data.len() as u64;
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        self.waiting_since = Some(Instant::now());
        let deadline = started + self.pace.allowance(self.bytes);
        if self.timer.deadline() != deadline {
            self.timer.as_mut().reset(deadline);
        }
        ready!(self.timer.as_mut().poll(cx));
        Poll::Ready(Some(Err(BodyTooSlow.into())))
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
    use futures_util::StreamExt;
    use http_body_util::{BodyExt, StreamBody};
    use tokio_stream::wrappers::IntervalStream;

    use super::*;

    const PACE: Pace =
        Pace { total: Duration::from_secs(60), grace: Duration::from_secs(5), bytes_per_second: 100 };

    /// A body of `piece` bytes every second, for ever.
    async fn ends_after(piece: usize, pace: Pace) -> Duration {
        let ticks = IntervalStream::new(tokio::time::interval(Duration::from_secs(1)));
        let frames = ticks.map(move |_| Ok::<_, std::io::Error>(Frame::data(Bytes::from(vec![0; piece]))));
        let mut body = ClientBody::new(StreamBody::new(frames), pace);
        let start = Instant::now();
        loop {
            match body.frame().await.expect("the body never ends") {
                Ok(_) => {}
                Err(error) => {
                    assert!(error.is::<BodyTooSlow>());
                    return start.elapsed();
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_below_the_pace_ends_and_none_lasts_for_ever() {
        assert_eq!(ends_after(0, PACE).await, Duration::from_secs(5));
        // 60 bytes a second for some 12 seconds fall behind 100 a second by the five of grace.
        let slow = ends_after(60, PACE).await;
        assert!(slow > Duration::from_secs(10) && slow < Duration::from_secs(15), "{slow:?}");
        assert_eq!(ends_after(200, PACE).await, Duration::from_secs(60));
        let no_minimum = Pace { bytes_per_second: 0, ..PACE };
        assert_eq!(ends_after(0, no_minimum).await, Duration::from_secs(60));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_knows_how_long_it_was_waited_for_and_no_more() {
        let ticks = IntervalStream::new(tokio::time::interval(Duration::from_secs(2)));
        let frames = ticks.map(|_| Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(b"four"))));
        let mut body = ClientBody::new(StreamBody::new(frames), Pace::of_tests());
        for _ in 0..4 {
            body.frame().await.expect("it never ends").expect("it never fails");
        }
        // The first tick is at once.
        assert_eq!((body.bytes, body.waited.as_secs()), (16, 6));
        tokio::time::sleep(Duration::from_secs(100)).await;
        body.frame().await.expect("it never ends").expect("it never fails");
        assert_eq!((body.bytes, body.waited.as_secs()), (20, 6), "it was there, and nobody polled");
    }
}
