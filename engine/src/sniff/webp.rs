//! Walks a WebP file's chunks (RFC 9649).

use super::{Bytes, Container, Header};
use crate::CropError;

/// Flags of the extended header.
const HAS_ALPHA: u8 = 0x10;
const HAS_ANIMATION: u8 = 0x02;

/// Reads size and completeness, and refuses alpha and animation.
///
/// The size is the largest that any chunk declares: canvas and picture should agree, but the
/// limit has to hold for a file in which they do not.
pub(super) fn walk(data: &[u8]) -> Result<Header, CropError> {
    let bytes = Bytes(data);
    let format = Container::Webp.name();
    // The declared length leaves out the first eight bytes; what follows it is not ours to judge.
    let declared = bytes.u32_le(4).unwrap_or(0) as usize;
    let end = declared.saturating_add(8);
    let (mut width, mut height) = (0, 0);
    let mut has_picture = false;
    let mut at = 12;
    let whole = loop {
        if at >= end {
            break true;
        }
        let (Some(kind), Some(length)) = (bytes.array::<4>(at), bytes.u32_le(at + 4)) else {
            break false;
        };
        let body = at + 8;
        let size = match &kind {
            b"VP8X" => {
                let flags = bytes.u8(body).unwrap_or(0);
                if flags & HAS_ANIMATION != 0 {
                    return Err(CropError::Animated { format });
                }
                if flags & HAS_ALPHA != 0 {
                    return Err(CropError::Alpha { format });
                }
                canvas_size(bytes, body)
            }
            b"VP8 " => {
                has_picture = true;
                lossy_size(bytes, body)
            }
            b"VP8L" => {
                has_picture = true;
                match lossless_size(bytes, body) {
                    Some((.., true)) => return Err(CropError::Alpha { format }),
                    size => size.map(|(width, height, _)| (width, height)),
                }
            }
            b"ALPH" => return Err(CropError::Alpha { format }),
            b"ANIM" | b"ANMF" => return Err(CropError::Animated { format }),
            _ => None,
        };
        if let Some(size) = size {
            (width, height) = (width.max(size.0), height.max(size.1));
        }
        // Chunks are padded to even lengths; a missing last byte of padding harms nobody.
        let Some(next) = body.checked_add(length as usize) else {
            break false;
        };
        if next > bytes.len() {
            break false;
        }
        at = next + length as usize % 2;
    };
    if whole && !has_picture {
        return Err(CropError::undecodable(Container::Webp, "it has no picture data"));
    }
    Ok(Header { width, height, complete: whole })
}

/// Reads the extended header's canvas: 24-bit sizes, less one.
fn canvas_size(bytes: Bytes<'_>, body: usize) -> Option<(u32, u32)> {
    let [a, b, c, d, e, f] = bytes.array(body + 4)?;
    let side = |low, middle, high| u32::from_le_bytes([low, middle, high, 0]) + 1;
    Some((side(a, b, c), side(d, e, f)))
}

/// Reads a VP8 key frame's header (RFC 6386, 9.1): 14-bit sizes after a start code.
fn lossy_size(bytes: Bytes<'_>, body: usize) -> Option<(u32, u32)> {
    if bytes.array(body + 3) != Some([0x9D, 0x01, 0x2A]) {
        return None;
    }
    let side = |at| bytes.u16_le(at).map(|value| u32::from(value & 0x3FFF));
    Some((side(body + 6)?, side(body + 8)?))
}

/// Reads a VP8L header: sizes less one in 14 bits each, then whether alpha is used.
fn lossless_size(bytes: Bytes<'_>, body: usize) -> Option<(u32, u32, bool)> {
    if bytes.u8(body) != Some(0x2F) {
        return None;
    }
    let bits = bytes.u32_le(body + 1)?;
    let (width, height) = ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1);
    Some((width, height, bits >> 28 & 1 == 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
        let mut body = b"WEBP".to_vec();
        for (kind, data) in chunks {
            body.extend(*kind);
            body.extend((data.len() as u32).to_le_bytes());
            body.extend(*data);
            body.resize(body.len().next_multiple_of(2), 0);
        }
        let length = (body.len() as u32).to_le_bytes();
        [b"RIFF".as_slice(), &length, &body].concat()
    }

    fn lossless(width: u32, height: u32, alpha: u32) -> Vec<u8> {
        let bits = (width - 1) | (height - 1) << 14 | alpha << 28;
        [&[0x2F], &bits.to_le_bytes()[..], b"coded"].concat()
    }

    const LOSSY: &[u8] = &[0, 0, 0, 0x9D, 0x01, 0x2A, 30, 0, 20, 0, 1, 2, 3];

    fn extended(flags: u8) -> [u8; 10] {
        [flags, 0, 0, 0, 29, 0, 0, 19, 0, 0]
    }

    #[test]
    fn all_three_headers_give_the_size() {
        let check = |chunks: &[(&[u8; 4], &[u8])], size| {
            let header = walk(&file(chunks)).unwrap();
            assert_eq!((header.width, header.height, header.complete), size);
        };
        check(&[(b"VP8 ", LOSSY)], (30, 20, true));
        check(&[(b"VP8L", &lossless(30, 20, 0))], (30, 20, true));
        check(&[(b"VP8X", &extended(0)), (b"VP8 ", LOSSY)], (30, 20, true));
        check(&[(b"VP8X", &extended(0)), (b"VP8L", &lossless(9000, 20, 0))], (9000, 20, true));
    }

    #[test]
    fn alpha_and_animation_are_refused_by_flag_and_by_chunk() {
        let check = |chunks: &[(&[u8; 4], &[u8])], expected| {
            assert_eq!(walk(&file(chunks)).unwrap_err(), expected);
        };
        let alpha = CropError::Alpha { format: "WebP" };
        let animated = CropError::Animated { format: "WebP" };
        check(&[(b"VP8L", &lossless(30, 20, 1))], alpha.clone());
        check(&[(b"VP8X", &extended(HAS_ALPHA))], alpha.clone());
        check(&[(b"ALPH", b""), (b"VP8 ", LOSSY)], alpha);
        check(&[(b"VP8X", &extended(HAS_ANIMATION))], animated.clone());
        check(&[(b"ANMF", b"")], animated);
    }

    #[test]
    fn every_cut_is_noticed() {
        let data = file(&[(b"VP8X", &extended(0)), (b"VP8L", &lossless(30, 20, 0))]);
        for length in 12..data.len() {
            assert!(!walk(&data[..length]).unwrap().complete, "cut at {length}");
        }
        assert!(walk(&data).unwrap().complete);
    }
}
