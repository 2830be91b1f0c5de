//! Walks a JPEG file's markers (ITU-T T.81, annex B).
//!
//! The walk goes through the coded data too, because only that finds the true end of image: a
//! thumbnail inside the EXIF block has an end marker of its own, and bytes may follow the picture.

use super::{Bytes, Container, Header};
use crate::CropError;

/// More scans than any encoder writes; each costs a pass over all pixels to decode.
const MAX_SCANS: u32 = 100;

const END_OF_IMAGE: u8 = 0xD9;
const START_OF_SCAN: u8 = 0xDA;

/// Reads size and completeness, and refuses what is not 8-bit with three components.
pub(super) fn walk(data: &[u8]) -> Result<Header, CropError> {
    let bytes = Bytes(data);
    let mut frame: Option<(u32, u32)> = None;
    let mut scans = 0;
    let mut at = 2;
    let complete = loop {
        let Some((marker, after)) = next_marker(data, at) else {
            break false;
        };
        at = after;
        match marker {
            END_OF_IMAGE => break true,
            // Restart markers and TEM stand alone.
            0x01 | 0xD0..=0xD7 => continue,
            0xD8 => return Err(undecodable("a second picture starts inside the first")),
            _ => {}
        }
        let Some(length) = bytes.u16_be(at).map(usize::from) else {
            break false;
        };
        if length < 2 {
            return Err(undecodable("a segment has an impossible length"));
        }
        if is_frame(marker) {
            if frame.is_some() {
                return Err(undecodable("it has more than one frame"));
            }
            let Some(size) = read_frame(bytes, marker, at)? else {
                break false;
            };
            frame = Some(size);
        }
        if bytes.slice(at, length).is_none() {
            break false;
        }
        at += length;
        if marker == START_OF_SCAN {
            scans += 1;
            if scans > MAX_SCANS {
                return Err(undecodable("it has too many scans"));
            }
            at = skip_coded_data(data, at);
        }
    };
    match frame {
        Some(_) if complete && scans == 0 => Err(undecodable("it has no picture data")),
        Some((width, height)) => Ok(Header { width, height, complete }),
        None if complete => Err(undecodable("it has no frame header")),
        None => Err(CropError::truncated(Container::Jpeg)),
    }
}

/// Finds the next marker at or after `at`, past stray bytes as other readers do.
/// Returns its code and the position after it.
fn next_marker(data: &[u8], mut at: usize) -> Option<(u8, usize)> {
    loop {
        at += data.get(at..)?.iter().position(|&byte| byte == 0xFF)?;
        // Any number of FF bytes may fill the space before a marker.
        at += data.get(at..)?.iter().position(|&byte| byte != 0xFF)?;
        let code = *data.get(at)?;
        at += 1;
        if code != 0 {
            return Some((code, at));
        }
    }
}

/// Returns the position of the first marker that ends a scan, or the length of the file.
fn skip_coded_data(data: &[u8], mut at: usize) -> usize {
    while let Some((code, after)) = next_marker(data, at) {
        if !(0xD0..=0xD7).contains(&code) {
            return after - 2;
        }
        at = after;
    }
    data.len()
}

/// Says whether a marker opens a frame (SOF0 to SOF15 without DHT, JPG and DAC).
fn is_frame(marker: u8) -> bool {
    matches!(marker, 0xC0..=0xCF) && !matches!(marker, 0xC4 | 0xC8 | 0xCC)
}

/// Reads a frame header at `at`: its width and height, `None` if the file ends inside it.
fn read_frame(bytes: Bytes<'_>, marker: u8, at: usize) -> Result<Option<(u32, u32)>, CropError> {
    let (Some(precision), Some(height), Some(width), Some(components)) =
        (bytes.u8(at + 2), bytes.u16_be(at + 3), bytes.u16_be(at + 5), bytes.u8(at + 7))
    else {
        return Ok(None);
    };
    let unsupported = |kind| Err(CropError::UnsupportedKind { format: Container::Jpeg.name(), kind });
    match components {
        1 => {
            return Err(CropError::Greyscale { format: Container::Jpeg.name() });
        }
        3 => {}
        4 => return Err(CropError::Cmyk),
        _ => return unsupported("neither one, three nor four components"),
    }
    match marker {
        0xC0..=0xC2 => {}
        0xC3 => return unsupported("lossless"),
        0xC9..=0xCB | 0xCD..=0xCF => return unsupported("arithmetic coding"),
        _ => return unsupported("hierarchical"),
    }
    if precision != 8 {
        return unsupported("more than 8 bits per channel");
    }
    Ok(Some((width.into(), height.into())))
}

fn undecodable(reason: &str) -> CropError {
    CropError::undecodable(Container::Jpeg, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(marker: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() + 2) as u16;
        [&[0xFF, marker], &length.to_be_bytes()[..], body].concat()
    }

    fn frame(marker: u8, components: u8) -> Vec<u8> {
        let mut body = vec![8, 0, 20, 0, 30, components];
        body.extend((0..components).flat_map(|id| [id + 1, 0x11, 0]));
        segment(marker, &body)
    }

    fn file(parts: &[&[u8]]) -> Vec<u8> {
        [&[0xFF, 0xD8], parts.concat().as_slice()].concat()
    }

    fn scan() -> Vec<u8> {
        let head = segment(START_OF_SCAN, &[3, 1, 0, 2, 0, 3, 0, 0, 63, 0]);
        [head.as_slice(), &[1, 2, 0xFF, 0, 3, 0xFF, 0xD0, 4]].concat()
    }

    const END: &[u8] = &[0xFF, END_OF_IMAGE];

    #[test]
    fn a_whole_file_is_complete_with_restarts_fill_bytes_and_a_tail() {
        let data = file(&[&[0xFF, 0xFF], &frame(0xC0, 3), &scan(), END, b"tail"]);
        let expected = Header { width: 30, height: 20, complete: true };
        assert_eq!(walk(&data), Ok(expected));
    }

    #[test]
    fn an_end_marker_inside_a_thumbnail_does_not_count() {
        let thumbnail = segment(0xE1, &file(&[&frame(0xC0, 3), &scan(), END]));
        let data = file(&[&thumbnail, &frame(0xC2, 3), &scan()]);
        assert!(!walk(&data).unwrap().complete);
    }

    #[test]
    fn every_cut_is_noticed() {
        let data = file(&[&frame(0xC0, 3), &scan(), &scan(), END]);
        for length in 3..data.len() {
            match walk(&data[..length]) {
                Ok(header) => assert!(!header.complete, "cut at {length}"),
                Err(error) => assert_eq!(error, CropError::truncated(Container::Jpeg)),
            }
        }
        assert!(walk(&data).unwrap().complete);
    }

    #[test]
    fn components_decide_the_colour_kind() {
        let check = |components, expected| {
            let data = file(&[&frame(0xC0, components), &scan(), END]);
            assert_eq!(walk(&data).unwrap_err(), expected);
        };
        check(1, CropError::Greyscale { format: "JPEG" });
        check(4, CropError::Cmyk);
        let kind = "neither one, three nor four components";
        check(2, CropError::UnsupportedKind { format: "JPEG", kind });
    }

    #[test]
    fn rare_codings_are_refused_by_name() {
        for marker in [0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF] {
            let data = file(&[&frame(marker, 3), &scan(), END]);
            let error = walk(&data).unwrap_err();
            assert!(matches!(error, CropError::UnsupportedKind { .. }), "{marker:x}: {error}");
        }
    }

    #[test]
    fn endless_scans_and_second_frames_are_refused() {
        let scans = scan().repeat(MAX_SCANS as usize);
        assert!(walk(&file(&[&frame(0xC2, 3), &scans, END])).is_ok());
        assert!(walk(&file(&[&frame(0xC2, 3), &scans, &scan(), END])).is_err());
        let two = file(&[&frame(0xC0, 3), &frame(0xC0, 3), &scan(), END]);
        assert!(walk(&two).is_err());
    }
}
