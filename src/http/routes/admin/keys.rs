//! One key: where its answer is, and its purge.

use axum::extract::{Path, State};
use axum::{Extension, Json};
use jiff::Timestamp;
use serde::Serialize;

use super::AdminState;
use super::calls::key_of;
use super::failure::AdminFailure;
use crate::base::key::{CacheKey, Digest};
use crate::base::record::Record;
use crate::gateway::keys::{Explained, Held, PurgeError, Purged};
use crate::ledger::admin::{Action, Actor, CallDetail};

#[derive(Serialize)]
pub(super) struct Key {
    key: CacheKey,
    namespace: String,
    answer: Option<Answer>,
    memory: Option<Remembered>,
    record: Option<Answer>,
    purged_up_to: Option<u64>,
    rests_until: Option<Timestamp>,
    calls: Vec<CallDetail>,
    problems: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct Answer {
    generation: u64,
    team: String,
    credits: u64,
    stored_at: Timestamp,
    upstream_request_id: String,
    upstream_log_id: String,
    image: Digest,
    width: u32,
    height: u32,
    object: Object,
}

#[derive(Serialize)]
struct Object {
    path: String,
    bytes: u64,
    /// In the store or the spool; `null` when unknown.
    there: Option<bool>,
    spooled: Option<bool>,
}

#[derive(Serialize)]
struct Remembered {
    generation: u64,
    /// Served without asking the ledger first.
    current: bool,
}

impl From<Held> for Answer {
    fn from(held: Held) -> Self {
        let Held { record, is_there, is_spooled } = held;
        let path = format!("results/{}.{}", record.digest, record.extension);
        let Record { generation, team, credits, stored_at, image, width, height, .. } = record;
        Self {
            generation,
            team,
            credits,
            stored_at,
            upstream_request_id: record.upstream_request_id,
            upstream_log_id: record.upstream_log_id,
            image,
            width,
            height,
            object: Object { path, bytes: record.bytes, there: is_there, spooled: is_spooled },
        }
    }
}

pub(super) async fn explain(
    State(state): State<AdminState>,
    Path(key): Path<String>,
) -> Result<Json<Key>, AdminFailure> {
    let key = key_of(&key)?;
    let Explained { answer, memory, record, purged_up_to, rests_until, calls, problems } =
        state.keys.explain(key).await;
    Ok(Json(Key {
        key,
        namespace: state.keys.namespace().to_owned(),
        answer: answer.map(Answer::from),
        memory: memory.map(|(generation, current)| Remembered { generation, current }),
        record: record.map(Answer::from),
        purged_up_to,
        rests_until,
        calls,
        problems,
    }))
}

#[derive(Serialize)]
pub(super) struct PurgedKey {
    key: CacheKey,
    /// Everything up to this generation counts as absent.
    generation: u64,
    changed: bool,
}

pub(super) async fn purge(
    State(state): State<AdminState>,
    Extension(by): Extension<Actor>,
    Path(key): Path<String>,
) -> Result<Json<PurgedKey>, AdminFailure> {
    let key = key_of(&key)?;
    let purged = state.keys.purge(key, &by).await.map_err(|error| {
        let reason = match error {
            PurgeError::Nothing => return AdminFailure::not_found("nothing_stored", error.to_string()),
            PurgeError::Ledger(_) => "ledger_unavailable",
            PurgeError::Store(_) => "store_unavailable",
            PurgeError::RecordStays(_) => "record_stays",
        };
        tracing::error!(%error, %key, "a key could not be purged");
        AdminFailure::unavailable(reason, error.to_string())
    });
    if let Ok(purged) = &purged {
        tracing::warn!(%key, generation = purged.generation, by = by.as_str(), "a key was purged");
    }
    let shown = |purged: Purged| PurgedKey { key, generation: purged.generation, changed: purged.is_new };
    state.counted(Action::Purge, purged.map(shown))
}
