//! One row of the error table: what a client is told, and who has to mend it.

use std::time::Duration;

use http::StatusCode;

use crate::upstream::code::Code;

/// Who has to mend it; prefixes the error class in metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Whoever sent the request.
    Caller,
    /// A rule somebody set: a budget, a rate, a freeze.
    Policy,
    /// The upstream or its storage.
    Upstream,
    /// Granary, or what it runs on.
    Gateway,
}

impl Fault {
    /// All, for metrics.
    pub const ALL: [Self; 4] = [Self::Caller, Self::Policy, Self::Upstream, Self::Gateway];

    /// The word in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Policy => "policy",
            Self::Upstream => "upstream",
            Self::Gateway => "gateway",
        }
    }
}

/// One row of the table.
pub struct ErrorResponse {
    /// HTTP status, `error_code` and `error_detail.status_code`.
    pub status: StatusCode,
    /// Code and text of the upstream's vocabulary.
    pub code: Code,
    /// Who has to mend it.
    pub fault: Fault,
    /// What was wrong with which input, and what to do.
    pub detail: String,
    /// `Granary-Reason`.
    pub reason: Option<&'static str>,
    /// `Retry-After`, before jitter and cap. Owed on every 429 and 503.
    pub retry_after: Option<Duration>,
}

impl ErrorResponse {
    pub(super) fn new(status: u16, code: Code, fault: Fault, detail: impl Into<String>) -> Self {
        let status = StatusCode::from_u16(status).expect("statuses in this file are valid");
        Self { status, code, fault, detail: detail.into(), reason: None, retry_after: None }
    }

    pub(super) fn because(mut self, reason: &'static str) -> Self {
        self.reason = Some(reason);
        self
    }

    pub(super) fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }
}
