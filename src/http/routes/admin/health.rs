//! Readiness and metrics, without a token.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde_json::json;

use super::{AdminState, Memory};
use crate::ledger::budget::Scope;
use crate::ledger::guard::Standing;
use crate::ledger::{LedgerError, Soundness};
use crate::metrics::{BlockCause, Space, gauge_value};

/// For the ledger. Load balancers and Kubernetes give us 2 s; a silent ledger must not make this process look silent.
const READY_PATIENCE: Duration = Duration::from_secs(1);
/// For the ledger on `/metrics`; Prometheus has ten seconds, and all other figures are served without it.
const METRICS_PATIENCE: Duration = Duration::from_secs(3);

/// Readiness to serve hits, until the stop signal. An unavailable dependency is a detail: reacting to it
/// would take every replica out of the load balancer at once.
pub(super) async fn ready(State(state): State<AdminState>) -> Response {
    // The cheapest read: this is called every few seconds.
    let asked = in_time(READY_PATIENCE, state.ledger.changes(None));
    let ledger = match state.ledger.soundness() {
        Soundness::Damaged(_) => "damaged",
        _ if asked.await.is_none() => "down",
        Soundness::Checking => "checking",
        Soundness::Sound => "up",
    };
    let is_ready = !state.stopping.is_cancelled();
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let buys = is_ready
        && matches!(ledger, "up" | "checking")
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
    let metrics = &state.metrics;
    let (_, cached) = state.cache.size();
    let cache_limit = metrics.space_limit_bytes[Space::Cache].get().unsigned_abs();
    metrics.observe_space(Space::Cache, cached, cache_limit);
    let Memory { uploads, sent, fetched } = &state.memory;
    let uploads = uploads.load();
    metrics.observe_space(Space::Uploads, uploads.memory, uploads.memory_limit);
    metrics.observe_space(Space::UploadSpill, uploads.spill, uploads.spill_limit);
    metrics.observe_space(Space::Results, sent.used() + fetched.used(), sent.capacity() + fetched.capacity());
    metrics.uploads_refused_total.raise_to(uploads.refused as f64);
    let (fills, waiters, calls, _) = state.filler.load();
    metrics.coalesce_groups_in_flight.set(gauge_value(fills as u64));
    metrics.coalesce_followers.set(gauge_value(waiters as u64));
    metrics.upstream_in_flight.set(gauge_value(calls as u64));
    let slots = state.filler.slots();
    metrics.upstream_concurrency_limit.set(gauge_value(slots.limit as u64));
    metrics.observe_queue(&slots.queued);
    observe_ledger(&state).await;
    // It counts open files, of which there may be thousands.
    let metrics = state.metrics.clone();
    match tokio::task::spawn_blocking(move || metrics.render()).await {
        Ok(text) => ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics encoding failed");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// Gauges that the ledger does not answer in time keep their values.
async fn observe_ledger(state: &AdminState) {
    let metrics = &state.metrics;
    // Concurrently, so that the timeouts do not add up.
    let (answered, totals, spool, unknown, frozen, ()) = tokio::join!(
        asked(state.ledger.changes(None)),
        asked(state.ledger.totals()),
        asked(state.ledger.spool_usage()),
        asked(state.admin.unsettled()),
        asked(state.admin.frozen()),
        state.observe_usage(),
    );
    metrics.ledger_up.set(i64::from(answered.is_some()));
    for total in totals.into_iter().flatten() {
        metrics.ledger_credits[total.state].set(gauge_value(total.credits));
    }
    if let Some(spool) = spool {
        let age = |age: Option<Duration>| gauge_value(age.unwrap_or_default().as_secs());
        metrics.space_used_bytes[Space::Spool].set(gauge_value(spool.bytes));
        metrics.spool_oldest_age_seconds.set(age(spool.oldest_age));
        metrics.unstored_results_oldest_age_seconds.set(age(spool.oldest_answer_age));
    }
    if let Some(unknown) = unknown {
        metrics.unknown_credits.set(gauge_value(unknown));
    }
    let blocked = |cause, is_blocked| metrics.purchases_blocked[cause].set(i64::from(is_blocked));
    if let Some(frozen) = frozen {
        blocked(BlockCause::Frozen, frozen.contains(&Scope::Global));
    }
    blocked(BlockCause::ArchiveGuard, !state.guard.is_open());
    blocked(BlockCause::LedgerUnverified, matches!(state.ledger.soundness(), Soundness::Damaged(_)));
}

/// `None` when the ledger does not answer `/metrics` in time.
pub(super) async fn asked<T>(question: impl Future<Output = Result<T, LedgerError>>) -> Option<T> {
    in_time(METRICS_PATIENCE, question).await
}

async fn in_time<T>(patience: Duration, question: impl Future<Output = Result<T, LedgerError>>) -> Option<T> {
    tokio::time::timeout(patience, question).await.ok()?.ok()
}
