//! The stream that hyper reads: checked heads and their exact bodies; never the beginning of another request
//! while one is being answered. A placeholder replaces an ambiguous head, so that the service can answer it.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::Listener;
use super::linger::{Socket, linger, tcp_of};
use super::timers::{ConnectionTimers, Phase};
use super::write_timeout::WriteTimeout;
use crate::metrics::CloseReason;
use crate::request::framing::{self, HeadError, MAX_HEAD, Next};

/// Bytes read at once where they are checked first.
const PIECE: usize = 16 * 1024;
/// Sent to a client that has closed its half before the answer: only a client that is gone resets the
/// connection. Every other has to ignore it (RFC 9110, section 15.2).
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// Between two checks for that reset.
const RESET_CHECK: Duration = Duration::from_millis(250);

pub(super) struct FramedConnection {
    socket: Socket,
    listener: Arc<Listener>,
    timers: Arc<ConnectionTimers>,
    /// Read and not passed on.
    buffer: BytesMut,
    /// Bytes of the buffer that may be passed on.
    checked: usize,
    next: Next,
    takes_interim: bool,
    is_half_closed: bool,
    /// Nothing more can arrive, or is waited for.
    is_over: bool,
    write_timeout: WriteTimeout,
    timer: Pin<Box<Sleep>>,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl FramedConnection {
    pub(super) fn new(socket: Socket, timers: Arc<ConnectionTimers>, listener: &Arc<Listener>) -> Self {
        timers.enter(Phase::Head);
        Self {
            socket,
            listener: listener.clone(),
            timers,
            buffer: BytesMut::new(),
            checked: 0,
            next: Next::Head,
            takes_interim: false,
            is_half_closed: false,
            is_over: false,
            write_timeout: WriteTimeout::new(listener.limits.write),
            timer: Box::pin(tokio::time::sleep_until(Instant::now())),
            closed: Box::pin(listener.stops.closed.clone().cancelled_owned()),
        }
    }

    /// Closes the connection, so that a client that still sends can read what it was answered.
    pub(super) async fn close(self) {
        if !self.is_over && !self.is_half_closed {
            self.timers.enter(Phase::Idle);
            linger(self.socket).await;
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.checked == 0 {
            match &mut self.next {
                Next::Nothing => return Poll::Pending,
                Next::Head => {
                    if !ready!(self.poll_head(cx))? {
                        return Poll::Ready(Ok(()));
                    }
                }
                Next::Bytes(0) => self.next = Next::Head,
                Next::Bytes(left) if self.buffer.is_empty() => {
                    // Straight into hyper's buffer, and not a byte too many.
                    let before = out.filled().len();
                    ready!(Pin::new(&mut (&mut self.socket).take(*left)).poll_read(cx, out))?;
                    *left -= (out.filled().len() - before) as u64;
                    return Poll::Ready(Ok(()));
                }
                Next::Bytes(left) => {
                    self.checked = usize::try_from(*left).unwrap_or(usize::MAX).min(self.buffer.len());
                    *left -= self.checked as u64;
                }
                Next::Chunks(chunks) => match chunks.advance(&self.buffer) {
                    Ok(checked) => {
                        self.checked = checked;
                        if chunks.is_at_end() {
                            self.next = Next::Head;
                        } else if checked == 0 && ready!(self.poll_fill(cx))? == 0 {
                            return Poll::Ready(Ok(()));
                        }
                    }
                    Err(error) => {
                        self.next = Next::Nothing;
                        return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
                    }
                },
            }
        }
        let length = self.checked.min(out.remaining());
        out.put_slice(&self.buffer[..length]);
        self.buffer.advance(length);
        self.checked -= length;
        if self.buffer.is_empty() {
            // An idle connection holds no memory.
            self.buffer = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    /// False if there is no next head.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if matches!(self.timers.phase(), Phase::Request(_) | Phase::Answered) {
            return self.poll_gone(cx).map(Err);
        }
        loop {
            while self.buffer.starts_with(b"\r\n") {
                self.buffer.advance(2);
            }
            if !self.buffer.is_empty() {
                self.timers.change(Phase::Idle, Phase::Head);
            }
            match framing::head_end(&self.buffer).transpose() {
                Some(end) => {
                    self.check(end);
                    return Poll::Ready(Ok(true));
                }
                None if self.is_half_closed => return Poll::Ready(Ok(false)),
                None => {}
            }
            match self.poll_fill(cx)? {
                Poll::Ready(0) => return Poll::Ready(Ok(false)),
                Poll::Ready(_) => continue,
                Poll::Pending => {}
            }
            // A request that was sent before the listener closed is served; another is not waited for.
            let is_idle = self.timers.phase() == Phase::Idle;
            if is_idle && self.closed.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(false));
            }
            let Some(deadline) = self.timers.deadline() else { return Poll::Pending };
            if self.timer.deadline() != deadline {
                self.timer.as_mut().reset(deadline);
            }
            ready!(self.timer.as_mut().poll(cx));
            let reason = match self.buffer.is_empty() {
                true if is_idle => CloseReason::Idle,
                true => CloseReason::FirstByte,
                false => CloseReason::Head,
            };
            self.listener.metrics.connections_closed_total[(self.listener.name, reason)].inc();
            // Without a lingering close: slow bytes are not waited for any longer.
            self.is_over = true;
            if reason == CloseReason::Head {
                self.check(Err(HeadError::Slow));
            }
            return Poll::Ready(Ok(reason == CloseReason::Head));
        }
    }

    /// Passes a head of that length, or a placeholder for a refused one.
    fn check(&mut self, length: Result<usize, HeadError>) {
        let checked = length.and_then(|length| {
            let head = &mut self.buffer[..length];
            let next = framing::check_head(head)?;
            framing::hide_upgrade(head);
            self.takes_interim = !framing::is_http_10(head);
            Ok((length, next))
        });
        let refused = checked.as_ref().err().copied();
        (self.checked, self.next) = checked.unwrap_or_else(|_| {
            self.buffer = BytesMut::from(framing::PLACEHOLDER_HEAD);
            (self.buffer.len(), Next::Nothing)
        });
        self.write_timeout.begin();
        self.timers.enter(Phase::Request(refused));
    }

    /// 0 when the client has closed its half.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut piece = [MaybeUninit::uninit(); PIECE];
        let mut piece = ReadBuf::uninit(&mut piece);
        ready!(Pin::new(&mut self.socket).poll_read(cx, &mut piece))?;
        self.buffer.extend_from_slice(piece.filled());
        Poll::Ready(Ok(piece.filled().len()))
    }

    /// Ready with an error when the client is gone while its request is being answered.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        while !self.is_half_closed {
            if self.buffer.len() >= MAX_HEAD {
                return Poll::Pending;
            }
            let read = ready!(self.poll_fill(cx));
            self.is_half_closed = matches!(read, Ok(0));
            if let Err(error) = read.and_then(|read| if read == 0 { self.probe(cx) } else { Ok(()) }) {
                return Poll::Ready(error);
            }
        }
        loop {
            if let Some(error) = tcp_of(&self.socket).take_error().unwrap_or_else(Some) {
                return Poll::Ready(error);
            }
            self.timer.as_mut().reset(Instant::now() + RESET_CHECK);
            ready!(self.timer.as_mut().poll(cx));
        }
    }

    /// Makes a client that is gone reset the connection, unless an answer has begun.
    fn probe(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        // hyper may have sent the same.
        let is_unanswered = [0, CONTINUE.len() as u64].contains(&self.write_timeout.bytes);
        if self.takes_interim
            && is_unanswered
            && let Poll::Ready(written) = Pin::new(&mut self.socket).poll_write(cx, CONTINUE)?
        {
            if written < CONTINUE.len() {
                // The rest would be taken for the beginning of the answer.
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let _ = Pin::new(&mut self.socket).poll_flush(cx)?;
        }
        Ok(())
    }

    /// Passes on the result of a write, unless the client has blocked for too long.
    fn timed(&mut self, written: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(Ok(bytes)) => self.write_timeout.wrote(*bytes),
            Poll::Ready(Err(_)) => self.is_over = true,
            Poll::Pending => {
                ready!(self.write_timeout.poll_expired(cx));
                self.listener.metrics.connections_closed_total[(self.listener.name, CloseReason::Write)]
                    .inc();
                self.is_over = true;
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        written
    }
}

impl AsyncRead for FramedConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        let read = ready!(self.poll_next(cx, out));
        // After chunks that are refused there is still an answer, and a client that sends on.
        self.is_over |= out.filled().len() == before && !matches!(self.next, Next::Nothing);
        Poll::Ready(read)
    }
}

impl AsyncWrite for FramedConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.timed(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.timed(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.socket).poll_flush(cx).map_ok(|()| 0);
        ready!(self.timed(flushed, cx))?;
        if self.timers.change(Phase::Answered, Phase::Idle) {
            // Reads that were blocked until the answer was sent now have a timer.
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    /// Flushes only: the close itself comes after hyper has ended.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}
