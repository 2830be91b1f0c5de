//! Format, size and end of a picture file, without decoding pixels.

mod end;
mod header;
#[cfg(test)]
mod tests;

pub use self::header::Source;
use crate::base::key::Digest;
use crate::base::words::words;

words! {
    /// By file name extension.
    #[derive(Hash)]
    pub enum ImageFormat {
        Jpeg = "jpg",
        Png = "png",
        /// Lossy or lossless.
        Webp = "webp",
        Bmp = "bmp",
    }
}

impl ImageFormat {
    /// By the first bytes.
    pub fn sniff(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0xFF, 0xD8, 0xFF, ..] => Some(Self::Jpeg),
            [0x89, b'P', b'N', b'G', 0x0D, 0x0A, 0x1A, 0x0A, ..] => Some(Self::Png),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Self::Webp),
            [b'B', b'M', ..] => Some(Self::Bmp),
            _ => None,
        }
    }

    /// See [`dimensions`]. Takes microseconds, and a fraction of a millisecond for a file made to be slow.
    pub fn dimensions(self, file: &(impl Source + ?Sized)) -> Option<(usize, usize)> {
        let (width, height) = match self {
            Self::Jpeg => header::jpeg(file),
            Self::Png => header::png(file),
            Self::Webp => header::webp(file),
            Self::Bmp => header::bmp(file),
        }?;
        (width > 0 && height > 0).then_some((width as usize, height as usize))
    }

    /// The file name extension, without a dot.
    pub fn extension(self) -> &'static str {
        self.as_str()
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::Jpeg => "image/jpeg",
            Self::Png => "image/png",
            Self::Webp => "image/webp",
            Self::Bmp => "image/bmp",
        }
    }
}

/// Width and height in pixels, before any EXIF orientation; `None` when no decoder could read them, or one is
/// 0.
pub fn dimensions(bytes: &[u8]) -> Option<(usize, usize)> {
    ImageFormat::sniff(bytes)?.dimensions(bytes)
}

/// The byte after the end mark, behind which vendors append padding, labels and pictures; `None` when the
/// picture is cut short or of an unknown format. Takes less than a millisecond per MiB.
pub fn end(bytes: &[u8]) -> Option<usize> {
    match ImageFormat::sniff(bytes)? {
        ImageFormat::Jpeg => end::jpeg(bytes),
        ImageFormat::Png => end::png(bytes),
        ImageFormat::Webp => end::webp(bytes),
        ImageFormat::Bmp => end::bmp(bytes),
    }
}

/// `{digest}.{ext}`: no text of a client or an upstream is part of the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ObjectName {
    pub digest: Digest,
    pub format: ImageFormat,
}

impl ObjectName {
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
        Some(Self { digest: digest.parse().ok()?, format: extension.parse().ok()? })
    }
}
