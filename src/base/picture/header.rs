//! Width and height in the header of a picture file: one reader per format, which agrees with correct
//! decoders. No input makes it panic, allocate or read an unbounded number of bytes.
//! [`dimensions`](super::dimensions) refuses a side of 0.

/// The bytes of a file by their position.
pub trait Source {
    fn byte(&self, at: usize) -> Option<u8>;
}

impl Source for [u8] {
    fn byte(&self, at: usize) -> Option<u8> {
        self.get(at).copied()
    }
}

/// Bytes outside of segments, two per marker. A hundred segments are usual; 3.5 MB of empty ones would cost
/// milliseconds.
const MAX_JPEG_STEPS: usize = 1 << 16;

/// Walks the markers to the frame header (ITU-T T.81, annex B). As libjpeg does, skips bytes between
/// segments: fill bytes (`FF`), a length too small to count itself, and garbage. A height of 0 that is given
/// after the first scan is not supported, as in most decoders.
pub(super) fn jpeg(file: &(impl Source + ?Sized)) -> Option<(u32, u32)> {
    let mut at = 2;
    let mut after_prefix = false;
    for _ in 0..MAX_JPEG_STEPS {
        let byte = file.byte(at)?;
        at += 1;
        let is_marker = after_prefix && !matches!(byte, 0x00 | 0xFF);
        after_prefix = byte == 0xFF;
        if !is_marker {
            continue;
        }
        match byte {
            // TEM and RST have no length.
            0x01 | 0xD0..=0xD7 => {}
            // A second start, an end or a scan before the frame header.
            0xD8..=0xDA => return None,
            // A frame, or a hierarchy of frames (DHP); not Huffman tables, arithmetic conditioning, reserved.
            0xC0..=0xC3 | 0xC5..=0xC7 | 0xC9..=0xCB | 0xCD..=0xCF | 0xDE => {
                return Some((be16(file, at + 5)?, be16(file, at + 3)?));
            }
            // The length of a segment counts itself.
            _ => at += be16(file, at)? as usize,
        }
    }
    None
}

/// The header chunk comes first (W3C PNG, 5.6).
pub(super) fn png(file: &(impl Source + ?Sized)) -> Option<(u32, u32)> {
    let is_header = array(file, 8)? == 13_u32.to_be_bytes() && array(file, 12)? == *b"IHDR";
    if !is_header {
        return None;
    }
    Some((u32::from_be_bytes(array(file, 16)?), u32::from_be_bytes(array(file, 20)?)))
}

/// Core headers (OS/2 1.x) have sides of 16 bits, all others of 32. A negative height: rows from the top.
pub(super) fn bmp(file: &(impl Source + ?Sized)) -> Option<(u32, u32)> {
    match u32::from_le_bytes(array(file, 14)?) {
        12 => Some((le16(file, 18)?, le16(file, 20)?)),
        // From OS/2 2.x, which may leave out all but the sizes, to Windows' version 5.
        16.. => {
            let width = i32::from_le_bytes(array(file, 18)?);
            let height = i32::from_le_bytes(array(file, 22)?);
            Some((u32::try_from(width).ok()?, height.unsigned_abs()))
        }
        _ => None,
    }
}

/// The first chunk decides (RFC 9649): one lossy or lossless frame, or the canvas of an extended file.
pub(super) fn webp(file: &(impl Source + ?Sized)) -> Option<(u32, u32)> {
    match &array(file, 12)? {
        b"VP8 " => {
            // RFC 6386, 9.1: a key frame has bit 0 clear; the two high bits of a side are for scaling.
            let is_key_frame = file.byte(20)? & 1 == 0 && array(file, 23)? == [0x9D, 0x01, 0x2A];
            let side = |at| le16(file, at).map(|bits| bits & 0x3FFF);
            if is_key_frame { Some((side(26)?, side(28)?)) } else { None }
        }
        b"VP8L" => {
            let bits = u32::from_le_bytes(array(file, 21)?);
            let version = bits >> 29;
            let is_lossless = file.byte(20)? == 0x2F && version == 0;
            is_lossless.then_some(((bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1))
        }
        b"VP8X" => {
            let side = |at| array(file, at).map(|[a, b, c]| u32::from_le_bytes([a, b, c, 0]) + 1);
            Some((side(24)?, side(27)?))
        }
        _ => None,
    }
}

pub(super) fn be16(file: &(impl Source + ?Sized), at: usize) -> Option<u32> {
    array(file, at).map(|bytes| u16::from_be_bytes(bytes).into())
}

pub(super) fn le16(file: &(impl Source + ?Sized), at: usize) -> Option<u32> {
    array(file, at).map(|bytes| u16::from_le_bytes(bytes).into())
}

pub(super) fn array<const N: usize>(file: &(impl Source + ?Sized), at: usize) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    for (byte, at) in bytes.iter_mut().zip(at..) {
        *byte = file.byte(at)?;
    }
    Some(bytes)
}
