//! Access to the admin listener: with an admin token, or, where none is configured, from this machine. Health and
//! metrics are open. A page in an operator's browser reaches what the browser reaches. So changes by pages of other
//! sites are refused; and without tokens, so is every request by a name that is not this machine's own, since a page
//! may have its site's name point here.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{AUTHORIZATION, CACHE_CONTROL, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, StatusCode};

use super::failure::AdminFailure;
use super::{AdminState, HEALTH_PATHS};
use crate::http::routes::log::Sampler;
use crate::http::routes::site::{is_cross_site, is_local_name};
use crate::ledger::admin::Actor;
use crate::metrics::{AuthFailure, method_label};

/// Delay of a failed login, so that guessing is slow. A valid token never waits.
const FAILED_LOGIN: Duration = Duration::from_millis(300);

/// Admits requests that are allowed, with their [`Actor`].
pub(super) async fn layer(
    State((state, failed_logins)): State<(AdminState, Sampler)>,
    mut request: Request,
    next: Next,
) -> Response {
    if HEALTH_PATHS.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let mut response = match actor(&state, &request) {
        Ok(actor) => {
            request.extensions_mut().insert(actor);
            next.run(request).await
        }
        Err(failure) => {
            if failure.status == StatusCode::UNAUTHORIZED {
                state.metrics.auth_failures_total[AuthFailure::Admin].inc();
                if failed_logins.admits(StatusCode::UNAUTHORIZED) {
                    tracing::warn!(method = method_label(request.method()), "admin login failed");
                }
                tokio::time::sleep(FAILED_LOGIN).await;
            }
            failure.into_response()
        }
    };
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn actor(state: &AdminState, request: &Request) -> Result<Actor, AdminFailure> {
    let headers = request.headers();
    let tokens = state.tokens.load();
    let actor = match &**tokens {
        Some(tokens) => {
            let id = tokens.authenticate(headers.get_all(AUTHORIZATION).iter());
            Actor::token(id.ok_or_else(|| {
                AdminFailure::new(
                    StatusCode::UNAUTHORIZED,
                    "unauthorized",
                    "an admin token is asked for here; send one of those in the file of server.admin_token_file as \
                     Authorization: Bearer",
                )
            })?)
        }
        None if is_local_name(headers) => Actor::loopback(),
        None => {
            return Err(AdminFailure::new(
                StatusCode::FORBIDDEN,
                "foreign_name",
                "without an admin token this listener is called by its address or as localhost; configure \
                 server.admin_token_file to use another name",
            ));
        }
    };
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
    if changes && is_cross_site(headers) {
        let text = "a page of another site may not change anything here; use the command line";
        return Err(AdminFailure::new(StatusCode::FORBIDDEN, "cross_site", text));
    }
    Ok(actor)
}
