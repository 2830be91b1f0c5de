//! The outermost layer of the public listener: ids, errors, counters, and one log line per request.

use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, StatusCode};
use http_body::Body;
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

use super::log::{Line, LogContext, TraceParent};
use super::{Arrival, PublicState, RequestPolicy};
use crate::base::operation::{OPERATIONS, QUERY_CREDITS_PATH};
use crate::error::GatewayError;
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

pub(super) async fn refused(request: Request, next: Next) -> Response {
    match request.extensions().get::<Refused>() {
        Some(Refused(error)) => error.clone().into_response(),
        None => next.run(request).await,
    }
}

impl IntoResponse for GatewayError {
    /// A bare status that carries the error; [`layer`] writes the body, which needs the request's id.
    fn into_response(self) -> Response {
        let mut response = self.response().status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

pub async fn layer(State(state): State<PublicState>, mut request: Request, next: Next) -> Response {
    let arrived = Instant::now();
    let mut id = Uuid::encode_buffer();
    let id = &*Uuid::new_v4().hyphenated().encode_upper(&mut id);
    let method = request.method().clone();
    request.extensions_mut().insert(Arrival(arrived));
    request.extensions_mut().insert(RequestPolicy(state.0.policy.get()));
    let route = route(request.extensions().get::<MatchedPath>().map(MatchedPath::as_str));
    let caller = TraceParent::of(request.headers());
    let is_api = matches!(route, Route::Crop | Route::LookUp | Route::Credits);
    let ignored = if is_api { ignored_query(request.uri().query()) } else { Vec::new() };
    let metrics = &state.0.metrics;
    let mut response = next.run(request).await;

    let error = response.extensions_mut().remove::<GatewayError>();
    if let Some(error) = &error {
        render(error, id, &mut response);
        let described = error.response();
        let labels = [described.fault.as_str(), described.code.name];
        metrics.request_errors_total.with_label_values(&labels).inc();
        if let GatewayError::Auth(error) = error {
            metrics.auth_failures_total[error.into()].inc();
        }
    }
    let took = arrived.elapsed();
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, header(id));
    headers.insert(SERVER_TIMING, header(&format!("total;dur={:.1}", took.as_secs_f64() * 1000.0)));
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    if !ignored.is_empty() {
        let fields = headers.get(IGNORED).and_then(|fields| fields.to_str().ok()).map(str::to_owned);
        let names: Vec<_> = fields.into_iter().chain(ignored).collect();
        headers.insert(IGNORED, header(&names.join(", ")));
    }

    let status = response.status();
    let context = response.extensions_mut().remove::<LogContext>().unwrap_or_default();
    let bytes_out = response.body().size_hint().exact().unwrap_or(0);
    metrics.http_requests_total.of(route, &method, status).inc();
    metrics.staged(&context.timing.stages);
    if let Some(outcome) = context.cache.filter(|_| route == Route::Crop) {
        let [took, waited] =
            [took, context.timing.waited()].map(|time| time.saturating_sub(context.timing.body_wait));
        metrics.answered_after(outcome, took, waited);
    }
    // Anyone can cause refusals without a credential at any rate.
    let is_sampled = context.team.is_none() && status.is_client_error();
    if is_sampled && !state.1.admits(status) {
        return response;
    }
    let (caller, error) = (caller.as_ref(), error.as_ref());
    Line { id, caller, route, method: &method, status, error, took, bytes_out, context: &context }.write();
    response
}

/// Distinct names, with a `?`; cut, so that a credential in the wrong place is not repeated whole.
fn ignored_query(query: Option<&str>) -> Vec<String> {
    let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).take(16);
    let mut names = Vec::new();
    for pair in pairs {
        let name = pair.split('=').next().unwrap_or_default();
        // They become a list with commas.
        let visible = |letter: char| if letter.is_ascii_graphic() && letter != ',' { letter } else { '?' };
        let shown = format!("?{}", name.chars().take(MAX_NAME_SHOWN).map(visible).collect::<String>());
        if !names.contains(&shown) {
            names.push(shown);
        }
    }
    names
}

/// Paths themselves never become labels.
fn route(matched: Option<&str>) -> Route {
    match matched {
        Some(path) if OPERATIONS.iter().any(|operation| path == operation.path) => Route::Crop,
        Some(path) if OPERATIONS.iter().any(|operation| path.starts_with(operation.path)) => Route::LookUp,
        Some(path) if path.starts_with("/results/") => Route::Result,
        Some(QUERY_CREDITS_PATH) => Route::Credits,
        Some("/") => Route::Page,
        Some(_) | None => Route::Unmatched,
    }
}

fn render(error: &GatewayError, request_id: &str, response: &mut Response) {
    let described = error.response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
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
    *response.status_mut() = status;
    *response.body_mut() = body.into();
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

pub fn caught_panic(panic: Box<dyn std::any::Any + Send>) -> Response {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a message");
    tracing::error!(message, "a handler panicked");
    GatewayError::Bug.into_response()
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
