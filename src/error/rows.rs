//! The rows of the table with cases of their own: head, credential, form, budgets.

use super::{ErrorResponse, Fault};
use crate::ledger::budget::{self, BudgetRefusal, Scope, Window};
use crate::request::RequestError;
use crate::request::framing::HeadError;
use crate::teams::AuthError;
use crate::upstream::code::{self, Code};

pub(super) fn head_row(error: HeadError) -> (u16, Code) {
    match error {
        HeadError::Host | HeadError::Framing => (400, code::ERROR_PARAMETERS),
        HeadError::TooLarge => (431, code::ERROR_PARAMETERS),
        HeadError::UriTooLong => (414, code::ERROR_PARAMETERS),
        HeadError::Method => (405, code::ERROR_ILLEGAL_OPERATION),
        HeadError::Slow => (408, code::ERROR_PARAMETERS),
    }
}

pub(super) fn auth_row(error: &AuthError) -> (u16, Code) {
    match error {
        AuthError::Missing
        | AuthError::Malformed
        | AuthError::Incomplete
        | AuthError::Unknown
        | AuthError::Expired => (401, code::ERROR_APPLICATIONS_NOT_EXISTS),
        AuthError::Conflicting => (400, code::ERROR_PARAMETERS),
        AuthError::Disabled { .. } => (403, code::ERROR_USER_LOCKED),
    }
}

pub(super) fn request_row(error: &RequestError) -> (u16, Code) {
    match error {
        RequestError::NotMultipart(_)
        | RequestError::BrokenMultipart(_)
        | RequestError::DuplicateField { .. }
        | RequestError::Body(_) => (400, code::ERROR_PARAMETERS),
        RequestError::MissingField { .. } => (400, code::MISSING_PARAMETERS),
        RequestError::EmptyField { .. } => (400, code::PARAMETERS_CANNOT_EMPTY),
        RequestError::NumberOutOfRange { .. } => (400, code::ERROR_INVALID_PARAMETER),
        RequestError::ImageTooLarge { .. } | RequestError::DeclaredTooLarge { .. } => {
            (413, code::FILE_SIZE_EXCEEDS_LIMIT)
        }
        RequestError::BodyTooLarge { .. } => (413, code::ERROR_REQUEST_BODY_TOO_LARGE),
        RequestError::ResolutionTooHigh { .. } => (413, code::FILE_RESOLUTION_EXCEEDS_LIMITS),
        RequestError::Encoded { .. } | RequestError::UnsupportedFile => (415, code::UNSUPPORTED_FILE_TYPES),
        RequestError::UnreadableHeader => (422, code::FILE_DECODING_FAILURE),
        RequestError::BodyTimeout => (408, code::ERROR_PARAMETERS),
        RequestError::NoRoom => (503, code::ERROR_RESOURCE_UNAVAILABLE),
    }
}

pub(super) fn over_budget(refusal: &BudgetRefusal) -> ErrorResponse {
    let BudgetRefusal { budget, resets_at, resets_in } = refusal;
    let resets_at = budget::show(*resets_at);
    let by_window = |day, month| if budget.window == Window::Day { day } else { month };
    let (whose, reason) = match &budget.scope {
        Scope::Global => ("all teams together".to_owned(), by_window("global_daily", "global_monthly")),
        Scope::Team(name) => (format!("the team {name}"), by_window("team_daily", "team_monthly")),
        Scope::Refused(name) => {
            let detail = format!(
                "the upstream has refused as many calls of the team {name} today as its refused_per_day allows; new \
                 crops are possible again from {resets_at} on, stored results are still answered; check the pictures \
                 (grey, alpha or CMYK ones are refused) and sizes before they are sent"
            );
            let response = ErrorResponse::new((429, code::EXCEEDING_LIMITS), Fault::Policy, detail);
            return response.later("refused", *resets_in);
        }
    };
    let detail = format!(
        "the {} budget of {whose} ({} credits) is used up and resets at {resets_at}; stored results are still \
         answered",
        budget.window.as_str(),
        budget.limit,
    );
    ErrorResponse::new((429, code::ERROR_NOT_ENOUGH_CREDITS), Fault::Policy, detail).later(reason, *resets_in)
}
