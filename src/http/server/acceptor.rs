//! Admission of connections, and eviction at the limit.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use socket2::{SockFilter, SockRef};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::timers::ConnectionTimers;
use super::{Listener, connection};
use crate::error::GatewayError;
use crate::metrics::{CloseReason, ListenerName};

/// Connections above the public limit that are answered 503 at once; more are closed without an answer.
const REFUSALS: usize = 256;
/// Connections above the admin limit, which get health and metrics only.
const HEALTH_PLACES: usize = 16;
/// A packet filter that drops every packet: "accept 0 bytes of it" (BPF_RET | BPF_K).
const DROP_ALL: SockFilter = SockFilter::new(0x06, 0, 0, 0);
/// Entries of ended connections that are kept before they are swept.
const SWEEP: usize = 64;

pub(super) struct Acceptor {
    places: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    open: Vec<OpenConnection>,
    connections: TaskTracker,
    listener: Arc<Listener>,
}

struct OpenConnection {
    peer: IpAddr,
    timers: Arc<ConnectionTimers>,
}

impl Acceptor {
    pub(super) fn new(listener: Arc<Listener>) -> Self {
        let refusals = match listener.name {
            ListenerName::Public => REFUSALS,
            ListenerName::Admin => HEALTH_PLACES,
        };
        Self {
            places: Arc::new(Semaphore::new(listener.limits.max_connections)),
            refusals: Arc::new(Semaphore::new(refusals)),
            open: Vec::new(),
            connections: TaskTracker::new(),
            listener,
        }
    }

    /// Serves a connection. At the limit an idle connection makes way for it, or else it is refused.
    pub(super) fn admit(&mut self, stream: TcpStream, peer: IpAddr) {
        let listener = self.listener.clone();
        let place = self.places.clone().try_acquire_owned().ok();
        if place.is_none() {
            listener.metrics.connections_closed_total[(listener.name, CloseReason::Limit)].inc();
            if !self.evict_one() {
                return self.refuse(stream);
            }
        }
        let timers = Arc::new(ConnectionTimers::new(listener.limits.head, listener.limits.idle));
        self.open.push(OpenConnection { peer, timers: timers.clone() });
        let places = self.places.clone();
        self.connections.spawn(async move {
            let work = async {
                let _place = match place {
                    Some(place) => Ok(place),
                    // The evicted connection gives back its place as soon as its task is polled.
                    None => places.acquire_owned().await,
                };
                connection::serve(stream, listener, timers.clone(), None).await;
            };
            tokio::select! {
                () = work => {}
                () = timers.evicted.notified() => {}
            }
        });
        // One at a time is too slow to sweep at each connection.
        if self.open.len() > 2 * self.connections.len() + SWEEP {
            self.sweep();
        }
    }

    /// Accepts what waits in the backlog, then lets every accepted request be answered.
    pub(super) async fn finish(mut self, socket: TcpListener) {
        // Closing a listener resets the clients in its backlog, which are connected and may have sent their request.
        // With the filter no other can connect: a dropped packet is sent again, and then finds the port closed.
        let _ = SockRef::from(&socket).attach_filter(&[DROP_ALL]);
        if let Ok(socket) = socket.into_std() {
            while let Ok((stream, peer)) = socket.accept() {
                if stream.set_nonblocking(true).is_ok()
                    && let Ok(stream) = TcpStream::from_std(stream)
                {
                    self.admit(stream, peer.ip());
                }
            }
        }
        self.connections.close();
        self.connections.wait().await;
    }

    fn refuse(&self, stream: TcpStream) {
        let listener = self.listener.clone();
        // A TLS handshake costs too much for a refusal.
        if listener.certificate.is_none()
            && let Ok(place) = self.refusals.clone().try_acquire_owned()
        {
            let head = listener.limits.head.min(connection::REFUSED_HEAD);
            let timers = Arc::new(ConnectionTimers::new(head, head));
            self.connections.spawn(async move {
                let _place = place;
                connection::serve(stream, listener, timers, Some(GatewayError::TooManyConnections)).await;
            });
        }
    }

    /// Closes the longest-idle connection of the peer that holds most. False if none is idle.
    fn evict_one(&mut self) -> bool {
        self.sweep();
        let mut held = HashMap::<IpAddr, usize>::new();
        for connection in &self.open {
            *held.entry(connection.peer).or_default() += 1;
        }
        let idle = self.open.iter().enumerate().filter_map(|(at, connection)| {
            Some((Reverse(held[&connection.peer]), connection.timers.idle_since()?, at))
        });
        let Some((.., at)) = idle.min() else { return false };
        self.open.swap_remove(at).timers.evicted.notify_one();
        true
    }

    /// Forgets connections that have ended: their task holds the timers no longer.
    fn sweep(&mut self) {
        self.open.retain(|connection| Arc::strong_count(&connection.timers) > 1);
    }
}
