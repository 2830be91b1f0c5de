//! The socket of a connection.

use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

/// TCP alone, or TLS on it.
pub(super) type Socket = Either<TcpStream, Box<TlsStream<TcpStream>>>;

pub(super) fn tcp_of(socket: &Socket) -> &TcpStream {
    match socket {
        Either::Left(tcp) => tcp,
        Either::Right(tls) => tls.get_ref().0,
    }
}
