//! Permanent URLs of results.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, IF_RANGE, RANGE, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use super::respond::header;
use super::{Head, PublicState};
use crate::base::picture::ObjectName;
use crate::error::GatewayError;
use crate::http::client::{self, Peer};

/// `GET` and `HEAD /results/{digest}.{ext}`. Needs no credential: the name is one.
pub(super) async fn result(
    state: &PublicState,
    name: &str,
    head: &Head<'_>,
) -> Result<Response, GatewayError> {
    let object = ObjectName::parse(name).ok_or(GatewayError::ResultNotFound)?;
    // A CDN would keep each further spelling as another result.
    let uri = &head.parts.uri;
    if uri.query().is_some() || uri.path().strip_prefix('/') != Some(&*object.path()) {
        return Err(GatewayError::ResultNotFound);
    }
    let (headers, method) = (head.headers(), &head.parts.method);
    let peer = *head.parts.extensions.get::<Peer>().ok_or(GatewayError::Bug)?;
    let client = client::network(client::address(peer, headers, &state.parts.trusted_proxies));
    let bytes = state.parts.gateway.result(object, &client).await?;
    let etag = format!("\"{}\"", object.digest);
    let mut response = if matches_any(headers, &etag) {
        // The length of the result: caches update their entry by a 304's headers.
        (StatusCode::NOT_MODIFIED, [(CONTENT_LENGTH, HeaderValue::from(bytes.len()))]).into_response()
    } else {
        // A range of another version would be worse than the whole; ranges are defined for GET only.
        let may_cut = headers.get(IF_RANGE).is_none_or(|value| value.as_bytes() == etag.as_bytes());
        body(bytes, headers.get(RANGE).filter(|_| may_cut && method == Method::GET))
    };
    let is_refusal = response.status() == StatusCode::RANGE_NOT_SATISFIABLE;
    let out = response.headers_mut();
    out.insert(ETAG, header(&etag));
    if is_refusal {
        // Not the result, so it must not be cached.
        return Ok(response);
    }
    out.insert(CONTENT_TYPE, HeaderValue::from_static(object.format.content_type()));
    out.insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable"));
    out.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    out.insert(CONTENT_DISPOSITION, header(&format!("inline; filename=\"{name}\"")));
    out.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    out.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox"));
    Ok(response)
}

/// Weak comparison (RFC 9110, 13.1.2).
fn matches_any(headers: &HeaderMap, etag: &str) -> bool {
    headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).any(|value| {
        value.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
    })
}

/// The whole, or one satisfiable range. Several or malformed ranges get the whole (RFC 9110, 14.2).
fn body(bytes: Bytes, range: Option<&HeaderValue>) -> Response {
    let length = bytes.len() as u64;
    let parsed = range
        .and_then(|value| value.to_str().ok())
        .and_then(|text| http_range_header::parse_range_header(text).ok());
    let Some(parsed) = parsed.filter(|parsed| parsed.len() == 1) else {
        return Body::from(bytes).into_response();
    };
    match parsed.validate(length).ok().and_then(|ranges| ranges.into_iter().next()) {
        Some(range) => {
            let content_range = header(&format!("bytes {}-{}/{length}", range.start(), range.end()));
            // The range is within the bytes.
            let [start, end] =
                [range.start(), range.end()].map(|at| usize::try_from(*at).unwrap_or(usize::MAX));
            let part = Body::from(bytes.slice(start..=end));
            (StatusCode::PARTIAL_CONTENT, [(CONTENT_RANGE, content_range)], part).into_response()
        }
        None => {
            let content_range = header(&format!("bytes */{length}"));
            (StatusCode::RANGE_NOT_SATISFIABLE, [(CONTENT_RANGE, content_range)]).into_response()
        }
    }
}
