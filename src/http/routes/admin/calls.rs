//! Rows of the ledger, and settling those whose outcome nobody knows.

use axum::extract::{Path, State};
use axum::{Extension, Json};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::AdminState;
use super::failure::{AdminFailure, Params};
use crate::base::key::{CacheKey, Digest};
use crate::ledger::admin::{Action, Actor, CallDetail, CallFilter, GivenBack, Settled, Settlement};
use crate::ledger::{CallId, CallState};
use crate::metrics::ActionResult;

/// Rows of an answer, unless fewer are asked for.
const LIMIT: usize = 100;
/// Rows of an answer at most.
const MOST: usize = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    state: Option<String>,
    team: Option<String>,
    key: Option<String>,
    before: Option<i64>,
    limit: Option<usize>,
}

#[derive(Serialize)]
pub(super) struct Calls {
    calls: Vec<Call>,
    /// The `before` of the next page, which may have more; `null` when this is the last.
    next: Option<i64>,
}

/// A row as it is shown: never the text of an answer, which may name a signed URL.
#[derive(Serialize)]
pub(super) struct Call {
    id: i64,
    namespace: String,
    key: CacheKey,
    generation: u64,
    state: &'static str,
    late: bool,
    adopted: bool,
    team: String,
    credits: u64,
    day: String,
    image: Digest,
    width: u32,
    height: u32,
    reserved_at: Timestamp,
    sent_at: Option<Timestamp>,
    answered_at: Option<Timestamp>,
    ended_at: Option<Timestamp>,
    reason: Option<String>,
    upstream_request_id: Option<String>,
    upstream_log_id: Option<String>,
    digest: Option<Digest>,
    extension: Option<String>,
    bytes: Option<u64>,
    settled: Option<&'static str>,
}

impl From<CallDetail> for Call {
    fn from(call: CallDetail) -> Self {
        Self {
            id: call.id.0,
            namespace: call.namespace,
            key: call.key,
            generation: call.generation,
            state: call.state.as_str(),
            late: call.late,
            adopted: call.adopted,
            team: call.team,
            credits: call.credits,
            day: call.day,
            image: call.image,
            width: call.width,
            height: call.height,
            reserved_at: call.reserved_at,
            sent_at: call.sent_at,
            answered_at: call.answered_at,
            ended_at: call.ended_at,
            reason: call.reason,
            upstream_request_id: call.request_id,
            upstream_log_id: call.log_id,
            digest: call.digest,
            extension: call.extension,
            bytes: call.bytes,
            settled: call.settled.map(Settlement::as_str),
        }
    }
}

pub(super) async fn list(
    State(state): State<AdminState>,
    Params(which): Params<Which>,
) -> Result<Json<Calls>, AdminFailure> {
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
        limit: which.limit.unwrap_or(LIMIT).clamp(1, MOST),
    };
    let page = state.admin.calls(filter).await?;
    let calls = page.calls.into_iter().map(Call::from).collect();
    Ok(Json(Calls { calls, next: page.next.map(|id| id.0) }))
}

pub(super) fn key_of(text: &str) -> Result<CacheKey, AdminFailure> {
    text.parse().map_err(|_| AdminFailure::invalid("a key has 64 hex digits; granary key prints one"))
}

/// What became of it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Outcome {
    outcome: String,
}

/// What it is settled as.
#[derive(Serialize)]
pub(super) struct SettledCall {
    call: i64,
    outcome: &'static str,
    /// Was it not settled before?
    changed: bool,
    /// `budgets` or `adjustment`: where its credits were given back just now.
    given_back: Option<&'static str>,
}

pub(super) async fn settle(
    State(state): State<AdminState>,
    Extension(by): Extension<Actor>,
    Path(id): Path<String>,
    Params(Outcome { outcome }): Params<Outcome>,
) -> Result<Json<SettledCall>, AdminFailure> {
    let done = settle_as(&state, &by, &id, &outcome).await;
    let result = match &done {
        Ok(_) => ActionResult::Done,
        Err(failure) if failure.is_refusal() => ActionResult::Refused,
        Err(_) => ActionResult::Failed,
    };
    state.metrics.admin_actions_total[(Action::Settle, result)].inc();
    done.map(Json)
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
    let settled =
        |changed, given_back| SettledCall { call, outcome: settlement.as_str(), changed, given_back };
    match state.admin.settle(CallId(call), settlement, by).await? {
        Settled::Done { given_back } => {
            tracing::warn!(call, outcome, by = by.as_str(), "an unknown call was settled");
            Ok(settled(
                true,
                given_back.map(|place| match place {
                    GivenBack::Budgets => "budgets",
                    GivenBack::Adjustment => "adjustment",
                }),
            ))
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
