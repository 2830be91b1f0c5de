//! The body of a paid request: three parts, and a tail that is sent only once it is released. An image in
//! memory is never copied, and one in a file is never in memory as a whole. [`Watch`] wraps the connection
//! and notices when all but the tail was flushed.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use http_body::{Body, Frame, SizeHint};
use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::sync::oneshot;

use crate::request::Order;
use crate::request::uploads::Picture;
use crate::upstream::NotSent;

/// 48 hex digits, of the 70 characters that are allowed.
const BOUNDARY_RANDOM_BYTES: usize = 24;

pub(super) struct Form {
    pub(super) content_type: String,
    /// Bytes, with the tail.
    pub(super) length: u64,
    head: Bytes,
    image: Picture,
    /// Between the image and the tail.
    numbers: Bytes,
    /// The height and the closing boundary. Without the boundary no parser takes the form for complete, and
    /// without the height not even a careless server can execute the order.
    tail: Bytes,
}

impl Form {
    /// Fails if the operating system gives no random bytes, or the image cannot be read.
    pub(super) async fn new(order: &Order) -> Result<Self, NotSent> {
        let boundary = boundary_absent_from(&order.image, || {
            let mut random = [0; BOUNDARY_RANDOM_BYTES];
            let none = |error| NotSent::Connect(format!("no random bytes for a boundary: {error}"));
            getrandom::fill(&mut random).map_err(none)?;
            Ok(random)
        })
        .await?;
        Ok(Self::with_boundary(order, &boundary))
    }

    fn with_boundary(order: &Order, boundary: &str) -> Self {
        let Order { operation, image, format, width, height } = order;
        let [image_field, width_field, height_field] = operation.fields;
        let (extension, media_type) = (format.extension(), format.content_type());
        let head = format!(
            "--{boundary}\r\n\
             Content-Disposition: form-data; name=\"{image_field}\"; filename=\"image.{extension}\"\r\n\
             Content-Type: {media_type}\r\n\r\n"
        );
        let numbers = format!(
            "\r\n--{boundary}\r\n\
             Content-Disposition: form-data; name=\"{width_field}\"\r\n\r\n\
             {width}\r\n--{boundary}\r\n\
             Content-Disposition: form-data; name=\"{height_field}\"\r\n\r\n"
        );
        let tail = format!("{height}\r\n--{boundary}--\r\n");
        Self {
            content_type: format!("multipart/form-data; boundary={boundary}"),
            length: (head.len() + image.len() + numbers.len() + tail.len()) as u64,
            head: head.into(),
            image: image.clone(),
            numbers: numbers.into(),
            tail: tail.into(),
        }
    }

    /// The sender releases the tail; if it is dropped, the tail is never sent.
    pub(super) fn into_body(self) -> (FormBody, oneshot::Sender<()>, Arc<Progress>) {
        let (release, released) = oneshot::channel();
        let progress = Arc::new(Progress::default());
        let before_tail =
            stream::iter([Ok(self.head)]).chain(self.image.pieces()).chain(stream::iter([Ok(self.numbers)]));
        let body = FormBody {
            before_tail: Box::pin(before_tail),
            tail: self.tail,
            released,
            left: self.length,
            progress: progress.clone(),
        };
        (body, release, progress)
    }
}

/// Draws until the boundary is not in the image: a picture that ends its part early is another order.
async fn boundary_absent_from(
    image: &Picture,
    mut draw: impl FnMut() -> Result<[u8; BOUNDARY_RANDOM_BYTES], NotSent>,
) -> Result<String, NotSent> {
    loop {
        let boundary: String = draw()?.iter().map(|byte| format!("{byte:02x}")).collect();
        let unreadable = |error: io::Error| NotSent::Picture(error.to_string());
        if !image.contains(boundary.as_bytes()).await.map_err(unreadable)? {
            return Ok(boundary);
        }
    }
}

#[derive(Default)]
pub(super) struct Progress {
    /// The connection took all but the tail, and asked for more.
    at_tail: AtomicBool,
    /// After that, it was flushed.
    held: AtomicBool,
    unreadable: OnceLock<String>,
}

impl Progress {
    /// Returns true once all but the tail is with the kernel.
    pub(super) fn is_held(&self) -> bool {
        self.held.load(Ordering::Acquire)
    }

    /// The cause of a broken upload: the image if it was unreadable, or else `error`.
    pub(super) fn blame(&self, error: NotSent) -> NotSent {
        self.unreadable.get().map_or(error, |unreadable| NotSent::Picture(unreadable.clone()))
    }
}

pub(super) struct FormBody {
    before_tail: Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>,
    tail: Bytes,
    released: oneshot::Receiver<()>,
    left: u64,
    progress: Arc<Progress>,
}

impl FormBody {
    fn poll_tail(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.tail.is_empty() {
            return Poll::Ready(None);
        }
        if !self.progress.at_tail.swap(true, Ordering::AcqRel) {
            // Polled once more, so that a flush follows: hyper may have flushed just before.
            cx.waker().wake_by_ref();
        }
        if ready!(Pin::new(&mut self.released).poll(cx)).is_err() {
            // The call was dropped: neither more bytes nor an end, which would complete the body.
            return Poll::Pending;
        }
        Poll::Ready(Some(std::mem::take(&mut self.tail)))
    }
}

impl Body for FormBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = self.get_mut();
        let next = match ready!(this.before_tail.as_mut().poll_next(cx)) {
            Some(Ok(piece)) => piece,
            Some(Err(error)) => {
                // hyper reports only that the connection ended.
                let _ = this.progress.unreadable.set(error.to_string());
                return Poll::Ready(Some(Err(error)));
            }
            None => match ready!(this.poll_tail(cx)) {
                Some(tail) => tail,
                None => return Poll::Ready(None),
            },
        };
        this.left -= next.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(next))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

pub(super) struct Watch<T> {
    inner: T,
    progress: Arc<Progress>,
}

impl<T> Watch<T> {
    pub(super) fn new(inner: T, progress: Arc<Progress>) -> Self {
        Self { inner, progress }
    }
}

impl<T: Read + Unpin> Read for Watch<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<T: Write + Unpin> Write for Watch<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
        // hyper flushes its connection only when its own buffer is empty, so all bytes before the tail are
        // with the kernel now.
        if self.progress.at_tail.load(Ordering::Acquire) {
            self.progress.held.store(true, Ordering::Release);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }
}

#[cfg(test)]
mod tests;
