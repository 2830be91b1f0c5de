//! One row of the error table, and the labels of all rows in metrics.

use std::time::Duration;

use http::StatusCode;

use crate::base::words::words;
use crate::upstream::code::{self, Code};

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

/// Every pair of [`GatewayError::response`](super::GatewayError::response).
pub fn kinds() -> impl Iterator<Item = (Fault, Code)> {
    let passed_through = |fault| code::ALL.iter().chain([&code::OTHER]).map(move |code| (fault, *code));
    let passed_through = passed_through(Fault::Caller).chain(passed_through(Fault::Upstream));
    OURS.into_iter().chain(passed_through.filter(|kind| !OURS.contains(kind)))
}

/// Of errors that Granary itself makes.
const OURS: [(Fault, Code); 30] = [
    (Fault::Caller, code::ERROR_PARAMETERS),
    (Fault::Caller, code::MISSING_PARAMETERS),
    (Fault::Caller, code::PARAMETERS_CANNOT_EMPTY),
    (Fault::Caller, code::ERROR_INVALID_PARAMETER),
    (Fault::Caller, code::ERROR_APPLICATIONS_NOT_EXISTS),
    (Fault::Caller, code::ERROR_USER_LOCKED),
    (Fault::Caller, code::ERROR_AI_NOT_EXISTS),
    (Fault::Caller, code::ERROR_ILLEGAL_OPERATION),
    (Fault::Caller, code::ERROR_RESOURCE_NOT_FOUND),
    (Fault::Caller, code::ERROR_FILE_NOT_FOUND),
    (Fault::Caller, code::FILE_SIZE_EXCEEDS_LIMIT),
    (Fault::Caller, code::ERROR_REQUEST_BODY_TOO_LARGE),
    (Fault::Caller, code::FILE_RESOLUTION_EXCEEDS_LIMITS),
    (Fault::Caller, code::UNSUPPORTED_FILE_TYPES),
    (Fault::Caller, code::FILE_DECODING_FAILURE),
    (Fault::Caller, code::AI_SERVICE_TIMEOUT),
    (Fault::Policy, code::ERROR_ILLEGAL_OPERATION),
    (Fault::Policy, code::ERROR_NOT_ENOUGH_CREDITS),
    (Fault::Policy, code::EXCEEDING_LIMITS),
    (Fault::Upstream, code::ERROR_NOT_ENOUGH_CREDITS),
    (Fault::Upstream, code::AI_SERVICE_ERROR),
    (Fault::Upstream, code::AI_SERVICE_INTERNAL_ERROR),
    (Fault::Upstream, code::AI_SERVICE_UNAUTHORIZED),
    (Fault::Upstream, code::AI_SERVICE_FLOW_RESTRICTION),
    (Fault::Upstream, code::AI_SERVICE_TIMEOUT),
    (Fault::Upstream, code::ERROR_FILE_DOWNLOAD_FAILED),
    (Fault::Upstream, code::ERROR_FILE_DOWNLOAD_TIMEOUT),
    (Fault::Gateway, code::AI_SERVICE_FLOW_RESTRICTION),
    (Fault::Gateway, code::ERROR_RESOURCE_UNAVAILABLE),
    (Fault::Gateway, code::SERVICE_INTERNAL_ERROR),
];
