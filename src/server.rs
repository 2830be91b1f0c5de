//! Listeners: from an accepted connection to the routes, and to a graceful end.
//!
//! hyper's HTTP/1 builder is driven directly, so that we keep control of time: hyper by itself holds
//! silent and slow connections for ever, or cuts idle ones as soon as slow ones.

mod connection;
mod unread;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;

use self::connection::{Phases, TimedStream};
use self::unread::Unread;
use crate::routes::{PublicState, respond};

/// hyper's read buffer per connection, in bytes: small enough for many uploads at once, large enough
/// to hash in long pieces.
const READ_BUFFER: usize = 64 * 1024;
/// Header lines in a head.
const MAX_HEADERS: usize = 64;

/// Limits of a listener's connections.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Connections open at once; more wait to be accepted.
    pub max_connections: usize,
    /// From accept, or from a further request's first byte, to the end of its head.
    pub head: Duration,
    /// From an answer to the next request's first byte.
    pub idle: Duration,
}

/// The public listener's layers, outermost first.
pub fn public_service(routes: Router, state: PublicState) -> Router {
    routes
        // A panic becomes an answer, below the layer that gives answers their id and counts them.
        .layer(CatchPanicLayer::custom(respond::caught_panic))
        // Ids, error envelopes, metrics and the log line, around everything that can answer.
        .layer(axum::middleware::from_fn_with_state(state, respond::layer))
}

/// Serves until `stop` is cancelled, then lets every accepted request be answered and returns.
pub async fn serve(listener: TcpListener, routes: Router, limits: ConnectionLimits, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(limits.max_connections));
    let connections = TaskTracker::new();
    loop {
        let place = tokio::select! {
            place = places.clone().acquire_owned() => place.expect("the semaphore is never closed"),
            () = stop.cancelled() => break,
        };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: going round at full speed would not free any.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = stop.cancelled() => break,
        };
        let (routes, stop) = (routes.clone(), stop.clone());
        connections.spawn(async move {
            let _place = place;
            serve_connection(stream, routes, limits, stop).await;
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn serve_connection(
    stream: TcpStream,
    routes: Router,
    limits: ConnectionLimits,
    stop: CancellationToken,
) {
    // Answers are written whole; waiting to fill a segment only delays them.
    let _ = stream.set_nodelay(true);
    let phases = Phases::new(limits.head, limits.idle);
    let stream = TimedStream::new(stream, phases.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let routes = routes.clone();
        let in_request = phases.begin_request();
        async move {
            let (request, unread) = Unread::watch(request);
            let mut response = routes.oneshot(request.map(Body::new)).await?;
            unread.announce(&mut response);
            Ok::<_, std::convert::Infallible>(until_sent(response, in_request))
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_buf_size(READ_BUFFER)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // A client that hung up, or whose time was over: nothing anyone should look at.
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Keeps `guard` alive until the response's last byte has been handed over.
fn until_sent<G: Send + 'static>(response: Response<Body>, guard: G) -> Response<Body> {
    use http_body_util::BodyExt;
    let mut guard = Some(guard);
    response.map(|body| {
        let guard = guard.take();
        Body::new(body.map_frame(move |frame| {
            let _held = &guard;
            frame
        }))
    })
}

/// The hang-ups this process is sent (SIGHUP): by an operator as a signal to read the configuration
/// again, or by a terminal that is closed.
pub struct HangUps(tokio::signal::unix::Signal);

impl HangUps {
    /// From now on none of them ends the process by itself.
    ///
    /// # Errors
    /// When signals cannot be listened to.
    pub fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        signal(SignalKind::hangup()).map(Self)
    }

    /// Completes at the next one.
    pub async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            // There will be no more.
            std::future::pending::<()>().await;
        }
    }
}

/// Completes when the process is told to stop, by SIGTERM or from the keyboard.
///
/// # Errors
/// When signals cannot be listened to.
pub fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
