//! One connection, from its first byte to its last: perhaps a TLS handshake, then hyper.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tower::ServiceExt;

use super::gate::{Counts, Gate};
use super::phases::Phases;
use super::socket::Socket;
use super::unread::Unread;
use super::{Shared, Stops};
use crate::error::GatewayError;
use crate::framing::MAX_HEADERS;
use crate::metrics::{ConnectionRefusal, SlowPhase};
use crate::routes::respond::Refused;

/// hyper's read buffer per connection, in bytes: small enough for many uploads at once, large enough
/// to hash in long pieces.
const READ_BUFFER: usize = 64 * 1024;
/// Who is only told that there is no place has to ask so soon.
const REFUSED_HEAD: Duration = Duration::from_secs(1);

/// Serves a connection until it ends. With a refusal, one request of it is answered, with that.
pub(super) async fn serve(tcp: TcpStream, shared: Arc<Shared>, refusal: Option<GatewayError>) {
    let _open = shared.metrics.connection_opened(shared.name);
    // Answers are written whole; waiting to fill a segment only delays them.
    let _ = tcp.set_nodelay(true);
    // What the kernel has taken over for a client that takes nothing is its business; this tells it when
    // to give up.
    let _ = SockRef::from(&tcp).set_tcp_user_timeout(Some(shared.limits.taking.grace));
    let socket = match shared.certificate() {
        None => Socket::Plain(tcp),
        Some(_) => match handshake(tcp, &shared).await {
            Some(tls) => Socket::Tls(Box::new(tls)),
            None => return,
        },
    };
    let head = if refusal.is_some() { shared.limits.head.min(REFUSED_HEAD) } else { shared.limits.head };
    let phases = Phases::new(head, shared.limits.idle);
    let counts = Counts { metrics: shared.metrics.clone(), listener: shared.name };
    let gate = Gate::new(socket, phases.clone(), counts, shared.limits.taking, refusal);
    let (asked, routes, stops) = (phases.clone(), shared.routes.clone(), shared.stops.clone());
    let service = service_fn(move |request| answer(request, routes.clone(), asked.clone(), stops.clone()));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_buf_size(READ_BUFFER)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(gate), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shared.stops.closed.cancelled() => {
            phases.close_when_idle();
            connection.await
        }
    };
    if let Err(error) = ended {
        // A client that hung up, or whose time was over: nothing anyone should look at.
        tracing::debug!(%error, "a connection ended early");
    }
}

async fn answer(
    mut request: Request<Incoming>,
    routes: Router,
    phases: Phases,
    stops: Stops,
) -> Result<Response<Body>, Infallible> {
    let (in_request, refused) = phases.begin_request();
    let is_last = refused.is_some();
    if let Some(error) = refused {
        request.extensions_mut().insert(Refused(error));
    }
    let (request, unread) = Unread::watch(request);
    let mut response = routes.oneshot(request.map(Body::new)).await?;
    // Clients move on to another server while this one still answers them.
    if is_last || unread.is_unread() || stops.stopping.is_cancelled() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(until_sent(response, in_request))
}

/// Keeps `guard` alive until the response's last byte has been handed over.
fn until_sent<G: Send + 'static>(response: Response<Body>, guard: G) -> Response<Body> {
    let mut guard = Some(guard);
    response.map(|body| {
        let guard = guard.take();
        Body::new(body.map_frame(move |frame| {
            let _held = &guard;
            frame
        }))
    })
}

/// `None` when it failed, which is counted.
///
/// A greeting is waited for without a limit but that of time. To answer one takes a signature, and so
/// many are made one after the other that requests of others come in between.
async fn handshake(tcp: TcpStream, shared: &Shared) -> Option<TlsStream<TcpStream>> {
    let work = async {
        let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), tcp).await?;
        let turn = shared.handshakes.acquire().await;
        tokio::task::yield_now().await;
        let config = shared.certificate().ok_or(io::ErrorKind::NotFound)?.config();
        let mut rest = std::pin::pin!(start.into_stream(config));
        // The signature is made in the first poll; after that the client is waited for.
        let first = std::future::poll_fn(|cx| std::task::Poll::Ready(rest.as_mut().poll(cx))).await;
        drop(turn);
        match first {
            std::task::Poll::Ready(done) => done,
            std::task::Poll::Pending => rest.await,
        }
    };
    match tokio::time::timeout(shared.limits.head, work).await {
        Ok(Ok(tls)) => return Some(tls),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake failed");
            shared.metrics.connection_refused(shared.name, ConnectionRefusal::Handshake);
        }
        Err(_) => shared.metrics.connection_timed_out(shared.name, SlowPhase::Handshake),
    }
    None
}
