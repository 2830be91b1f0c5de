//! The admin listener: health, metrics, and the emergency brake. Never on the public listener.

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

use crate::cache::MemoryCache;
use crate::fill::Filler;
use crate::ledger::Ledger;
use crate::ledger::budget::Scope;
use crate::metrics::{Metrics, Snapshot};

/// What the admin routes work with.
#[derive(Clone)]
pub struct AdminState {
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// For the memory tier's size.
    pub cache: Arc<MemoryCache>,
    /// For its sums, and for freezing.
    pub ledger: Arc<dyn Ledger>,
    /// For what is under way.
    pub filler: Filler,
    /// Cancelled as soon as the process was told to stop.
    pub stopping: CancellationToken,
    /// The configured teams' names.
    pub teams: Arc<[String]>,
}

/// The admin listener's routes.
pub fn admin_router(state: AdminState) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/admin/v1/freeze", post(freeze))
        .route("/admin/v1/thaw", post(thaw))
        .with_state(state)
}

/// Can this process serve hits? It cannot once it was told to stop; a dependency that is away is a
/// detail, since flipping for it would take every replica out of the load balancer at once.
async fn ready(State(state): State<AdminState>) -> Response {
    let ledger = if state.ledger.totals().await.is_ok() { "up" } else { "down" };
    let is_ready = !state.stopping.is_cancelled();
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let buys = is_ready && ledger == "up" && !state.filler.is_draining() && state.filler.upstream_is_called();
    (status, Json(json!({"ready": is_ready, "paying": buys, "ledger": ledger}))).into_response()
}

async fn metrics(State(state): State<AdminState>) -> Response {
    let (memory_entries, memory_bytes) = state.cache.size().await;
    let (fills, waiters, calls, _) = state.filler.load();
    let slots = state.filler.slots();
    let (limit, queued) = (slots.limit, slots.queued);
    let ledger = state.ledger.totals().await.ok();
    state.metrics.observe(&Snapshot {
        memory_entries,
        memory_bytes,
        fills,
        waiters,
        calls,
        limit,
        queued,
        ledger,
    });
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
        Some(team) if state.teams.contains(&team) => Scope::Team(team),
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
