//! The upstream's error codes that Granary uses itself, with the upstream's texts.

use http::StatusCode;
use serde_json::{Value, json};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// `error_code_str` and `error_detail.code`.
    pub name: &'static str,
    /// `error_detail.code_message`.
    pub text: &'static str,
}

/// An error in the upstream's envelope, without ids.
pub(super) fn error_envelope(status: StatusCode, code: &str, text: &str, message: &str) -> Value {
    let status = status.as_u16();
    let detail = json!({"status_code": status, "code": code, "code_message": text, "message": message});
    json!({"error_code": status, "error_code_str": code, "error_detail": detail, "error_msg": message})
}

pub const OTHER: Code = Code { name: "other", text: "" };

impl Code {
    pub fn named(name: &str) -> Self {
        ALL.iter().copied().find(|code| code.name == name).unwrap_or(OTHER)
    }
}

macro_rules! try_again {
    ($text:literal) => {
        concat!($text, " Please try again later. If not resolved promptly, contact the platform.")
    };
}

macro_rules! codes {
    ($($name:ident = $text:expr;)*) => {
        $(
            #[doc = $text]
            pub const $name: Code = Code { name: stringify!($name), text: $text };
        )*

        pub const ALL: &[Code] = &[$($name),*];
    };
}

codes! {
    ERROR_PARAMETERS = "Invalid parameters.";
    MISSING_PARAMETERS = "Missing parameters.";
    PARAMETERS_CANNOT_EMPTY = "Parameters cannot be empty.";
    ERROR_INVALID_PARAMETER = "Invalid parameter.";
    ERROR_APPLICATIONS_NOT_EXISTS = "The application does not exist.";
    ERROR_USER_LOCKED = "The user is locked.";
    ERROR_ILLEGAL_OPERATION = "Illegal operation.";
    ERROR_AI_NOT_EXISTS = "AI does not exist or has been deactivated, please contact the platform.";
    ERROR_RESOURCE_NOT_FOUND = "Resource not found.";
    ERROR_FILE_NOT_FOUND = "File not found.";
    FILE_SIZE_EXCEEDS_LIMIT = "File size exceeds limit.";
    FILE_RESOLUTION_EXCEEDS_LIMITS = "File resolution exceeds limits.";
    ERROR_REQUEST_BODY_TOO_LARGE = "Request body size exceeds limit.";
    UNSUPPORTED_FILE_TYPES = "Unsupported file types.";
    ERROR_UNSUPPORTED_GRAYSCALE_IMAGE = "Grayscale image not supported.";
    FILE_DECODING_FAILURE = "File decoding failed.";
    ERROR_NOT_ENOUGH_CREDITS = "Insufficient credits.";
    EXCEEDING_LIMITS = "Exceeds limit.";
    PROCESSING_FAILURE = "Processing failed.";
    SERVICE_INTERNAL_ERROR = try_again!("Service internal error.");
    AI_SERVICE_ERROR = try_again!("AI service error.");
    AI_SERVICE_INTERNAL_ERROR = try_again!("AI service internal error.");
    AI_SERVICE_UNAUTHORIZED = try_again!("AI service unauthorized.");
    AI_SERVICE_FLOW_RESTRICTION = try_again!("AI service is rate-limited.");
    AI_SERVICE_TIMEOUT = try_again!("AI service timeout.");
    ERROR_FILE_DOWNLOAD_FAILED = "File download failed.";
    ERROR_FILE_DOWNLOAD_TIMEOUT = "File download timeout.";
    ERROR_RESOURCE_UNAVAILABLE = "Resource temporarily unavailable.";
}
