//! One connection: perhaps a TLS handshake, then hyper, then the close.

use std::convert::Infallible;
use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use http::header::CONNECTION;
use http::{HeaderName, HeaderValue, Request, Response, Version};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use super::Listener;
use super::framed::FramedConnection;
use super::timers::{ConnectionTimers, Phase};
use crate::error::GatewayError;
use crate::http::client::Peer;
use crate::http::routes::respond::Refused;
use crate::http::routes::{HEALTH_PATHS, respond};
use crate::metrics::{CloseReason, Counted, ListenerName};
use crate::request::framing::{self, HeadError};

/// Bytes per connection: small enough for many uploads, large enough to hash in long pieces.
const READ_BUFFER: usize = 64 * 1024;
/// With a small window, an upload's packets come one wakeup each: at 3.5 MB a hit takes 2,800 us of CPU with
/// 128 KiB, and 1,800 with 2 MiB. It fills only while the disk is slower than the client.
const RECEIVE_FACTOR: usize = 16;
/// Signatures at once, over all listeners.
static HANDSHAKES: LazyLock<Semaphore> = LazyLock::new(|| {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Semaphore::new(2 * cores)
});
/// The head timeout of a connection that is refused.
pub(super) const REFUSED_HEAD: Duration = Duration::from_secs(1);
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// Held until the last byte of an answer has been handed to hyper.
struct Answering(Arc<ConnectionTimers>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.enter(Phase::Answered);
    }
}

/// With a refusal, every request gets it as its answer.
pub(super) async fn serve(
    tcp: TcpStream,
    listener: Arc<Listener>,
    timers: Arc<ConnectionTimers>,
    refusal: Option<GatewayError>,
) {
    let _open = Counted::new(&listener.metrics.connections_open[listener.name]);
    // Answers are written whole; waiting to fill a segment only delays them.
    let _ = tcp.set_nodelay(true);
    // It has no address any more if it was reset meanwhile.
    let peer = Peer(tcp.peer_addr().map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| peer.ip()));
    // Our write timeout does not see what the kernel has buffered; this limits how long the kernel tries.
    let socket = SockRef::from(&tcp);
    let _ = socket.set_tcp_user_timeout(Some(listener.limits.write.grace));
    // The kernel's own limits are megabytes for each connection, and count as our memory in a container.
    let _ = socket.set_send_buffer_size(listener.limits.socket_buffer);
    let _ = socket.set_recv_buffer_size(RECEIVE_FACTOR * listener.limits.socket_buffer);
    let socket = match listener.certificate() {
        None => Either::Left(tcp),
        Some(_) => match handshake(tcp, &listener).await {
            Some(tls) => Either::Right(Box::new(tls)),
            None => return,
        },
    };
    let stream = FramedConnection::new(socket, timers.clone(), &listener);
    let service = service_fn({
        let listener = listener.clone();
        move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer);
            let refused = match timers.phase() {
                Phase::Request(refused) => refused,
                _ => None,
            };
            let (listener, refusal, answering) =
                (listener.clone(), refusal.clone(), Answering(timers.clone()));
            async move {
                let answer = answer(request, &listener, refused, refusal).await;
                // Part of the body, and without an effect on it.
                let with_guard = |body: Body| body.map_err(move |error| (&answering, error).1);
                Ok::<_, Infallible>(answer.map(with_guard))
            }
        }
    });
    let mut connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_buf_size(READ_BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = (&mut connection).await {
        // The client hung up, or a timeout expired.
        tracing::debug!(%error, "connection ended early");
    }
    // hyper's state is dropped here, and the close is ours.
    let stream = connection.into_parts().io.into_inner();
    stream.close().await;
}

async fn answer(
    mut request: Request<Incoming>,
    listener: &Listener,
    refused: Option<HeadError>,
    refusal: Option<GatewayError>,
) -> Response<Body> {
    let is_health = listener.name == ListenerName::Admin && HEALTH_PATHS.contains(&request.uri().path());
    let refused = refused.or_else(|| framing::check_target(&request).err());
    let error = refusal.filter(|_| !is_health).or(refused.map(GatewayError::Head));
    let is_refused = error.is_some();
    if let Some(error) = error {
        request.extensions_mut().insert(Refused(error));
    }
    let keeps = asks_to_keep(&request);
    let is_read = Arc::new(AtomicBool::new(request.body().is_end_stream()));
    let request = request.map(|body| watch(body, is_read.clone()));
    let mut response = (listener.routes)(request).await;
    // After an unread body hyper closes the connection, because its rest must never be taken for a request, but does
    // not always say so: the client would lose its next request. While stopping, clients should go to another server.
    if is_refused || !is_read.load(Ordering::Acquire) || listener.stops.stopping.is_cancelled() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    } else if keeps {
        // Clients that know the timeout do not send on a connection that is just being closed.
        let timeout = format!("timeout={}", listener.limits.idle.as_secs());
        response.headers_mut().insert(KEEP_ALIVE, respond::header(&timeout));
    }
    response
}

fn asks_to_keep<B>(request: &Request<B>) -> bool {
    let values = request.headers().get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let options: Vec<&str> = values.flat_map(|value| value.split(',')).map(str::trim).collect();
    let has = |name: &str| options.iter().any(|option| option.eq_ignore_ascii_case(name));
    !has("close") && (request.version() > Version::HTTP_10 || has("keep-alive"))
}

/// Notes in `is_read` when the end of `body` is read.
fn watch(body: Incoming, is_read: Arc<AtomicBool>) -> Body {
    if body.is_end_stream() {
        return Body::new(body);
    }
    Body::new(body.with_trailers(std::future::poll_fn(move |_| {
        is_read.store(true, Ordering::Release);
        Poll::Ready(None)
    })))
}

/// `None` when it failed, which is counted.
///
/// Only the head timeout limits the wait for a ClientHello. Answering one takes a signature; so few are made
/// at a time that other connections' requests come in between.
async fn handshake(tcp: TcpStream, listener: &Listener) -> Option<TlsStream<TcpStream>> {
    let work = async {
        let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), tcp).await?;
        let turn = HANDSHAKES.acquire().await;
        tokio::task::yield_now().await;
        let config = listener.certificate().ok_or(io::ErrorKind::NotFound)?.config.clone();
        let mut rest = std::pin::pin!(start.into_stream(config));
        // The signature is made in the first poll; after that the client is waited for.
        let first = std::future::poll_fn(|cx| Poll::Ready(rest.as_mut().poll(cx))).await;
        drop(turn);
        match first {
            Poll::Ready(done) => done,
            Poll::Pending => rest.await,
        }
    };
    match tokio::time::timeout(listener.limits.head, work).await {
        Ok(Ok(tls)) => return Some(tls),
        Ok(Err(error)) => {
            tracing::debug!(%error, "TLS handshake failed");
            listener.metrics.connections_closed_total[(listener.name, CloseReason::Handshake)].inc();
        }
        Err(_) => {
            listener.metrics.connections_closed_total[(listener.name, CloseReason::HandshakeTimeout)].inc()
        }
    }
    None
}
