//! The body of a paid request: three parts, and a tail that waits.
//!
//! Everything but the tail goes out when it is polled; the tail only once it is released. An image in
//! memory is never copied, and one in a file never in memory as a whole. [`Watch`] wraps the connection and
//! knows when all but the tail was flushed.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::sync::oneshot;

use crate::request::Order;
use crate::request::uploads::{Picture, PicturePieces};
use crate::upstream::NotSent;

/// 192 random bits for the boundary: 48 hex digits, of the 70 characters that are allowed.
const BOUNDARY_RANDOM_BYTES: usize = 24;

pub(super) struct Form {
    /// The `Content-Type` that goes with it.
    pub(super) content_type: String,
    /// Its length in bytes, tail included.
    pub(super) length: u64,
    head: Bytes,
    image: Picture,
    /// What comes between the image and the tail.
    numbers: Bytes,
    /// The height and the closing boundary. Without the latter no parser can call the form complete,
    /// and without the former not even one that does not care could do the work.
    tail: Bytes,
}

impl Form {
    /// Lays out an order, with a boundary that cannot be foreseen.
    ///
    /// # Errors
    /// [`NotSent`]: the operating system has no random bytes to give, or the image cannot be read.
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

    /// Splits into the body, the word that lets its tail go, and the account of how far it is.
    pub(super) fn into_body(self) -> (FormBody, Release, Arc<Progress>) {
        let (release, released) = oneshot::channel();
        let progress = Arc::new(Progress::default());
        let body = FormBody {
            head: self.head,
            image: Some(self.image.pieces()),
            numbers: self.numbers,
            tail: self.tail,
            released,
            left: self.length,
            progress: progress.clone(),
        };
        (body, Release(release), progress)
    }
}

/// Draws until a boundary does not occur in the image: chosen by us and unforeseeable, but a picture
/// that breaks out of its part would be someone else's order.
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

/// Lets the tail go when [`release`](Self::release)d; dropped, it never goes.
pub(super) struct Release(oneshot::Sender<()>);

impl Release {
    pub(super) fn release(self) {
        // A body that is gone went with its connection, which the caller will hear of.
        let _ = self.0.send(());
    }
}

/// How far a form's body is on its way.
#[derive(Default)]
pub(super) struct Progress {
    /// The connection took everything but the tail, and asked for more.
    at_tail: AtomicBool,
    /// After that, it was flushed.
    held: AtomicBool,
    /// Why the image could not be read to its end, if so.
    unreadable: OnceLock<String>,
}

impl Progress {
    /// Whether all but the tail was handed to the kernel.
    pub(super) fn is_held(&self) -> bool {
        self.held.load(Ordering::Acquire)
    }

    /// What a broken upload broke off for: the image, or else `error`.
    pub(super) fn blame(&self, error: NotSent) -> NotSent {
        self.unreadable.get().map_or(error, |unreadable| NotSent::Picture(unreadable.clone()))
    }
}

pub(super) struct FormBody {
    head: Bytes,
    /// Until it has gone out.
    image: Option<PicturePieces>,
    numbers: Bytes,
    tail: Bytes,
    released: oneshot::Receiver<()>,
    left: u64,
    progress: Arc<Progress>,
}

impl FormBody {
    /// The next bytes before the tail; `None` when there are no more.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if !self.head.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.head))));
        }
        if let Some(image) = &mut self.image {
            if let Some(piece) = ready!(image.poll_next(cx)) {
                return Poll::Ready(Some(piece));
            }
            self.image = None;
        }
        let numbers = std::mem::take(&mut self.numbers);
        Poll::Ready((!numbers.is_empty()).then_some(Ok(numbers)))
    }

    fn poll_tail(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.tail.is_empty() {
            return Poll::Ready(None);
        }
        if !self.progress.at_tail.swap(true, Ordering::AcqRel) {
            // Once more, so that a flush follows: hyper may have flushed just before it asked.
            cx.waker().wake_by_ref();
        }
        if ready!(Pin::new(&mut self.released).poll(cx)).is_err() {
            // The call was dropped: no more bytes, ever, and no end either, since an end would
            // say that this was all.
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
        let next = match ready!(this.poll_piece(cx)) {
            Some(Ok(piece)) => piece,
            Some(Err(error)) => {
                // Without this, the connection's end is all that anybody learns.
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

/// A connection that notices when everything before the tail was flushed.
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
        // hyper flushes its connection only when its own buffer is empty, so whatever the body gave
        // before it came to its tail is with the kernel now.
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
