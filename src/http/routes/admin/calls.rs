//! Rows of the ledger, the settlement of `unknown` calls, and the audit.

use axum::extract::{Path, State};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};

use super::failure::{AdminFailure, Params};
use super::{AdminState, page_limit};
use crate::base::key::CacheKey;
use crate::ledger::admin::{Action, Actor, AuditLine, CallFilter, CallPage, GivenBack, Settled, Settlement};
use crate::ledger::{CallId, CallState};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    state: Option<String>,
    team: Option<String>,
    key: Option<String>,
    before: Option<i64>,
    limit: Option<usize>,
}

pub(super) async fn list(
    State(state): State<AdminState>,
    Params(which): Params<Which>,
) -> Result<Json<CallPage>, AdminFailure> {
    let wanted = which.state.map(|word| {
        word.parse().map_err(|()| {
            let words = CallState::ALL.map(CallState::as_str).join(", ");
            AdminFailure::invalid(format!("state is none of {words}"))
        })
    });
    let key = which.key.as_deref().map(key_of).transpose()?;
    let filter = CallFilter {
        state: wanted.transpose()?,
        team: which.team,
        key: key.map(|key| (state.keys.namespace().to_owned(), key)),
        before: which.before.map(CallId),
        limit: page_limit(which.limit),
    };
    Ok(Json(state.admin.calls(filter).await?))
}

pub(super) fn key_of(text: &str) -> Result<CacheKey, AdminFailure> {
    text.parse().map_err(|_| AdminFailure::invalid("a key has 64 hex digits; granary key prints one"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Outcome {
    outcome: String,
}

#[derive(Serialize)]
pub(super) struct SettledCall {
    call: i64,
    outcome: Settlement,
    changed: bool,
    given_back: Option<GivenBack>,
}

pub(super) async fn settle(
    State(state): State<AdminState>,
    Extension(by): Extension<Actor>,
    Path(id): Path<String>,
    Params(Outcome { outcome }): Params<Outcome>,
) -> Result<Json<SettledCall>, AdminFailure> {
    state.counted(Action::Settle, settle_as(&state, &by, &id, &outcome).await)
}

async fn settle_as(
    state: &AdminState,
    by: &Actor,
    id: &str,
    outcome: &str,
) -> Result<SettledCall, AdminFailure> {
    let call: i64 = id.parse().map_err(|_| AdminFailure::invalid("a call is named by its number"))?;
    let settlement: Settlement = outcome.parse().map_err(|()| {
        AdminFailure::invalid("outcome is neither charged, when the upstream charged the call, nor free")
    })?;
    let settled = |changed, given_back| SettledCall { call, outcome: settlement, changed, given_back };
    match state.admin.settle(CallId(call), settlement, by).await? {
        Settled::Done { given_back } => {
            tracing::warn!(call, outcome, by = by.as_str(), "an unknown call was settled");
            Ok(settled(true, given_back))
        }
        Settled::Repeated => Ok(settled(false, None)),
        Settled::Otherwise(before) => Err(AdminFailure::conflict(
            "settled_otherwise",
            format!("call {call} was settled as {} before, and stays so", before.as_str()),
        )),
        Settled::NotUnknown(is) => Err(AdminFailure::conflict(
            "not_unknown",
            format!("call {call} is {}; only an unknown one is settled", is.as_str()),
        )),
        Settled::NoSuchCall => {
            Err(AdminFailure::not_found("no_such_call", format!("there is no call {call}")))
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AuditQuery {
    before: Option<u64>,
    limit: Option<usize>,
}

#[derive(Serialize)]
pub(super) struct AuditPage {
    lines: Vec<AuditLine>,
    /// The next `before`; `null` on the last page.
    next: Option<u64>,
}

pub(super) async fn audit(
    State(state): State<AdminState>,
    Params(query): Params<AuditQuery>,
) -> Result<Json<AuditPage>, AdminFailure> {
    let limit = page_limit(query.limit);
    let lines = state.admin.audit(query.before, limit).await?;
    let next = lines.last().filter(|_| lines.len() == limit).map(|line| line.id);
    Ok(Json(AuditPage { lines, next }))
}
