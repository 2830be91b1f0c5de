//! The stream that hyper reads: it is given whole heads that were found good, and their bodies to the
//! byte; never the beginning of another request while one is being answered.
//!
//! So hyper has nothing to guess, and every head that is refused can be answered as anything else is: in
//! its place goes one that only says so ([`framing::stand_in`]), and after it nothing.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::closing::Closing;
use super::half_closed::{HalfClosed, STILL_THERE};
use super::phases::{Phase, Phases};
use super::socket::Socket;
use super::taking::{Taking, TakingLimits};
use crate::error::GatewayError;
use crate::framing::chunked::Chunks;
use crate::framing::{self, BodyLength, EndOfHead, HeadError};
use crate::metrics::{ListenerName, Metrics, SlowPhase};

/// Bytes that are read at once where they are looked at before they are passed on.
const PIECE: usize = 16 * 1024;
/// Bytes of further requests that are held while one is being answered.
const HELD: usize = framing::MAX_HEAD;
/// What a gate counts, and for which listener.
#[derive(Clone)]
pub(super) struct Counts {
    pub(super) metrics: Arc<Metrics>,
    pub(super) listener: ListenerName,
}

/// See the module.
pub(super) struct Gate {
    socket: Socket,
    phases: Phases,
    counts: Counts,
    /// Every request of this connection is refused with this.
    refusal: Option<GatewayError>,
    /// What was read and not passed on.
    buffer: BytesMut,
    /// How much of the buffer may be passed on.
    good: usize,
    /// What comes after that.
    next: Next,
    takes_interim: bool,
    /// The client has ended its half.
    half_closed: Option<HalfClosed>,
    taking: Taking,
    /// All that hyper wrote is with the kernel.
    is_flushed: bool,
    timer: Pin<Box<Sleep>>,
    closing: Option<Closing>,
}

enum Next {
    Head(EndOfHead),
    Bytes(u64),
    Chunks(Chunks),
    /// Whatever comes is not for us.
    Nothing,
}

impl Gate {
    pub(super) fn new(
        socket: Socket,
        phases: Phases,
        counts: Counts,
        taking: TakingLimits,
        refusal: Option<GatewayError>,
    ) -> Self {
        Self {
            socket,
            phases,
            counts,
            refusal,
            buffer: BytesMut::new(),
            good: 0,
            next: Next::Head(EndOfHead::default()),
            takes_interim: false,
            half_closed: None,
            taking: Taking::new(taking),
            is_flushed: true,
            timer: Box::pin(tokio::time::sleep_until(Instant::now())),
            closing: None,
        }
    }

    fn poll_until(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        if self.timer.deadline() != deadline {
            self.timer.as_mut().reset(deadline);
        }
        self.timer.as_mut().poll(cx)
    }

    /// Reads into the buffer; 0 when the client has ended its half.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut piece = [MaybeUninit::uninit(); PIECE];
        let mut piece = ReadBuf::uninit(&mut piece);
        ready!(Pin::new(&mut self.socket).poll_read(cx, &mut piece))?;
        self.buffer.extend_from_slice(piece.filled());
        Poll::Ready(Ok(piece.filled().len()))
    }

    fn pass_on(&mut self, out: &mut ReadBuf<'_>) {
        let length = self.good.min(out.remaining());
        out.put_slice(&self.buffer[..length]);
        self.buffer.advance(length);
        self.good -= length;
        if self.buffer.is_empty() {
            // An idle connection holds no memory.
            self.buffer = BytesMut::new();
        }
    }

    /// The next head, until it is whole and judged. Ready without one when there will be none.
    fn poll_head(&mut self, cx: &mut Context<'_>, mut end: EndOfHead) -> Poll<io::Result<bool>> {
        // hyper lets go of an answer once it has all of it, which may be long before the client has.
        if self.phases.now() == Phase::Request || !self.is_flushed {
            return self.poll_hang_up(cx).map_ok(|()| false);
        }
        loop {
            while self.buffer.starts_with(b"\r\n") {
                self.buffer.advance(2);
                end = EndOfHead::default();
            }
            if !self.buffer.is_empty() {
                self.phases.bytes_came();
            }
            match end.find(&self.buffer) {
                Ok(Some(length)) => {
                    self.judge(length);
                    return Poll::Ready(Ok(true));
                }
                Ok(None) => self.next = Next::Head(end),
                Err(error) => {
                    self.refuse_head(error);
                    return Poll::Ready(Ok(true));
                }
            }
            if self.half_closed.is_some() {
                return Poll::Ready(Ok(false));
            }
            if let Poll::Ready(read) = self.poll_fill(cx) {
                match read? {
                    0 => return Poll::Ready(Ok(false)),
                    _ => continue,
                }
            }
            // What was sent before the listener closed is served; what was not is not waited for.
            if self.buffer.is_empty() && self.phases.is_over() {
                return Poll::Ready(Ok(false));
            }
            let Some(deadline) = self.phases.deadline(cx) else { return Poll::Pending };
            ready!(self.poll_until(deadline, cx));
            return Poll::Ready(self.too_slow(end));
        }
    }

    /// The time for a head, or for another one, is over.
    fn too_slow(&mut self, end: EndOfHead) -> io::Result<bool> {
        let phase = match self.phases.now() {
            Phase::Idle { .. } => SlowPhase::Idle,
            _ if self.buffer.is_empty() => SlowPhase::FirstByte,
            _ => SlowPhase::Head,
        };
        self.counts.metrics.connection_timed_out(self.counts.listener, phase);
        match phase {
            SlowPhase::Idle => Ok(false),
            _ if end.has_request_line() => {
                self.refuse_head(HeadError::Slow);
                Ok(true)
            }
            _ => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn judge(&mut self, length: usize) {
        if let Some(refusal) = self.refusal.clone() {
            return self.refuse(refusal);
        }
        match framing::judge(&self.buffer[..length]) {
            Ok(framing) => {
                self.good = length;
                self.takes_interim = framing.takes_interim;
                self.next = match framing.body {
                    BodyLength::Bytes(0) => Next::Head(EndOfHead::default()),
                    BodyLength::Bytes(bytes) => Next::Bytes(bytes),
                    BodyLength::Chunked => Next::Chunks(Chunks::default()),
                };
                self.taking.begin();
                self.phases.head_is_complete(None);
            }
            Err(error) => self.refuse_head(error),
        }
    }

    fn refuse_head(&mut self, error: HeadError) {
        self.counts.metrics.head_refused(error);
        self.refuse(GatewayError::Head(error));
    }

    fn refuse(&mut self, error: GatewayError) {
        let stand_in = framing::stand_in(&self.buffer);
        self.good = stand_in.len();
        self.buffer = BytesMut::from(&*stand_in);
        self.next = Next::Nothing;
        self.taking.begin();
        self.phases.head_is_complete(Some(error));
    }

    /// While a request is being answered nothing is passed on, but whoever is gone is noticed.
    fn poll_hang_up(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Woken when the answer is given.
        let _ = self.phases.deadline(cx);
        while self.half_closed.is_none() {
            if self.buffer.len() >= HELD {
                return Poll::Pending;
            }
            if ready!(self.poll_fill(cx))? == 0 {
                self.half_closed = Some(HalfClosed::new());
            }
        }
        // Nothing of an answer has been sent, but for hyper's own interim one.
        let is_unanswered = self.is_flushed && [0, STILL_THERE.len() as u64].contains(&self.taking.bytes());
        let may_be_asked = is_unanswered && self.takes_interim;
        let Some(half_closed) = &mut self.half_closed else { return Poll::Pending };
        half_closed.poll_gone(&mut self.socket, may_be_asked, cx).map(Err)
    }

    /// After a write: has the client taken something, or let us wait for too long?
    fn taken(&mut self, written: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(bytes)) => self.taking.took(bytes),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                ready!(self.taking.poll_overdue(cx));
                self.counts.metrics.connection_timed_out(self.counts.listener, SlowPhase::Write);
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        written
    }
}

impl AsyncRead for Gate {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        while gate.good == 0 {
            match &mut gate.next {
                Next::Nothing => return Poll::Pending,
                Next::Head(end) => {
                    let end = *end;
                    if !ready!(gate.poll_head(cx, end))? {
                        return Poll::Ready(Ok(()));
                    }
                }
                Next::Bytes(left) if gate.buffer.is_empty() => {
                    // Straight into hyper's buffer, and not a byte too many.
                    let before = out.filled().len();
                    let mut body = (&mut gate.socket).take(*left);
                    ready!(Pin::new(&mut body).poll_read(cx, out))?;
                    *left -= (out.filled().len() - before) as u64;
                    if *left == 0 {
                        gate.next = Next::Head(EndOfHead::default());
                    }
                    return Poll::Ready(Ok(()));
                }
                Next::Bytes(left) => {
                    gate.good = usize::try_from(*left).unwrap_or(usize::MAX).min(gate.buffer.len());
                    *left -= gate.good as u64;
                    if *left == 0 {
                        gate.next = Next::Head(EndOfHead::default());
                    }
                }
                Next::Chunks(chunks) if !gate.buffer.is_empty() => match chunks.advance(&gate.buffer) {
                    Ok(good) => {
                        gate.good = good;
                        if chunks.is_at_end() {
                            gate.next = Next::Head(EndOfHead::default());
                        }
                    }
                    Err(_) => {
                        gate.next = Next::Nothing;
                        return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                    }
                },
                Next::Chunks(_) => {
                    if ready!(gate.poll_fill(cx))? == 0 {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
        gate.pass_on(out);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Gate {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let gate = self.get_mut();
        gate.is_flushed = false;
        let written = Pin::new(&mut gate.socket).poll_write(cx, buf);
        gate.taken(written, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let gate = self.get_mut();
        gate.is_flushed = false;
        let written = Pin::new(&mut gate.socket).poll_write_vectored(cx, bufs);
        gate.taken(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        let flushed = Pin::new(&mut gate.socket).poll_flush(cx).map_ok(|()| 0);
        ready!(gate.taken(flushed, cx))?;
        if !std::mem::replace(&mut gate.is_flushed, true) {
            gate.phases.all_is_sent();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        gate.closing.get_or_insert_with(Closing::begin).poll(&mut gate.socket, cx)
    }
}
