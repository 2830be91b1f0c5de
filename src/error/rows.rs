//! The rows of the table that are about the request alone: its head, its credential, its form.

use crate::code::{self, Code};
use crate::framing::HeadError;
use crate::request::RequestError;
use crate::teams::AuthError;

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
        AuthError::Missing | AuthError::Malformed | AuthError::Unknown | AuthError::Expired => {
            (401, code::ERROR_APPLICATIONS_NOT_EXISTS)
        }
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
        RequestError::UnsupportedFile => (415, code::UNSUPPORTED_FILE_TYPES),
        RequestError::UnreadableHeader => (422, code::FILE_DECODING_FAILURE),
        RequestError::BodyTimeout => (408, code::ERROR_PARAMETERS),
        RequestError::NoRoom => (503, code::ERROR_RESOURCE_UNAVAILABLE),
    }
}
