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

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::ALLOW;
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use ipnet::IpNet;
use tokio::time::Instant;

pub use self::admin::{
    ADOPT_PATH, About, AdminState, HEALTH_PATHS, Memory, admin_paths, admin_router, usage,
};
use self::cors::CorsRules;
use self::log::{LogContext, Sampler};
use self::respond::Refused;
use crate::base::clock::Clock;
use crate::base::operation::{Offer, QUERY_CREDITS_PATH};
use crate::billing::balance::BalanceWatch;
use crate::error::GatewayError;
use crate::gateway::Gateway;
use crate::metrics::{Metrics, Route};
use crate::request::RequestLimits;
use crate::request::body::Pace;
use crate::teams::Team;
use crate::teams::policy::{CurrentPolicy, Policy};

/// Answers each request of a listener.
pub type Routes = Arc<dyn Fn(Request) -> BoxFuture<'static, Response> + Send + Sync>;

pub fn from_router(router: Router) -> Routes {
    let service = TowerToHyperService::new(router);
    Arc::new(move |request| {
        let answered = service.call(request);
        Box::pin(answered.map(|answer| answer.unwrap_or_else(|never| match never {})))
    })
}

struct PublicState {
    parts: PublicParts,
    cors: CorsRules,
    refusals: Sampler,
}

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

/// The head of a request, and what was true when it was read: all decisions before the fill use this policy.
struct Head<'a> {
    parts: &'a Parts,
    arrived: Instant,
    policy: &'a Policy,
}

impl Head<'_> {
    fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }
}

impl PublicState {
    fn authenticate(&self, head: &Head<'_>) -> Result<Arc<Team>, GatewayError> {
        let teams = head.policy.teams();
        teams.authenticate(head.headers(), self.parts.clock.now()).map_err(GatewayError::Auth)
    }
}

pub fn public_routes(parts: PublicParts) -> Routes {
    let state = Arc::new(PublicState { parts, cors: CorsRules::new(), refusals: Sampler::default() });
    Arc::new(move |request| {
        let state = state.clone();
        Box::pin(async move { respond::answer(&state, request).await })
    })
}

/// Where a request goes. Paths are matched as they are sent, without decoding.
#[derive(Clone, Copy)]
enum Target<'a> {
    Crop(&'a Offer),
    LookUp(&'a Offer, &'a str),
    Result(&'a str),
    Credits,
    Page,
    Unmatched,
}

impl<'a> Target<'a> {
    fn of(path: &'a str, offers: &'a [Offer]) -> Self {
        let below = |folder: &str| {
            let name = path.strip_prefix(folder)?.strip_prefix('/')?;
            (!name.is_empty() && !name.contains('/')).then_some(name)
        };
        for offer in offers {
            if path == offer.operation.path {
                return Self::Crop(offer);
            }
            if let Some(key) = below(offer.operation.path) {
                return Self::LookUp(offer, key);
            }
        }
        match path {
            QUERY_CREDITS_PATH => Self::Credits,
            "/" => Self::Page,
            _ => below("/results").map_or(Self::Unmatched, Self::Result),
        }
    }

    fn route(self) -> Route {
        match self {
            Self::Crop(_) => Route::Crop,
            Self::LookUp(..) => Route::LookUp,
            Self::Result(_) => Route::Result,
            Self::Credits => Route::Credits,
            Self::Page => Route::Page,
            Self::Unmatched => Route::Unmatched,
        }
    }
}

/// From the checks of the head to the handler. Sets what the log line says of it.
async fn route(
    state: &PublicState,
    target: Target<'_>,
    head: &Head<'_>,
    body: Body,
    log: &mut LogContext,
) -> Result<Response, GatewayError> {
    // The listener's refusals come before the routes' own.
    if let Some(Refused(error)) = head.parts.extensions.get() {
        return Err(error.clone());
    }
    // Nothing of a foreign page reaches a handler.
    site::check(head, &state.parts.public_root)?;
    let (methods, allow) = match target {
        Target::Unmatched => return Err(GatewayError::NoSuchRoute),
        Target::Crop(_) => (&[Method::POST][..], "POST, OPTIONS"),
        _ => (&[Method::GET, Method::HEAD][..], "GET, HEAD, OPTIONS"),
    };
    if head.parts.method == Method::OPTIONS {
        return Ok((StatusCode::NO_CONTENT, [(ALLOW, allow)]).into_response());
    }
    if !methods.contains(&head.parts.method) {
        return Err(GatewayError::MethodNotAllowed { allow });
    }
    match target {
        Target::Crop(offer) => crop::crop(state, offer, head, body, log).await,
        Target::LookUp(offer, key) => crop::look_up(state, offer, key, head, log).await,
        Target::Result(name) => results::result(state, name, head).await,
        Target::Credits => credits::query(state, head, log).await,
        Target::Page => Ok(page::page(&state.parts.public_root)),
        Target::Unmatched => Err(GatewayError::NoSuchRoute),
    }
}
