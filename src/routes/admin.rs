//! The admin listener: health, metrics, the emergency brake and adoption. Never on the public listener.

pub mod usage;

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use self::usage::{USAGE_PATH, UsageState};
use crate::cache::MemoryCache;
use crate::fill::Filler;
use crate::guard::{ArchiveGuard, Standing};
use crate::ledger::budget::Scope;
use crate::ledger::{Ledger, Soundness};
use crate::metrics::{Metrics, Snapshot};
use crate::policy::CurrentPolicy;

/// What the admin routes work with.
#[derive(Clone)]
pub struct AdminState {
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// For the memory tier's size.
    pub cache: Arc<MemoryCache>,
    /// For its sums, and for freezing.
    pub ledger: Arc<dyn Ledger>,
    /// For its standing, and for adopting.
    pub guard: Arc<ArchiveGuard>,
    /// For what is under way.
    pub filler: Filler,
    /// Cancelled as soon as the process was told to stop.
    pub stopping: CancellationToken,
    /// Knows the teams there are.
    pub policy: CurrentPolicy,
    /// For who paid and who was served.
    pub usage: UsageState,
}

/// Where a running process is told to adopt.
pub const ADOPT_PATH: &str = "/admin/v1/adopt";

/// The admin listener's routes.
pub fn admin_router(state: AdminState) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/admin/v1/freeze", post(freeze))
        .route("/admin/v1/thaw", post(thaw))
        .route(ADOPT_PATH, post(adopt))
        .route(USAGE_PATH, get(usage::usage))
        .with_state(state)
}

/// Can this process serve hits? It cannot once it was told to stop; a dependency that is away is a
/// detail, since flipping for it would take every replica out of the load balancer at once.
async fn ready(State(state): State<AdminState>) -> Response {
    // The cheapest of its questions: this is asked every few seconds.
    let asked = state.ledger.changes(None);
    let ledger = match state.ledger.soundness() {
        Soundness::Damaged => "damaged",
        _ if asked.await.is_err() => "down",
        Soundness::Checking => "checking",
        Soundness::Sound => "up",
    };
    let is_ready = !state.stopping.is_cancelled();
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let buys = is_ready
        && ledger == "up"
        && state.guard.is_open()
        && !state.filler.is_draining()
        && state.filler.upstream_is_called();
    let archive = match state.guard.standing() {
        Standing::Open(_) => "ok".to_owned(),
        Standing::Unknown => "unknown".to_owned(),
        Standing::Closed(mismatch) => mismatch.to_string(),
    };
    let detail = json!({"ready": is_ready, "paying": buys, "ledger": ledger, "archive": archive});
    (status, Json(detail)).into_response()
}

async fn metrics(State(state): State<AdminState>) -> Response {
    let (memory_entries, memory_bytes) = state.cache.size().await;
    let (fills, waiters, calls, _) = state.filler.load();
    let slots = state.filler.slots();
    let (limit, queued) = (slots.limit, slots.queued);
    let ledger = state.ledger.totals().await.ok();
    let is_archive_known = state.guard.is_open();
    let spool = state.ledger.spool_usage().await.ok();
    let is_ledger_sound = state.ledger.soundness() == Soundness::Sound;
    state.metrics.observe(&Snapshot {
        memory_entries,
        memory_bytes,
        fills,
        waiters,
        calls,
        limit,
        queued,
        is_archive_known,
        is_ledger_sound,
        ledger,
        spool,
    });
    state.usage.observe(&state.metrics).await;
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], state.metrics.render()).into_response()
}

/// Whose spending is stopped or resumed: everyone's without `team`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Whose {
    team: Option<String>,
}

async fn freeze(State(state): State<AdminState>, Query(whose): Query<Whose>) -> Response {
    set_frozen(&state, whose, true).await
}

async fn thaw(State(state): State<AdminState>, Query(whose): Query<Whose>) -> Response {
    set_frozen(&state, whose, false).await
}

async fn set_frozen(state: &AdminState, whose: Whose, frozen: bool) -> Response {
    let scope = match whose.team {
        None => Scope::Global,
        Some(team) if state.policy.get().teams().get(&team).is_some() => Scope::Team(team),
        Some(_) => {
            let error = "no such team; use a name from the configuration";
            return (StatusCode::NOT_FOUND, Json(json!({"error": error}))).into_response();
        }
    };
    match state.ledger.set_frozen(scope.clone(), frozen).await {
        Ok(()) => {
            tracing::warn!(%scope, frozen, "spending was frozen or thawed");
            Json(json!({"scope": scope.to_string(), "frozen": frozen})).into_response()
        }
        Err(error) => {
            tracing::error!(%error, %scope, frozen, "spending could not be frozen or thawed");
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"error": error.to_string()}))).into_response()
        }
    }
}

/// Makes ledger and store one archive, and says what they were.
async fn adopt(State(state): State<AdminState>) -> Response {
    match state.guard.adopt().await {
        Ok(adoption) => {
            tracing::warn!(archive = %adoption.archive, found = %adoption, "ledger and store were made one archive");
            let detail = json!({"archive": adoption.archive.to_string(), "found": adoption.to_string()});
            Json(detail).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "ledger and store could not be made one archive");
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"error": error.to_string()}))).into_response()
        }
    }
}
