//! What machines ask: may requests be sent here, and the figures. Asks nobody for a token.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde_json::json;
use tokio::time::{Instant, timeout, timeout_at};

use super::{AdminState, Memory};
use crate::guard::Standing;
use crate::ledger::Soundness;
use crate::metrics::Snapshot;

/// How long the ledger may take to say that it is there: less than any load balancer waits for us. One
/// that is silent, and not dead, would make every replica look dead.
const PROBE_PATIENCE: Duration = Duration::from_millis(500);
/// How long all of a scrape's questions to the ledger may take: less than Prometheus waits for the rest,
/// which is never as wanted as when the ledger is silent.
const SCRAPE_PATIENCE: Duration = Duration::from_secs(5);

/// Can this process serve hits? It cannot once it was told to stop; a dependency that is away is a
/// detail, since flipping for it would take every replica out of the load balancer at once.
pub(super) async fn ready(State(state): State<AdminState>) -> Response {
    // The cheapest of its questions: this is asked every few seconds.
    let asked = timeout(PROBE_PATIENCE, state.ledger.changes(None));
    let ledger = match state.ledger.soundness() {
        Soundness::Damaged => "damaged",
        _ if !matches!(asked.await, Ok(Ok(_))) => "down",
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
    let deadline = Instant::now() + SCRAPE_PATIENCE;
    let totals = timeout_at(deadline, state.ledger.totals()).await;
    let is_archive_known = state.guard.is_open();
    let spool = timeout_at(deadline, state.ledger.spool_usage()).await;
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
        ledger: totals.ok().and_then(Result::ok),
        spool: spool.ok().and_then(Result::ok),
    });
    let Memory { uploads, sent, fetched } = &state.memory;
    state.metrics.observe_uploads(&uploads.load());
    state.metrics.observe_results(sent.used() + fetched.used(), sent.limit() + fetched.limit());
    state.usage.observe(&state.metrics, deadline).await;
    let unknown = timeout_at(deadline, state.admin.unsettled()).await;
    if let (Ok(Ok(unknown)), Ok(Ok(frozen))) = (unknown, timeout_at(deadline, state.admin.frozen()).await) {
        state.metrics.observe_admin(unknown, &frozen);
    }
    // It counts open files, of which there may be thousands.
    let metrics = state.metrics.clone();
    if let Err(error) = tokio::task::spawn_blocking(move || metrics.observe_process()).await {
        tracing::error!(%error, "this process could not be looked at");
    }
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], state.metrics.render()).into_response()
}
