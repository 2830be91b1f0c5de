//! Makes upright 8-bit RGB pixels of a picture file, within limits of size and memory.

use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;
use image::codecs::jpeg::JpegDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageResult, Limits, RgbImage};

use crate::sniff::{self, Container};
use crate::{CropError, MAX_SIDE};

/// What decoders may allocate. The largest picture accepted takes 24 MB, at 16 bits per channel.
const MAX_ALLOCATION: u64 = 64 << 20;

/// Bytes of an ICC profile; the usual ones have some kilobytes, and larger ones are dropped.
const MAX_PROFILE: u64 = 1 << 20;

/// A decoded picture.
pub(crate) struct Source {
    pub(crate) format: Container,
    /// Upright, no side zero or over [`MAX_SIDE`].
    pub(crate) pixels: RgbImage,
    /// The ICC profile, if it is one for RGB and not too large.
    pub(crate) colour_profile: Option<Vec<u8>>,
}

/// Checks a file against the input rules and decodes it.
pub(crate) fn decode(data: &[u8]) -> Result<Source, CropError> {
    let format = sniff::sniff(data)?;
    read(format, data).map_err(|error| explain(format, &error))
}

fn read(format: Container, data: &[u8]) -> ImageResult<Source> {
    let input = Cursor::new(data);
    match format {
        Container::Jpeg => finish(format, JpegDecoder::new(input)?),
        Container::Png => {
            let data = sniff::without_large_profiles(data, MAX_PROFILE);
            finish(format, PngDecoder::with_limits(Cursor::new(data), limits())?)
        }
        Container::Bmp => finish(format, BmpDecoder::new(input)?),
        Container::Webp => finish(format, WebPDecoder::new(input)?),
    }
}

fn finish(format: Container, mut decoder: impl ImageDecoder) -> ImageResult<Source> {
    // Checks the size the decoder itself has read, before it makes room for pixels.
    decoder.set_limits(limits())?;
    let mut room = limits();
    room.reserve(decoder.total_bytes())?;
    // Damaged metadata is no reason to refuse a picture that can be shown.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let colour_profile = decoder.icc_profile().ok().flatten();
    let colour_profile =
        colour_profile.filter(|profile| profile.len() as u64 <= MAX_PROFILE && is_rgb_profile(profile));
    let mut pixels = DynamicImage::from_decoder(decoder)?;
    pixels.apply_orientation(orientation);
    Ok(Source { format, pixels: pixels.into_rgb8(), colour_profile })
}

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_ALLOCATION);
    limits
}

/// Says whether a profile's header (ICC.1:2022, 7.2) names RGB as its colour space.
fn is_rgb_profile(profile: &[u8]) -> bool {
    profile.get(16..20) == Some(b"RGB ")
}

/// Turns the decoder's complaint into ours. The text is about the file's structure only.
fn explain(format: Container, error: &ImageError) -> CropError {
    match error {
        ImageError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            CropError::truncated(format)
        }
        error => CropError::undecodable(format, error),
    }
}
