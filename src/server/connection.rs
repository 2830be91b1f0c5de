//! A connection's clock: how long it may be silent, by what is expected of it.
//!
//! hyper has one time limit for reading a head, which also cuts connections that are idle between
//! two requests; a load balancer keeps those for a minute. Here a head has seconds and idleness has
//! its own, longer limit. Nothing is limited while a request is being answered.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// After the last answer, what a client still sends is read and dropped for this long, so that the
/// answer is not lost in a reset.
const LINGER: Duration = Duration::from_secs(1);
/// And no more than this many bytes.
const LINGER_BYTES: usize = 8 << 20;

/// What a connection is waiting for, and since when. Shared by its stream and its service.
#[derive(Clone)]
pub(super) struct Phases {
    head: Duration,
    idle: Duration,
    now: Arc<Mutex<Now>>,
}

struct Now {
    phase: Phase,
    /// Whoever reads while no limit applies: it sleeps without a timer, and must be woken when one does.
    reader: Option<Waker>,
}

#[derive(Clone, Copy)]
enum Phase {
    /// A head is to be complete.
    Head { since: Instant },
    /// A request is being read or answered; other limits apply.
    Request,
    /// The next request may begin.
    Idle { since: Instant },
}

/// Alive while a request is being answered.
pub(super) struct InRequest(Phases);

impl Phases {
    /// A connection just accepted: its head is due.
    pub(super) fn new(head: Duration, idle: Duration) -> Self {
        let since = Instant::now();
        let now = Now { phase: Phase::Head { since }, reader: None };
        Self { head, idle, now: Arc::new(Mutex::new(now)) }
    }

    /// A head is complete.
    pub(super) fn begin_request(&self) -> InRequest {
        self.set(Phase::Request);
        InRequest(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, phase: Phase) {
        let mut now = self.lock();
        now.phase = phase;
        let reader = now.reader.take();
        drop(now);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    fn bytes_came(&self) {
        let mut now = self.lock();
        if let Phase::Idle { .. } = now.phase {
            now.phase = Phase::Head { since: Instant::now() };
        }
    }

    /// When a read that has nothing to read must end; without a limit its task is woken once there is one.
    fn deadline(&self, cx: &Context<'_>) -> Option<Instant> {
        let mut now = self.lock();
        match now.phase {
            Phase::Head { since } => Some(since + self.head),
            Phase::Idle { since } => Some(since + self.idle),
            Phase::Request => {
                now.reader = Some(cx.waker().clone());
                None
            }
        }
    }
}

impl Drop for InRequest {
    fn drop(&mut self) {
        self.0.set(Phase::Idle { since: Instant::now() });
    }
}

/// A TCP stream that ends when its phase has lasted too long.
pub(super) struct TimedStream {
    stream: TcpStream,
    phases: Phases,
    timer: Pin<Box<Sleep>>,
    linger: Option<Linger>,
}

struct Linger {
    until: Instant,
    bytes: usize,
}

impl TimedStream {
    pub(super) fn new(stream: TcpStream, phases: Phases) -> Self {
        let timer = Box::pin(tokio::time::sleep_until(Instant::now()));
        Self { stream, phases, timer, linger: None }
    }

    fn poll_until(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        if self.timer.deadline() != deadline {
            self.timer.as_mut().reset(deadline);
        }
        self.timer.as_mut().poll(cx)
    }
}

impl AsyncRead for TimedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.phases.bytes_came();
        }
        if read.is_pending()
            && let Some(deadline) = self.phases.deadline(cx)
        {
            ready!(self.poll_until(deadline, cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for TimedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Closes in two steps (RFC 9112 9.6): our side first, then what the client still sends is read
    /// and dropped for a moment.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.linger = Some(Linger { until: Instant::now() + LINGER, bytes: 0 });
        }
        let mut scratch = [0; 16 * 1024];
        loop {
            let Some(Linger { until, bytes }) = &self.linger else { return Poll::Ready(Ok(())) };
            let (until, bytes) = (*until, *bytes);
            if bytes >= LINGER_BYTES {
                return Poll::Ready(Ok(()));
            }
            let mut buf = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    self.linger = Some(Linger { until, bytes: bytes + buf.filled().len() });
                }
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => {
                    ready!(self.poll_until(until, cx));
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}
