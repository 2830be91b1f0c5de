//! The labels of errors in metrics.

use super::Fault;
use crate::upstream::code::{self, Code};

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
