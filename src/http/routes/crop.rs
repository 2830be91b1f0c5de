//! The drop-in endpoint, and its hash-first lookup.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use axum::response::{IntoResponse, Response};
use http::header::{AGE, CACHE_CONTROL, CONTENT_TYPE, EXPECT};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body_util::BodyExt;

use super::log::LogContext;
use super::respond::{self, header};
use super::{Arrival, PublicState, RequestPolicy};
use crate::base::crash::crash_point;
use crate::base::key::CacheKey;
use crate::base::operation::Offer;
use crate::error::GatewayError;
use crate::gateway::{Caller, CropReply, RequestTiming};
use crate::request;
use crate::request::body::ClientBody;
use crate::teams::Team;

/// `POST` to an operation's path. Everything that the head alone decides is refused before the body is
/// polled, so that a client with `Expect: 100-continue` never sends it.
pub(super) async fn crop(
    State(state): State<PublicState>,
    Extension(arrival): Extension<Arrival>,
    Extension(RequestPolicy(policy)): Extension<RequestPolicy>,
    Extension(offer): Extension<Offer>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let refusal = |error: GatewayError| error.into_response();
    let asks_first = match asks_before_its_body(&parts.headers) {
        Ok(asks) => asks,
        Err(error) => return refusal(error),
    };
    let team = match state.authenticate(&policy, &parts.headers) {
        Ok(team) => team,
        Err(error) => return refusal(error),
    };
    let mut timing = RequestTiming::default();
    let outcome = async {
        let head = request::check_head(offer.operation, &parts.headers, &state.0.limits)?;
        // A body in flight may be a hit; one still to be sent should go where misses are served too.
        if asks_first && state.0.gateway.is_draining() {
            return Err(GatewayError::Draining);
        }
        crash_point("CP2");
        let caller = caller(&state, &team, &parts.headers, arrival);
        let body = ClientBody::new(body.map_err(axum::Error::into_inner), state.0.pace);
        state.0.gateway.handle(&offer, &caller, head, body, &mut timing).await
    }
    .await;
    state.0.gateway.count(&team, &outcome);
    respond_to(&state, team, outcome, timing)
}

/// `GET` and `HEAD` of an operation's path and a key.
pub(super) async fn look_up(
    State(state): State<PublicState>,
    Extension(RequestPolicy(policy)): Extension<RequestPolicy>,
    Extension(offer): Extension<Offer>,
    key: Result<Path<String>, PathRejection>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let team = match state.authenticate(&policy, &headers) {
        Ok(team) => team,
        Err(error) => return error.into_response(),
    };
    let mut timing = RequestTiming::default();
    let outcome = match key.ok().and_then(|Path(key)| key.to_ascii_lowercase().parse::<CacheKey>().ok()) {
        Some(key) => state.0.gateway.look_up_key(&team, &offer.identity(key), &mut timing).await,
        None => Err(GatewayError::NotAKey),
    };
    if let Ok(reply) = &outcome {
        state.0.gateway.count_look_up(&team, reply, method == Method::GET);
    }
    respond_to(&state, team, outcome, timing)
}

/// Returns true when the client waits for `100 Continue`. Other expectations are refused.
fn asks_before_its_body(headers: &HeaderMap) -> Result<bool, GatewayError> {
    let mut expectations = headers.get_all(EXPECT).iter().peekable();
    let asks = expectations.peek().is_some();
    let all_known = expectations.all(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if all_known { Ok(asks) } else { Err(GatewayError::UnknownExpectation) }
}

fn caller(state: &PublicState, team: &std::sync::Arc<Team>, headers: &HeaderMap, arrival: Arrival) -> Caller {
    // `no-cache` and `max-age` are sent unasked by browsers and tools, and must not cost money.
    let only_if_cached = headers.get_all(CACHE_CONTROL).iter().any(|value| {
        value.to_str().is_ok_and(|value| {
            value.split(',').any(|directive| directive.trim().eq_ignore_ascii_case("only-if-cached"))
        })
    });
    Caller {
        team: team.clone(),
        refresh: headers.get(respond::REFRESH).is_some_and(|value| value.as_bytes() == b"1"),
        only_if_cached,
        deadline: arrival.0 + state.0.answer_within,
    }
}

fn respond_to(
    state: &PublicState,
    team: Arc<Team>,
    outcome: Result<CropReply, GatewayError>,
    timing: RequestTiming,
) -> Response {
    let mut context = LogContext { team: Some(team), timing, ..LogContext::default() };
    let mut response = match outcome {
        Ok(reply) => {
            context.cache = Some(reply.status);
            context.credits = Some((reply.charged, reply.saved));
            success(state, reply)
        }
        Err(error) => failure(error, &context.timing),
    };
    response.extensions_mut().insert(context);
    response
}

/// An error about a key names it, so that the client can ask for the key later.
fn failure(error: GatewayError, timing: &RequestTiming) -> Response {
    let Some(key) = timing.key.map(|key| key.to_string()) else { return error.into_response() };
    let detail = error.response().reason.map(|reason| format!("; detail={reason}")).unwrap_or_default();
    let forwarded = match timing.upstream {
        Some((_, Some(status))) => format!("; fwd=uri-miss; fwd-status={}", status.as_u16()),
        Some((_, None)) => "; fwd=uri-miss".to_owned(),
        None => String::new(),
    };
    let mut response = error.into_response();
    let headers = response.headers_mut();
    headers.insert(respond::CACHE_STATUS, header(&format!("granary{forwarded}{detail}; key=\"{key}\"")));
    headers.insert(respond::KEY, header(&key));
    response
}

fn success(state: &PublicState, reply: CropReply) -> Response {
    let key = reply.record.key.to_string();
    let mut response = (StatusCode::OK, Body::from(reply.body)).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(respond::CACHE_STATUS, header(&format!("{}; key=\"{key}\"", reply.status.header())));
    headers.insert(respond::KEY, header(&key));
    headers.insert(respond::CHARGED, HeaderValue::from(reply.charged));
    headers.insert(respond::SAVED, HeaderValue::from(reply.saved));
    headers.insert(AGE, HeaderValue::from(reply.age_seconds));
    if state.0.is_builtin {
        headers.insert(respond::UPSTREAM, HeaderValue::from_static("builtin"));
    }
    if !reply.ignored.is_empty() {
        headers.insert(respond::IGNORED, header(&reply.ignored.join(", ")));
    }
    response
}
