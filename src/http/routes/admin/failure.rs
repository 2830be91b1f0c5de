//! The JSON shape of errors on the admin listener: [`AdminFailure`].

use axum::Json;
use axum::extract::{FromRequestParts, Query, Request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::WWW_AUTHENTICATE;
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::http::routes::respond::Refused;
use crate::ledger::LedgerError;

/// `{"error": "a sentence", "reason": "a_stable_word"}`.
#[derive(Debug, Serialize)]
pub(super) struct AdminFailure {
    #[serde(skip)]
    pub(super) status: StatusCode,
    error: String,
    reason: &'static str,
}

impl AdminFailure {
    pub(super) fn new(status: StatusCode, reason: &'static str, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), reason }
    }

    pub(super) fn not_found(reason: &'static str, error: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, reason, error)
    }

    pub(super) fn conflict(reason: &'static str, error: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, reason, error)
    }

    pub(super) fn unavailable(reason: &'static str, error: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, reason, error)
    }

    pub(super) fn invalid(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", error)
    }
}

pub(super) async fn refused(request: Request, next: Next) -> Response {
    let Some(Refused(error)) = request.extensions().get::<Refused>() else { return next.run(request).await };
    let response = error.response();
    AdminFailure::new(response.status, response.reason.unwrap_or("malformed"), response.detail)
        .into_response()
}

impl IntoResponse for AdminFailure {
    fn into_response(self) -> Response {
        let status = self.status;
        let mut response = (status, Json(self)).into_response();
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<LedgerError> for AdminFailure {
    fn from(error: LedgerError) -> Self {
        tracing::error!(%error, "an operator could not be answered");
        Self::unavailable("ledger_unavailable", error.to_string())
    }
}

/// The query; unknown names are refused.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = AdminFailure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, AdminFailure> {
        match Query::try_from_uri(&parts.uri) {
            Ok(Query(params)) => Ok(Self(params)),
            Err(rejection) => Err(AdminFailure::invalid(rejection.body_text())),
        }
    }
}
