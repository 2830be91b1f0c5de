//! What machines ask: may requests be sent here, and the figures. Asks nobody for a token.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde_json::json;

use super::{AdminState, Memory};
use crate::ledger::guard::Standing;
use crate::ledger::{LedgerError, Soundness};
use crate::metrics::Snapshot;

/// How long a ledger that says nothing is waited for: load balancers and Kubernetes give us two seconds,
/// and one that is silent must not look to them as if we were.
const READY_PATIENCE: Duration = Duration::from_secs(1);
/// The same for `/metrics`, for which Prometheus has ten seconds. Without the ledger's figures there are
/// all the others, and above all the one that says that it is away.
const METRICS_PATIENCE: Duration = Duration::from_secs(3);

/// Can this process serve hits? It cannot once it was told to stop; a dependency that is away is a
/// detail, since flipping for it would take every replica out of the load balancer at once.
pub(super) async fn ready(State(state): State<AdminState>) -> Response {
    // The cheapest of its questions: this is asked every few seconds.
    let asked = in_time(READY_PATIENCE, state.ledger.changes(None));
    let ledger = match state.ledger.soundness() {
        Soundness::Damaged => "damaged",
        _ if asked.await.is_none() => "down",
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
    let import = state.guard.import_status().to_string();
    let detail =
        json!({"ready": is_ready, "paying": buys, "ledger": ledger, "archive": archive, "import": import});
    (status, Json(detail)).into_response()
}

pub(super) async fn metrics(State(state): State<AdminState>) -> Response {
    let (memory_entries, memory_bytes) = state.cache.size();
    let (fills, waiters, calls, _) = state.filler.load();
    let slots = state.filler.slots();
    let (limit, queued) = (slots.limit, slots.queued);
    let is_archive_known = state.guard.is_open();
    // At the same time, lest their patience adds up.
    let (answered, ledger, spool, unknown, frozen, ()) = tokio::join!(
        asked(state.ledger.changes(None)),
        asked(state.ledger.totals()),
        asked(state.ledger.spool_usage()),
        asked(state.admin.unsettled()),
        asked(state.admin.frozen()),
        state.usage.observe(&state.metrics),
    );
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
        is_ledger_up: answered.is_some(),
        is_ledger_sound,
        ledger,
        spool,
    });
    let Memory { uploads, sent, fetched } = &state.memory;
    state.metrics.observe_uploads(&uploads.load());
    state.metrics.observe_results(sent.used() + fetched.used(), sent.limit() + fetched.limit());
    if let (Some(unknown), Some(frozen)) = (unknown, frozen) {
        state.metrics.observe_admin(unknown, &frozen);
    }
    // It counts open files, of which there may be thousands.
    let metrics = state.metrics.clone();
    if let Err(error) = tokio::task::spawn_blocking(move || metrics.observe_process()).await {
        tracing::error!(%error, "this process could not be looked at");
    }
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], state.metrics.render()).into_response()
}

/// What the ledger says to a question of `/metrics`, if it does so in time. What was asked goes on.
pub(super) async fn asked<T>(question: impl Future<Output = Result<T, LedgerError>>) -> Option<T> {
    in_time(METRICS_PATIENCE, question).await
}

async fn in_time<T>(patience: Duration, question: impl Future<Output = Result<T, LedgerError>>) -> Option<T> {
    tokio::time::timeout(patience, question).await.ok()?.ok()
}
