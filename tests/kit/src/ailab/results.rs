//! The result server: hands out what was bought, at exactly the URL that was sold, or misbehaves as scripted.

use std::io;
use std::time::Duration;

use super::behaviour::ResultBehaviour;
use super::ledger::{Ledger, Purchase};
use super::listen::{Next, answer};
use super::picture::draw;
use crate::wire::{Head, Wire};

/// Answers one request for a picture.
pub(crate) async fn serve_result(ledger: &Ledger, wire: &mut Wire, head: Head) -> io::Result<Next> {
    let (purchase, behaviour) = {
        let mut book = ledger.book();
        book.fetched.push(head.clone());
        let purchase = book.purchases.iter().find(|p| p.target == head.start[1]).cloned();
        let behaviour = book.next_result.pop_front().unwrap_or_else(|| book.always_result.clone());
        (purchase, behaviour)
    };
    ledger.count(|s| s.fetches += 1);
    let to_head = head.start[0] == "HEAD";
    let close = head.asks_to_close();
    let Some(purchase) = purchase.filter(|_| to_head || head.start[0] == "GET") else {
        return xml(wire, 403, "SignatureDoesNotMatch", to_head).await;
    };
    if purchase.expired {
        return xml(wire, 403, "AccessDenied", to_head).await;
    }
    let picture = picture(&purchase, &behaviour);
    let kind = purchase.format.content_type().to_owned();
    let length = picture.len() as u64;
    match behaviour {
        ResultBehaviour::Serve | ResultBehaviour::WrongSize(..) => {
            start(wire, &kind, length).await?;
            wire.send(if to_head { &[] } else { &picture }).await?;
            Ok(if close { Next::Close } else { Next::KeepAlive })
        }
        ResultBehaviour::ContentType(other) => {
            start(wire, &other, length).await?;
            wire.send(if to_head { &[] } else { &picture }).await?;
            Ok(Next::Close)
        }
        ResultBehaviour::NotFound => xml(wire, 404, "NoSuchKey", to_head).await,
        ResultBehaviour::Forbidden => xml(wire, 403, "AccessDenied", to_head).await,
        ResultBehaviour::Html => {
            let page = b"<!doctype html><title>Service</title><p>We will be back soon.";
            answer(wire, 200, &[("Content-Type", "text/html")], page, to_head).await?;
            Ok(Next::Close)
        }
        ResultBehaviour::Truncate(sent) => {
            start(wire, &kind, length).await?;
            wire.send(&picture[..sent.min(picture.len().saturating_sub(1))]).await?;
            Ok(Next::Close)
        }
        ResultBehaviour::Stall(sent) => {
            start(wire, &kind, length).await?;
            wire.send(&picture[..sent.min(picture.len().saturating_sub(1))]).await?;
            wire.gone().await;
            Ok(Next::Drop)
        }
        ResultBehaviour::LongerThanDeclared(more) => {
            start(wire, &kind, length).await?;
            wire.send(&picture).await?;
            wire.send(&vec![b'x'; more]).await?;
            Ok(Next::Close)
        }
        ResultBehaviour::Endless => {
            wire.send(format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n").as_bytes())
                .await?;
            wire.send(&picture).await?;
            let chunk = [b"\r\n10000\r\n".as_slice(), &[0; 0x10000]].concat();
            loop {
                wire.send(&chunk).await?;
            }
        }
        ResultBehaviour::TooLarge(declared) => {
            start(wire, &kind, declared).await?;
            wire.send(&picture).await?;
            let mut left = declared.saturating_sub(length);
            let zeros = [0; 0x10000];
            while left > 0 {
                let piece = usize::try_from(left).unwrap_or(usize::MAX).min(zeros.len());
                wire.send(&zeros[..piece]).await?;
                left -= piece as u64;
            }
            Ok(Next::Close)
        }
        ResultBehaviour::Drip { bytes, every } => {
            start(wire, &kind, length).await?;
            drip(wire, &picture, bytes, every).await?;
            Ok(Next::Close)
        }
        ResultBehaviour::Redirect(location) => {
            answer(wire, 302, &[("Location", &location)], b"", to_head).await?;
            Ok(Next::Close)
        }
        ResultBehaviour::Mutated(mutation) => {
            wire.send(&mutation.response(&picture, &purchase.url)).await?;
            Ok(Next::Close)
        }
        ResultBehaviour::Hang => {
            wire.gone().await;
            Ok(Next::Drop)
        }
        ResultBehaviour::Reset => Ok(Next::Reset),
        ResultBehaviour::Raw { status, headers, body } => {
            let headers: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            answer(wire, status, &headers, &body, to_head).await?;
            Ok(Next::Close)
        }
    }
}

fn picture(purchase: &Purchase, behaviour: &ResultBehaviour) -> Vec<u8> {
    let (width, height) = match behaviour {
        ResultBehaviour::WrongSize(width, height) => (*width, *height),
        _ => (purchase.width, purchase.height),
    };
    draw(purchase.drawn, width, height, purchase.format)
}

async fn start(wire: &mut Wire, kind: &str, length: u64) -> io::Result<()> {
    let kind = if kind.is_empty() { String::new() } else { format!("Content-Type: {kind}\r\n") };
    wire.send(
        format!("HTTP/1.1 200 OK\r\n{kind}Content-Length: {length}\r\nServer: AliyunOSS\r\n\r\n").as_bytes(),
    )
    .await
}

async fn xml(wire: &mut Wire, status: u16, code: &str, to_head: bool) -> io::Result<Next> {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error>\n  <Code>{code}</Code>\n  <Message>no such thing here</Message>\n</Error>\n"
    );
    answer(
        wire,
        status,
        &[("Content-Type", "application/xml"), ("Server", "AliyunOSS")],
        body.as_bytes(),
        to_head,
    )
    .await?;
    Ok(Next::Close)
}

/// Sends `bytes` in pieces with pauses between them.
pub(crate) async fn drip(wire: &mut Wire, bytes: &[u8], piece: usize, every: Duration) -> io::Result<()> {
    let mut clock = tokio::time::interval(every);
    for piece in bytes.chunks(piece.max(1)) {
        clock.tick().await;
        wire.send(piece).await?;
    }
    Ok(())
}
