//! From path to handler, and from outcome to response.
//!
//! Handlers extract, call [`Gateway`] and answer. A handler that fails returns a [`GatewayError`], which only
//! [`respond`] turns into the upstream's envelope.

mod admin;
mod cors;
mod credits;
mod crop;
mod log;
mod page;
pub mod respond;
mod results;
mod site;

use std::sync::Arc;
use std::time::Duration;

use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{MethodRouter, get, post};
use axum::{Extension, Router};
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, IF_NONE_MATCH, IF_RANGE, PRAGMA, RANGE};
use http::{HeaderMap, HeaderName, StatusCode};

pub use self::admin::{
    ADOPT_PATH, About, AdminState, HEALTH_PATHS, Memory, admin_paths, admin_router, usage,
};
use self::cors::{Cors, Origins};
use self::log::Sampler;
use crate::base::clock::Clock;
use crate::base::operation::{Offer, QUERY_CREDITS_PATH};
use crate::billing::balance::BalanceWatch;
use crate::error::GatewayError;
use crate::gateway::Gateway;
use crate::metrics::Metrics;
use crate::request::RequestLimits;
use crate::request::body::Pace;
use crate::teams::policy::{CurrentPolicy, Policy};
use crate::teams::{API_KEY_HEADER, Team};

#[derive(Clone)]
pub struct PublicState(Arc<PublicParts>, Sampler);

pub struct PublicParts {
    pub gateway: Gateway,
    pub policy: CurrentPolicy,
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
    /// Limit from a request's head to its answer.
    pub answer_within: Duration,
    pub pace: Pace,
    pub limits: RequestLimits,
    /// Scheme and host, without a trailing slash.
    pub public_root: String,
    pub is_builtin: bool,
    pub offers: Vec<Offer>,
    pub balance: Arc<BalanceWatch>,
}

impl PublicState {
    pub fn new(parts: PublicParts) -> Self {
        Self(Arc::new(parts), Sampler::default())
    }

    /// The team whose token the headers carry.
    fn authenticate(&self, policy: &Policy, headers: &HeaderMap) -> Result<Arc<Team>, GatewayError> {
        policy.teams().authenticate(headers, self.0.clock.now()).map_err(GatewayError::Auth)
    }
}

/// When the head was read; set by the outermost layer.
#[derive(Clone, Copy, Debug)]
pub struct Arrival(pub tokio::time::Instant);

/// The policy when the head was read; set by the outermost layer. All decisions before the fill use it.
#[derive(Clone, Debug)]
pub(crate) struct RequestPolicy(Arc<Policy>);

/// Pages of the configured origins may call the API; any page may read results.
pub fn public_router(state: PublicState) -> Router {
    let operations = state.0.offers.iter().fold(Router::new(), |router, offer| {
        let path = offer.operation.path;
        let routes = Router::new()
            .route(path, only(post(crop::crop), "POST, OPTIONS"))
            .route(&format!("{path}/{{key}}"), only(get(crop::look_up), "GET, HEAD, OPTIONS"))
            .layer(Extension(offer.clone()));
        router.merge(routes)
    });
    let api = operations
        .route(QUERY_CREDITS_PATH, only(get(credits::query), "GET, HEAD, OPTIONS"))
        .route("/", only(get(page::page), "GET, HEAD, OPTIONS"))
        .fallback(async || GatewayError::NoSuchRoute)
        .layer(from_fn_with_state(state.clone(), site::layer))
        .layer(from_fn(respond::refused))
        .layer(from_fn_with_state(api_cors(), cors::layer));
    let any_page = Cors::new(Origins::Any, "GET, HEAD", &[RANGE, IF_RANGE, IF_NONE_MATCH], &exposed());
    let results = Router::new()
        .route("/results/{name}", only(get(results::result), "GET, HEAD, OPTIONS"))
        .layer(from_fn_with_state(state.clone(), site::layer))
        .layer(from_fn_with_state(any_page, cors::layer));
    results.merge(api).with_state(state)
}

/// Other methods are 405 with `Allow`; `OPTIONS` that is no preflight is 204 with `Allow`.
fn only(routes: MethodRouter<PublicState>, allow: &'static str) -> MethodRouter<PublicState> {
    routes
        .options(move || async move { (StatusCode::NO_CONTENT, [(http::header::ALLOW, allow)]) })
        .fallback(move || async move { GatewayError::MethodNotAllowed { allow } })
}

fn api_cors() -> Cors {
    // Libraries add all but the first to every call of a page.
    let names = [API_KEY_HEADER, "traceparent", "tracestate", "baggage", "x-requested-with", "x-request-id"];
    let ours = [CONTENT_TYPE, AUTHORIZATION, CACHE_CONTROL, respond::REFRESH, IF_NONE_MATCH, PRAGMA];
    let headers = [&names.map(HeaderName::from_static)[..], &ours].concat();
    Cors::new(Origins::Configured, "GET, HEAD, POST", &headers, &exposed())
}

/// Response headers that a page's script may read.
fn exposed() -> Vec<HeaderName> {
    use http::header::{AGE, ETAG, RETRY_AFTER};
    use respond::{CACHE_STATUS, CHARGED, IGNORED, KEY, REASON, REQUEST_ID, SAVED, SERVER_TIMING, UPSTREAM};
    let ours = [CACHE_STATUS, REASON, KEY, CHARGED, SAVED, IGNORED, UPSTREAM, REQUEST_ID, SERVER_TIMING];
    [RETRY_AFTER, AGE, ETAG].into_iter().chain(ours).collect()
}
