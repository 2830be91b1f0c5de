//! Accepting connections, ending them as an answer asks for, and the bytes of an ordinary answer.

use std::io;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::ledger::Ledger;
use super::{crop, results};
use crate::wire::Wire;

/// Which of the two servers a connection belongs to.
#[derive(Clone, Copy)]
pub(super) enum Side {
    Api,
    Results,
}

/// What becomes of a connection after an answer.
pub(super) enum Next {
    KeepAlive,
    /// End in order, letting the peer read everything first.
    Close,
    Drop,
    Reset,
}

/// Serves a listener until the handle is dropped, and every connection with it.
pub(super) fn listen(listener: TcpListener, ledger: Arc<Ledger>, side: Side) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        // Owned by this task, so that aborting it aborts every connection.
        let mut connections = JoinSet::new();
        let mut number = 0;
        loop {
            if let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(Arc::clone(&ledger), stream, side, number));
                number += 1;
            }
            while connections.try_join_next().is_some() {}
        }
    }))
}

async fn serve(ledger: Arc<Ledger>, stream: TcpStream, side: Side, connection: u64) {
    let mut wire = Wire::new(stream);
    while let Ok(Some(head)) = wire.request_head().await {
        let next = match side {
            Side::Api => crop::serve_api(&ledger, &mut wire, head, connection).await,
            Side::Results => results::serve_result(&ledger, &mut wire, head).await,
        };
        match next {
            Ok(Next::KeepAlive) => {}
            Ok(Next::Close) => return wire.linger().await,
            Ok(Next::Reset) => return wire.reset(),
            Ok(Next::Drop) | Err(_) => return,
        }
    }
}

/// Ends a listener and its connections, and returns when the port is free.
pub(super) async fn stop(task: &mut Option<AbortOnDropHandle<()>>) {
    if let Some(task) = task.take() {
        task.abort();
        task.await.ok();
    }
}

/// Sends a whole answer with a length that fits it.
pub(super) async fn answer(
    wire: &mut Wire,
    status: u16,
    headers: &[(&str, &str)],
    body: &[u8],
    to_head: bool,
) -> io::Result<()> {
    wire.send(&answer_bytes(status, headers, if to_head { &[] } else { body }, body.len())).await
}

/// The same as bytes; `length` is what is declared.
pub(super) fn answer_bytes(status: u16, headers: &[(&str, &str)], body: &[u8], length: usize) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 {status} Scripted\r\n").into_bytes();
    for (name, value) in headers {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    bytes.extend_from_slice(format!("Content-Length: {length}\r\n\r\n").as_bytes());
    bytes.extend_from_slice(body);
    bytes
}
