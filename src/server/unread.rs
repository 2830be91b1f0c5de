//! An answer that leaves some of its request unread says that it is the connection's last.
//!
//! hyper closes such a connection, because the rest of the body must never be taken for a request,
//! but it does not say so; a client that finished its upload meanwhile would keep the connection and
//! lose its next request in it (RFC 9112 section 9.6).

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use http::Request;
use http_body::{Body, Frame, SizeHint};

/// Knows whether a request's body has been read to its end.
pub(super) struct Unread(Arc<AtomicBool>);

/// A request body that tells its [`Unread`] of its end.
pub(super) struct WatchedBody<B> {
    inner: B,
    unread: Arc<AtomicBool>,
}

impl Unread {
    /// Watches the body of `request`.
    pub(super) fn watch<B: Body>(request: Request<B>) -> (Request<WatchedBody<B>>, Self) {
        let unread = Arc::new(AtomicBool::new(!request.body().is_end_stream()));
        let watched = request.map(|inner| WatchedBody { inner, unread: unread.clone() });
        (watched, Self(unread))
    }

    /// Is some of it still to be read? Then the answer has to be the connection's last.
    pub(super) fn is_unread(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl<B: Body + Unpin> Body for WatchedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        if matches!(frame, Poll::Ready(None)) || self.inner.is_end_stream() {
            self.unread.store(false, Ordering::Release);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
