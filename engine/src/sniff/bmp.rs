//! Reads a BMP file's headers, and walks its run-length codes when it has them.
//!
//! BMP has no greyscale kind: grey pictures are stored with a palette of greys. So a palette that
//! holds nothing but greys (black and white included) counts as greyscale. 32 bits per pixel
//! count as four channels even where the fourth is unused, because readers that keep channels as
//! stored see four.

use super::{Bytes, Container, Header};
use crate::CropError;

/// The `BITMAPCOREHEADER` of OS/2: 16-bit sizes, palette entries of three bytes.
const CORE_HEADER: usize = 12;
const FILE_HEADER: usize = 14;

struct Layout {
    width: u32,
    height: u32,
    depth: u16,
    compression: u32,
    pixels_at: usize,
}

/// Reads size and completeness, and refuses grey, alpha and embedded formats.
pub(super) fn walk(data: &[u8]) -> Result<Header, CropError> {
    let bytes = Bytes(data);
    let format = Container::Bmp.name();
    let Some(header_length) = bytes.u32_le(FILE_HEADER).map(|length| length as usize) else {
        return Err(CropError::truncated(Container::Bmp));
    };
    let layout = read_layout(bytes, header_length).ok_or(CropError::truncated(Container::Bmp))?;
    let unsupported = |kind| Err(CropError::UnsupportedKind { format, kind });
    match layout.depth {
        1 | 2 | 4 | 8 if has_grey_palette(bytes, header_length, &layout) => {
            return Err(CropError::Greyscale { format });
        }
        1 | 2 | 4 | 8 | 24 => {}
        // The alpha mask is the fourth of the masks in headers long enough to have it.
        16 if header_length >= 56 && bytes.u32_le(FILE_HEADER + 52).unwrap_or(0) != 0 => {
            return Err(CropError::Alpha { format });
        }
        16 => {}
        32 => return Err(CropError::Alpha { format }),
        _ => return unsupported("an unknown number of bits per pixel"),
    }
    let complete = match layout.compression {
        0 | 3 => has_all_rows(bytes, &layout),
        1 | 2 => has_end_of_runs(bytes, &layout),
        4 | 5 => return unsupported("another format inside"),
        _ => return unsupported("an unknown compression"),
    };
    Ok(Header { width: layout.width, height: layout.height, complete })
}

/// Reads both kinds of header; `None` if the file ends inside it.
fn read_layout(bytes: Bytes<'_>, header_length: usize) -> Option<Layout> {
    let at = FILE_HEADER;
    let pixels_at = bytes.u32_le(10)? as usize;
    if header_length == CORE_HEADER {
        return Some(Layout {
            width: bytes.u16_le(at + 4)?.into(),
            height: bytes.u16_le(at + 6)?.into(),
            depth: bytes.u16_le(at + 10)?,
            compression: 0,
            pixels_at,
        });
    }
    Some(Layout {
        // A negative width has no meaning and comes out as too large; a negative height is a
        // picture stored from the top.
        width: bytes.u32_le(at + 4)?,
        height: bytes.i32_le(at + 8)?.unsigned_abs(),
        depth: bytes.u16_le(at + 14)?,
        compression: bytes.u32_le(at + 16)?,
        pixels_at,
    })
}

/// Says whether all colours of the palette are greys.
fn has_grey_palette(bytes: Bytes<'_>, header_length: usize, layout: &Layout) -> bool {
    let most = 1_usize << layout.depth;
    let (entry, count) = if header_length == CORE_HEADER {
        (3, most)
    } else {
        match bytes.u32_le(FILE_HEADER + 32).unwrap_or(0) as usize {
            0 => (4, most),
            used => (4, used.min(most)),
        }
    };
    let at = FILE_HEADER.saturating_add(header_length);
    bytes.slice(at, count * entry).is_some_and(|palette| {
        palette.chunks_exact(entry).all(|colour| colour[0] == colour[1] && colour[1] == colour[2])
    })
}

/// Says whether the file is long enough for rows of whole four-byte words.
fn has_all_rows(bytes: Bytes<'_>, layout: &Layout) -> bool {
    let row_bits = u64::from(layout.width) * u64::from(layout.depth);
    let needed = row_bits.div_ceil(32).saturating_mul(4).saturating_mul(layout.height.into());
    (layout.pixels_at as u64).saturating_add(needed) <= bytes.len() as u64
}

/// Says whether run-length codes go on to their end-of-bitmap code.
fn has_end_of_runs(bytes: Bytes<'_>, layout: &Layout) -> bool {
    let mut at = layout.pixels_at;
    while let Some([count, value]) = bytes.array(at) {
        at += 2;
        match (count, value) {
            (0, 1) => return true,
            (0, 2) => at += 2,
            // Indices as they are, padded to an even number of bytes.
            (0, literal @ 3..) => {
                let stored = usize::from(literal) * usize::from(layout.depth);
                at += stored.div_ceil(8).next_multiple_of(2);
            }
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(depth: u16, compression: u32, palette: &[[u8; 4]], pixels: &[u8]) -> Vec<u8> {
        let at = (FILE_HEADER + 40 + palette.len() * 4) as u32;
        let mut data = b"BM".to_vec();
        data.extend([0; 8]);
        data.extend(at.to_le_bytes());
        data.extend(40_u32.to_le_bytes());
        data.extend(5_u32.to_le_bytes());
        data.extend(2_u32.to_le_bytes());
        data.extend(1_u16.to_le_bytes());
        data.extend(depth.to_le_bytes());
        data.extend(compression.to_le_bytes());
        data.extend([0; 12]);
        data.extend((palette.len() as u32).to_le_bytes());
        data.extend([0; 4]);
        data.extend(palette.concat());
        data.extend(pixels);
        data
    }

    const GREYS: &[[u8; 4]] = &[[0, 0, 0, 0], [9, 9, 9, 0]];
    const COLOURS: &[[u8; 4]] = &[[0, 0, 0, 0], [9, 8, 9, 0]];

    fn check(data: &[u8], expected: Result<(), CropError>) {
        let walked = walk(data).map(|header| {
            assert_eq!((header.width, header.height), (5, 2));
            assert!(header.complete);
        });
        assert_eq!(walked, expected);
    }

    #[test]
    fn a_palette_of_greys_is_greyscale_and_one_with_a_colour_is_not() {
        let grey = CropError::Greyscale { format: "BMP" };
        check(&file(8, 0, GREYS, &[0; 16]), Err(grey.clone()));
        check(&file(1, 0, GREYS, &[0; 8]), Err(grey));
        check(&file(8, 0, COLOURS, &[0; 16]), Ok(()));
    }

    #[test]
    fn four_bytes_a_pixel_are_alpha_and_three_are_not() {
        let alpha = CropError::Alpha { format: "BMP" };
        check(&file(32, 0, &[], &[0; 40]), Err(alpha));
        check(&file(24, 0, &[], &[0; 32]), Ok(()));
    }

    #[test]
    fn an_embedded_jpeg_or_png_is_refused() {
        for compression in [4, 5] {
            let kind = "another format inside";
            let format = "BMP";
            check(&file(24, compression, &[], &[0; 32]), Err(CropError::UnsupportedKind { format, kind }));
        }
    }

    #[test]
    fn every_cut_is_noticed() {
        let runs = [5, 0, 0, 0, 0, 5, 1, 1, 0, 1, 0, 0, 0, 1];
        for data in [file(24, 0, &[], &[0; 32]), file(8, 1, COLOURS, &runs)] {
            for length in 2..data.len() {
                match walk(&data[..length]) {
                    Ok(header) => assert!(!header.complete, "cut at {length}"),
                    Err(error) => assert_eq!(error, CropError::truncated(Container::Bmp)),
                }
            }
            assert!(walk(&data).unwrap().complete);
        }
    }
}
