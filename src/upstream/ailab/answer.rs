//! What a complete HTTP answer of the paid API means for money: [`classify`]. Pure.

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use serde_json::json;

use super::echo::quotes;
use crate::base::envelope::{Answer, Envelope};
use crate::base::operation::Operation;
use crate::base::secret::Secret;
use crate::upstream::net::coding::decoded;
use crate::upstream::{ErrorReply, Refusal, RefusalKind, Reply, UnknownCause};

/// The largest answer that is read, in bytes. Documented ones have less than 1 KiB.
pub(super) const MAX_ANSWER_BYTES: usize = 256 * 1024;

/// The codes of refusals whose status says too little.
const NOT_ENOUGH_CREDITS: &str = "ERROR_NOT_ENOUGH_CREDITS";
const FLOW_RESTRICTION: &str = "AI_SERVICE_FLOW_RESTRICTION";

/// Codes the vendor's table had under 403 until 2026-01 although they are not about the account:
/// taken for it, one bad picture would stop all paying.
const NOT_ABOUT_THE_ACCOUNT: [&str; 2] = ["ERROR_ILLEGAL_FILE", "AI_SERVICE_UNAUTHORIZED"];

/// The longest wait that is believed and passed on, in seconds.
const LONGEST_ASKED: u64 = 3600;

/// The longest code that is passed on; the vendor's longest has 43 characters.
const MAX_CODE_BYTES: usize = 64;

/// Classifies a complete answer. Everything that is not plainly one of the upstream's own is
/// [`Reply::Unknown`], since a gateway in between may have lost an answer that was billed.
///
/// Of an answer that quotes `key` nothing goes on but what it means: answers are kept and passed on.
pub(super) fn classify(
    status: StatusCode,
    headers: &HeaderMap,
    body: &Bytes,
    operation: &Operation,
    key: &Secret,
) -> Reply {
    // In a coding that cannot be undone, the body is not read; the status still says what it says.
    let body = decoded(headers, body.clone(), MAX_ANSWER_BYTES);
    let envelope = body.and_then(|body| Envelope::read(&body, operation).ok());
    let (code, body) = match envelope {
        Some(Envelope::Success(answer)) if status == StatusCode::OK => {
            let is_harmless = |answer: &Answer| !quotes(key, answer.text().expose());
            let harmless =
                Some(answer).map(|answer| if is_harmless(&answer) { answer } else { answer.bare() });
            return match harmless.filter(is_harmless) {
                Some(answer) => Reply::Answered(answer),
                // Its URL would carry the key to another host.
                None => Reply::Unknown(UnknownCause::NoResult),
            };
        }
        Some(Envelope::NoResult) if status == StatusCode::OK => {
            return Reply::Unknown(UnknownCause::NoResult);
        }
        Some(Envelope::Error { code, text }) => {
            let code = plain(code);
            let code = if quotes(key, &code) { String::new() } else { code };
            let text = if quotes(key, &text) { generic(status, &code) } else { text };
            (code, Some(Bytes::from(text)))
        }
        Some(Envelope::Success(_) | Envelope::NoResult) | None => (String::new(), None),
    };
    let is_error = body.is_some();
    let reply = |status, code| ErrorReply { status, body, code };
    match status.as_u16() {
        400..=499 => {
            let kind = refusal(status, headers, &code);
            Reply::Refused(Refusal { kind, reply: reply(status, code) })
        }
        503 if code == FLOW_RESTRICTION => {
            let kind = RefusalKind::Flow { retry_after_seconds: retry_after(headers) };
            Reply::Refused(Refusal { kind, reply: reply(status, code) })
        }
        200 | 500..=599 if is_error => Reply::Failed(reply(status, code)),
        _ => Reply::Unknown(UnknownCause::Garbage),
    }
}

/// An error envelope with nothing in it that the upstream wrote but a plain code.
fn generic(status: StatusCode, code: &str) -> String {
    let (status, message) = (status.as_u16(), "the upstream's message is withheld: it quoted a secret");
    let detail = json!({"status_code": status, "code": code, "code_message": "", "message": message});
    json!({"error_code": status, "error_code_str": code, "error_detail": detail, "error_msg": message})
        .to_string()
}

fn refusal(status: StatusCode, headers: &HeaderMap, code: &str) -> RefusalKind {
    match status.as_u16() {
        400 | 413 | 415 | 422 => RefusalKind::Order,
        403 if NOT_ABOUT_THE_ACCOUNT.contains(&code) => RefusalKind::Other,
        401 | 403 => RefusalKind::Key,
        429 if code == NOT_ENOUGH_CREDITS => RefusalKind::Credits,
        429 => RefusalKind::Flow { retry_after_seconds: retry_after(headers) },
        _ => RefusalKind::Other,
    }
}

/// `Retry-After` in seconds, an hour at most; its other form, a date, would need the two clocks to
/// agree.
fn retry_after(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // What does not fit into the type is a long time too.
    is_number.then(|| text.parse().map_or(LONGEST_ASKED, |seconds: u64| seconds.min(LONGEST_ASKED)))
}

/// A code as the vendor spells them, or nothing: it goes into logs and the ledger.
fn plain(code: String) -> String {
    let is_plain =
        code.len() <= MAX_CODE_BYTES && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if is_plain { code } else { String::new() }
}

#[cfg(test)]
mod tests;
