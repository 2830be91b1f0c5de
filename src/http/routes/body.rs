//! A request body's clock: it may take so long in all, and must keep a minimum pace.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::request::{BodyTooSlow, BoxError};

#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The whole body, from its first poll.
    pub total: Duration,
    /// Nothing is asked of the pace for this long.
    pub grace: Duration,
    /// Bytes per second afterwards, on average since the first poll; 0 for no minimum.
    pub bytes_per_second: u64,
}

impl Pace {
    /// How long after its first poll a body may still be at `bytes` bytes.
    fn allowance(&self, bytes: u64) -> Duration {
        if self.bytes_per_second == 0 {
            return self.total;
        }
        let at_pace = Duration::from_millis(bytes.saturating_mul(1000) / self.bytes_per_second);
        self.total.min(self.grace.saturating_add(at_pace))
    }
}

/// A body that fails with [`BodyTooSlow`] when it does not keep its [`Pace`].
pub struct PacedBody<B> {
    inner: B,
    pace: Pace,
    bytes: u64,
    started: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

impl<B> PacedBody<B> {
    /// The clock starts when the body is first polled.
    pub fn new(inner: B, pace: Pace) -> Self {
        Self {
            inner,
            pace,
            bytes: 0,
            started: None,
            timer: Box::pin(tokio::time::sleep_until(Instant::now())),
        }
    }
}

impl<B> Body for PacedBody<B>
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
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) {
            if let Some(Ok(frame)) = &frame
                && let Some(data) = frame.data_ref()
            {
                self.bytes += data.len() as u64;
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
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
        let mut body = PacedBody::new(StreamBody::new(frames), pace);
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
}
