//! The admin listener: health and metrics for machines, and under `/admin` what operators ask and
//! change. Never on the public listener.
//!
//! [`access`] says who may; [`failure`] is the one shape of errors. What every route takes and answers
//! is described in `openapi.json`, and tests hold the two against each other. Whoever adds a route
//! adds it to [`routes`] and to that description.

mod about;
mod access;
mod adopt;
mod audit;
mod calls;
mod failure;
mod health;
mod keys;
mod spending;
pub mod usage;

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use http::StatusCode;
use tokio_util::sync::CancellationToken;

pub use self::about::About;
use self::failure::AdminFailure;
use self::usage::{USAGE_PATH, UsageState};
use crate::base::results::ResultRoom;
use crate::cache::MemoryCache;
use crate::fill::Filler;
use crate::gateway::keys::KeyAdmin;
use crate::http::routes::log::Sampler;
use crate::ledger::Ledger;
use crate::ledger::admin::{Action, LedgerAdmin};
use crate::ledger::guard::ArchiveGuard;
use crate::metrics::{ActionResult, Metrics};
use crate::request::uploads::UploadRoom;
use crate::teams::AdminTokens;
use crate::teams::policy::CurrentPolicy;

/// What the admin routes work with.
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
    /// Cancelled as soon as the process was told to stop.
    pub stopping: CancellationToken,
    pub policy: CurrentPolicy,
    pub usage: Arc<UsageState>,
    /// Who may ask and change; `None`: whoever reaches the listener. Swapped when the file changes.
    pub tokens: Arc<ArcSwap<Option<AdminTokens>>>,
    pub about: Arc<About>,
}

impl AdminState {
    /// Counts a change by its result.
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

/// Lines of a page: 100 unless another number is asked for, at most 1000.
fn page_limit(asked: Option<usize>) -> usize {
    asked.unwrap_or(100).clamp(1, 1000)
}

/// What a process takes of memory beside its cache.
#[derive(Clone)]
pub struct Memory {
    pub uploads: UploadRoom,
    /// For results on their way to clients.
    pub sent: ResultRoom,
    /// For results that were bought, until they are kept. Neither of the two is to wait for the other.
    pub fetched: ResultRoom,
}

/// Answered without a token, and above the connection limit.
pub const HEALTH_PATHS: [&str; 3] = ["/livez", "/readyz", "/metrics"];

/// Where a running process is told to adopt.
pub const ADOPT_PATH: &str = "/admin/v1/adopt";

/// The routes below `/admin`, by path.
fn routes() -> Vec<(&'static str, MethodRouter<AdminState>)> {
    vec![
        ("/admin/openapi.json", get(about::openapi)),
        ("/admin/v1/build", get(about::build)),
        ("/admin/v1/config", get(about::config)),
        ("/admin/v1/calls", get(calls::list)),
        ("/admin/v1/calls/{id}/settle", post(calls::settle)),
        ("/admin/v1/keys/{key}", get(keys::explain)),
        ("/admin/v1/keys/{key}/purge", post(keys::purge)),
        ("/admin/v1/frozen", get(spending::frozen)),
        ("/admin/v1/freeze", post(spending::freeze)),
        ("/admin/v1/thaw", post(spending::thaw)),
        ("/admin/v1/audit", get(audit::lines)),
        (USAGE_PATH, get(usage::usage)),
        (ADOPT_PATH, post(adopt::adopt)),
    ]
}

/// The paths of all routes of the admin listener, as OpenAPI writes them.
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
        // Around everything, so that who may not ask does not learn either what there is.
        .layer(from_fn_with_state((state.clone(), Sampler::default()), access::layer))
        .layer(from_fn(failure::refused))
        .with_state(state)
}
