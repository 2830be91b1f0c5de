//! Scales pixels; the one place that knows the resizing library.
//!
//! The library is called for the one kind of pixel there is here. Its entry for any kind brings in
//! all of them, with every vector instruction set, and takes many times as long to compile.

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;

pub(crate) use fast_image_resize::FilterType;

use crate::CropError;

/// A rectangle of a source picture, in its pixels; it may end inside them, but not outside.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Window {
    pub(crate) left: f64,
    pub(crate) top: f64,
    pub(crate) width: f64,
    pub(crate) height: f64,
}

/// Scales a window of a picture to `width` x `height`.
pub(crate) fn resize(
    source: &RgbImage,
    window: Window,
    width: u32,
    height: u32,
    filter: FilterType,
) -> Result<RgbImage, CropError> {
    let mut scaled = RgbImage::new(width, height);
    let from = TypedImageRef::<U8x3>::from_buffer(source.width(), source.height(), source)
        .map_err(CropError::internal)?;
    let mut to = TypedImage::<U8x3>::from_buffer(width, height, &mut scaled).map_err(CropError::internal)?;
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter)).crop(
        window.left,
        window.top,
        window.width,
        window.height,
    );
    Resizer::new().resize_typed(&from, &mut to, &options).map_err(CropError::internal)?;
    Ok(scaled)
}

impl Window {
    /// The whole of a picture.
    pub(crate) fn all(source: &RgbImage) -> Self {
        Window { left: 0.0, top: 0.0, width: source.width().into(), height: source.height().into() }
    }
}
