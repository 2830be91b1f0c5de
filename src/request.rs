//! A client's request becomes a [`CropRequest`]: what to buy, and the key it is filed under.
//!
//! [`check_head`] refuses what can be refused before a byte of the body is read; [`read`] reads the
//! body once, hashing the image while it arrives, and keeps nothing that is over a limit. What
//! [`uploads`] has no memory for is written to a file meanwhile. What is
//! keyed is what is forwarded: names, part headers and spellings of the client's end here.
//!
//! This module knows no statuses and no codes: `error` chooses them, one per variant of
//! [`RequestError`]. It never decodes a picture, and the query string is not its business.

pub mod body;
mod form;
pub mod framing;
mod image;
pub mod multipart;
mod order;
#[cfg(test)]
mod tests;
pub mod uploads;

use std::error::Error;
use std::pin::pin;

use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http_body::Body;
use http_body_util::{BodyExt, LengthLimitError};

use crate::base::key::{CacheKey, Digest};
use crate::base::operation::Operation;
use crate::request::multipart::{Boundary, Broken, ContentTypeError, Parser, trim};
use crate::request::uploads::{NoRoom, UploadRoom};
use form::{Form, MAX_SHOWN, visible};
pub use order::Order;

/// The longest side a picture may have, in pixels: the upstream's limit.
pub const MAX_SIDE_PIXELS: usize = 2000;
/// The largest width or height that may be asked for.
pub const MAX_TARGET_PIXELS: u32 = 65_535;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestLimits {
    /// Bytes of the image. Default: 3,670,016 (3.5 MiB), the upstream's limit.
    pub max_image_bytes: usize,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self { max_image_bytes: 3_670_016 }
    }
}

impl RequestLimits {
    /// What a form may have besides the image.
    const OTHER_BYTES: usize = 16 * 1024;

    /// Bytes of the whole body: the image and 16 KiB.
    pub fn max_body_bytes(&self) -> usize {
        self.max_image_bytes.saturating_add(Self::OTHER_BYTES)
    }
}

/// A field of the form that means something; its name is the operation's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Field {
    Image,
    Width,
    Height,
}

impl Field {
    /// All fields, in the order in which errors name them.
    const ALL: [Self; 3] = [Self::Image, Self::Width, Self::Height];
}

/// A request for a crop, read whole.
pub struct CropRequest {
    /// What the key is made of, and nothing else.
    pub order: Order,
    pub key: CacheKey,
    /// BLAKE3 of the image alone.
    pub image_digest: Digest,
    /// The names of the form's other fields, each once, in visible ASCII; `?` for one without a name.
    pub ignored: Vec<String>,
}

/// What the head of an acceptable request says about its body.
#[derive(Debug, Clone)]
pub struct FormHead {
    operation: &'static Operation,
    boundary: Boundary,
    declared_bytes: Option<usize>,
    limits: RequestLimits,
}

/// Why a request cannot be served. The text is the sentence its client is shown.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The head announces no form that can be read.
    #[error("{0}")]
    NotMultipart(ContentTypeError),
    /// The body is in a content coding, such as gzip.
    #[error(
        "the request body has the Content-Encoding \"{shown}\"; send it as it is, pictures do not get smaller"
    )]
    Encoded {
        /// The beginning of the coding, in visible ASCII.
        shown: String,
    },
    /// The body is not a well-formed form.
    #[error("the multipart body cannot be read: {0}; let the HTTP library write the body")]
    BrokenMultipart(#[from] Broken),
    #[error("the field {field} occurs more than once; send exactly one")]
    DuplicateField {
        /// The first such field, in the order image, width, height.
        field: &'static str,
    },
    #[error("the field {field} is missing; send image, width and height in one form")]
    MissingField {
        /// The first such field, in the order image, width, height.
        field: &'static str,
    },
    #[error("the field {field} is empty; send a value for it")]
    EmptyField {
        /// The first such field, in the order image, width, height.
        field: &'static str,
    },
    /// A width or height that is no size.
    #[error(
        "the field {field} is \"{shown}\"; send a whole number from 1 to {MAX_TARGET_PIXELS} in decimal digits"
    )]
    NumberOutOfRange {
        /// Width or height.
        field: &'static str,
        /// The beginning of the value, in visible ASCII.
        shown: String,
    },
    /// The image is over the limit; the rest of it was not read.
    #[error("the image has more than {max} bytes; send a smaller file")]
    ImageTooLarge { max: usize },
    /// The head declares a body over the limit, which only an image over the limit is likely to be.
    #[error(
        "the request declares a body of {declared} bytes; the image may have at most {max_image}; send a smaller file"
    )]
    DeclaredTooLarge {
        /// The declared length, as written.
        declared: u64,
        max_image: usize,
    },
    /// The body is over the limit, though the image is not; the rest of it was not read.
    #[error("the request body has more than {max} bytes; send nothing but image, width and height")]
    BodyTooLarge { max: usize },
    /// A side of the picture is over the limit.
    #[error("the image is {width} x {height} pixels; send one with at most {MAX_SIDE_PIXELS} pixels a side")]
    ResolutionTooHigh { width: usize, height: usize },
    /// The image is in none of the formats.
    #[error("the image is not a JPEG, PNG, BMP or WebP file by its first bytes; convert it to one of these")]
    UnsupportedFile,
    /// The image's size cannot be read from its header.
    #[error("the header of the image cannot be read; check that the file is complete and opens in a viewer")]
    UnreadableHeader,
    /// The body came too slowly.
    #[error("the request body did not arrive in time; send it again over a faster connection")]
    BodyTimeout,
    /// There is no room for the image, in memory or on the disk; the rest of it was not read.
    #[error(
        "more is being uploaded at the moment than there is room for; send the request again in a moment"
    )]
    NoRoom,
    /// The body broke off: the client hung up, or its framing was wrong.
    #[error(
        "the request body broke off before its end, or its chunks are malformed or shorter than 64 bytes on \
         average; send the request again"
    )]
    Body(#[source] BoxError),
}

impl From<NoRoom> for RequestError {
    fn from(_: NoRoom) -> Self {
        Self::NoRoom
    }
}

impl RequestError {
    /// What was written to a spill file cannot be read.
    fn unreadable(error: std::io::Error) -> Self {
        tracing::error!(%error, "an upload cannot be read back from its file");
        Self::NoRoom
    }
}

/// An error of the body's source.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// What a body's error is, or is caused by, when its time ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the request body did not arrive in time")]
pub struct BodyTooSlow;

/// Decides by the head alone whether the body is worth reading.
pub fn check_head(
    operation: &'static Operation,
    headers: &HeaderMap,
    limits: &RequestLimits,
) -> Result<FormHead, RequestError> {
    let is_coding = |coding: &&[u8]| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity");
    let codings =
        headers.get_all(CONTENT_ENCODING).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    if let Some(coding) = codings.map(trim).find(is_coding) {
        return Err(RequestError::Encoded { shown: visible(coding, MAX_SHOWN) });
    }
    let boundary = content_type(headers).and_then(Boundary::parse).map_err(RequestError::NotMultipart)?;
    // A length that cannot be read is the server's to refuse; here it only means counting.
    let declared: Option<u64> =
        headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
    let declared_bytes = match declared.map(|declared| (declared, usize::try_from(declared))) {
        None => None,
        Some((_, Ok(bytes))) if bytes <= limits.max_body_bytes() => Some(bytes),
        Some((declared, _)) => {
            return Err(RequestError::DeclaredTooLarge { declared, max_image: limits.max_image_bytes });
        }
    };
    Ok(FormHead { operation, boundary, declared_bytes, limits: *limits })
}

fn content_type(headers: &HeaderMap) -> Result<&[u8], ContentTypeError> {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let value = values.next().ok_or(ContentTypeError::Absent)?;
    if values.next().is_some() { Err(ContentTypeError::Repeated) } else { Ok(value.as_bytes()) }
}

/// Reads a body to its end, or to the first thing that refuses it.
///
/// What is wrong with a complete body is reported in a fixed order, whatever the order of the
/// fields: its framing, a repeated field, a missing one, an empty one, a number, the image. Only a
/// limit cuts this short, or the want of `room`. Cancelling is safe: nothing has happened yet.
///
/// # Errors
/// [`RequestError`]; the rest of the body is then unread.
pub async fn read<B>(head: FormHead, body: B, room: &UploadRoom) -> Result<CropRequest, RequestError>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let max = head.limits.max_body_bytes();
    let mut left = max;
    let mut parser = Parser::new(&head.boundary);
    let mut form = Form::new(&head, room.clone());
    let mut body = pin!(body);
    while let Some(frame) = body.as_mut().frame().await {
        let frame = frame.map_err(|error| body_error(error.into(), max))?;
        let Ok(bytes) = frame.into_data() else { continue };
        // Up to the limit first, so that what is refused does not depend on how the bytes were cut.
        let within = bytes.len().min(left);
        parser.feed(&bytes[..within], &mut |event| form.take(event))?;
        if within < bytes.len() {
            return Err(RequestError::BodyTooLarge { max });
        }
        left -= within;
        // It may take a while until the form lets go of its copy.
        drop(bytes);
        form.settle().await?;
    }
    parser.finish(&mut |event| form.take(event))?;
    form.finish().await
}

/// Layers wrap each other's errors, so the cause may lie deeper.
fn body_error(error: BoxError, max: usize) -> RequestError {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&*error);
    while let Some(error) = cause {
        if error.is::<BodyTooSlow>() {
            return RequestError::BodyTimeout;
        }
        if error.is::<LengthLimitError>() {
            return RequestError::BodyTooLarge { max };
        }
        // An I/O error's source is that of the error inside it, which would be passed over.
        let inside = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause = inside.map(|inside| inside as &(dyn Error + 'static)).or_else(|| error.source());
    }
    RequestError::Body(error)
}
