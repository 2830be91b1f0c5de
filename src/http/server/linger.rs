//! The lingering close (RFC 9112, section 9.6), with nginx's limits: a socket that is closed while the client still
//! sends is reset, which destroys an answer that the client has not read yet. So our side is shut down first.

use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
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

const SILENCE: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(30);

/// Drops bytes until the client closes or a limit is reached.
pub(super) async fn linger(mut socket: Socket) {
    let end = Instant::now() + LIMIT;
    if !matches!(timeout(SILENCE, socket.shutdown()).await, Ok(Ok(()))) {
        return;
    }
    // Below TLS: dropped bytes need no decryption.
    let tcp = tcp_of(&socket);
    loop {
        let now = Instant::now();
        let readable = timeout_at(end.min(now + SILENCE), tcp.readable()).await;
        if now >= end || !matches!(readable, Ok(Ok(()))) {
            return;
        }
        // A buffer outside of this closure would be a part of every connection's task.
        let drop_some = || tcp.try_read(&mut [0; 16 * 1024]);
        match drop_some() {
            // A fast client must not keep this thread from other connections.
            Ok(1..) => tokio::task::yield_now().await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};
    use tokio_util::either::Either;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_waited_for_five_seconds() {
        let (_client, server) = pair().await;
        let start = Instant::now();
        linger(Either::Left(server)).await;
        assert_eq!(start.elapsed(), SILENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_on_and_on_is_read_for_thirty_seconds() {
        let (mut client, server) = pair().await;
        let dripping = tokio::spawn(async move {
            while client.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let start = Instant::now();
        linger(Either::Left(server)).await;
        let took = start.elapsed();
        assert!(took >= LIMIT && took < LIMIT + Duration::from_secs(2), "{took:?}");
        dripping.await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_closes_is_not_waited_for() {
        let (mut client, server) = pair().await;
        client.write_all(&[0; 100_000]).await.unwrap();
        drop(client);
        let start = Instant::now();
        linger(Either::Left(server)).await;
        assert!(start.elapsed() < SILENCE);
    }
}
