//! Listeners: from an accepted connection to the routes, and to a graceful end. hyper parses and writes HTTP/1;
//! `framed` stands between it and the socket. What hyper refuses by itself gets its bare status. Our checks:
//!
//! | check | why hyper's is not enough |
//! |---|---|
//! | first byte, head and idle timeouts (`timers`) | one timer for all three: an idle connection would be cut as soon as a slow head |
//! | write timeout (`write_timeout`) | none |
//! | body timeout and minimum rate (`routes::body`) | none |
//! | Content-Length with Transfer-Encoding, repeated lengths, codings other than `chunked`, LF alone ([`framing`](crate::request::framing)) | accepts them, and hides from the service that there were two |
//! | one Host that agrees with an absolute target; no CONNECT, no TRACE | leaves it to the service |
//! | end of each request (`framed`) | needed for the checks above: a further head in hyper's buffer cannot be checked any more |
//! | minimum average chunk ([`framing::chunked`](crate::request::framing::chunked)) | takes one-byte chunks at 60 times the CPU time |
//! | `Upgrade` hidden from hyper | ends such a connection before its last bytes are written |
//! | lingering close (`linger`) | closes at once: the reset destroys an answer that the client has not read yet |
//! | `Connection: close` when the body was not read (`connection`) | closes without saying so |
//! | half-closed clients are answered, clients that are gone are noticed | either of the two, by `half_close` |
//! | connection limits (`acceptor`) | none |

mod acceptor;
mod connection;
mod framed;
mod linger;
mod process;
mod timers;
mod write_timeout;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::acceptor::Acceptor;
pub(crate) use self::process::make_room;
pub use self::process::{ReloadSignal, stop_signal};
pub use self::write_timeout::WriteLimits;
use crate::http::certificate::Certificate;
use crate::http::routes::Routes;
use crate::metrics::{ListenerName, Metrics};

#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    pub max_connections: usize,
    /// From accept, or from a further request's first byte, to the end of its head; also of a handshake.
    pub head: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// Bytes that the kernel may buffer for sending.
    pub socket_buffer: usize,
    pub write: WriteLimits,
}

#[derive(Clone, Debug, Default)]
pub struct Stops {
    /// Each answer closes its connection.
    pub stopping: CancellationToken,
    /// Nothing is accepted; idle connections are closed.
    pub closed: CancellationToken,
}

pub type CurrentCertificate = Arc<ArcSwap<Certificate>>;

pub struct Listener {
    pub name: ListenerName,
    pub routes: Routes,
    pub limits: ConnectionLimits,
    /// With one, the listener speaks TLS.
    pub certificate: Option<CurrentCertificate>,
    pub metrics: Arc<Metrics>,
    pub stops: Stops,
}

impl Listener {
    /// Serves until [`Stops::closed`], then answers every accepted request.
    pub async fn serve(self, socket: TcpListener) {
        let closed = self.stops.closed.clone();
        let mut acceptor = Acceptor::new(Arc::new(self));
        while let Some(accepted) = closed.run_until_cancelled(socket.accept()).await {
            match accepted {
                Ok((stream, peer)) => acceptor.admit(stream, peer.ip()),
                Err(error) => {
                    // Most likely out of descriptors: retrying at full speed would not free any.
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        acceptor.finish(socket).await;
    }

    fn certificate(&self) -> Option<Arc<Certificate>> {
        self.certificate.as_ref().map(|current| current.load_full())
    }
}

#[cfg(test)]
mod tests;
