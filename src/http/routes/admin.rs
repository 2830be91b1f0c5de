//! The admin listener: health and metrics for machines, and below `/admin` the operators' reads and changes.
//! [`access`] admits requests; [`failure`] is the one shape of errors. `openapi.json` describes every route; a new
//! route goes into [`routes`] and into that file, and tests compare the two.

mod about;
mod access;
mod calls;
mod changes;
mod failure;
mod health;
mod keys;
pub mod usage;

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use http::StatusCode;
use jiff::tz::TimeZone;
use tokio_util::sync::CancellationToken;

pub use self::about::About;
use self::failure::AdminFailure;
use self::usage::USAGE_PATH;
use crate::base::clock::Clock;
use crate::base::permits::Permits;
use crate::billing::balance::BalanceWatch;
use crate::billing::metering::Meter;
use crate::billing::money::Price;
use crate::cache::MemoryCache;
use crate::fill::Filler;
use crate::gateway::keys::KeyAdmin;
use crate::http::routes::log::Sampler;
use crate::ledger::Ledger;
use crate::ledger::admin::{Action, LedgerAdmin};
use crate::ledger::guard::ArchiveGuard;
use crate::ledger::usage::UsageBook;
use crate::metrics::{ActionResult, Metrics};
use crate::request::uploads::UploadRoom;
use crate::teams::AdminTokens;
use crate::teams::policy::CurrentPolicy;

#[derive(Clone)]
pub struct AdminState {
    pub metrics: Arc<Metrics>,
    pub cache: Arc<MemoryCache>,
    pub memory: Memory,
    pub ledger: Arc<dyn Ledger>,
    pub admin: Arc<dyn LedgerAdmin>,
    pub keys: Arc<KeyAdmin>,
    pub guard: Arc<ArchiveGuard>,
    pub filler: Filler,
    /// Cancelled at the stop signal.
    pub stopping: CancellationToken,
    pub policy: CurrentPolicy,
    pub usage: Arc<dyn UsageBook>,
    pub meter: Arc<Meter>,
    pub balance: Arc<BalanceWatch>,
    pub clock: Clock,
    pub zone: TimeZone,
    pub price: Option<Price>,
    /// If `None`, local access is unauthenticated. Swapped when the file changes.
    pub tokens: Arc<ArcSwap<Option<AdminTokens>>>,
    pub about: Arc<About>,
}

impl AdminState {
    fn counted<T>(&self, action: Action, done: Result<T, AdminFailure>) -> Result<Json<T>, AdminFailure> {
        let result = match &done {
            Ok(_) => ActionResult::Done,
            Err(failure) if failure.status.is_client_error() => ActionResult::Refused,
            Err(_) => ActionResult::Failed,
        };
        self.metrics.admin_actions_total[(action, result)].inc();
        done.map(Json)
    }
}

fn page_limit(asked: Option<usize>) -> usize {
    asked.unwrap_or(100).clamp(1, 1000)
}

/// Memory limits beside the cache.
#[derive(Clone)]
pub struct Memory {
    pub uploads: UploadRoom,
    /// For results on their way to clients.
    pub sent: Permits,
    /// For paid results until they are stored. Neither of the two waits for the other.
    pub fetched: Permits,
}

/// Answered without a token, and above the connection limit.
pub const HEALTH_PATHS: [&str; 3] = ["/livez", "/readyz", "/metrics"];

pub const ADOPT_PATH: &str = "/admin/v1/adopt";

fn routes() -> Vec<(&'static str, MethodRouter<AdminState>)> {
    vec![
        ("/admin/openapi.json", get(about::openapi)),
        ("/admin/v1/build", get(about::build)),
        ("/admin/v1/config", get(about::config)),
        ("/admin/v1/calls", get(calls::list)),
        ("/admin/v1/calls/{id}/settle", post(calls::settle)),
        ("/admin/v1/keys/{key}", get(keys::explain)),
        ("/admin/v1/keys/{key}/purge", post(keys::purge)),
        ("/admin/v1/frozen", get(changes::frozen)),
        ("/admin/v1/freeze", post(changes::freeze)),
        ("/admin/v1/thaw", post(changes::thaw)),
        ("/admin/v1/audit", get(calls::audit)),
        (USAGE_PATH, get(usage::usage)),
        (ADOPT_PATH, post(changes::adopt)),
    ]
}

/// As OpenAPI writes them.
pub fn admin_paths() -> Vec<&'static str> {
    HEALTH_PATHS.into_iter().chain(routes().into_iter().map(|(path, _)| path)).collect()
}

pub fn admin_router(state: AdminState) -> Router {
    let health = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(health::metrics));
    routes()
        .into_iter()
        .fold(health, |router, (path, methods)| router.route(path, methods))
        .method_not_allowed_fallback(async || {
            let text = "this route takes another method; /admin/openapi.json says which";
            AdminFailure::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", text)
        })
        .fallback(async || {
            let text = "there is no such route; /admin/openapi.json names them all";
            AdminFailure::not_found("no_such_route", text)
        })
        // Around everything, so that a client without access does not learn which routes exist.
        .layer(from_fn_with_state((state.clone(), Sampler::default()), access::layer))
        .layer(from_fn(failure::refused))
        .with_state(state)
}
