//! The build, the configuration, and the description of these routes.

use arc_swap::ArcSwap;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use jiff::Timestamp;
use serde::Serialize;

use super::AdminState;
use crate::metrics::COMMIT;

const OPENAPI: &str = include_str!("openapi.json");

pub struct About {
    /// TOML, secrets as stars; swapped by a reload.
    pub config: ArcSwap<String>,
    pub started_at: Timestamp,
    pub namespace: String,
    /// `builtin` or `ailab`.
    pub upstream: &'static str,
}

#[derive(Serialize)]
pub(super) struct Build {
    version: &'static str,
    /// From `GRANARY_COMMIT` at build time.
    commit: Option<&'static str>,
    profile: &'static str,
    started_at: Timestamp,
    namespace: String,
    upstream: &'static str,
}

pub(super) async fn build(State(state): State<AdminState>) -> Json<Build> {
    let about = &state.about;
    Json(Build {
        version: env!("CARGO_PKG_VERSION"),
        commit: COMMIT,
        profile: if cfg!(debug_assertions) { "debug" } else { "release" },
        started_at: about.started_at,
        namespace: about.namespace.clone(),
        upstream: about.upstream,
    })
}

pub(super) async fn config(State(state): State<AdminState>) -> Response {
    let toml = String::clone(&state.about.config.load());
    ([(CONTENT_TYPE, "application/toml")], toml).into_response()
}

pub(super) async fn openapi() -> Response {
    ([(CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}
