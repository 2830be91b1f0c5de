//! Listeners: from an accepted connection to the routes, and to a graceful end.
//!
//! hyper's HTTP/1 builder is driven directly, through a gate of our own, so that we keep control of time
//! and of what is a request: hyper by itself holds silent and slow connections for ever, or cuts idle
//! ones as soon as slow ones, and repairs heads that others may read differently.

mod connection;
mod descriptors;
mod gate;
mod phases;
mod signals;
mod socket;
mod taking;
mod unread;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use socket2::{SockFilter, SockRef};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_http::catch_panic::CatchPanicLayer;

pub(crate) use self::descriptors::make_room;
pub use self::signals::{HangUps, stop_signal};
pub use self::taking::TakingLimits;
use crate::certificate::Certificate;
use crate::error::GatewayError;
use crate::metrics::{ConnectionRefusal, ListenerName, Metrics};
use crate::routes::{PublicState, respond};

/// Connections above the limit that are told so at the same time; more are closed without a word.
const TOLD: usize = 256;
/// A packet filter: "return 0 bytes of it" (BPF_RET | BPF_K).
const DROP_ALL: SockFilter = SockFilter::new(0x06, 0, 0, 0);
/// TLS handshakes that compete for each core with requests.
const HANDSHAKES_PER_CORE: usize = 2;

/// Limits of a listener's connections.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Connections open at once; more are turned away.
    pub max_connections: usize,
    /// From accept, or from a further request's first byte, to the end of its head; and for a TLS
    /// handshake.
    pub head: Duration,
    /// From an answer to the next request's first byte.
    pub idle: Duration,
    /// How slow a client may be in taking its answer.
    pub taking: TakingLimits,
}

/// When a listener ends, in two steps.
#[derive(Clone, Debug, Default)]
pub struct Stops {
    /// Everything is served, and each answer is its connection's last.
    pub stopping: CancellationToken,
    /// What was accepted is served, and nothing else.
    pub closed: CancellationToken,
}

/// A certificate that may be swapped while it is in use.
pub type CurrentCertificate = Arc<ArcSwap<Certificate>>;

/// What is listened for, and how.
pub struct Listener {
    /// Bound already.
    pub socket: TcpListener,
    /// Whose it is.
    pub name: ListenerName,
    /// What answers.
    pub routes: Router,
    /// How many may come, and how slow.
    pub limits: ConnectionLimits,
    /// With one, TLS is spoken.
    pub certificate: Option<CurrentCertificate>,
    /// Where connections are counted.
    pub metrics: Arc<Metrics>,
    /// When it ends.
    pub stops: Stops,
}

/// What all connections of a listener share.
struct Shared {
    name: ListenerName,
    routes: Router,
    limits: ConnectionLimits,
    certificate: Option<CurrentCertificate>,
    handshakes: Semaphore,
    metrics: Arc<Metrics>,
    stops: Stops,
}

impl Shared {
    fn certificate(&self) -> Option<Arc<Certificate>> {
        self.certificate.as_ref().map(|current| current.load_full())
    }
}

/// The public listener's layers, outermost first.
pub fn public_service(routes: Router, state: PublicState) -> Router {
    routes
        // A panic becomes an answer, below the layer that gives answers their id and counts them.
        .layer(CatchPanicLayer::custom(respond::caught_panic))
        // Ids, error envelopes, metrics and the log line, around everything that can answer.
        .layer(axum::middleware::from_fn_with_state(state, respond::layer))
}

impl Listener {
    /// Serves until it is told to close, then lets every accepted request be answered and returns.
    pub async fn serve(self) {
        let Self { socket, name, routes, limits, certificate, metrics, stops } = self;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let handshakes = Semaphore::new(HANDSHAKES_PER_CORE * cores);
        let shared = Shared { name, routes, limits, certificate, handshakes, metrics, stops };
        let mut door = Door {
            places: Arc::new(Semaphore::new(limits.max_connections)),
            told: Arc::new(Semaphore::new(if name == ListenerName::Public { TOLD } else { 0 })),
            connections: TaskTracker::new(),
            shared: Arc::new(shared),
        };
        let closed = door.shared.stops.closed.clone();
        while let Some(accepted) = closed.run_until_cancelled(socket.accept()).await {
            match accepted {
                Ok((stream, _)) => door.let_in(stream),
                Err(error) => {
                    // Out of descriptors, most likely: going round at full speed would not free any.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        door.let_in_who_waits(socket);
        door.connections.close();
        door.connections.wait().await;
    }
}

/// Who comes in.
struct Door {
    places: Arc<Semaphore>,
    told: Arc<Semaphore>,
    connections: TaskTracker,
    shared: Arc<Shared>,
}

impl Door {
    fn let_in(&mut self, stream: TcpStream) {
        let shared = self.shared.clone();
        let (place, refusal) = match self.places.clone().try_acquire_owned() {
            Ok(place) => (place, None),
            Err(_) => {
                shared.metrics.connection_refused(shared.name, ConnectionRefusal::Limit);
                // A handshake is too much for so little.
                match self.told.clone().try_acquire_owned() {
                    Ok(place) if shared.certificate.is_none() => {
                        (place, Some(GatewayError::TooManyConnections))
                    }
                    _ => return,
                }
            }
        };
        self.connections.spawn(async move {
            let _place = place;
            connection::serve(stream, shared, refusal).await;
        });
    }

    /// Closing a listener resets whoever waits to be accepted; they have been told that they are
    /// connected, and may have sent their request. So nobody new may come, then those are let in.
    fn let_in_who_waits(&mut self, socket: TcpListener) {
        // A packet that is dropped is sent again, and finds the port closed.
        let _ = SockRef::from(&socket).attach_filter(&[DROP_ALL]);
        let Ok(socket) = socket.into_std() else { return };
        while let Ok((stream, _)) = socket.accept() {
            if stream.set_nonblocking(true).is_ok()
                && let Ok(stream) = TcpStream::from_std(stream)
            {
                self.let_in(stream);
            }
        }
    }
}
