//! What operators are told when something was not done: one JSON shape, [`AdminFailure`].

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
    status: StatusCode,
    error: String,
    reason: &'static str,
}

impl AdminFailure {
    pub(super) fn new(status: StatusCode, reason: &'static str, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), reason }
    }

    /// Is it about what was asked, and not about us?
    pub(super) fn is_refusal(&self) -> bool {
        self.status.is_client_error()
    }

    pub(super) fn is_unauthorized(&self) -> bool {
        self.status == StatusCode::UNAUTHORIZED
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

    pub(super) fn unauthorized() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "an admin token is asked for here; send one of those in the file of server.admin_token_file as \
             Authorization: Bearer",
        )
    }

    pub(super) fn foreign_name() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "foreign_name",
            "without an admin token this listener is called by its address or as localhost; configure \
             server.admin_token_file to use another name",
        )
    }

    pub(super) fn cross_site() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "cross_site",
            "a page of another site may not change anything here; use the command line",
        )
    }

    pub(super) fn no_such_route() -> Self {
        Self::not_found("no_such_route", "there is no such route; /admin/openapi.json names them all")
    }

    pub(super) fn wrong_method() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "this route takes another method; /admin/openapi.json says which",
        )
    }
}

/// Answers what was refused before routing.
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

/// What stands in the query; a name that means nothing here is refused.
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
