//! One HTTP/1.1 request and its response on a connection of its own. Nothing is retried or followed. The
//! connection is not a task: it moves only while its owner awaits a method, and dropping the owner closes the
//! socket at once. So nothing of a request can leave after its call was given up.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use http::response::Parts;
use http::{Request, Response};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1;

/// Maximum bytes of a response's head, and of unsent bytes.
const BUFFER_BYTES: usize = 64 * 1024;

/// Maximum header lines of a response. Vendors' networks add dozens.
const MAX_HEADERS: usize = 1000;

/// Maximum interim (1xx) responses before the final one.
const MAX_INTERIM: usize = 8;

type Connection = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// A request under way. Cancelling any of its futures is safe; dropping it closes the connection.
pub(crate) struct Exchange {
    /// `None` after its end.
    connection: Option<Connection>,
    response: Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>,
    interim: Arc<AtomicUsize>,
}

/// The texts contain no byte of the response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    #[error("the connection broke off: {0}")]
    Cut(hyper::Error),
    #[error("the response is not HTTP: {0}")]
    NotHttp(hyper::Error),
    #[error("too many interim responses")]
    Interim,
    #[error("the response is too large")]
    TooLarge,
}

impl From<hyper::Error> for ExchangeError {
    fn from(error: hyper::Error) -> Self {
        if error.is_parse() { Self::NotHttp(error) } else { Self::Cut(error) }
    }
}

impl Exchange {
    /// Prepares a request; its first byte is sent when a response is awaited.
    pub(crate) async fn start<S, B>(io: S, mut request: Request<B>) -> Result<Self, ExchangeError>
    where
        S: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let interim = Arc::new(AtomicUsize::new(0));
        let counter = interim.clone();
        hyper::ext::on_informational(&mut request, move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        // Sloppy header lines are accepted as in browsers: the response may be paid for.
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(BUFFER_BYTES)
            .max_headers(MAX_HEADERS)
            .allow_spaces_after_header_name_in_responses(true)
            .allow_obsolete_multiline_headers_in_responses(true)
            .ignore_invalid_headers_in_responses(true)
            .handshake(io)
            .await?;
        // The sender ends with the response: there is no second request on the connection.
        let response = Box::pin(async move { sender.send_request(request).await });
        Ok(Self { connection: Some(Box::pin(connection)), response, interim })
    }

    pub(crate) async fn head(&mut self) -> Result<Response<Incoming>, ExchangeError> {
        Ok(self.head_unless(|| false).await?.expect("only the head ends this wait"))
    }

    /// Waits for the head until `is_over`, which is asked whenever the connection moved; a head comes first.
    pub(crate) async fn head_unless(
        &mut self,
        is_over: impl Fn() -> bool,
    ) -> Result<Option<Response<Incoming>>, ExchangeError> {
        let Self { connection, response, interim } = self;
        drive(connection, interim, async {
            poll_fn(|cx| match response.as_mut().poll(cx) {
                Poll::Ready(head) => Poll::Ready(head.map(Some)),
                Poll::Pending if is_over() => Poll::Ready(Ok(None)),
                Poll::Pending => Poll::Pending,
            })
            .await
            .map_err(ExchangeError::from)
        })
        .await?
    }

    /// Waits for the next bytes of the body; `None` at its proper end. Trailers are ignored.
    pub(crate) async fn chunk(&mut self, body: &mut Incoming) -> Result<Option<Bytes>, ExchangeError> {
        drive(&mut self.connection, &self.interim, async {
            while let Some(frame) = body.frame().await {
                if let Ok(data) = frame.map_err(ExchangeError::Cut)?.into_data() {
                    return Ok(Some(data));
                }
            }
            Ok(None)
        })
        .await?
    }

    pub(crate) async fn whole(
        &mut self,
        response: Response<Incoming>,
        max_bytes: usize,
    ) -> Result<(Parts, Bytes), ExchangeError> {
        let (parts, mut body) = response.into_parts();
        let mut bytes = BytesMut::new();
        while let Some(chunk) = self.chunk(&mut body).await? {
            if bytes.len() + chunk.len() > max_bytes {
                return Err(ExchangeError::TooLarge);
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok((parts, bytes.freeze()))
    }
}

/// Awaits `work` while the connection moves, which is polled first, so that `work` sees what it received.
async fn drive<F: Future>(
    connection: &mut Option<Connection>,
    interim: &AtomicUsize,
    work: F,
) -> Result<F::Output, ExchangeError> {
    let mut work = pin!(work);
    poll_fn(|cx| {
        // Its outcome is ignored: `work` sees the same error, or the end of a body.
        if connection.as_mut().is_some_and(|connection| connection.as_mut().poll(cx).is_ready()) {
            *connection = None;
        }
        if interim.load(Ordering::Relaxed) > MAX_INTERIM {
            return Poll::Ready(Err(ExchangeError::Interim));
        }
        work.as_mut().poll(cx).map(Ok)
    })
    .await
}
