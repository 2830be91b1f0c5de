//! Failed calls of the SDK, as texts that are safe to show: the status, the store's error code and the
//! system's reason, but no message or body, into which some stores put the signature or the signed text.

use std::error::Error;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::store::StoreError;

#[derive(Debug)]
pub(super) struct Failure {
    pub(super) status: Option<u16>,
    pub(super) code: String,
    /// The problem and the remedy, without the operation and the name.
    text: String,
}

impl Failure {
    pub(super) fn new<E>(error: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let status = error.raw_response().map(|response| response.status().as_u16());
        let code = match error {
            SdkError::ServiceError(error) => plain(error.err().code().unwrap_or_default()),
            _ => String::new(),
        };
        let text = match error {
            SdkError::TimeoutError(_) => "it did not answer in time".to_owned(),
            SdkError::DispatchFailure(failure) if failure.is_timeout() => {
                "it could not be reached in time".to_owned()
            }
            SdkError::DispatchFailure(failure) if failure.is_io() => {
                format!("the connection failed: {}", reason(error))
            }
            SdkError::DispatchFailure(_) | SdkError::ConstructionFailure(_) => NO_CREDENTIALS.to_owned(),
            SdkError::ServiceError(_) => explain(status.unwrap_or_default(), &code),
            _ => match status {
                Some(status) => format!("it answered {status}, and not as S3 does; look at store.endpoint"),
                None => "its answer was cut off".to_owned(),
            },
        };
        Self { status, code, text }
    }

    pub(super) fn cut_off() -> Self {
        Self { status: None, code: String::new(), text: "its answer was cut off".to_owned() }
    }

    /// True without an answer, and for 429 and 5xx except of a full store.
    pub(super) fn is_outage(&self) -> bool {
        !self.is_full() && self.status.is_none_or(|status| status >= 500 || status == 429)
    }

    /// Without that code, a 404 may be of another server or about the bucket.
    pub(super) fn is_absence(&self) -> bool {
        self.status == Some(404) && self.code == "NoSuchKey"
    }

    fn is_full(&self) -> bool {
        self.status == Some(507) || self.code.contains("StorageFull") || self.code.contains("QuotaExceeded")
    }

    pub(super) fn of(self, doing: &str, name: &str) -> StoreError {
        let text = format!("cannot {doing} {name} in the bucket: {}", self.text);
        match self.code.as_str() {
            _ if self.is_full() => StoreError::Full(text),
            "NotImplemented" => StoreError::Unfit(text),
            _ => StoreError::Unavailable(text),
        }
    }
}

const NO_CREDENTIALS: &str = "the request could not be signed or sent; put credentials into \
    AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or into the file of store.credentials_file, and look at \
    store.endpoint";

fn explain(status: u16, code: &str) -> String {
    let hint = match (status, code) {
        (_, "NoSuchBucket") => "; make the bucket, or correct store.bucket",
        (_, "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException") => {
            "; it is in another region: correct store.region"
        }
        (_, "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "ExpiredToken" | "InvalidToken") => {
            "; correct the credentials"
        }
        (_, "RequestTimeTooSkewed") => "; set this machine's clock",
        (_, "NotImplemented") => {
            "; it does not know conditional writes, and without them a result could be lost"
        }
        (403, _) => {
            "; allow s3:GetObject, s3:PutObject and s3:DeleteObject below the prefix and s3:ListBucket on \
             the bucket, without which an absent name is answered like a forbidden one"
        }
        (429 | 503, _) => "; it is overwhelmed",
        (404, _) => "; this is no S3 bucket: look at store.endpoint and store.path_style",
        _ => "",
    };
    let code = if code.is_empty() { "without a code" } else { code };
    format!("it answered {status} {code}{hint}")
}

/// Cuts a code to what may be shown.
fn plain(code: &str) -> String {
    code.chars().filter(char::is_ascii_alphanumeric).take(64).collect()
}

/// The innermost of nested errors, which is the system's.
fn reason(error: &(dyn Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string().chars().filter(|char| !char.is_control()).take(200).collect()
}
