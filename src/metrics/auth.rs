//! The family about refused credentials.

use prometheus::IntCounter;

use super::Metrics;
use super::families::{Each, Families};
use super::labels::labels;
use crate::teams::AuthError;

labels! {
    /// Why a credential was refused.
    enum AuthFailure {
        Missing = "missing",
        Malformed = "malformed",
        Unknown = "unknown",
        Expired = "expired",
        Disabled = "disabled",
        Ambiguous = "ambiguous",
        Admin = "admin",
    }
}

impl From<&AuthError> for AuthFailure {
    fn from(error: &AuthError) -> Self {
        match error {
            AuthError::Missing => Self::Missing,
            AuthError::Malformed | AuthError::Incomplete => Self::Malformed,
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
                "Requests refused for their credential, by reason; admin: on the admin listener (grain: requests)",
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

    /// A request on the admin listener carried no good token.
    pub fn admin_login_failed(&self) {
        self.auth.failures[AuthFailure::Admin].inc();
    }
}
