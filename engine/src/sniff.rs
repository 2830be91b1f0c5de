//! Reads what a picture file declares about itself, without decoding it.
//!
//! The `image` crate hides what the input rules need: it turns CMYK into RGB unasked, and decodes
//! a JPEG cut to a third without complaint. So each container is walked here by hand, marker by
//! marker or chunk by chunk. The walkers index nothing unchecked and take time in proportion to
//! the file; they say what a file claims, and the decoder finds out whether the claim is true.
//!
//! Of several faults the first of these is reported: colour kind, size, cut short.

mod bmp;
mod jpeg;
mod png;
mod webp;

pub(crate) use self::png::without_large_profiles;
use crate::{CropError, Format, MAX_SIDE};

/// The file formats accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Container {
    Jpeg,
    Png,
    Bmp,
    Webp,
}

impl Container {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Container::Jpeg => "JPEG",
            Container::Png => "PNG",
            Container::Bmp => "BMP",
            Container::Webp => "WebP",
        }
    }

    /// Says which encoding the answer is in.
    pub(crate) fn output(self) -> Format {
        match self {
            Container::Jpeg => Format::Jpeg,
            Container::Png | Container::Bmp => Format::Png,
            Container::Webp => Format::Webp,
        }
    }

    /// Recognises a format by its first bytes; names and declared media types are not trusted.
    fn of(data: &[u8]) -> Option<Self> {
        if data.starts_with(&[0xFF, 0xD8, 0xFF]) {
            Some(Container::Jpeg)
        } else if data.starts_with(b"\x89PNG\r\n\x1a\n") {
            Some(Container::Png)
        } else if data.starts_with(b"BM") {
            Some(Container::Bmp)
        } else if data.starts_with(b"RIFF") && data.get(8..12) == Some(b"WEBP") {
            Some(Container::Webp)
        } else {
            None
        }
    }
}

/// What a walker learned of a file whose colour kind is acceptable.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    /// Size in pixels as stored, before any EXIF orientation.
    width: u32,
    height: u32,
    /// Whether the file goes on to the end of its picture.
    complete: bool,
}

/// Checks a file against the input rules and says which format it is in.
pub(crate) fn sniff(data: &[u8]) -> Result<Container, CropError> {
    let container = Container::of(data).ok_or(CropError::UnknownFormat)?;
    let header = match container {
        Container::Jpeg => jpeg::walk(data),
        Container::Png => png::walk(data),
        Container::Bmp => bmp::walk(data),
        Container::Webp => webp::walk(data),
    }?;
    if header.width > MAX_SIDE || header.height > MAX_SIDE {
        return Err(CropError::TooLarge { width: header.width, height: header.height });
    }
    if !header.complete {
        return Err(CropError::truncated(container));
    }
    if header.width == 0 || header.height == 0 {
        return Err(CropError::undecodable(container, "it has no pixels"));
    }
    Ok(container)
}

/// Reads numbers out of a file at any offset, `None` past its end.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn len(self) -> usize {
        self.0.len()
    }

    fn slice(self, at: usize, length: usize) -> Option<&'a [u8]> {
        self.0.get(at..at.checked_add(length)?)
    }

    fn array<const N: usize>(self, at: usize) -> Option<[u8; N]> {
        self.slice(at, N)?.try_into().ok()
    }

    fn u8(self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    fn u16_be(self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_be_bytes)
    }

    fn u32_be(self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_be_bytes)
    }

    fn u16_le(self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_le_bytes)
    }

    fn u32_le(self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    fn i32_le(self, at: usize) -> Option<i32> {
        self.array(at).map(i32::from_le_bytes)
    }
}
