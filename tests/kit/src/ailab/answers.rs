//! The answers of the API side: one function for requests that were billed, one for those that were not.

use std::future::Future;
use std::io;

use super::behaviour::Behaviour;
use super::envelope;
use super::ledger::{Held, Ledger, Purchase};
use super::listen::{Next, answer, answer_bytes};
use super::results::drip;
use crate::wire::{Head, Wire};

/// The end of a request that was billed.
pub(super) async fn paid(
    ledger: &Ledger,
    wire: &mut Wire,
    head: &Head,
    behaviour: Behaviour,
    purchase: Purchase,
    generation: u64,
) -> io::Result<Next> {
    let body = envelope::success(&purchase.url, purchase.width, purchase.height);
    match behaviour {
        Behaviour::Delay(time) => {
            if wait(ledger, wire, tokio::time::sleep(time)).await.is_none() {
                return Ok(Next::Drop);
            }
        }
        Behaviour::Hold => {
            if wait(ledger, wire, released(ledger, generation)).await.is_none() {
                return Ok(Next::Drop);
            }
        }
        Behaviour::NeverAnswer => {
            let _held = Held::begin(ledger);
            wire.gone().await;
            return Ok(Next::Drop);
        }
        Behaviour::NewEnvelope => {
            let body = envelope::success_new(&purchase.url, purchase.width, purchase.height);
            return reply(wire, head, 200, &body).await;
        }
        Behaviour::ExtraFields => {
            return reply(wire, head, 200, &envelope::success_odd(&purchase.url)).await;
        }
        Behaviour::UrlOverride(url) => {
            return reply(wire, head, 200, &envelope::success(&url, purchase.width, purchase.height)).await;
        }
        Behaviour::Drip(every) => {
            let _held = Held::begin(ledger);
            drip(wire, &json_answer(200, &body), 1, every).await?;
            return Ok(Next::Close);
        }
        Behaviour::Bytes(bytes) => {
            wire.send(&bytes).await?;
            return Ok(Next::Close);
        }
        Behaviour::Mutated(template, mutation) => {
            let body = template
                .replace("{url}", &purchase.url)
                .replace("{width}", &purchase.width.to_string())
                .replace("{height}", &purchase.height.to_string());
            wire.send(&mutation.response(body.as_bytes(), &purchase.url)).await?;
            return Ok(Next::Close);
        }
        Behaviour::CutBeforeAnswer => return Ok(Next::Drop),
        Behaviour::CutMidAnswer(sent) => {
            let bytes = json_answer(200, &body);
            wire.send(&bytes[..sent.min(bytes.len() - 1)]).await?;
            return Ok(Next::Close);
        }
        Behaviour::StallMidAnswer(sent) => {
            let _held = Held::begin(ledger);
            let bytes = json_answer(200, &body);
            wire.send(&bytes[..sent.min(bytes.len() - 1)]).await?;
            wire.gone().await;
            return Ok(Next::Drop);
        }
        Behaviour::ResetDuringUpload(_) => return Ok(Next::Reset),
        Behaviour::Raw { .. } => return unpaid(wire, head, behaviour).await,
        Behaviour::Success => {}
        Behaviour::Refuse { .. }
        | Behaviour::RefuseEarly { .. }
        | Behaviour::NoCredits
        | Behaviour::KeyRefused
        | Behaviour::FlowLimit { .. }
        | Behaviour::Redirect(_) => unreachable!("these are not billed"),
    }
    reply(wire, head, 200, &body).await
}

/// The end of a request whose answer does not depend on a purchase.
pub(super) async fn unpaid(wire: &mut Wire, head: &Head, behaviour: Behaviour) -> io::Result<Next> {
    match behaviour {
        Behaviour::Refuse { status, code } => {
            reply(wire, head, status, &envelope::error(status, &code, "scripted")).await
        }
        Behaviour::NoCredits => {
            reply(wire, head, 429, &envelope::error(429, "ERROR_NOT_ENOUGH_CREDITS", "")).await
        }
        Behaviour::KeyRefused => {
            reply(wire, head, 401, &envelope::error(401, "ERROR_USER_NOT_EXISTS", "")).await
        }
        Behaviour::FlowLimit { status, retry_after } => {
            let code = if status == 503 { "AI_SERVICE_FLOW_RESTRICTION" } else { "EXCEEDING_LIMITS" };
            let seconds = retry_after.map(|s| s.to_string());
            let mut headers = vec![("Content-Type", "application/json")];
            headers.extend(seconds.iter().map(|s| ("Retry-After", s.as_str())));
            answer(wire, status, &headers, &envelope::error(status, code, ""), false).await?;
            Ok(after(head))
        }
        Behaviour::Redirect(location) => {
            answer(wire, 307, &[("Location", &location)], b"", false).await?;
            Ok(after(head))
        }
        Behaviour::Raw { status, content_type, body, .. } => {
            let kind: &[_] =
                if content_type.is_empty() { &[] } else { &[("Content-Type", content_type.as_str())] };
            answer(wire, status, kind, &body, false).await?;
            Ok(after(head))
        }
        paid => unreachable!("{paid:?} is billed"),
    }
}

/// Runs a wait while watching for the peer to go away; `None` if it did.
async fn wait(ledger: &Ledger, wire: &mut Wire, time: impl Future<Output = ()>) -> Option<()> {
    let _held = Held::begin(ledger);
    tokio::select! {
        () = time => Some(()),
        () = wire.gone() => None,
    }
}

async fn released(ledger: &Ledger, generation: u64) {
    let mut gate = ledger.gate.subscribe();
    tokio::select! {
        _ = gate.wait_for(|&now| now > generation) => {}
        permit = ledger.permits.acquire() => permit.unwrap().forget(),
    }
}

fn json_answer(status: u16, body: &[u8]) -> Vec<u8> {
    answer_bytes(status, &[("Content-Type", "application/json")], body, body.len())
}

pub(super) async fn reply(wire: &mut Wire, head: &Head, status: u16, body: &[u8]) -> io::Result<Next> {
    wire.send(&json_answer(status, body)).await?;
    Ok(after(head))
}

/// An error after which the connection ends, because the body may not have been read.
pub(super) async fn refuse(wire: &mut Wire, status: u16, code: &str, detail: &str) -> io::Result<Next> {
    let body = envelope::error(status, code, detail);
    let headers = [("Content-Type", "application/json"), ("Connection", "close")];
    answer(wire, status, &headers, &body, false).await?;
    Ok(Next::Close)
}

fn after(head: &Head) -> Next {
    if head.asks_to_close() || head.start[2] == "HTTP/1.0" { Next::Close } else { Next::KeepAlive }
}
