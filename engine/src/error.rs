//! What can be wrong with a picture or with the size asked for, in words that say what to do.
//!
//! This crate knows no HTTP. Each variant's documentation names the status and code of the
//! cropping service that it stands for; the caller maps.

use std::fmt;

use thiserror::Error;

use crate::sniff::Container;
use crate::{MAX_SIDE, MAX_TARGET, MIN_TARGET};

/// Why [`crop`](crate::crop) refused.
///
/// Text is for the person who sent the picture. It never holds bytes of the picture.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CropError {
    /// A target outside [`MIN_TARGET`]..=[`MAX_TARGET`]. 400 `ERROR_INVALID_PARAMETER`.
    #[error("{side} is {value}, but must be {MIN_TARGET} to {MAX_TARGET} pixels")]
    InvalidTarget {
        /// Which of the two.
        side: TargetSide,
        /// What was asked.
        value: u32,
    },

    /// None of the four formats, by its first bytes. 415 `UNSUPPORTED_FILE_TYPES`.
    #[error("the file is not a JPEG, PNG, BMP or WebP picture; convert it to one of these")]
    UnknownFormat,

    /// One of the four formats, but a rare kind of it. 415 `UNSUPPORTED_FILE_TYPES`.
    #[error("this kind of {format} is not accepted ({kind}); save it as an ordinary 8-bit RGB {format}")]
    UnsupportedKind {
        /// Format by name, such as `JPEG`.
        format: &'static str,
        /// What is rare about it.
        kind: &'static str,
    },

    /// An animated PNG or WebP. 415 `UNSUPPORTED_FILE_TYPES`.
    #[error("the {format} is animated; send one still frame")]
    Animated {
        /// Format by name.
        format: &'static str,
    },

    /// An alpha channel or a transparent colour. 415 `UNSUPPORTED_FILE_TYPES`.
    ///
    /// Decided by what the file declares, even if every pixel is opaque. A BMP of 32 bits per
    /// pixel declares four channels.
    #[error(
        "the {format} has an alpha channel or a transparent colour, but only RGB with three channels is accepted; flatten it and save it without"
    )]
    Alpha {
        /// Format by name.
        format: &'static str,
    },

    /// A JPEG with four components (CMYK or YCCK). 415 `UNSUPPORTED_FILE_TYPES`.
    #[error("the JPEG is CMYK, but only RGB is accepted; convert it to RGB")]
    Cmyk,

    /// A greyscale picture. 415 `ERROR_UNSUPPORTED_GRAYSCALE_IMAGE`.
    ///
    /// Decided by what the file declares: a JPEG of one component, a PNG of a grey colour type
    /// (with or without alpha), a BMP whose palette holds nothing but greys. A picture stored as
    /// RGB that happens to look grey is accepted, as is a palette PNG.
    #[error("the {format} is greyscale, but only RGB is accepted; convert it to RGB")]
    Greyscale {
        /// Format by name.
        format: &'static str,
    },

    /// A side over [`MAX_SIDE`]. 413 `FILE_RESOLUTION_EXCEEDS_LIMITS`.
    #[error("the picture is {width}x{height}, but no side may exceed {MAX_SIDE} pixels; scale it down first")]
    TooLarge {
        /// Width the file declares, in pixels.
        width: u32,
        /// Height the file declares, in pixels.
        height: u32,
    },

    /// The file ends before its picture does. 422 `FILE_DECODING_FAILURE`.
    #[error("the {format} is cut short; send the whole file")]
    Truncated {
        /// Format by name.
        format: &'static str,
    },

    /// The file is damaged. 422 `FILE_DECODING_FAILURE`.
    #[error("the {format} cannot be decoded ({reason}); export it again")]
    Undecodable {
        /// Format by name.
        format: &'static str,
        /// What the decoder said.
        reason: String,
    },

    /// The engine failed on a picture that it had accepted. 500 `PROCESSING_FAILURE`.
    ///
    /// No input is known to cause this.
    #[error("the picture could not be processed ({reason})")]
    Internal {
        /// What failed.
        reason: String,
    },
}

/// Which of the two sizes asked for is meant; displays as the parameter's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TargetSide {
    /// The parameter `width`.
    Width,
    /// The parameter `height`.
    Height,
}

impl fmt::Display for TargetSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TargetSide::Width => "width",
            TargetSide::Height => "height",
        })
    }
}

impl CropError {
    pub(crate) fn undecodable(container: Container, reason: impl fmt::Display) -> Self {
        CropError::Undecodable { format: container.name(), reason: reason.to_string() }
    }

    pub(crate) fn truncated(container: Container) -> Self {
        CropError::Truncated { format: container.name() }
    }

    pub(crate) fn internal(reason: impl fmt::Display) -> Self {
        CropError::Internal { reason: reason.to_string() }
    }
}
