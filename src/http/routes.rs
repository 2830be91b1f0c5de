//! From path to handler, and from outcome to response. Handlers extract, call [`Gateway`] and answer. A handler that
//! fails returns a [`GatewayError`], which only [`respond`] turns into the upstream's envelope.

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
use http::{HeaderMap, StatusCode};
use ipnet::IpNet;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;

pub use self::admin::{
    ADOPT_PATH, About, AdminState, HEALTH_PATHS, Memory, admin_paths, admin_router, usage,
};
use self::cors::CorsRules;
use self::log::Sampler;
use crate::base::clock::Clock;
use crate::base::operation::{Offer, QUERY_CREDITS_PATH};
use crate::billing::balance::BalanceWatch;
use crate::error::GatewayError;
use crate::gateway::Gateway;
use crate::metrics::Metrics;
use crate::request::RequestLimits;
use crate::request::body::Pace;
use crate::teams::Team;
use crate::teams::policy::{CurrentPolicy, Policy};

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
    pub trusted_proxies: Vec<IpNet>,
    pub balance: Arc<BalanceWatch>,
}

impl PublicState {
    pub fn new(parts: PublicParts) -> Self {
        Self(Arc::new(parts), Sampler::default())
    }

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

pub fn public_router(state: PublicState) -> Router {
    let operations = state.0.offers.iter().fold(Router::new(), |router, offer| {
        let path = offer.operation.path;
        let routes = Router::new()
            .route(path, only(post(crop::crop), "POST, OPTIONS"))
            .route(&format!("{path}/{{key}}"), only(get(crop::look_up), "GET, HEAD, OPTIONS"))
            .layer(Extension(offer.clone()));
        router.merge(routes)
    });
    let layers = ServiceBuilder::new()
        // Ids, counters, log line, bodies of errors: around everything that can answer.
        .layer(from_fn_with_state(state.clone(), respond::layer))
        // Around all refusals, so that a page can read them.
        .layer(from_fn_with_state(Arc::new(CorsRules::new()), cors::layer))
        // A panic becomes an error like any other.
        .layer(CatchPanicLayer::custom(respond::caught_panic))
        // The listener's refusals come before the routes' own.
        .layer(from_fn(respond::refused))
        // Nothing of a foreign page reaches a handler.
        .layer(from_fn_with_state(state.clone(), site::layer));
    operations
        .route(QUERY_CREDITS_PATH, only(get(credits::query), "GET, HEAD, OPTIONS"))
        .route("/", only(get(page::page), "GET, HEAD, OPTIONS"))
        .route("/results/{name}", only(get(results::result), "GET, HEAD, OPTIONS"))
        .fallback(async || GatewayError::NoSuchRoute)
        .layer(layers)
        .with_state(state)
}

/// Other methods are 405 with `Allow`; `OPTIONS` that is no preflight is 204 with `Allow`.
fn only(routes: MethodRouter<PublicState>, allow: &'static str) -> MethodRouter<PublicState> {
    routes
        .options(move || async move { (StatusCode::NO_CONTENT, [(http::header::ALLOW, allow)]) })
        .fallback(move || async move { GatewayError::MethodNotAllowed { allow } })
}
