//! What machines ask: may requests be sent here, and the figures. Asks nobody for a token.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde_json::json;

use super::AdminState;
use crate::guard::Standing;
use crate::ledger::Soundness;
use crate::metrics::Snapshot;

/// Can this process serve hits? It cannot once it was told to stop; a dependency that is away is a
/// detail, since flipping for it would take every replica out of the load balancer at once.
pub(super) async fn ready(State(state): State<AdminState>) -> Response {
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

pub(super) async fn metrics(State(state): State<AdminState>) -> Response {
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
    if let (Ok(unknown), Ok(frozen)) = (state.admin.unsettled().await, state.admin.frozen().await) {
        state.metrics.observe_admin(unknown, &frozen);
    }
    // It counts open files, of which there may be thousands.
    let metrics = state.metrics.clone();
    if let Err(error) = tokio::task::spawn_blocking(move || metrics.observe_process()).await {
        tracing::error!(%error, "this process could not be looked at");
    }
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], state.metrics.render()).into_response()
}
