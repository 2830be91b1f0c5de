//! The page at `/`: how to call, and what can go wrong.

use std::time::Duration;

use axum::response::{Html, IntoResponse, Response};
use http::HeaderValue;
use http::header::CONTENT_SECURITY_POLICY;

use crate::base::operation::IMAGE_CROPPING;
use crate::error::{ErrorResponse, GatewayError};
use crate::ledger::budget::Scope;
use crate::request::RequestError;
use crate::teams::AuthError;

const PAGE: &str = include_str!("page.html");

pub(super) fn page(public_root: &str) -> Response {
    let html = PAGE
        .replace("{{root}}", public_root)
        .replace("{{path}}", IMAGE_CROPPING.path)
        .replace("{{errors}}", &error_rows());
    let mut response = Html(html).into_response();
    let policy = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    response
}

/// One row for each kind of error that a client may have to handle.
fn error_rows() -> String {
    let wait = Duration::from_secs(1);
    let request = |error: RequestError| GatewayError::Request(error.into());
    let examples = [
        request(RequestError::MissingField { field: "image" }),
        request(RequestError::EmptyField { field: "width" }),
        request(RequestError::NumberOutOfRange { field: "width", shown: "abc".to_owned() }),
        GatewayError::Auth(AuthError::Unknown),
        GatewayError::RefreshNotAllowed,
        GatewayError::NoSuchRoute,
        GatewayError::KeyNotFound,
        GatewayError::ResultNotFound,
        request(RequestError::ImageTooLarge { max: 3_670_016 }),
        request(RequestError::ResolutionTooHigh { width: 4000, height: 3000 }),
        request(RequestError::UnsupportedFile),
        request(RequestError::UnreadableHeader),
        GatewayError::Frozen(Scope::Global),
        GatewayError::UpstreamCredits,
        GatewayError::RateLimited { wait },
        GatewayError::Bug,
        GatewayError::UpstreamUnreachable { detail: "the upstream could not be reached".to_owned() },
        GatewayError::UpstreamKeyRefused,
        GatewayError::ResultNotFetched { timed_out: false },
        GatewayError::TooBusy { wait },
        GatewayError::NoRoom,
        GatewayError::StillBeingMade,
    ];
    let row = |response: ErrorResponse| {
        let (status, code) = (response.status.as_u16(), response.code.name);
        let again = if response.retry_after.is_some() { "yes, after Retry-After" } else { "" };
        format!("<tr><td>{status}<td><code>{code}</code><td>{}<td>{again}\n", response.detail)
    };
    examples.iter().map(|example| row(example.response())).collect()
}
