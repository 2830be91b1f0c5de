//! Walks a PNG file's chunks (W3C PNG, third edition, chapters 5 and 11).

use std::borrow::Cow;
use std::io::{self, Read};

use flate2::read::ZlibDecoder;

use super::{Bytes, Container, Header};
use crate::CropError;

const SIGNATURE_LENGTH: usize = 8;
/// Length, type and checksum of a chunk, without its data.
const CHUNK_FRAME: usize = 12;

/// Reads size and completeness, and refuses grey, alpha and animation.
///
/// A palette without transparency counts as RGB, whatever its colours. RGB or a palette with a
/// `tRNS` chunk has transparency; a single transparent colour is enough.
pub(super) fn walk(data: &[u8]) -> Result<Header, CropError> {
    let bytes = Bytes(data);
    let mut at = SIGNATURE_LENGTH;
    if bytes.len() < at + CHUNK_FRAME + 13 {
        return Err(CropError::truncated(Container::Png));
    }
    if bytes.array(at + 4) != Some(*b"IHDR") || bytes.u32_be(at) != Some(13) {
        return Err(undecodable("its header chunk is missing"));
    }
    let (width, height) = (bytes.u32_be(at + 8).unwrap_or(0), bytes.u32_be(at + 12).unwrap_or(0));
    let format = Container::Png.name();
    match bytes.u8(at + 17) {
        Some(0 | 4) => return Err(CropError::Greyscale { format }),
        Some(2 | 3) => {}
        Some(6) => return Err(CropError::Alpha { format }),
        _ => return Err(undecodable("its colour type does not exist")),
    }
    let mut has_data = false;
    let complete = loop {
        let (Some(length), Some(kind)) = (bytes.u32_be(at), bytes.array::<4>(at + 4)) else {
            break false;
        };
        match &kind {
            b"tRNS" => return Err(CropError::Alpha { format }),
            b"acTL" => return Err(CropError::Animated { format }),
            b"IDAT" => has_data = true,
            _ => {}
        }
        let Some(next) = at
            .checked_add(CHUNK_FRAME)
            .and_then(|end| end.checked_add(length as usize))
            .filter(|&end| end <= bytes.len())
        else {
            break false;
        };
        if &kind == b"IEND" {
            break true;
        }
        at = next;
    };
    if complete && !has_data {
        return Err(undecodable("it has no picture data"));
    }
    Ok(Header { width, height, complete })
}

/// Leaves out ICC profiles that inflate to more than `max` bytes, which some kilobytes of a file can do; the decoder would
/// inflate them whole.
pub(crate) fn without_large_profiles(data: &[u8], max: u64) -> Cow<'_, [u8]> {
    let bytes = Bytes(data);
    let (mut at, mut kept_until, mut kept) = (SIGNATURE_LENGTH, 0, Vec::new());
    while let (Some(length), Some(kind)) = (bytes.u32_be(at), bytes.array::<4>(at + 4))
        && &kind != b"IDAT"
        && let Some(end) = at.checked_add(CHUNK_FRAME + length as usize)
        && let Some(chunk) = data.get(at + 8..end.saturating_sub(4))
    {
        // A name, a zero byte, the compression method, and the profile.
        let name_end = chunk.iter().take(80).position(|byte| *byte == 0);
        let profile = name_end.and_then(|end| chunk.get(end + 2..)).unwrap_or_default();
        if &kind == b"iCCP" && is_longer(ZlibDecoder::new(profile), max) {
            kept.extend_from_slice(&data[kept_until..at]);
            kept_until = end;
        }
        at = end;
    }
    if kept_until == 0 {
        return Cow::Borrowed(data);
    }
    kept.extend_from_slice(&data[kept_until..]);
    Cow::Owned(kept)
}

fn is_longer(source: impl Read, max: u64) -> bool {
    io::copy(&mut source.take(max + 1), &mut io::sink()).is_ok_and(|length| length > max)
}

fn undecodable(reason: &str) -> CropError {
    CropError::undecodable(Container::Png, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of these chunks. Checksums are left to the decoder, so any four bytes do here.
    fn file(colour_type: u8, chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
        let mut data = b"\x89PNG\r\n\x1a\n".to_vec();
        let header = [0, 0, 0, 30, 0, 0, 0, 20, 8, colour_type, 0, 0, 0];
        for (kind, body) in std::iter::once(&(b"IHDR", header.as_slice())).chain(chunks) {
            data.extend((body.len() as u32).to_be_bytes());
            data.extend(*kind);
            data.extend(*body);
            data.extend([0; 4]);
        }
        data
    }

    fn check(colour_type: u8, chunks: &[(&[u8; 4], &[u8])], expected: Result<(), CropError>) {
        let walked = walk(&file(colour_type, chunks)).map(|header| assert!(header.complete));
        assert_eq!(walked, expected, "colour type {colour_type}");
    }

    const IDAT: (&[u8; 4], &[u8]) = (b"IDAT", b"pixels");
    const IEND: (&[u8; 4], &[u8]) = (b"IEND", b"");

    #[test]
    fn the_colour_type_decides() {
        let format = "PNG";
        check(0, &[IDAT, IEND], Err(CropError::Greyscale { format }));
        check(2, &[IDAT, IEND], Ok(()));
        check(3, &[(b"PLTE", b"abc"), IDAT, IEND], Ok(()));
        check(4, &[IDAT, IEND], Err(CropError::Greyscale { format }));
        check(6, &[IDAT, IEND], Err(CropError::Alpha { format }));
    }

    #[test]
    fn a_transparent_colour_is_alpha_and_a_control_chunk_is_animation() {
        let format = "PNG";
        let transparent = (b"tRNS", &[0_u8, 1, 0, 1, 0, 1][..]);
        let animated = (b"acTL", &[0_u8; 8][..]);
        check(2, &[transparent, IDAT, IEND], Err(CropError::Alpha { format }));
        check(3, &[transparent, IDAT, IEND], Err(CropError::Alpha { format }));
        check(2, &[animated, IDAT, IEND], Err(CropError::Animated { format }));
    }

    #[test]
    fn every_cut_is_noticed() {
        let data = file(2, &[IDAT, IEND]);
        for length in 8..data.len() {
            match walk(&data[..length]) {
                Ok(header) => assert!(!header.complete, "cut at {length}"),
                Err(error) => assert_eq!(error, CropError::truncated(Container::Png)),
            }
        }
    }
}
