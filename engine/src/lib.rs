//! Content-aware image cropping: finds the main subject and keeps it.
//!
//! One function, [`crop`]: bytes of a picture in, bytes of a picture of exactly the asked size out.
//! It is pure: no I/O, no clock, no randomness, no threads, and the same bytes in give the same
//! bytes out. It blocks for tens of milliseconds, so an asynchronous caller runs it on a thread
//! of its own; it never allocates more than a few copies of a 2000 x 2000 picture.
//!
//! The way of a picture:
//!
//! 1. `sniff` reads the container by hand: format, size, colour kind, whether the file is whole.
//!    What the service we stand in for refuses is refused here, before a pixel is decoded.
//! 2. `decode` makes upright 8-bit RGB of it, within limits.
//! 3. `saliency` says how much each part of a thumbnail matters, and `window` picks the largest
//!    window of the target's shape that keeps what matters.
//! 4. `render` scales that window to the target (up or down) and encodes it.
//!
//! Input rules follow the documentation of the cropping service: JPEG, PNG, BMP or WebP, three
//! channels of colour, no side over [`MAX_SIDE`], targets within [`MIN_TARGET`]..=[`MAX_TARGET`].
//! The size of the file in bytes is the caller's to limit.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod decode;
mod error;
mod plane;
mod render;
mod resize;
mod saliency;
mod sniff;
mod window;

pub use error::{CropError, TargetSide};

/// The longest side accepted in a source picture, in pixels.
pub const MAX_SIDE: u32 = 2000;
/// The smallest width or height that may be asked for, in pixels.
pub const MIN_TARGET: u32 = 10;
/// The largest width or height that may be asked for, in pixels.
pub const MAX_TARGET: u32 = 2000;

/// What [`crop`] makes of a picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crop {
    /// The encoded picture, exactly as wide and as high as was asked.
    pub bytes: Vec<u8>,
    /// How `bytes` are encoded: as the source was, except that BMP becomes PNG.
    pub format: Format,
    /// Where the source's picture lies in the new one.
    pub retain_location: RetainLocation,
}

/// The encodings [`crop`] can answer in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// JPEG, at a quality of 92 of 100.
    Jpeg,
    /// PNG, 8-bit RGB.
    Png,
    /// WebP, lossless.
    Webp,
}

impl Format {
    /// Names the media type, for a `Content-Type` header.
    pub fn media_type(self) -> &'static str {
        match self {
            Format::Jpeg => "image/jpeg",
            Format::Png => "image/png",
            Format::Webp => "image/webp",
        }
    }

    /// Names the usual file extension, without a dot.
    pub fn extension(self) -> &'static str {
        match self {
            Format::Jpeg => "jpg",
            Format::Png => "png",
            Format::Webp => "webp",
        }
    }
}

/// The rectangle that the whole source picture takes up, in pixels of the new picture.
///
/// The source (upright, after its EXIF orientation) is scaled by one factor until it covers the
/// target, then cut. So one of `width` and `height` equals the target's and the other is at least
/// the target's; `x` and `y` are zero or negative; `x + width` and `y + height` reach at least to
/// the target's far edges. For a source of 1600x900 and a target of 400x400 with the subject in
/// the middle: width 711, height 400, x -156, y 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RetainLocation {
    /// Width of the whole scaled source.
    pub width: u32,
    /// Height of the whole scaled source.
    pub height: u32,
    /// Left edge of the scaled source: zero, or negative where its left was cut away.
    pub x: i32,
    /// Upper edge of the scaled source: zero, or negative where its top was cut away.
    pub y: i32,
}

/// Crops a picture to exactly `width` x `height` pixels around its main subject.
///
/// `image` is a whole JPEG, PNG, BMP or WebP file. An ICC profile is carried over, other metadata
/// is not (so no place or camera leaks into a picture that will be published).
///
/// # Errors
///
/// See [`CropError`], whose variants name the code of the service they stand for. All of them
/// but [`CropError::Internal`] are the doing of whoever sent the picture, and the same picture
/// will fail the same way again.
pub fn crop(image: &[u8], width: u32, height: u32) -> Result<Crop, CropError> {
    for (side, value) in [(TargetSide::Width, width), (TargetSide::Height, height)] {
        if !(MIN_TARGET..=MAX_TARGET).contains(&value) {
            return Err(CropError::InvalidTarget { side, value });
        }
    }
    let source = decode::decode(image)?;
    let placement = window::place(&source.pixels, width, height)?;
    let bytes = render::render(&source, placement, width, height)?;
    Ok(Crop { bytes, format: source.format.output(), retain_location: placement })
}
