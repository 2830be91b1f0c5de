//! What is around every handler of the public listener, outermost first:
//!
//! | | |
//! |---|---|
//! | id, counters, log line | of everything that can answer |
//! | CORS headers, preflights | on all refusals too, so that a page can read them |
//! | errors | as the upstream's envelope |
//! | panics | an error like any other |

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body::Body;
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

use super::log::{Line, LogContext, TraceParent};
use super::{Head, PublicState, Target, cors};
use crate::error::GatewayError;
use crate::gateway::RequestTiming;
use crate::metrics::Route;
use crate::request::framing::HeadError;

pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
/// A stable word for the reason of a refusal.
pub const REASON: HeaderName = HeaderName::from_static("granary-reason");
pub const KEY: HeaderName = HeaderName::from_static("granary-key");
pub const CHARGED: HeaderName = HeaderName::from_static("granary-credits-charged");
pub const SAVED: HeaderName = HeaderName::from_static("granary-credits-saved");
/// Form fields and query parameters without a meaning here.
pub const IGNORED: HeaderName = HeaderName::from_static("granary-ignored");
pub const UPSTREAM: HeaderName = HeaderName::from_static("granary-upstream");
pub const REFRESH: HeaderName = HeaderName::from_static("granary-refresh");
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Characters of an unknown query parameter's name.
const MAX_NAME_SHOWN: usize = 40;
/// Allowed on some path.
const ALL_METHODS: &str = "GET, HEAD, POST, OPTIONS";
/// Of `Retry-After`: clients sleep it out.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Refused before routing; set by the listener on a placeholder request.
#[derive(Clone, Debug)]
pub struct Refused(pub GatewayError);

pub(super) async fn answer(state: &PublicState, request: Request) -> Response {
    let arrived = Instant::now();
    let mut id = Uuid::encode_buffer();
    let id = &*Uuid::new_v4().hyphenated().encode_upper(&mut id);
    let (parts, body) = request.into_parts();
    let policy = state.parts.policy.get();
    let head = Head { parts: &parts, arrived, policy: &policy };
    let target = Target::of(parts.uri.path(), &state.parts.offers);
    let (method, route) = (&parts.method, target.route());
    let mut log = LogContext::default();

    let outcome = if cors::is_preflight(&head) {
        Ok(StatusCode::NO_CONTENT.into_response())
    } else {
        let handled = AssertUnwindSafe(super::route(state, target, &head, body, &mut log));
        handled.catch_unwind().await.unwrap_or_else(|panic| Err(caught(&*panic)))
    };
    let metrics = &state.parts.metrics;
    let (mut response, error) = match outcome {
        Ok(response) => (response, None),
        Err(error) => {
            let described = error.response();
            let labels = [described.fault.as_str(), described.code.name];
            metrics.request_errors_total.with_label_values(&labels).inc();
            if let GatewayError::Auth(error) = &error {
                metrics.auth_failures_total[error.into()].inc();
            }
            (failure(&error, id, &log.timing), Some(error))
        }
    };
    let took = arrived.elapsed();
    let headers = response.headers_mut();
    state.cors.add_to(&head, headers);
    headers.insert(REQUEST_ID, header(id));
    headers.insert(SERVER_TIMING, header(&format!("total;dur={:.1}", took.as_secs_f64() * 1000.0)));
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    if matches!(route, Route::Crop | Route::LookUp | Route::Credits)
        && let Some(query) = parts.uri.query()
    {
        name_ignored(query, headers);
    }

    let status = response.status();
    let bytes_out = response.body().size_hint().exact().filter(|_| method != Method::HEAD).unwrap_or(0);
    metrics.http_requests_total.of(route, method, status).inc();
    metrics.staged(&log.timing.stages);
    if let Some(outcome) = log.cache.filter(|_| route == Route::Crop) {
        let [took, waited] =
            [took, log.timing.waited()].map(|time| time.saturating_sub(log.timing.body_wait));
        metrics.answered_after(outcome, took, waited);
    }
    // Anyone can cause refusals without a credential at any rate.
    let is_sampled = log.team.is_none() && status.is_client_error();
    if !is_sampled || state.refusals.admits(status) {
        let (caller, error) = (TraceParent::of(&parts.headers), error.as_ref());
        let caller = caller.as_ref();
        Line { id, caller, route, method, status, error, took, bytes_out, context: &log }.write();
    }
    response
}

/// Adds a query's parameters, which have no meaning here, to the list of ignored fields: distinct names, with a `?`;
/// cut, so that a credential in the wrong place is not repeated whole.
fn name_ignored(query: &str, headers: &mut HeaderMap) {
    let fields = headers.get(IGNORED).and_then(|fields| fields.to_str().ok()).map(str::to_owned);
    let mut names: Vec<String> = fields.into_iter().collect();
    for pair in query.split('&').filter(|pair| !pair.is_empty()).take(16) {
        let name = pair.split('=').next().unwrap_or_default();
        // They become a list with commas.
        let visible = |letter: char| if letter.is_ascii_graphic() && letter != ',' { letter } else { '?' };
        let shown = format!("?{}", name.chars().take(MAX_NAME_SHOWN).map(visible).collect::<String>());
        if !names.contains(&shown) {
            names.push(shown);
        }
    }
    if !names.is_empty() {
        headers.insert(IGNORED, header(&names.join(", ")));
    }
}

/// An error about a key names it, so that the client can ask for the key later.
fn failure(error: &GatewayError, request_id: &str, timing: &RequestTiming) -> Response {
    let described = error.response();
    let (status, body) = match error {
        GatewayError::Upstream { status, body, .. } => (*status, body.clone()),
        _ => {
            let status = described.status.as_u16();
            let message = format!("{} - {}", described.code.text, described.detail);
            let envelope = json!({
                "request_id": request_id,
                "log_id": "0",
                "error_code": status,
                "error_code_str": described.code.name,
                "error_msg": message,
                "error_detail": {
                    "status_code": status,
                    "code": described.code.name,
                    "code_message": described.code.text,
                    "message": message,
                },
            });
            (described.status, envelope.to_string().into())
        }
    };
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(key) = timing.key.map(|key| key.to_string()) {
        let detail = described.reason.map(|reason| format!("; detail={reason}")).unwrap_or_default();
        let forwarded = match timing.upstream {
            Some((_, Some(status))) => format!("; fwd=uri-miss; fwd-status={}", status.as_u16()),
            Some((_, None)) => "; fwd=uri-miss".to_owned(),
            None => String::new(),
        };
        headers.insert(CACHE_STATUS, header(&format!("granary{forwarded}{detail}; key=\"{key}\"")));
        headers.insert(KEY, header(&key));
    }
    if let Some(reason) = described.reason {
        headers.insert(REASON, HeaderValue::from_static(reason));
    }
    if let Some(wait) = described.retry_after {
        headers
            .insert(RETRY_AFTER, HeaderValue::from(retry_after_seconds(wait, getrandom::u32().unwrap_or(0))));
    }
    match error {
        GatewayError::MethodNotAllowed { allow } => {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        GatewayError::Head(HeadError::Method) => {
            headers.insert(ALLOW, HeaderValue::from_static(ALL_METHODS));
        }
        _ => {}
    }
    if matches!(error, GatewayError::Auth(_)) && described.status == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// Whole seconds, from one to an hour, with up to a tenth added so that clients that were refused together do
/// not come back together. Jitter of a capped wait is negative.
fn retry_after_seconds(wait: Duration, random: u32) -> u64 {
    let fraction = f64::from(random) / f64::from(u32::MAX);
    let wait = wait.max(Duration::from_secs(1)).min(MAX_RETRY_AFTER.mul_f64(1.0 / 1.1));
    (wait.mul_f64(1.0 + 0.1 * fraction).as_secs_f64().ceil() as u64).min(MAX_RETRY_AFTER.as_secs())
}

/// For our own texts; anything else becomes empty.
pub fn header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn caught(panic: &(dyn Any + Send)) -> GatewayError {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a message");
    tracing::error!(message, "a handler panicked");
    GatewayError::Bug
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_honest_jittered_and_at_most_an_hour() {
        for (wait, earliest, latest) in
            [(0, 1, 2), (1, 1, 2), (30, 30, 33), (3000, 3000, 3300), (3600, 3273, 3600), (90_000, 3273, 3600)]
        {
            let wait = Duration::from_secs(wait);
            assert_eq!(
                (retry_after_seconds(wait, 0), retry_after_seconds(wait, u32::MAX)),
                (earliest, latest),
                "{wait:?}"
            );
        }
    }
}
