//! What operators did, newest first.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};

use super::AdminState;
use super::failure::{AdminFailure, Params};
use crate::ledger::admin::AuditLine;

/// Lines of an answer, unless fewer are asked for.
const LIMIT: usize = 100;
/// Lines of an answer at most.
const MOST: usize = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    before: Option<u64>,
    limit: Option<usize>,
}

#[derive(Serialize)]
pub(super) struct Audit {
    lines: Vec<AuditLine>,
    /// The `before` of the next page; `null` when this is the last.
    next: Option<u64>,
}

pub(super) async fn lines(
    State(state): State<AdminState>,
    Params(which): Params<Which>,
) -> Result<Json<Audit>, AdminFailure> {
    let limit = which.limit.unwrap_or(LIMIT).clamp(1, MOST);
    let lines = state.admin.audit(which.before, limit).await?;
    let next = lines.last().filter(|_| lines.len() == limit).map(|line| line.id);
    Ok(Json(Audit { lines, next }))
}
