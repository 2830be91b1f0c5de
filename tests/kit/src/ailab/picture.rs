//! The pictures the fake sells: real files of exactly the size that was paid for, different for every purchase.

use std::io::Cursor;

use image::{ImageFormat, Rgb, RgbImage};

/// The two formats results come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Jpeg,
    Png,
}

impl Format {
    /// What a crop of these bytes comes back as, or `None` if they are no picture the service takes.
    pub(crate) fn of_result(input: &[u8]) -> Option<Format> {
        match image::guess_format(input).ok()? {
            ImageFormat::Jpeg => Some(Format::Jpeg),
            ImageFormat::Png | ImageFormat::Bmp | ImageFormat::WebP => Some(Format::Png),
            _ => None,
        }
    }

    pub(crate) fn extension(self) -> &'static str {
        match self {
            Format::Jpeg => "jpg",
            Format::Png => "png",
        }
    }

    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Format::Jpeg => "image/jpeg",
            Format::Png => "image/png",
        }
    }
}

/// Draws purchase `number`: blocks of eight pixels in colours taken from a hash of the number,
/// so that two purchases differ everywhere, and after JPEG compression too. The same number always gives the same bytes.
pub(crate) fn draw(number: u64, width: u32, height: u32, format: Format) -> Vec<u8> {
    let (columns, rows) = (width.div_ceil(8) as usize, height.div_ceil(8) as usize);
    let mut colours = vec![0; columns * rows * 3];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut colours);
    let picture = RgbImage::from_fn(width, height, |x, y| {
        let block = ((y / 8) as usize * columns + (x / 8) as usize) * 3;
        Rgb([colours[block], colours[block + 1], colours[block + 2]])
    });
    let mut file = Cursor::new(Vec::new());
    let kind = match format {
        Format::Jpeg => ImageFormat::Jpeg,
        Format::Png => ImageFormat::Png,
    };
    picture.write_to(&mut file, kind).expect("writing to memory does not fail");
    file.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_its_size_and_its_number() {
        for format in [Format::Jpeg, Format::Png] {
            let one = draw(1, 37, 21, format);
            let decoded = image::load_from_memory(&one).unwrap();
            assert_eq!((decoded.width(), decoded.height()), (37, 21));
            assert_eq!(one, draw(1, 37, 21, format));
            assert_ne!(one, draw(2, 37, 21, format));
            assert_eq!(Format::of_result(&one), Some(format));
        }
    }
}
