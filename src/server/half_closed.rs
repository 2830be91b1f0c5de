//! A client that has ended its half, and has an answer to come. It may be waiting for that, or be gone:
//! both look the same until something is sent.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::time::{Instant, Sleep};

use super::socket::Socket;

/// What it is sent: one that is gone resets the connection then, and any other has to pass over it
/// (RFC 9110, section 15.2).
pub(super) const STILL_THERE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// How soon it is looked whether it has; then after twice that, and so on.
const LOOK: Duration = Duration::from_millis(20);
/// How seldom, in the end.
const LOOK_SELDOM: Duration = Duration::from_millis(500);

/// See the module.
pub(super) struct HalfClosed {
    is_asked: bool,
    timer: Pin<Box<Sleep>>,
    again: Duration,
}

impl HalfClosed {
    /// Its end has just been read.
    pub(super) fn new() -> Self {
        Self { is_asked: false, timer: Box::pin(tokio::time::sleep(LOOK)), again: LOOK }
    }

    /// Ready, with the error, when the client turns out to be gone. It is asked once, and only if
    /// nothing of an answer has been sent.
    pub(super) fn poll_gone(
        &mut self,
        socket: &mut Socket,
        may_be_asked: bool,
        cx: &mut Context<'_>,
    ) -> Poll<io::Error> {
        if !std::mem::replace(&mut self.is_asked, true)
            && may_be_asked
            && let Err(error) = ask(socket, cx)
        {
            return Poll::Ready(error);
        }
        loop {
            ready!(self.timer.as_mut().poll(cx));
            if let Some(error) = socket.take_error() {
                return Poll::Ready(error);
            }
            self.again = (2 * self.again).min(LOOK_SELDOM);
            self.timer.as_mut().reset(Instant::now() + self.again);
        }
    }
}

fn ask(socket: &mut Socket, cx: &mut Context<'_>) -> io::Result<()> {
    match Pin::new(&mut *socket).poll_write(cx, STILL_THERE) {
        // Half of it would be taken for the beginning of the answer.
        Poll::Ready(Ok(written)) if written < STILL_THERE.len() => Err(io::ErrorKind::BrokenPipe.into()),
        Poll::Ready(Ok(_)) => match Pin::new(socket).poll_flush(cx) {
            Poll::Ready(flushed) => flushed,
            Poll::Pending => Ok(()),
        },
        Poll::Ready(Err(error)) => Err(error),
        // Its buffer is full of former answers: it will be noticed in another way.
        Poll::Pending => Ok(()),
    }
}
