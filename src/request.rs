//! Reads a client's request into a [`CropRequest`]: what to buy, and its key. [`check_head`] refuses what it can
//! before the body is read; [`read`] reads the body once, hashes the image while it arrives, and keeps nothing beyond
//! a limit; without memory, [`uploads`] writes to a file. What is keyed is what is forwarded: the client's names,
//! part headers and spellings end here. No picture is decoded. `error` has the status and code for each
//! [`RequestError`].

pub mod body;
mod form;
pub mod framing;
mod image;
pub mod multipart;
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
use crate::base::picture::ImageFormat;
use crate::request::multipart::{Boundary, Broken, ContentTypeError, Parser, trim};
use crate::request::uploads::{NoRoom, Picture, UploadRoom};
use form::{Form, MAX_SHOWN, visible};

/// The upstream's limit on the sides of a picture.
pub const MAX_SIDE_PIXELS: usize = 2000;
/// The largest width or height of a result.
pub const MAX_TARGET_PIXELS: u32 = 65_535;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestLimits {
    /// By default the upstream's limit, 3.5 MiB.
    pub max_image_bytes: usize,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self { max_image_bytes: 3_670_016 }
    }
}

impl RequestLimits {
    /// Bytes of a form besides the image.
    const OTHER_BYTES: usize = 16 * 1024;

    pub fn max_body_bytes(&self) -> usize {
        self.max_image_bytes.saturating_add(Self::OTHER_BYTES)
    }
}

/// A known field of the form. Its name is the operation's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Field {
    Image,
    Width,
    Height,
}

impl Field {
    /// In the order in which errors name them.
    const ALL: [Self; 3] = [Self::Image, Self::Width, Self::Height];
}

/// What is bought: exactly what the key is made of.
#[derive(Clone)]
pub struct Order {
    pub operation: &'static Operation,
    pub image: Picture,
    pub format: ImageFormat,
    /// Pixels, 1 to 65535; so is `height`.
    pub width: u32,
    pub height: u32,
}

pub struct CropRequest {
    pub order: Order,
    pub key: CacheKey,
    /// BLAKE3 of the image alone.
    pub image_digest: Digest,
    /// Names of unknown fields, each once, in visible ASCII; `?` for one without a name.
    pub ignored: Vec<String>,
}

/// An accepted head.
#[derive(Debug, Clone)]
pub struct FormHead {
    operation: &'static Operation,
    boundary: Boundary,
    limits: RequestLimits,
}

/// The texts are shown to the client. A `field` is the first one, in the order image, width, height.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("{0}")]
    NotMultipart(ContentTypeError),
    #[error(
        "the request body has the Content-Encoding \"{shown}\"; send it as it is, pictures do not get smaller"
    )]
    Encoded { shown: String },
    #[error("the multipart body cannot be read: {0}; let the HTTP library write the body")]
    BrokenMultipart(#[from] Broken),
    #[error("the field {field} occurs more than once; send exactly one")]
    DuplicateField { field: &'static str },
    #[error("the field {field} is missing; send image, width and height in one form")]
    MissingField { field: &'static str },
    #[error("the field {field} is empty; send a value for it")]
    EmptyField { field: &'static str },
    #[error(
        "the field {field} is \"{shown}\"; send a whole number from 1 to {MAX_TARGET_PIXELS} in decimal digits"
    )]
    NumberOutOfRange { field: &'static str, shown: String },
    #[error("the image has more than {max} bytes; send a smaller file")]
    ImageTooLarge { max: usize },
    #[error(
        "the request declares a body of {declared} bytes; the image may have at most {max_image}; send a smaller file"
    )]
    DeclaredTooLarge { declared: u64, max_image: usize },
    #[error("the request body has more than {max} bytes; send nothing but image, width and height")]
    BodyTooLarge { max: usize },
    #[error("the image is {width} x {height} pixels; send one with at most {MAX_SIDE_PIXELS} pixels a side")]
    ResolutionTooHigh { width: usize, height: usize },
    #[error("the image is not a JPEG, PNG, BMP or WebP file by its first bytes; convert it to one of these")]
    UnsupportedFile,
    #[error("the header of the image cannot be read; check that the file is complete and opens in a viewer")]
    UnreadableHeader,
    #[error("the request body did not arrive in time; send it again over a faster connection")]
    BodyTimeout,
    #[error(
        "more is being uploaded at the moment than there is room for; send the request again in a moment"
    )]
    NoRoom,
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

pub type BoxError = Box<dyn Error + Send + Sync>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the request body did not arrive in time")]
pub struct BodyTooSlow;

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
    // The server refuses a length that cannot be read; here the bytes are counted.
    let declared: Option<u64> =
        headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
    if let Some(declared) = declared.filter(|declared| *declared > limits.max_body_bytes() as u64) {
        return Err(RequestError::DeclaredTooLarge { declared, max_image: limits.max_image_bytes });
    }
    Ok(FormHead { operation, boundary, limits: *limits })
}

fn content_type(headers: &HeaderMap) -> Result<&[u8], ContentTypeError> {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let value = values.next().ok_or(ContentTypeError::Absent)?;
    if values.next().is_some() { Err(ContentTypeError::Repeated) } else { Ok(value.as_bytes()) }
}

/// Reads a body to its end, or to its first error. May be cancelled.
///
/// Errors of a complete body have a fixed order, independent of the order of the fields: framing, a repeated
/// field, a missing one, an empty one, a number, the image. Only a limit or lack of `room` comes first.
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
        // Up to the limit first, so that the error does not depend on how the bytes were cut.
        let within = bytes.len().min(left);
        parser.feed(&bytes[..within], &mut |event| form.take(event))?;
        if within < bytes.len() {
            return Err(RequestError::BodyTooLarge { max });
        }
        left -= within;
        // The form has its copy, and may wait for the disk.
        drop(bytes);
        form.settle().await?;
    }
    parser.finish(&mut |event| form.take(event))?;
    form.finish().await
}

/// Layers wrap each other's errors, so the whole chain is searched.
fn body_error(error: BoxError, max: usize) -> RequestError {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&*error);
    while let Some(error) = cause {
        if error.is::<BodyTooSlow>() {
            return RequestError::BodyTimeout;
        }
        if error.is::<LengthLimitError>() {
            return RequestError::BodyTooLarge { max };
        }
        // `source` of an I/O error would skip the error inside it.
        let inside = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause = inside.map(|inside| inside as &(dyn Error + 'static)).or_else(|| error.source());
    }
    RequestError::Body(error)
}
