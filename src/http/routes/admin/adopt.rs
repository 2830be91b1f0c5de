//! Makes ledger and store one archive.

use axum::extract::State;
use axum::{Extension, Json};
use serde::Serialize;

use super::AdminState;
use super::failure::AdminFailure;
use crate::ledger::admin::{Action, Actor};

#[derive(Serialize)]
pub(super) struct Adopted {
    archive: String,
    /// The state before.
    found: String,
}

pub(super) async fn adopt(
    State(state): State<AdminState>,
    Extension(by): Extension<Actor>,
) -> Result<Json<Adopted>, AdminFailure> {
    state.counted(Action::Adopt, adopt_by(&state, &by).await)
}

async fn adopt_by(state: &AdminState, by: &Actor) -> Result<Adopted, AdminFailure> {
    let adoption = state.guard.adopt().await.map_err(|error| {
        tracing::error!(%error, "ledger and store could not be made one archive");
        AdminFailure::unavailable("not_adopted", error.to_string())
    })?;
    let found = adoption.to_string();
    tracing::warn!(archive = %adoption.archive, found, by = by.as_str(), "ledger and store were made one archive");
    // The line comes after the adoption, which is not in the ledger alone; so an adoption that is reported is
    // also in the audit.
    state.admin.note_adoption(adoption.archive, &found, by).await.map_err(|error| {
        tracing::error!(%error, "an adoption is not in the audit");
        let text = format!("adopted, but the audit could not be written ({error}); adopt again");
        AdminFailure::unavailable("not_audited", text)
    })?;
    Ok(Adopted { archive: adoption.archive.to_string(), found })
}
