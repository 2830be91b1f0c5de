//! The part of the upstream's error vocabulary that Granary speaks itself, texts verbatim.

/// One code and the text that goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// `error_code_str` and `error_detail.code`.
    pub name: &'static str,
    /// `error_detail.code_message`.
    pub text: &'static str,
}

/// Any code of the upstream's that is not in the table. Clients see the upstream's own; this is a label.
pub const OTHER: Code = Code { name: "other", text: "" };

impl Code {
    /// The code of this name, or [`OTHER`].
    pub fn named(name: &str) -> Self {
        ALL.iter().copied().find(|code| code.name == name).unwrap_or(OTHER)
    }
}

/// What the upstream appends to the texts of passing reasons.
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
