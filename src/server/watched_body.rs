//! Knows whether a request's body was read to its end.
//!
//! After an answer that leaves some of it unread hyper closes the connection, because the rest of a body
//! must never be taken for a request, but does not always say so. A client that has sent its whole request
//! by then would keep the connection, and lose its next request on it (RFC 9112, section 9.6).

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use http::Request;
use http_body::{Body, Frame, SizeHint};

/// A request body that notes its end in `is_read`.
pub(super) struct WatchedBody<B> {
    inner: B,
    is_read: Arc<AtomicBool>,
}

/// Watches the body of `request`. The flag becomes true when its end has been read.
pub(super) fn watch<B: Body>(request: Request<B>) -> (Request<WatchedBody<B>>, Arc<AtomicBool>) {
    let is_read = Arc::new(AtomicBool::new(request.body().is_end_stream()));
    (request.map(|inner| WatchedBody { inner, is_read: is_read.clone() }), is_read)
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
            self.is_read.store(true, Ordering::Release);
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
