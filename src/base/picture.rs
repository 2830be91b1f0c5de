//! What can be known of a picture without decoding it: its format and its size.
//!
//! Formats are decided by the bytes, never by a file name or a declared type. This module never
//! decodes pixels and never performs I/O; the crop engine does the former.

mod end;
mod header;
#[cfg(test)]
mod tests;

use crate::base::key::Digest;

/// A picture format the upstream accepts and results may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ImageFormat {
    /// JPEG, whatever the colour model.
    Jpeg,
    /// PNG.
    Png,
    /// WebP, lossy or lossless.
    Webp,
    /// Windows bitmap.
    Bmp,
}

impl ImageFormat {
    /// All formats, for tables and tests.
    pub const ALL: [Self; 4] = [Self::Jpeg, Self::Png, Self::Webp, Self::Bmp];

    /// Decides by the first bytes; `None` for anything else.
    pub fn sniff(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0xFF, 0xD8, 0xFF, ..] => Some(Self::Jpeg),
            [0x89, b'P', b'N', b'G', 0x0D, 0x0A, 0x1A, 0x0A, ..] => Some(Self::Png),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Self::Webp),
            [b'B', b'M', ..] => Some(Self::Bmp),
            _ => None,
        }
    }

    /// The file name extension, without a dot.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Jpeg => "jpg",
            Self::Png => "png",
            Self::Webp => "webp",
            Self::Bmp => "bmp",
        }
    }

    /// The format an extension stands for, as written by [`extension`](Self::extension).
    pub fn from_extension(extension: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.extension() == extension)
    }

    /// The media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Jpeg => "image/jpeg",
            Self::Png => "image/png",
            Self::Webp => "image/webp",
            Self::Bmp => "image/bmp",
        }
    }
}

/// Reads width and height in pixels from the header, before any EXIF orientation; neither is 0.
///
/// `None` when they cannot be read, which no decoder could make a picture of either. Takes
/// microseconds, and a fraction of a millisecond for a file made to be slow.
pub fn dimensions(bytes: &[u8]) -> Option<(usize, usize)> {
    let (width, height) = match ImageFormat::sniff(bytes)? {
        ImageFormat::Jpeg => header::jpeg(bytes),
        ImageFormat::Png => header::png(bytes),
        ImageFormat::Webp => header::webp(bytes),
        ImageFormat::Bmp => header::bmp(bytes),
    }?;
    (width > 0 && height > 0).then_some((width as usize, height as usize))
}

/// The byte after a picture's end mark; `None` when the picture is cut short, or is none we know.
///
/// What follows is not looked at: vendors pad, label, and append further pictures. Takes less than a
/// millisecond per MiB.
pub fn end(bytes: &[u8]) -> Option<usize> {
    match ImageFormat::sniff(bytes)? {
        ImageFormat::Jpeg => end::jpeg(bytes),
        ImageFormat::Png => end::png(bytes),
        ImageFormat::Webp => end::webp(bytes),
        ImageFormat::Bmp => end::bmp(bytes),
    }
}

/// The name of one result's bytes for ever: `{digest}.{ext}`.
///
/// The one place where names of results are made and read. Nothing of a client's or an upstream's
/// text becomes part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ObjectName {
    /// BLAKE3 of exactly the object's bytes.
    pub digest: Digest,
    /// The format of those bytes.
    pub format: ImageFormat,
}

impl ObjectName {
    /// Names a result by its bytes; `None` when they are not a picture we know.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        Some(Self { digest: Digest::of(bytes), format: ImageFormat::sniff(bytes)? })
    }

    /// The path below the public root, and the name in the store: `results/{digest}.{ext}`.
    pub fn path(&self) -> String {
        format!("results/{}.{}", self.digest, self.format.extension())
    }

    /// Reads `{digest}.{ext}`; `None` for any other spelling, so that no other name reaches a store.
    pub fn parse(file_name: &str) -> Option<Self> {
        let (digest, extension) = file_name.split_once('.')?;
        Some(Self { digest: digest.parse().ok()?, format: ImageFormat::from_extension(extension)? })
    }
}
