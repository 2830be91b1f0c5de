//! Freezes and thaws spending, of everyone or of a team; makes ledger and store one archive.

use axum::extract::State;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};

use super::AdminState;
use super::failure::{AdminFailure, Params};
use crate::ledger::admin::{Action, Actor};
use crate::ledger::budget::Scope;

/// Everyone's without `team`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Whose {
    team: Option<String>,
}

#[derive(Serialize)]
pub(super) struct Spending {
    scope: String,
    frozen: bool,
    changed: bool,
}

#[derive(Serialize)]
pub(super) struct Frozen {
    frozen: Vec<String>,
}

pub(super) async fn freeze(
    State(state): State<AdminState>,
    Extension(by): Extension<Actor>,
    Params(whose): Params<Whose>,
) -> Result<Json<Spending>, AdminFailure> {
    state.counted(Action::Freeze, set(&state, whose, true, &by).await)
}

pub(super) async fn thaw(
    State(state): State<AdminState>,
    Extension(by): Extension<Actor>,
    Params(whose): Params<Whose>,
) -> Result<Json<Spending>, AdminFailure> {
    state.counted(Action::Thaw, set(&state, whose, false, &by).await)
}

pub(super) async fn frozen(State(state): State<AdminState>) -> Result<Json<Frozen>, AdminFailure> {
    let frozen = state.admin.frozen().await?.iter().map(Scope::to_string).collect();
    Ok(Json(Frozen { frozen }))
}

async fn set(state: &AdminState, whose: Whose, frozen: bool, by: &Actor) -> Result<Spending, AdminFailure> {
    let scope = match whose.team {
        None => Scope::Global,
        Some(team) if state.policy.get().teams().get(&team).is_some() => Scope::Team(team),
        // A team that was frozen while it was configured can be thawed afterwards.
        Some(team) if !frozen && state.admin.frozen().await?.contains(&Scope::Team(team.clone())) => {
            Scope::Team(team)
        }
        Some(_) => {
            let text = "no such team; use a name from the configuration";
            return Err(AdminFailure::not_found("no_such_team", text));
        }
    };
    let changed = state.admin.freeze(scope.clone(), frozen, by).await.inspect_err(|_| {
        tracing::error!(%scope, frozen, "spending could not be frozen or thawed");
    })?;
    tracing::warn!(%scope, frozen, changed, by = by.as_str(), "spending was frozen or thawed");
    Ok(Spending { scope: scope.to_string(), frozen, changed })
}

#[derive(Serialize)]
pub(super) struct Adopted {
    archive: String,
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
    // After the adoption, which is not in the ledger alone: a reported adoption is also in the audit.
    state.admin.note_adoption(adoption.archive, &found, by).await.map_err(|error| {
        tracing::error!(%error, "an adoption is not in the audit");
        let text = format!("adopted, but the audit could not be written ({error}); adopt again");
        AdminFailure::unavailable("not_audited", text)
    })?;
    Ok(Adopted { archive: adoption.archive.to_string(), found })
}
