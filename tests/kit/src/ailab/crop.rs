//! The API side: one request from its head to its answer, and the moment it is charged.

use std::io;

use bytes::{Bytes, BytesMut};

use super::answers::{paid, refuse, reply, unpaid};
use super::behaviour::Behaviour;
use super::envelope;
use super::ledger::{InFlight, Ledger, SeenRequest};
use super::listen::Next;
use super::multipart::{self, SeenPart};
use super::picture::Format;
use crate::wire::{Framing, Head, Wire};

const CROP: &str = "/api/image/editing/image-cropping";
/// Sold like a crop: what tells two operations apart is the path alone.
const SECOND: &str = "/api/image/editing/second";
const CREDITS: &str = "/api/common/query-credits";
const MAX_IMAGE: usize = 3_670_016;

/// A refusal the fake decides on by itself: status, code, detail.
type Refusal = (u16, &'static str, String);

pub(crate) async fn serve_api(
    ledger: &Ledger,
    wire: &mut Wire,
    head: Head,
    connection: u64,
) -> io::Result<Next> {
    let path = head.start[1].split('?').next().unwrap_or_default().to_owned();
    match (head.start[0].as_str(), path.as_str()) {
        ("POST", CROP | SECOND) => serve_crop(ledger, wire, head, connection).await,
        ("GET", CREDITS) => serve_credits(ledger, wire, &head).await,
        (_, CROP | SECOND | CREDITS) => refuse(wire, 403, "ERROR_ILLEGAL_OPERATION", "").await,
        _ => refuse(wire, 404, "ERROR_AI_NOT_EXISTS", "").await,
    }
}

async fn serve_credits(ledger: &Ledger, wire: &mut Wire, head: &Head) -> io::Result<Next> {
    if !has_key(ledger, head) {
        return refuse(wire, 401, "ERROR_USER_NOT_EXISTS", "").await;
    }
    ledger.count(|s| s.balance_queries += 1);
    let body = {
        let book = ledger.book();
        envelope::credits(book.cropping_credits, book.common_credits, book.total_credits)
    };
    reply(wire, head, 200, &body).await
}

async fn serve_crop(ledger: &Ledger, wire: &mut Wire, head: Head, connection: u64) -> io::Result<Next> {
    // Before anybody is told that this request is in flight, so that a release after that reaches it.
    let generation = *ledger.gate.borrow();
    let (index, behaviour) = {
        let known = has_key(ledger, &head);
        let mut book = ledger.book();
        let scripted = known.then(|| book.next.pop_front().unwrap_or_else(|| book.always.clone()));
        book.seen.push(SeenRequest {
            connection,
            head: head.clone(),
            body: Bytes::new(),
            parts: Vec::new(),
            complete: false,
            charged: false,
        });
        (book.seen.len() - 1, scripted)
    };
    let _in_flight = InFlight::begin(ledger);

    if let Some(Behaviour::RefuseEarly { status, code }) = &behaviour {
        return refuse(wire, *status, code, "").await;
    }
    let limit = match behaviour {
        Some(Behaviour::ResetDuringUpload(bytes)) => bytes,
        _ => usize::MAX,
    };
    if head.header("expect").is_some_and(|e| e.eq_ignore_ascii_case("100-continue")) {
        wire.send(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    let (body, whole) = read_body(ledger, wire, &head, limit).await;
    let parsed = multipart::parse(head.header("content-type").unwrap_or_default(), &body);
    {
        let mut book = ledger.book();
        let keep = !book.forget_bodies;
        let seen = &mut book.seen[index];
        seen.complete = matches!(whole, Ok(Upload::Whole)) && parsed.is_ok();
        if keep {
            seen.body = body;
            seen.parts = parsed.clone().unwrap_or_default();
        }
    }
    if whole? == Upload::Limited {
        return Ok(Next::Reset);
    }
    let parts = match parsed {
        Ok(parts) => parts,
        Err(why) => return refuse(wire, 400, "ERROR_PARAMETERS", &why).await,
    };
    ledger.count(|s| s.fully_received += 1);

    let Some(behaviour) = behaviour else {
        return refuse(wire, 401, "ERROR_USER_NOT_EXISTS", "").await;
    };
    let (image, size, format) = match judge(&parts) {
        Ok(good) => good,
        Err((status, code, detail)) => return refuse(wire, status, code, &detail).await,
    };
    if !behaviour.charges() {
        return unpaid(wire, &head, behaviour).await;
    }
    match ledger.charge(index, &image, size, format) {
        Some(purchase) => paid(ledger, wire, &head, behaviour, purchase, generation).await,
        None => refuse(wire, 429, "ERROR_NOT_ENOUGH_CREDITS", "").await,
    }
}

#[derive(PartialEq, Eq)]
enum Upload {
    Whole,
    Limited,
}

async fn read_body(
    ledger: &Ledger,
    wire: &mut Wire,
    head: &Head,
    limit: usize,
) -> (Bytes, io::Result<Upload>) {
    let mut body = BytesMut::new();
    let mut framing = match Framing::of_request(head) {
        Ok(framing) => framing,
        Err(bad) => return (Bytes::new(), Err(bad)),
    };
    let end = loop {
        // Never past the limit, or whether a reset comes before the last byte would depend on how the bytes arrived.
        match wire.piece(&mut framing, limit - body.len()).await {
            Ok(Some(piece)) => {
                ledger.count(|s| s.body_bytes += piece.len() as u64);
                body.extend_from_slice(&piece);
                if body.len() == limit && !matches!(framing, Framing::Length(0)) {
                    break Ok(Upload::Limited);
                }
            }
            Ok(None) => break Ok(Upload::Whole),
            Err(cut) => break Err(cut),
        }
    };
    (body.freeze(), end)
}

/// What the service checks before it works: the fields, and what the picture's first bytes say.
fn judge(parts: &[SeenPart]) -> Result<(Bytes, (u32, u32), Format), Refusal> {
    let image = field(parts, "image")?;
    let size = (number(parts, "width")?, number(parts, "height")?);
    if image.len() > MAX_IMAGE {
        return Err((413, "FILE_SIZE_EXCEEDS_LIMIT", "image: over 3.5 MB".to_owned()));
    }
    let format = Format::of_result(&image).ok_or((415, "UNSUPPORTED_FILE_TYPES", "image".to_owned()))?;
    Ok((image, size, format))
}

fn field(parts: &[SeenPart], name: &str) -> Result<Bytes, Refusal> {
    let mut named = parts.iter().filter(|part| part.name == name);
    match (named.next(), named.next()) {
        (Some(one), None) if !one.bytes.is_empty() => Ok(one.bytes.clone()),
        (_, Some(_)) => Err((400, "ERROR_PARAMETERS", format!("{name}: Given twice."))),
        // The code measured for an empty or missing file, not the documented MISSING_PARAMETERS.
        _ => Err((400, "UNSUPPORTED_PARAMETER_VALUES", format!("{name}: Cannot be empty."))),
    }
}

fn number(parts: &[SeenPart], name: &str) -> Result<u32, Refusal> {
    let text = field(parts, name)?;
    std::str::from_utf8(&text)
        .ok()
        .and_then(|text| text.parse().ok())
        .filter(|number| (10..=2000).contains(number))
        .ok_or_else(|| {
            (400, "ERROR_INVALID_PARAMETER", format!("{name}: Must be an integer from 10 to 2000."))
        })
}

fn has_key(ledger: &Ledger, head: &Head) -> bool {
    let book = ledger.book();
    let presented = head.all("ailabapi-api-key");
    presented == [book.api_key.as_str()] || book.other_keys.iter().any(|key| presented == [key.as_str()])
}
