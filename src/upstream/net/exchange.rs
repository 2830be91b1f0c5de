//! One HTTP/1.1 request and its response on a connection of its own.
//!
//! The connection is not a task: it moves only while its owner awaits something of it, and dropping
//! the owner closes the socket there and then. So nothing of a request can leave after its call was
//! given up, and no other exchange can ever meet this one's bytes. Nothing is retried or followed.

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

/// Room for a response's head, and for what is written but not yet sent; in bytes.
const BUFFER_BYTES: usize = 64 * 1024;

/// Header lines of one response. Vendors' networks add dozens; the head's bytes are limited as well.
const MAX_HEADERS: usize = 1000;

/// Interim (1xx) responses before the final one.
const MAX_INTERIM: usize = 8;

/// A request under way. Cancelling any of its futures is safe; dropping it closes the connection.
pub(crate) struct Exchange {
    connection: Option<Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>>,
    response: Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>,
    interim: Arc<AtomicUsize>,
}

/// How an exchange ended without a whole response. The texts contain no byte of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    /// The connection ended or failed first.
    #[error("the connection broke off: {0}")]
    Cut(hyper::Error),
    /// What came is not HTTP, or not a response.
    #[error("the response is not HTTP: {0}")]
    NotHttp(hyper::Error),
    /// More interim responses than anyone sends in good faith.
    #[error("too many interim responses")]
    Interim,
    /// The body is larger than the caller takes.
    #[error("the response is too large")]
    TooLarge,
}

impl From<hyper::Error> for ExchangeError {
    fn from(error: hyper::Error) -> Self {
        if error.is_parse() { Self::NotHttp(error) } else { Self::Cut(error) }
    }
}

impl Exchange {
    /// Prepares a request; its first byte is sent when something is awaited.
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
        // Sloppy header lines are read as browsers read them: the response may be paid for.
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(BUFFER_BYTES)
            .max_headers(MAX_HEADERS)
            .allow_spaces_after_header_name_in_responses(true)
            .allow_obsolete_multiline_headers_in_responses(true)
            .ignore_invalid_headers_in_responses(true)
            .handshake(io)
            .await?;
        // The sender lives as long as the response is awaited and no longer: there is no second
        // request on this connection.
        let response = Box::pin(async move { sender.send_request(request).await });
        Ok(Self { connection: Some(Box::pin(connection)), response, interim })
    }

    pub(crate) async fn head(&mut self) -> Result<Response<Incoming>, ExchangeError> {
        self.head_or(|| None::<std::convert::Infallible>).await.map(|head| match head {
            Ok(response) => response,
            Err(never) => match never {},
        })
    }

    /// Waits for the response's head, or for `other` to give something, which is asked whenever the
    /// connection has moved. A head that is there comes first.
    pub(crate) async fn head_or<T>(
        &mut self,
        other: impl Fn() -> Option<T>,
    ) -> Result<Result<Response<Incoming>, T>, ExchangeError> {
        let Self { connection, response, interim } = self;
        drive(connection, interim, async {
            poll_fn(|cx| match response.as_mut().poll(cx) {
                Poll::Ready(head) => Poll::Ready(head.map(Ok)),
                Poll::Pending => other().map_or(Poll::Pending, |other| Poll::Ready(Ok(Err(other)))),
            })
            .await
            .map_err(ExchangeError::from)
        })
        .await?
    }

    /// Waits for the next bytes of the body; `None` at its proper end.
    pub(crate) async fn chunk(&mut self, body: &mut Incoming) -> Result<Option<Bytes>, ExchangeError> {
        drive(&mut self.connection, &self.interim, async {
            loop {
                match body.frame().await {
                    None => return Ok(None),
                    Some(Err(error)) => return Err(ExchangeError::Cut(error)),
                    // Trailers mean nothing to us.
                    Some(Ok(frame)) => {
                        if let Ok(data) = frame.into_data() {
                            return Ok(Some(data));
                        }
                    }
                }
            }
        })
        .await?
    }

    /// Reads the whole body, at most `max_bytes`.
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

/// Awaits `work` while the connection moves. The connection moves first, so that `work` sees what
/// it has brought.
async fn drive<F: Future>(
    connection: &mut Option<Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>>,
    interim: &AtomicUsize,
    work: F,
) -> Result<F::Output, ExchangeError> {
    let mut work = pin!(work);
    poll_fn(|cx| {
        // Its outcome is not looked at: `work` sees the same, as an error or as the end of a body.
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
