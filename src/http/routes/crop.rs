//! The drop-in endpoint, and its hash-first lookup.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{AGE, CACHE_CONTROL, CONTENT_TYPE, EXPECT};
use http::{HeaderMap, HeaderValue, Method};
use http_body_util::BodyExt;
use percent_encoding::percent_decode_str;

use super::log::LogContext;
use super::respond::{self, header};
use super::{Head, PublicState};
use crate::base::crash::crash_point;
use crate::base::key::CacheKey;
use crate::base::operation::Offer;
use crate::error::GatewayError;
use crate::gateway::{Caller, CropReply};
use crate::request;
use crate::request::body::ClientBody;

/// `POST` to an operation's path. Everything that the head alone decides is refused before the body is
/// polled, so that a client with `Expect: 100-continue` never sends it.
pub(super) async fn crop(
    state: &PublicState,
    offer: &Offer,
    head: &Head<'_>,
    body: Body,
    log: &mut LogContext,
) -> Result<Response, GatewayError> {
    let (parts, headers) = (&state.parts, head.headers());
    let asks_first = asks_before_its_body(headers)?;
    let team = state.authenticate(head)?;
    log.team = Some(team.clone());
    let outcome = async {
        let form = request::check_head(offer.operation, headers, &parts.limits)?;
        // A body in flight may be a hit; one still to be sent should go where misses are served too.
        if asks_first && parts.gateway.is_draining() {
            return Err(GatewayError::Draining);
        }
        crash_point("CP2");
        let caller = Caller {
            team: team.clone(),
            refresh: headers.get(respond::REFRESH).is_some_and(|value| value.as_bytes() == b"1"),
            only_if_cached: is_only_if_cached(headers),
            deadline: head.arrived + parts.answer_within,
        };
        let body = ClientBody::new(body.map_err(axum::Error::into_inner), parts.pace);
        parts.gateway.handle(offer, &caller, form, body, &mut log.timing).await
    }
    .await;
    parts.gateway.count(&team, &outcome);
    Ok(success(state, outcome?, log))
}

/// `GET` and `HEAD` of an operation's path and a key.
pub(super) async fn look_up(
    state: &PublicState,
    offer: &Offer,
    key: &str,
    head: &Head<'_>,
    log: &mut LogContext,
) -> Result<Response, GatewayError> {
    let team = state.authenticate(head)?;
    log.team = Some(team.clone());
    let key =
        percent_decode_str(key).decode_utf8().ok().and_then(|key| key.to_ascii_lowercase().parse().ok());
    let key: CacheKey = key.ok_or(GatewayError::NotAKey)?;
    let gateway = &state.parts.gateway;
    let reply = gateway.look_up_key(&team, &offer.identity(key), &mut log.timing).await?;
    gateway.count_look_up(&team, &reply, head.parts.method == Method::GET);
    Ok(success(state, reply, log))
}

/// Returns true when the client waits for `100 Continue`. Other expectations are refused.
fn asks_before_its_body(headers: &HeaderMap) -> Result<bool, GatewayError> {
    let mut expectations = headers.get_all(EXPECT).iter().peekable();
    let asks = expectations.peek().is_some();
    let all_known = expectations.all(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if all_known { Ok(asks) } else { Err(GatewayError::UnknownExpectation) }
}

/// `no-cache` and `max-age` are sent unasked by browsers and tools, and must not cost money.
fn is_only_if_cached(headers: &HeaderMap) -> bool {
    headers.get_all(CACHE_CONTROL).iter().any(|value| {
        value.to_str().is_ok_and(|value| {
            value.split(',').any(|directive| directive.trim().eq_ignore_ascii_case("only-if-cached"))
        })
    })
}

fn success(state: &PublicState, reply: CropReply, log: &mut LogContext) -> Response {
    log.cache = Some(reply.status);
    log.credits = Some((reply.charged, reply.saved));
    let key = reply.record.key.to_string();
    let mut response = Body::from(reply.body).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(respond::CACHE_STATUS, header(&format!("{}; key=\"{key}\"", reply.status.header())));
    headers.insert(respond::KEY, header(&key));
    headers.insert(respond::CHARGED, HeaderValue::from(reply.charged));
    headers.insert(respond::SAVED, HeaderValue::from(reply.saved));
    headers.insert(AGE, HeaderValue::from(reply.age_seconds));
    if state.parts.is_builtin {
        headers.insert(respond::UPSTREAM, HeaderValue::from_static("builtin"));
    }
    if !reply.ignored.is_empty() {
        headers.insert(respond::IGNORED, header(&reply.ignored.join(", ")));
    }
    response
}
