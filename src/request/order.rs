//! What is bought for a request.

use crate::base::operation::Operation;
use crate::base::picture::ImageFormat;
use crate::request::uploads::Picture;

/// What is bought: exactly what the key is made of, and nothing else of the client's request.
#[derive(Clone)]
pub struct Order {
    /// What is to be done with the picture.
    pub operation: &'static Operation,
    /// The picture's bytes, wherever they are.
    pub image: Picture,
    pub format: ImageFormat,
    /// Target width in pixels, 1 to 65535.
    pub width: u32,
    /// Target height in pixels, 1 to 65535.
    pub height: u32,
}
