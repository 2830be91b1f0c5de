//! Sizes are checked against files written by encoders and against what decoders read.

use std::io::Cursor;

use image::{ColorType, ImageReader};
use proptest::prelude::*;

use super::*;

/// A file of this size by a real encoder.
fn encoded(format: ImageFormat, color: ColorType, width: u32, height: u32) -> Vec<u8> {
    let pixels = vec![0x7F; width as usize * height as usize * usize::from(color.bytes_per_pixel())];
    let mut file = Cursor::new(Vec::new());
    image::write_buffer_with_format(&mut file, &pixels, width, height, color, theirs(format)).unwrap();
    file.into_inner()
}

fn theirs(format: ImageFormat) -> image::ImageFormat {
    match format {
        ImageFormat::Jpeg => image::ImageFormat::Jpeg,
        ImageFormat::Png => image::ImageFormat::Png,
        ImageFormat::Webp => image::ImageFormat::WebP,
        ImageFormat::Bmp => image::ImageFormat::Bmp,
    }
}

/// What a decoder reads, if it is one for this file.
fn decoded(file: &[u8]) -> Option<(usize, usize)> {
    let format = theirs(ImageFormat::sniff(file)?);
    let (width, height) = ImageReader::with_format(Cursor::new(file), format).into_dimensions().ok()?;
    (width > 0 && height > 0).then_some((width as usize, height as usize))
}

fn segment(marker: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len() + 2).unwrap().to_be_bytes();
    [&[0xFF, marker], &length[..], body].concat()
}

/// A JPEG's frame header.
fn frame(marker: u8, width: u16, height: u16) -> Vec<u8> {
    let [h, w] = [height.to_be_bytes(), width.to_be_bytes()];
    segment(marker, &[8, h[0], h[1], w[0], w[1], 3, 1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0])
}

/// A JPEG up to its frame header, with something before that.
fn jpeg_after(before: &[u8], width: u16, height: u16) -> Vec<u8> {
    [&[0xFF, 0xD8], before, &frame(0xC0, width, height)].concat()
}

fn bmp(header: &[u8]) -> Vec<u8> {
    let length = u32::try_from(header.len() + 4).unwrap().to_le_bytes();
    [b"BM\0\0\0\0\0\0\0\0\x1A\0\0\0", &length[..], header].concat()
}

/// A header of `length` bytes with sides of 32 bits.
fn info_bmp(length: usize, width: i32, height: i32) -> Vec<u8> {
    let mut header = [&width.to_le_bytes()[..], &height.to_le_bytes(), &[1, 0, 24, 0]].concat();
    header.resize(length - 4, 0);
    bmp(&header)
}

fn core_bmp(width: u16, height: u16) -> Vec<u8> {
    bmp(&[&width.to_le_bytes()[..], &height.to_le_bytes(), &[1, 0, 24, 0]].concat())
}

fn webp(kind: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let [riff, chunk] = [body.len() + 12, body.len()].map(|n| u32::try_from(n).unwrap().to_le_bytes());
    [b"RIFF", &riff[..], b"WEBP", kind, &chunk[..], body].concat()
}

/// The header of a lossy key frame; `scale` goes into the two high bits of both sides.
fn lossy(width: u16, height: u16, scale: u16) -> Vec<u8> {
    let [w, h] = [width, height].map(|side| (side | scale << 14).to_le_bytes());
    webp(b"VP8 ", &[0x10, 0, 0, 0x9D, 0x01, 0x2A, w[0], w[1], h[0], h[1]])
}

fn canvas(width: u32, height: u32) -> Vec<u8> {
    let [w, h] = [width, height].map(|side| (side - 1).to_le_bytes());
    webp(b"VP8X", &[&[0, 0, 0, 0], &w[..3], &h[..3]].concat())
}

fn png(width: u32, height: u32) -> Vec<u8> {
    let sides = [width.to_be_bytes(), height.to_be_bytes()].concat();
    [&b"\x89PNG\r\n\x1a\n\0\0\0\x0DIHDR"[..], &sides, b"\x08\x02\0\0\0crc!"].concat()
}

/// A small file of each kind of header.
fn samples() -> Vec<Vec<u8>> {
    let color = ColorType::Rgb8;
    let mut samples: Vec<_> =
        ImageFormat::ALL.map(|format| encoded(format, color, 37, 23)).into_iter().collect();
    samples.extend([lossy(37, 23, 1), canvas(37, 23), core_bmp(37, 23), info_bmp(40, 37, -23)]);
    samples.push(jpeg_after(&[&[0xFF; 3][..], &segment(0xE1, b"\xFF\xC0 inside")].concat(), 37, 23));
    samples
}

#[track_caller]
fn check(file: &[u8], expected: impl Into<Option<(usize, usize)>>) {
    assert_eq!(dimensions(file), expected.into(), "{:02X?}", &file[..file.len().min(64)]);
}

#[test]
fn fill_bytes_and_stray_bytes_before_a_jpeg_marker_are_passed_over() {
    check(&jpeg_after(&[0xFF], 37, 23), (37, 23));
    check(&jpeg_after(&[0xFF; 1000], 37, 23), (37, 23));
    let app = segment(0xE0, b"JFIF\0");
    check(&jpeg_after(&[&app[..], b"stray"].concat(), 37, 23), (37, 23));
    // A stuffed zero is no marker.
    check(&jpeg_after(&[&app[..], b"\xFF\0\xC0\0\x11\x08\0\x05\0\x05"].concat(), 37, 23), (37, 23));
}

#[test]
fn a_frame_header_inside_a_jpeg_segment_does_not_count() {
    let thumbnail = segment(0xE1, &jpeg_after(&[], 5, 5));
    check(&jpeg_after(&thumbnail, 37, 23), (37, 23));
}

#[test]
fn every_kind_of_jpeg_frame_has_a_size_and_tables_have_none() {
    for marker in 0xC0..=0xCF_u8 {
        let file = [&[0xFF, 0xD8], &frame(marker, 37, 23)[..]].concat();
        check(&file, (!matches!(marker, 0xC4 | 0xC8 | 0xCC)).then_some((37, 23)));
    }
    // A hierarchical file tells the size of the whole before its frames.
    check(&jpeg_after(&frame(0xDE, 37, 23), 5, 5), (37, 23));
}

#[test]
fn jpeg_segments_of_any_length_and_lone_markers_are_jumped_over() {
    for body in [0, 1, 65_533] {
        check(&jpeg_after(&segment(0xFE, &vec![0xFF; body]), 37, 23), (37, 23));
    }
    check(&jpeg_after(&[0xFF, 0x01, 0xFF, 0xD0, 0xFF, 0xD7], 37, 23), (37, 23));
    // Too short for its own length field.
    check(&jpeg_after(&[0xFF, 0xE0, 0, 0], 37, 23), (37, 23));
}

#[test]
fn a_jpeg_without_a_frame_before_its_first_scan_has_no_size() {
    for marker in [0xD8, 0xD9, 0xDA] {
        check(&jpeg_after(&segment(marker, &[1, 1, 0, 0, 63, 0]), 37, 23), None);
    }
    check(&jpeg_after(&[], 37, 0), None);
}

#[test]
fn the_search_for_a_jpeg_frame_ends_however_long_the_file_is() {
    let empty = |count| segment(0xE0, &[]).repeat(count);
    check(&jpeg_after(&empty(32_000), 37, 23), (37, 23));
    for endless in [empty(33_000), vec![0xFF; 66_000], vec![0; 66_000]] {
        check(&jpeg_after(&[&[0xFF, 0xE0, 0, 2], &endless[..]].concat(), 37, 23), None);
    }
}

#[test]
fn a_bitmap_stored_from_the_top_has_a_positive_height() {
    check(&info_bmp(40, 37, -23), (37, 23));
    check(&info_bmp(40, 100, -100), (100, 100));
    check(&info_bmp(40, 1, i32::MIN), (1, 1 << 31));
    check(&info_bmp(40, -37, 23), None);
}

#[test]
fn every_generation_of_bitmap_header_is_read() {
    check(&core_bmp(37, 23), (37, 23));
    check(&core_bmp(60_000, 40_000), (60_000, 40_000));
    for length in [16, 40, 52, 56, 64, 108, 124] {
        check(&info_bmp(length, 37, 23), (37, 23));
    }
    let mut unknown = info_bmp(40, 37, 23);
    for length in [0, 11, 13, 15] {
        unknown[14] = length;
        check(&unknown, None);
    }
}

#[test]
fn all_three_webp_headers_are_read() {
    for scale in 0..4 {
        check(&lossy(16_383, 23, scale), (16_383, 23));
    }
    check(&canvas(1 << 24, 23), (1 << 24, 23));
    let lossless = |bits: u32| webp(b"VP8L", &[&[0x2F], &bits.to_le_bytes()[..]].concat());
    check(&lossless(16_382 | 22 << 14), (16_383, 23));
    check(&lossless(36 | 22 << 14 | 1 << 28), (37, 23));
    check(&lossless(36 | 22 << 14 | 1 << 29), None);
}

#[test]
fn a_webp_that_starts_with_another_chunk_or_frame_has_no_size() {
    check(&webp(b"ALPH", &[0; 16]), None);
    let mut between = lossy(37, 23, 0);
    between[20] |= 1;
    check(&between, None);
    let mut unmarked = lossy(37, 23, 0);
    unmarked[23] = 0;
    check(&unmarked, None);
}

#[test]
fn a_png_starts_with_its_header_chunk() {
    check(&png(37, 23), (37, 23));
    let mut other = png(37, 23);
    other[12..16].copy_from_slice(b"IDAT");
    check(&other, None);
    let mut longer = png(37, 23);
    longer[11] = 14;
    check(&longer, None);
}

#[test]
fn a_side_of_nothing_is_no_size() {
    for (width, height) in [(0, 23), (37, 0)] {
        check(&png(width, height), None);
        check(&core_bmp(width as u16, height as u16), None);
        check(&info_bmp(40, width as i32, height as i32), None);
        check(&lossy(width as u16, height as u16, 0), None);
        check(&jpeg_after(&[], width as u16, height as u16), None);
    }
}

#[test]
fn a_bomb_of_a_few_bytes_is_measured_and_not_believed() {
    let side = 60_000;
    let bombs = [
        png(side, side),
        jpeg_after(&[], side as u16, side as u16),
        core_bmp(side as u16, side as u16),
        info_bmp(124, side as i32, -(side as i32)),
        canvas(side, side),
    ];
    for bomb in bombs {
        check(&bomb, (side as usize, side as usize));
    }
}

#[test]
fn a_file_cut_anywhere_has_its_size_or_none() {
    for sample in samples() {
        check(&sample, (37, 23));
        for length in 0..sample.len() {
            let size = dimensions(&sample[..length]);
            assert!(matches!(size, None | Some((37, 23))), "{size:?} of {length} bytes of {sample:02X?}");
        }
    }
}

proptest! {
    // Encoders are slow.
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn files_of_every_encoder_and_size_are_measured(
        width in 1_u32..=300, height in 1_u32..=300, grey in any::<bool>(),
    ) {
        for format in ImageFormat::ALL {
            let color = if grey && format != ImageFormat::Webp { ColorType::L8 } else { ColorType::Rgb8 };
            let file = encoded(format, color, width, height);
            prop_assert_eq!(dimensions(&file), Some((width as usize, height as usize)), "{:?}", format);
        }
    }
}

/// The decoder here knows three kinds of JPEG frame, and takes the header of another kind, or a second
/// start of the image, for a segment of no meaning: where damage has made one, it goes on to the next
/// header. libjpeg would not.
fn has_a_marker_the_decoder_passes_over(file: &[u8]) -> bool {
    let is_passed = |marker| matches!(marker, 0xC3 | 0xC5..=0xC7 | 0xC9..=0xCB | 0xCD..=0xCF | 0xD8 | 0xDE);
    ImageFormat::sniff(file) == Some(ImageFormat::Jpeg)
        && file[2..].windows(2).any(|pair| pair[0] == 0xFF && is_passed(pair[1]))
}

proptest! {
    /// The other way round is not claimed: a header may be read of what no decoder can finish.
    #[test]
    fn whatever_a_decoder_reads_of_a_damaged_file_is_read_alike(
        sample in any::<prop::sample::Index>(),
        damage in proptest::collection::vec((0_usize..80, any::<u8>()), 0..4),
        stray in proptest::collection::vec(prop_oneof![Just(0xFF), Just(0), any::<u8>()], 0..4),
        at in 0_usize..80,
    ) {
        let samples = samples();
        let mut file = samples[sample.index(samples.len())].clone();
        for (at, byte) in damage {
            if let Some(there) = file.get_mut(at) {
                *there = byte;
            }
        }
        let at = at.min(file.len());
        file.splice(at..at, stray);
        prop_assume!(!has_a_marker_the_decoder_passes_over(&file));
        let ours = dimensions(&file);
        if let Some(theirs) = decoded(&file) {
            prop_assert_eq!(ours, Some(theirs), "{:02X?}", &file[..file.len().min(100)]);
        }
    }

    #[test]
    fn no_bytes_panic(format in any::<prop::sample::Index>(), tail in proptest::collection::vec(any::<u8>(), 0..80)) {
        let starts = [&b"\xFF\xD8\xFF"[..], b"\x89PNG\r\n\x1a\n", b"RIFF....WEBP", b"BM"];
        let start = starts[format.index(starts.len())];
        if let Some((width, height)) = dimensions(&[start, &tail].concat()) {
            prop_assert!(width > 0 && height > 0);
        }
    }
}

#[test]
fn a_format_is_decided_by_the_first_bytes() {
    for (bytes, format) in [
        (&b"\xFF\xD8\xFF\xE0"[..], Some(ImageFormat::Jpeg)),
        (b"\x89PNG\r\n\x1a\n", Some(ImageFormat::Png)),
        (b"RIFF\0\0\0\0WEBPVP8 ", Some(ImageFormat::Webp)),
        (b"BM", Some(ImageFormat::Bmp)),
        (b"GIF89a", None),
        (b"<svg xmlns=", None),
        (b"%PDF-1.7", None),
        (b"RIFF\0\0\0\0WAVE", None),
        (b"", None),
    ] {
        assert_eq!(ImageFormat::sniff(bytes), format);
    }
}

#[test]
fn an_object_name_has_one_spelling() {
    let name = ObjectName::of(b"\xFF\xD8\xFF").expect("a JPEG by its first bytes");
    let path = name.path();
    let file_name = path.strip_prefix("results/").expect("results live in one folder");
    assert_eq!(ObjectName::parse(file_name), Some(name));
    for wrong in [
        file_name.to_uppercase(),
        file_name.replace(".jpg", ".jpeg"),
        file_name.replace(".jpg", ".jpg.jpg"),
        format!("../{file_name}"),
        format!("{file_name}%00"),
        String::new(),
    ] {
        assert_eq!(ObjectName::parse(&wrong), None, "{wrong}");
    }
}
