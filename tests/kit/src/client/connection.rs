//! One client connection, byte by byte.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};

use super::{Answer, Call, split};
use crate::wire::{Framing, Head, Wire};

/// How long any one wait may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// One connection, on which any bytes can be sent. Dropping it closes it.
#[derive(Debug)]
pub struct RawConnection(Wire);

impl RawConnection {
    /// Connects to a base URL or to `host:port`.
    pub async fn open(base_url: &str) -> io::Result<RawConnection> {
        let (authority, _) = split(base_url);
        Ok(RawConnection(Wire::new(within(TcpStream::connect(authority)).await?)))
    }

    /// The same from one of this machine's addresses.
    pub async fn open_from(base_url: &str, from: impl Into<IpAddr>) -> io::Result<RawConnection> {
        let (authority, _) = split(base_url);
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(from.into(), 0))?;
        let address = authority.parse().map_err(io::Error::other)?;
        Ok(RawConnection(Wire::new(within(socket.connect(address)).await?)))
    }

    /// Sends a request whole and reads its answer; the connection can be used again if the server keeps it.
    pub async fn call(&mut self, call: &Call) -> io::Result<Answer> {
        let sent = self.send(&call.to_bytes()).await;
        let answer = self.read_answer(call.method == "HEAD").await;
        sent.or_else(|refused| answer.is_ok().then_some(()).ok_or(refused))?;
        answer
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        within(self.0.send(bytes)).await
    }

    /// Sends bytes until they are all sent or the server says something or closes; says whether all were sent.
    pub async fn send_until_answered(&mut self, bytes: &[u8]) -> io::Result<bool> {
        within(self.0.send_until_readable(bytes)).await
    }

    /// Ends our half; the answer can still be read.
    pub async fn shutdown_write(&mut self) -> io::Result<()> {
        self.0.shutdown().await
    }

    /// Closes with a reset.
    pub fn reset(self) {
        self.0.reset();
    }

    /// Reads interim answers and the final one, whole. `to_head` says that the request was a HEAD.
    pub async fn read_answer(&mut self, to_head: bool) -> io::Result<Answer> {
        let mut interim = Vec::new();
        loop {
            let head = self.read_head().await?;
            match head.start[1].parse().unwrap_or(0) {
                status @ 100..=199 => interim.push(status),
                _ => return self.read_rest(head, interim, to_head).await,
            }
        }
    }

    /// Waits for one interim answer and returns its status; a final answer here is an error.
    pub async fn read_interim(&mut self) -> io::Result<u16> {
        let head = self.read_head().await?;
        let status = head.start[1].parse().unwrap_or(0);
        let is_interim = (100..200).contains(&status);
        is_interim.then_some(status).ok_or_else(|| io::Error::other(format!("{status} is final")))
    }

    /// The status of the final answer as soon as its head is there; `None` when the server closes instead.
    pub async fn read_status(&mut self) -> Option<u16> {
        loop {
            let status = self.read_head().await.ok()?.start[1].parse().ok()?;
            if status >= 200 {
                return Some(status);
            }
        }
    }

    /// Waits for the server to close, and says how many bytes it sent before.
    pub async fn read_to_close(&mut self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(piece) = within(self.0.piece(&mut Framing::UntilClose, usize::MAX)).await? {
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }

    /// Reads the head of an answer, interim or final; what follows it is the caller's to read.
    pub async fn read_head(&mut self) -> io::Result<Head> {
        within(self.0.answer_head()).await?.ok_or_else(|| {
            io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed without an answer")
        })
    }

    pub(super) async fn read_rest(
        &mut self,
        head: Head,
        interim: Vec<u16>,
        to_head: bool,
    ) -> io::Result<Answer> {
        let status = head.start[1].parse().map_err(io::Error::other)?;
        let mut framing = Framing::of_answer(&head, to_head)?;
        let mut body = Vec::new();
        while let Some(piece) = within(self.0.piece(&mut framing, usize::MAX)).await? {
            body.extend_from_slice(&piece);
        }
        Ok(Answer { status, head, body, interim })
    }
}

async fn within<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
