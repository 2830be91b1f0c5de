//! The end of a picture in its file: one reader per format. A complete transfer does not prove that the
//! server had the whole picture, and a cut JPEG decodes without an error, so the structure is walked to the
//! end mark. No input makes a reader panic or allocate.

use super::header::{self, array, be16, le16};

/// Markers are searched in scans too: there FF is followed by 00 or a restart marker. The end of a thumbnail
/// is inside its segment, which is skipped.
pub(super) fn jpeg(file: &[u8]) -> Option<usize> {
    let mut at = 2;
    let mut has_scan = false;
    loop {
        at += memchr::memchr(0xFF, file.get(at..)?)? + 1;
        match *file.get(at)? {
            // A fill byte.
            0xFF => {}
            // Data, TEM and RST have no length.
            0x00 | 0x01 | 0xD0..=0xD7 => at += 1,
            // Another picture begins, so this one was cut.
            0xD8 => return None,
            0xD9 => return has_scan.then_some(at + 1),
            marker => {
                has_scan |= marker == 0xDA;
                at += 1 + be16(file, at + 1)? as usize;
            }
        }
    }
}

/// Chunks: length, type, data, checksum (W3C PNG, 5.3).
pub(super) fn png(file: &[u8]) -> Option<usize> {
    let mut at = 8;
    let mut has_data = false;
    loop {
        let length = u32::from_be_bytes(array(file, at)?) as usize;
        let kind: [u8; 4] = array(file, at + 4)?;
        at = at.checked_add(length)?.checked_add(12)?;
        if at > file.len() {
            return None;
        }
        has_data |= &kind == b"IDAT";
        if &kind == b"IEND" {
            return has_data.then_some(at);
        }
    }
}

/// Chunks in a RIFF file (RFC 9649); an odd one is padded.
pub(super) fn webp(file: &[u8]) -> Option<usize> {
    let declared = le32(file, 4)?.checked_add(8)?;
    let (mut at, mut end) = (12_usize, 12);
    let mut has_frame = false;
    while at.checked_add(8)? <= declared {
        let kind: [u8; 4] = array(file, at)?;
        let length = le32(file, at + 4)?;
        end = at.checked_add(8)?.checked_add(length)?;
        if end > file.len() {
            return None;
        }
        has_frame |= matches!(&kind, b"VP8 " | b"VP8L" | b"ANMF");
        at = end + length % 2;
    }
    has_frame.then_some(end)
}

/// By the size of the pixels: the length in the header is wrong in many files, and decoders ignore it.
pub(super) fn bmp(file: &[u8]) -> Option<usize> {
    let start = le32(file, 10)?;
    let (width, height) = header::bmp(file)?;
    let (bits, compression, compressed) = match le32(file, 14)? {
        12 => (le16(file, 24)?, 0, 0),
        16..40 => (le16(file, 28)?, 0, 0),
        _ => (le16(file, 28)?, le32(file, 30)?, le32(file, 34)?),
    };
    let length = match compression {
        // Pixels, with or without masks; rows are padded to four bytes.
        0 | 3 | 6 => {
            let row = (u64::from(width) * u64::from(bits)).div_ceil(32) * 4;
            usize::try_from(row.checked_mul(height.into())?).ok()?
        }
        _ if compressed == 0 => le32(file, 2)?.saturating_sub(start),
        _ => compressed,
    };
    let end = start.checked_add(length)?;
    (length > 0 && end <= file.len()).then_some(end)
}

fn le32(file: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(array(file, at)?)).ok()
}

#[cfg(test)]
mod tests {
    use image::{ImageFormat as Theirs, RgbImage};

    use crate::base::picture;

    const ROCKET: &[u8] = include_bytes!("../../../tests/images/rocket.jpg");
    const PROGRESSIVE: &[u8] = include_bytes!("../../../tests/images/rocket-progressive.jpg");
    const LOSSY: &[u8] = include_bytes!("../../../tests/images/rocket-lossy.webp");

    fn drawn(format: Theirs) -> Vec<u8> {
        let mut file = std::io::Cursor::new(Vec::new());
        let picture = RgbImage::from_fn(37, 21, |x, y| image::Rgb([(x * 7) as u8, (y * 11) as u8, 90]));
        picture.write_to(&mut file, format).unwrap();
        file.into_inner()
    }

    /// A JPEG whose first segment has a whole JPEG inside.
    fn with_thumbnail(picture: &[u8], thumbnail: &[u8]) -> Vec<u8> {
        let length = u16::try_from(thumbnail.len() + 2).unwrap().to_be_bytes();
        [&picture[..2], &[0xFF, 0xE1], &length, thumbnail, &picture[2..]].concat()
    }

    fn pictures() -> Vec<Vec<u8>> {
        let jpeg = drawn(Theirs::Jpeg);
        vec![
            ROCKET.to_vec(),
            PROGRESSIVE.to_vec(),
            LOSSY.to_vec(),
            with_thumbnail(&jpeg, &jpeg),
            drawn(Theirs::Png),
            drawn(Theirs::WebP),
            drawn(Theirs::Bmp),
        ]
    }

    #[test]
    fn whole_picture_ends_where_its_file_does_whatever_follows() {
        for picture in pictures() {
            let end = picture::end(&picture).expect("a whole picture");
            assert!(picture.len() - end <= 1, "{end} of {}", picture.len());
            for after in [&b"\0"[..], &[0; 64], &[0xFF; 4096], b"AIGC label", ROCKET, &picture] {
                let longer = [&picture[..], after].concat();
                assert_eq!(picture::end(&longer), Some(end));
            }
        }
    }

    #[test]
    fn cut_picture_has_no_end() {
        for picture in pictures() {
            let end = picture::end(&picture).unwrap();
            let step = (end / 2000).max(1);
            for length in (0..end).step_by(step).chain(end.saturating_sub(200)..end) {
                assert_eq!(picture::end(&picture[..length]), None, "{length} of {end}");
                // Nor when the rest is zeros, where a format has an end mark.
                let padded = [&picture[..length], &vec![0; 4096]].concat();
                let has_mark = !picture.starts_with(b"BM") && !picture.starts_with(b"RIFF");
                // The last byte of PNG's checksum may be guessed, and is not looked at.
                let is_guess = picture.starts_with(b"\x89PNG") && length + 4 >= end;
                assert!(!has_mark || is_guess || picture::end(&padded).is_none(), "{length} of {end}");
            }
        }
    }

    #[test]
    fn bmp_with_a_wrong_file_length_ends_with_its_pixels() {
        let mut picture = drawn(Theirs::Bmp);
        let end = picture.len();
        for length in [0, 1, end as u32 - 54, u32::MAX] {
            picture[2..6].copy_from_slice(&length.to_le_bytes());
            assert_eq!(picture::end(&picture), Some(end), "{length}");
        }
    }

    #[test]
    fn header_without_pixels_is_no_picture() {
        for bytes in [
            &b"\xFF\xD8\xFF\xD9"[..],
            b"\xFF\xD8\xFF\xE0\0\x04ab\xFF\xD9",
            b"\x89PNG\r\n\x1a\n\0\0\0\0IEND\xAE\x42\x60\x82",
            b"RIFF\x04\0\0\0WEBP",
            b"RIFF\xFF\xFF\xFF\xFFWEBPVP8 \xFF\xFF\xFF\xFF",
            b"BM",
            b"GIF89a",
            b"",
        ] {
            assert_eq!(picture::end(bytes), None, "{bytes:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn damaged_bytes_never_panic(
            which in 0_usize..7,
            at in proptest::prelude::any::<proptest::sample::Index>(),
            new in proptest::prelude::any::<[u8; 4]>(),
        ) {
            let mut picture = pictures().swap_remove(which);
            let at = at.index(picture.len() - 4);
            picture[at..at + 4].copy_from_slice(&new);
            if let Some(end) = picture::end(&picture) {
                proptest::prop_assert!(end <= picture.len());
            }
        }
    }
}
