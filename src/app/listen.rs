//! The listening sockets and the limits of their connections.

use std::net::SocketAddr;

use anyhow::Context;
use tokio::net::{TcpListener, TcpSocket};

use crate::config::ServerConfig;
use crate::http::server::{ConnectionLimits, WriteLimits};

/// The system may allow fewer.
const ACCEPT_QUEUE: u32 = 8192;

/// With the longest queue: when it overflows, clients wait a second for their next try, or are reset.
pub(super) fn bind(address: SocketAddr, field: &str) -> anyhow::Result<TcpListener> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // Connections of the last process may be in TIME_WAIT.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(ACCEPT_QUEUE)
    };
    listen().with_context(|| {
        format!("{field}: cannot listen on {address}; choose another address or stop what is there")
    })
}

pub(super) fn connection_limits(server: &ServerConfig) -> ConnectionLimits {
    ConnectionLimits {
        max_connections: server.max_connections,
        head: server.head_timeout,
        idle: server.idle_timeout,
        socket_buffer: server.socket_buffer.0 as usize,
        write: WriteLimits { grace: server.write_timeout, bytes_per_second: server.min_download_rate.0 },
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpStream};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_thousand_clients_may_wait_to_be_accepted() {
        let allowed = std::fs::read_to_string("/proc/sys/net/core/somaxconn").expect("this is Linux");
        let clients = allowed.trim().parse::<usize>().expect("a number").min(1000);
        let listener =
            bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), "server.listen").expect("a free port");
        let address = listener.local_addr().expect("bound");
        // Who finds the queue full is not told, and tries again after a second.
        let patience = Duration::from_millis(900);
        let connect = |n| {
            TcpStream::connect_timeout(&address, patience)
                .unwrap_or_else(|error| panic!("client {n}: {error}"))
        };
        let waiting: Vec<TcpStream> = (0..clients).map(connect).collect();
        assert_eq!(waiting.len(), clients);
    }
}
