//! `query-credits`: what this team may still spend, in the upstream's shape. Clients use the call to test a
//! credential, so it does not ask the upstream.

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use uuid::Uuid;

use super::log::LogContext;
use super::{Head, PublicState};
use crate::base::operation::IMAGE_CROPPING;
use crate::error::GatewayError;

/// The largest number every client can read.
const NO_LIMIT: u64 = i32::MAX as u64;

pub(super) async fn query(
    state: &PublicState,
    head: &Head<'_>,
    log: &mut LogContext,
) -> Result<Response, GatewayError> {
    let team = state.authenticate(head)?;
    let tightest = state.parts.gateway.tightest_budget(head.policy.budgets(&team)).await?;
    log.team = Some(team);
    let readable = |credits: u64| credits.min(NO_LIMIT);
    let (left, total) =
        tightest.map_or((NO_LIMIT, NO_LIMIT), |used| (readable(used.left()), readable(used.budget.limit)));
    // Budgets cannot spend more than the account has. The account's balance is hidden while they are tighter.
    let in_account = state.parts.balance.last().map_or(NO_LIMIT, |balance| balance.credits);
    let balance = left.min(in_account);
    let answer = Json(json!({
        "request_id": Uuid::new_v4().to_string().to_uppercase(),
        "log_id": "0",
        "error_code": 0,
        "error_code_str": "",
        "error_msg": "",
        "error_detail": {"status_code": 200, "code": "", "code_message": "", "message": ""},
        "data": [{
            "unique_sign": IMAGE_CROPPING.credit_pool,
            "name": IMAGE_CROPPING.title,
            "balance": balance,
            "total": total,
        }],
    }));
    Ok(answer.into_response())
}
