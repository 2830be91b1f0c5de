//! The built-in upstream: our own crop engine, for running without an account. It answers in the upstream's
//! envelope, with the result as a `data:` URL, so that a crash between answer and store loses nothing.
//! Credits are counted as if they were real.

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use granary_engine::{Crop, CropError};
use http::StatusCode;
use serde_json::json;
use tokio::sync::Semaphore;

use super::{ErrorReply, HeldCall, NotSent, Opened, Refusal, RefusalKind, Reply, UnknownCause, Upstream};
use crate::base::envelope::Answer;
use crate::base::operation::IMAGE_CROPPING;
use crate::base::picture::ObjectName;
use crate::base::secret::Secret;
use crate::request::Order;
use crate::upstream::code::{self, Code, error_envelope};
use crate::upstream::download::{FetchError, Fetched, ResultSource};

const INLINE: &str = "data:image/";

pub struct BuiltinUpstream {
    /// More crops at once than cores would only cost memory.
    turns: Arc<Semaphore>,
}

impl BuiltinUpstream {
    pub fn new(crops_at_once: usize) -> Self {
        Self { turns: Arc::new(Semaphore::new(crops_at_once)) }
    }
}

#[async_trait]
impl Upstream for BuiltinUpstream {
    async fn open(&self, order: Arc<Order>) -> Result<Opened, NotSent> {
        Ok(Opened::Held(Box::new(BuiltinCall { order, turns: self.turns.clone() })))
    }
}

struct BuiltinCall {
    order: Arc<Order>,
    turns: Arc<Semaphore>,
}

#[async_trait]
impl HeldCall for BuiltinCall {
    async fn send(self: Box<Self>) -> Reply {
        let Self { order, turns } = *self;
        let _turn = turns.acquire_owned().await.expect("the semaphore is never closed");
        let cropped = tokio::task::spawn_blocking(move || {
            let image = order.image.whole()?;
            Ok::<_, std::io::Error>(granary_engine::crop(&image, order.width, order.height))
        })
        .await;
        match cropped {
            Ok(Ok(Ok(crop))) => answer(&crop),
            Ok(Ok(Err(error))) => refusal(&error),
            Ok(Err(error)) => Reply::NotSent(NotSent::Picture(error.to_string())),
            Err(panic) => {
                tracing::error!(%panic, "the crop engine panicked");
                Reply::Unknown(UnknownCause::Died)
            }
        }
    }
}

fn answer(crop: &Crop) -> Reply {
    let retained = crop.retain_location;
    let subtype = match crop.format {
        granary_engine::Format::Jpeg => "jpeg",
        granary_engine::Format::Png => "png",
        granary_engine::Format::Webp => "webp",
    };
    let text = json!({
        "request_id": request_id(),
        "log_id": "0",
        "error_code": 0,
        "error_msg": "",
        "error_detail": {"status_code": 200, "code": "", "code_message": "", "message": ""},
        "data": {
            "url": format!("{INLINE}{subtype};base64,{}", STANDARD.encode(&crop.bytes)),
            "retain_location": {"width": retained.width, "height": retained.height, "x": retained.x, "y": retained.y},
        },
    });
    match Answer::read(&text.to_string(), &IMAGE_CROPPING) {
        Ok(answer) => Reply::Answered(answer),
        Err(_) => Reply::Unknown(UnknownCause::Garbage),
    }
}

/// The service's documented input rules.
fn refusal(error: &CropError) -> Reply {
    let (status, code) = row(error);
    let message = format!("{} - {error}", code.text);
    let mut body = error_envelope(status, code.name, code.text, &message);
    body["request_id"] = request_id().into();
    body["log_id"] = "0".into();
    let reply = ErrorReply { status, body: Some(Bytes::from(body.to_string())), code: code.name.to_owned() };
    match status {
        StatusCode::INTERNAL_SERVER_ERROR => Reply::Failed(reply),
        _ => Reply::Refused(Refusal { kind: RefusalKind::Order, reply }),
    }
}

fn row(error: &CropError) -> (StatusCode, Code) {
    match error {
        CropError::InvalidTarget { .. } => (StatusCode::BAD_REQUEST, code::ERROR_INVALID_PARAMETER),
        CropError::UnknownFormat
        | CropError::UnsupportedKind { .. }
        | CropError::Animated { .. }
        | CropError::Alpha { .. }
        | CropError::Cmyk => (StatusCode::UNSUPPORTED_MEDIA_TYPE, code::UNSUPPORTED_FILE_TYPES),
        CropError::Greyscale { .. } => {
            (StatusCode::UNSUPPORTED_MEDIA_TYPE, code::ERROR_UNSUPPORTED_GRAYSCALE_IMAGE)
        }
        CropError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, code::FILE_RESOLUTION_EXCEEDS_LIMITS),
        CropError::Truncated { .. } | CropError::Undecodable { .. } => {
            (StatusCode::UNPROCESSABLE_ENTITY, code::FILE_DECODING_FAILURE)
        }
        CropError::Internal { .. } => (StatusCode::INTERNAL_SERVER_ERROR, code::PROCESSING_FAILURE),
    }
}

fn request_id() -> String {
    uuid::Uuid::new_v4().to_string().to_uppercase()
}

/// Reads results out of the answers of [`BuiltinUpstream`].
pub struct InlineResults;

#[async_trait]
impl ResultSource for InlineResults {
    async fn fetch(&self, url: &Secret) -> Result<Fetched, FetchError> {
        let inline = url.expose().strip_prefix(INLINE).and_then(|rest| rest.split_once(";base64,"));
        let (_, encoded) =
            inline.ok_or(FetchError::NotAllowed("the built-in engine's results are data: URLs"))?;
        let bytes = STANDARD.decode(encoded).map_err(|_| FetchError::Dead("not base64".to_owned()))?;
        let name = ObjectName::of(&bytes).ok_or(FetchError::NotPicture)?;
        Ok(Fetched { name, bytes: bytes.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::upstream_contract::{UpstreamFixture, upstream_contract};

    struct Fixture;

    #[async_trait]
    impl UpstreamFixture for Fixture {
        fn upstream(&self) -> Arc<dyn Upstream> {
            Arc::new(BuiltinUpstream::new(2))
        }

        fn results(&self) -> Arc<dyn ResultSource> {
            Arc::new(InlineResults)
        }

        async fn charges(&self) -> Option<u64> {
            None
        }
    }

    upstream_contract!(async { Fixture });
}
