//! Accepting connections, and what goes wrong on them.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use s3s::service::S3Service;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::script::{Fault, Operation, Script};

/// A whole answer, or half of one.
pub(super) type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// Serves a listener until the handle is dropped, and every connection with it.
pub(super) fn listen<S, F>(listener: TcpListener, answer: S) -> AbortOnDropHandle<()>
where
    S: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = io::Result<Answer>> + Send + 'static,
{
    AbortOnDropHandle::new(tokio::spawn(async move {
        // Owned by this task, so that aborting it aborts every connection.
        let mut connections = JoinSet::new();
        loop {
            if let Ok((stream, _)) = listener.accept().await {
                let answer = service_fn(answer.clone());
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
                // Its error is our own dropping of it, or the client's.
                connections.spawn(async move { drop(connection.await) });
            }
            while connections.try_join_next().is_some() {}
        }
    }))
}

/// One request: the script's fault, or what the service says. An error drops the connection.
pub(super) async fn serve(
    service: S3Service,
    script: Arc<Script>,
    request: Request<Incoming>,
) -> io::Result<Answer> {
    let fault = script.request(Operation::of(request.method(), request.uri().query()));
    let refused = |status, code| Ok(refusal(status, code, &request));
    match fault {
        Some(Fault::SlowDown) => return refused(503, "SlowDown"),
        Some(Fault::Forbidden) => return refused(403, "AccessDenied"),
        Some(Fault::Conflict) => return refused(409, "ConditionalRequestConflict"),
        Some(Fault::Full) => return refused(507, "XMinioStorageFull"),
        Some(Fault::NotFoundPage) => return Ok(page(404, "text/html", "<h1>Not Found</h1>".into())),
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::DropAnswer | Fault::CutBody | Fault::StallBody) | None => {}
    }
    let answer = service
        .call(request.map(s3s::Body::from))
        .await
        .map_err(|_| io::Error::other("the service failed"))?;
    let (head, body) = answer.into_parts();
    let body = match fault {
        Some(Fault::DropAnswer) => return Err(io::Error::other("dropped as the script says")),
        Some(Fault::CutBody | Fault::StallBody) => {
            let whole = body.collect().await.map_err(io::Error::other)?.to_bytes();
            let first = Some(whole.slice(..whole.len() / 2)).filter(|first| !first.is_empty());
            HalfBody { first, stalls: fault == Some(Fault::StallBody), sent: false }.boxed_unsync()
        }
        _ => body.map_err(io::Error::other).boxed_unsync(),
    };
    Ok(Response::from_parts(head, body))
}

/// As S3 says it. Some stores repeat the signature or what was signed; so does this one.
fn refusal(status: u16, code: &str, request: &Request<Incoming>) -> Answer {
    let signed =
        request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or("nobody");
    let xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <Error><Code>{code}</Code><Message>as the script says, {signed}</Message></Error>"
    );
    page(status, "application/xml", xml.into())
}

/// A whole answer.
pub(super) fn page(status: u16, content_type: &str, body: Bytes) -> Answer {
    let body = Full::new(body).map_err(|never: Infallible| match never {}).boxed_unsync();
    Response::builder().status(status).header(CONTENT_TYPE, content_type).body(body).unwrap()
}

/// Half a body, and then the end of the connection or nothing more.
struct HalfBody {
    first: Option<Bytes>,
    stalls: bool,
    /// Has the first half had time to leave? Else the end of the connection would overtake it.
    sent: bool,
}

impl Body for HalfBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(Ok(Frame::data(first)))),
            None if self.stalls => Poll::Pending,
            None if !self.sent => {
                self.sent = true;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            None => Poll::Ready(Some(Err(io::Error::other("cut as the script says")))),
        }
    }
}
