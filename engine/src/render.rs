//! Scales the chosen window to the target and encodes it.

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder, RgbImage};

use crate::decode::Source;
use crate::resize::{self, FilterType, Window};
use crate::{CropError, Format, RetainLocation};

/// High enough that a picture already compressed once shows no new damage.
const JPEG_QUALITY: u8 = 92;

/// Returns the encoded picture of `width` x `height` that `placement` describes.
pub(crate) fn render(
    source: &Source,
    placement: RetainLocation,
    width: u32,
    height: u32,
) -> Result<Vec<u8>, CropError> {
    let pixels = scale(&source.pixels, placement, width, height)?;
    let profile = source.colour_profile.as_deref();
    let mut bytes = Vec::new();
    match source.format.output() {
        Format::Jpeg => {
            let encoder = JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY);
            encode(encoder, &pixels, profile)?;
        }
        Format::Png => encode(PngEncoder::new(&mut bytes), &pixels, profile)?,
        Format::Webp => encode(WebPEncoder::new_lossless(&mut bytes), &pixels, profile)?,
    }
    Ok(bytes)
}

/// Cuts and scales in one step, with a Lanczos filter of three lobes.
fn scale(
    source: &RgbImage,
    placement: RetainLocation,
    width: u32,
    height: u32,
) -> Result<RgbImage, CropError> {
    let (left, window_width) = span(source.width(), placement.width, placement.x, width);
    let (top, window_height) = span(source.height(), placement.height, placement.y, height);
    let window = Window { left, top, width: window_width, height: window_height };
    resize::resize(source, window, width, height, FilterType::Lanczos3)
}

/// Returns start and length of the window along one axis, in source pixels.
fn span(source: u32, scaled: u32, offset: i32, target: u32) -> (f64, f64) {
    let ratio = f64::from(source) / f64::from(scaled);
    let length = (f64::from(target) * ratio).min(source.into());
    let mut start = (-f64::from(offset) * ratio).clamp(0.0, f64::from(source) - length);
    // Rounding may leave the far edge a hair outside, which the resizer refuses.
    while start > 0.0 && start + length > source.into() {
        start = start.next_down();
    }
    (start, length)
}

fn encode(
    mut encoder: impl ImageEncoder,
    pixels: &RgbImage,
    profile: Option<&[u8]>,
) -> Result<(), CropError> {
    if let Some(profile) = profile {
        encoder.set_icc_profile(profile.to_vec()).map_err(CropError::internal)?;
    }
    encoder
        .write_image(pixels, pixels.width(), pixels.height(), ExtendedColorType::Rgb8)
        .map_err(CropError::internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_never_leave_the_source() {
        for source in [1, 3, 640, 1999, 2000] {
            for target in [10, 11, 333, 2000] {
                for scaled in [target, target + 1, target * 3 + 1, 400_000] {
                    for offset in [0, -1, -7, target as i32 - scaled as i32] {
                        let offset = offset.max(target as i32 - scaled as i32);
                        let (start, length) = span(source, scaled, offset, target);
                        assert!(start >= 0.0 && length > 0.0);
                        assert!(start + length <= source.into(), "{source} {scaled} {offset}");
                    }
                }
            }
        }
    }
}
