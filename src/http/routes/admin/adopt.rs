//! Making ledger and store one archive, after the guard has found that they are not.

use axum::extract::State;
use axum::{Extension, Json};
use serde::Serialize;

use super::AdminState;
use super::failure::AdminFailure;
use crate::ledger::admin::{Action, Actor};
use crate::metrics::ActionResult;

/// What they were, and are now.
#[derive(Serialize)]
pub(super) struct Adopted {
    archive: String,
    found: String,
}

/// Makes ledger and store one archive, and says what they were.
pub(super) async fn adopt(
    State(state): State<AdminState>,
    Extension(by): Extension<Actor>,
) -> Result<Json<Adopted>, AdminFailure> {
    let adoption = match state.guard.adopt().await {
        Ok(adoption) => adoption,
        Err(error) => {
            state.metrics.admin_actions_total[(Action::Adopt, ActionResult::Failed)].inc();
            tracing::error!(%error, "ledger and store could not be made one archive");
            return Err(AdminFailure::unavailable("not_adopted", error.to_string()));
        }
    };
    let found = adoption.to_string();
    tracing::warn!(archive = %adoption.archive, found, by = by.as_str(), "ledger and store were made one archive");
    // The adoption is not in the ledger alone, so its line comes after it; who is told of success
    // finds both.
    if let Err(error) = state.admin.note_adoption(adoption.archive, &found, &by).await {
        state.metrics.admin_actions_total[(Action::Adopt, ActionResult::Failed)].inc();
        tracing::error!(%error, "an adoption is not in the audit");
        let text = format!("adopted, but the audit could not be written ({error}); adopt again");
        return Err(AdminFailure::unavailable("not_audited", text));
    }
    state.metrics.admin_actions_total[(Action::Adopt, ActionResult::Done)].inc();
    Ok(Json(Adopted { archive: adoption.archive.to_string(), found }))
}
