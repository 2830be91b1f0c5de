//! One row of the error table.

use std::time::Duration;

use http::StatusCode;

use crate::base::words::words;
use crate::upstream::code::Code;

words! {
    /// Who must correct an error; its class in metrics.
    #[derive(Hash)]
    pub enum Fault {
        Caller = "caller",
        /// A configured rule: a budget, a rate, a freeze.
        Policy = "policy",
        /// The upstream or its storage.
        Upstream = "upstream",
        /// Granary, or what it runs on.
        Gateway = "gateway",
    }
}

pub struct ErrorResponse {
    /// HTTP status, `error_code` and `error_detail.status_code`.
    pub status: StatusCode,
    pub code: Code,
    pub fault: Fault,
    /// What was wrong with which input, and what to do.
    pub detail: String,
    /// `Granary-Reason`.
    pub reason: Option<&'static str>,
    /// `Retry-After`, before jitter and cap. Owed on every 429 and 503.
    pub retry_after: Option<Duration>,
}

impl ErrorResponse {
    pub(super) fn new((status, code): (u16, Code), fault: Fault, detail: impl ToString) -> Self {
        let status = StatusCode::from_u16(status).expect("statuses in this file are valid");
        Self { status, code, fault, detail: detail.to_string(), reason: None, retry_after: None }
    }

    pub(super) fn because(mut self, reason: &'static str) -> Self {
        self.reason = Some(reason);
        self
    }

    pub(super) fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    pub(super) fn later(self, reason: &'static str, wait: Duration) -> Self {
        self.because(reason).retry_after(wait)
    }
}
