//! Classifies a complete HTTP answer of the paid API by what it costs ([`classify`]). Pure.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};

use super::echo::quotes;
use crate::base::envelope::{Answer, Envelope};
use crate::base::operation::Operation;
use crate::base::secret::Secret;
use crate::upstream::code::error_envelope;
use crate::upstream::net::coding::decoded;
use crate::upstream::{ErrorReply, Refusal, RefusalKind, Reply, UnknownCause};

/// Maximum bytes of an answer. Documented ones have less than 1 KiB.
pub(super) const MAX_ANSWER_BYTES: usize = 256 * 1024;

const NOT_ENOUGH_CREDITS: &str = "ERROR_NOT_ENOUGH_CREDITS";
const FLOW_RESTRICTION: &str = "AI_SERVICE_FLOW_RESTRICTION";

/// Codes that the vendor's table had under 403 until 2026-01 although they are not about the account: one bad
/// picture must not stop all purchases.
const NOT_ABOUT_THE_ACCOUNT: [&str; 2] = ["ERROR_ILLEGAL_FILE", "AI_SERVICE_UNAUTHORIZED"];

const WITHHELD: &str = "the upstream's message is withheld: it quoted a secret";

/// A longer `Retry-After` is shortened to this.
const LONGEST_ASKED: Duration = Duration::from_hours(1);

/// Maximum bytes of a code; the vendor's longest has 43.
const MAX_CODE_BYTES: usize = 64;

/// Everything not plainly the upstream's own is [`Reply::Unknown`], since a gateway in between may have lost
/// an answer that was billed. Texts that quote `key` are removed, because answers are kept and passed on.
pub(super) fn classify(
    status: StatusCode,
    headers: &HeaderMap,
    body: &Bytes,
    operation: &Operation,
    key: &Secret,
) -> Reply {
    // A body whose coding cannot be undone is ignored; the status still counts.
    let body = decoded(headers, body.clone(), MAX_ANSWER_BYTES);
    let envelope = body.and_then(|body| Envelope::read(&body, operation).ok());
    let (code, body) = match envelope {
        Some(Envelope::Success(answer)) if status == StatusCode::OK => {
            let is_harmless = |answer: &Answer| !quotes(key, answer.text().expose());
            let answer = if is_harmless(&answer) { answer } else { answer.bare() };
            if is_harmless(&answer) {
                return Reply::Answered(answer);
            }
            // Its URL would send the key to another host.
            return Reply::Unknown(UnknownCause::NoResult);
        }
        Some(Envelope::NoResult) if status == StatusCode::OK => {
            return Reply::Unknown(UnknownCause::NoResult);
        }
        Some(Envelope::Error { code, text }) => {
            let code = plain(code);
            let code = if quotes(key, &code) { String::new() } else { code };
            let text = if quotes(key, &text) {
                error_envelope(status, &code, "", WITHHELD).to_string()
            } else {
                text
            };
            (code, Some(Bytes::from(text)))
        }
        Some(Envelope::Success(_) | Envelope::NoResult) | None => (String::new(), None),
    };
    let reply = ErrorReply { status, body, code };
    match refusal(&reply, headers) {
        Some(kind) => Reply::Refused(Refusal { kind, reply }),
        None if matches!(status.as_u16(), 200 | 500..=599) && reply.body.is_some() => Reply::Failed(reply),
        None => Reply::Unknown(UnknownCause::Garbage),
    }
}

fn refusal(reply: &ErrorReply, headers: &HeaderMap) -> Option<RefusalKind> {
    let code = reply.code.as_str();
    Some(match reply.status.as_u16() {
        400 | 413 | 415 | 422 => RefusalKind::Order,
        403 if NOT_ABOUT_THE_ACCOUNT.contains(&code) => RefusalKind::Other,
        401 | 403 => RefusalKind::Key,
        429 if code == NOT_ENOUGH_CREDITS => RefusalKind::Credits,
        429 => RefusalKind::Flow { retry_after: retry_after(headers) },
        503 if code == FLOW_RESTRICTION => RefusalKind::Flow { retry_after: retry_after(headers) },
        400..=499 => RefusalKind::Other,
        _ => return None,
    })
}

/// `Retry-After` in seconds; its other form, a date, would need the two clocks to agree.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| {
        text.parse().map_or(LONGEST_ASKED, |seconds| LONGEST_ASKED.min(Duration::from_secs(seconds)))
    })
}

/// A code in the vendor's spelling, or nothing: it goes into logs and the ledger.
fn plain(code: String) -> String {
    let is_plain =
        code.len() <= MAX_CODE_BYTES && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if is_plain { code } else { String::new() }
}

#[cfg(test)]
mod tests;
