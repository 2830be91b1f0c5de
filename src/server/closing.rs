//! The end of a connection, in two steps (RFC 9112, section 9.6): our side first, then what the client
//! still sends is read and dropped for a moment, so that the answer is not lost in a reset.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::socket::Socket;

/// How long that moment is.
const LINGER: Duration = Duration::from_secs(1);
/// And how many bytes it takes at most: twice the largest request, because simple clients send theirs
/// whole before they read why it was refused. They are dropped as they come, and cost nothing else.
const LINGER_BYTES: usize = 8 << 20;
/// Bytes that are dropped at once.
const PIECE: usize = 16 * 1024;

/// See the module.
pub(super) struct Closing {
    timer: Pin<Box<Sleep>>,
    bytes: usize,
    is_shut: bool,
}

impl Closing {
    /// The moment begins.
    pub(super) fn begin() -> Self {
        Self { timer: Box::pin(tokio::time::sleep(LINGER)), bytes: 0, is_shut: false }
    }

    /// Ready when the socket can be dropped.
    pub(super) fn poll(&mut self, socket: &mut Socket, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_shut = self.is_shut || Pin::new(&mut *socket).poll_shutdown(cx)?.is_ready();
        let mut piece = [MaybeUninit::uninit(); PIECE];
        while self.is_shut {
            let mut piece = ReadBuf::uninit(&mut piece);
            match Pin::new(&mut *socket).poll_read(cx, &mut piece) {
                Poll::Ready(Ok(())) if !piece.filled().is_empty() => self.bytes += piece.filled().len(),
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => break,
            }
            if self.bytes >= LINGER_BYTES {
                return Poll::Ready(Ok(()));
            }
        }
        self.timer.as_mut().poll(cx).map(Ok)
    }
}
