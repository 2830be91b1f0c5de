//! The audit, newest first.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};

use super::failure::{AdminFailure, Params};
use super::{AdminState, page_limit};
use crate::ledger::admin::AuditLine;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    before: Option<u64>,
    limit: Option<usize>,
}

#[derive(Serialize)]
pub(super) struct Audit {
    lines: Vec<AuditLine>,
    /// The next `before`; `null` on the last page.
    next: Option<u64>,
}

pub(super) async fn lines(
    State(state): State<AdminState>,
    Params(which): Params<Which>,
) -> Result<Json<Audit>, AdminFailure> {
    let limit = page_limit(which.limit);
    let lines = state.admin.audit(which.before, limit).await?;
    let next = lines.last().filter(|_| lines.len() == limit).map(|line| line.id);
    Ok(Json(Audit { lines, next }))
}
