//! The family about callers who were not let in.

use prometheus::IntCounter;

use super::Metrics;
use super::families::{Each, Families};
use super::labels::labels;
use crate::teams::AuthError;

labels! {
    /// Why a caller was not let in.
    enum AuthFailure {
        Missing = "missing",
        Malformed = "malformed",
        Unknown = "unknown",
        Expired = "expired",
        Disabled = "disabled",
        Ambiguous = "ambiguous",
    }
}

impl From<&AuthError> for AuthFailure {
    fn from(error: &AuthError) -> Self {
        match error {
            AuthError::Missing => Self::Missing,
            AuthError::Malformed => Self::Malformed,
            AuthError::Unknown => Self::Unknown,
            AuthError::Expired => Self::Expired,
            AuthError::Disabled { .. } => Self::Disabled,
            AuthError::Conflicting => Self::Ambiguous,
        }
    }
}

/// See the module.
pub(super) struct AuthFamilies {
    failures: Each<AuthFailure, IntCounter>,
}

impl AuthFamilies {
    pub(super) fn new(families: &Families<'_>) -> Self {
        Self {
            failures: families.counters(
                "granary_auth_failures_total",
                "Requests on the public listener that were refused for their credential (grain: requests)",
                "reason",
            ),
        }
    }
}

impl Metrics {
    /// A request was refused for its credential.
    pub fn auth_failed(&self, error: &AuthError) {
        self.auth.failures[error.into()].inc();
    }
}
