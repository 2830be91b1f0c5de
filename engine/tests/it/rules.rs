//! Every input rule refuses what it should, by its own error, and nothing else.

use granary_engine::{CropError, TargetSide, crop};
use image::{DynamicImage, ImageFormat, RgbImage};

use crate::scene;

fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn rgb(format: ImageFormat) -> Vec<u8> {
    let picture = RgbImage::from_fn(40, 30, |x, y| image::Rgb([x as u8, y as u8, 200]));
    scene::encoded(&picture, format)
}

#[track_caller]
fn check(source: &[u8], expected: Result<(), CropError>) {
    assert_eq!(crop(source, 20, 20).map(drop), expected);
}

#[test]
fn targets_outside_their_range_are_refused_by_name() {
    let source = rgb(ImageFormat::Png);
    for value in [0, 9, 2001, u32::MAX] {
        let side = TargetSide::Width;
        assert_eq!(crop(&source, value, 20), Err(CropError::InvalidTarget { side, value }));
        let side = TargetSide::Height;
        assert_eq!(crop(&source, 20, value), Err(CropError::InvalidTarget { side, value }));
    }
    let error = crop(&source, 20, 9).unwrap_err();
    assert_eq!(error.to_string(), "height is 9, but must be 10 to 2000 pixels");
}

#[test]
fn other_formats_are_refused_whatever_they_are() {
    for source in [b"".as_slice(), b"GIF89a", b"%PDF-1.7", b"II*\0", b"RIFF\0\0\0\0WAVE", &[0xFF]] {
        check(source, Err(CropError::UnknownFormat));
    }
}

#[test]
fn greyscale_is_refused_in_every_format_that_has_it() {
    let grey = DynamicImage::new_luma8(40, 30);
    check(&encoded(&grey, ImageFormat::Jpeg), Err(CropError::Greyscale { format: "JPEG" }));
    check(&encoded(&grey, ImageFormat::Bmp), Err(CropError::Greyscale { format: "BMP" }));
    let png = Err(CropError::Greyscale { format: "PNG" });
    for grey in [grey, DynamicImage::new_luma16(40, 30), DynamicImage::new_luma_a8(40, 30)] {
        check(&encoded(&grey, ImageFormat::Png), png.clone());
    }
}

#[test]
fn a_grey_picture_stored_as_rgb_is_accepted() {
    let grey = DynamicImage::ImageRgb8(DynamicImage::new_luma8(40, 30).to_rgb8());
    for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::Bmp, ImageFormat::WebP] {
        check(&encoded(&grey, format), Ok(()));
    }
}

#[test]
fn an_alpha_channel_is_refused_even_if_opaque() {
    let opaque = DynamicImage::ImageRgba8(DynamicImage::new_rgb8(40, 30).to_rgba8());
    for (format, name) in [(ImageFormat::Png, "PNG"), (ImageFormat::WebP, "WebP"), (ImageFormat::Bmp, "BMP")]
    {
        check(&encoded(&opaque, format), Err(CropError::Alpha { format: name }));
    }
}

#[test]
fn a_palette_png_counts_as_rgb_unless_it_has_a_transparent_colour() {
    check(&palette_png(&[]), Ok(()));
    let transparent = chunk(b"tRNS", &[0]);
    check(&palette_png(&transparent), Err(CropError::Alpha { format: "PNG" }));
}

#[test]
fn a_palette_bmp_counts_as_rgb_once_one_colour_is_no_grey() {
    let mut source = encoded(&DynamicImage::new_luma8(40, 30), ImageFormat::Bmp);
    // The first colour's blue, after file header and information header.
    let header = u32::from_le_bytes(source[14..18].try_into().unwrap()) as usize;
    source[14 + header] = 77;
    check(&source, Ok(()));
}

#[test]
fn sixteen_bits_per_channel_are_accepted() {
    check(&encoded(&DynamicImage::new_rgb16(40, 30), ImageFormat::Png), Ok(()));
}

#[test]
fn a_cmyk_jpeg_is_refused() {
    let source = include_bytes!("../../../tests/images/rocket-cmyk.jpg");
    check(source, Err(CropError::Cmyk));
}

#[test]
fn a_progressive_jpeg_and_a_lossy_webp_are_accepted_and_noticed_when_cut() {
    let jpeg = include_bytes!("../../../tests/images/rocket-progressive.jpg").as_slice();
    let webp = include_bytes!("../../../tests/images/rocket-lossy.webp").as_slice();
    for (source, format) in [(jpeg, "JPEG"), (webp, "WebP")] {
        check(source, Ok(()));
        let half = &source[..source.len() / 2];
        check(half, Err(CropError::Truncated { format }));
    }
}

#[test]
fn animations_are_refused() {
    let png = rgb(ImageFormat::Png);
    let control = chunk(b"acTL", &[0, 0, 0, 1, 0, 0, 0, 0]);
    let animated = [&png[..33], &control, &png[33..]].concat();
    check(&animated, Err(CropError::Animated { format: "PNG" }));
    let webp = b"RIFF\x16\0\0\0WEBPVP8X\x0A\0\0\0\x02\0\0\0\x27\0\0\x1D\0\0";
    check(webp, Err(CropError::Animated { format: "WebP" }));
}

#[test]
fn a_side_over_two_thousand_pixels_is_refused() {
    for (width, height) in [(2001, 10), (10, 2001)] {
        for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::Bmp, ImageFormat::WebP] {
            let source = scene::encoded(&RgbImage::new(width, height), format);
            check(&source, Err(CropError::TooLarge { width, height }));
        }
    }
}

#[test]
fn a_header_that_promises_too_much_is_refused_before_anything_is_decoded() {
    let mut source = rgb(ImageFormat::Png);
    source[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
    let (width, height) = (65_536, 65_536);
    check(&source, Err(CropError::TooLarge { width, height }));
}

#[test]
fn a_file_cut_short_is_refused_wherever_it_is_cut() {
    let formats = [
        (ImageFormat::Jpeg, "JPEG"),
        (ImageFormat::Png, "PNG"),
        (ImageFormat::Bmp, "BMP"),
        (ImageFormat::WebP, "WebP"),
    ];
    for (encoding, format) in formats {
        let source = rgb(encoding);
        for length in [source.len() / 3, source.len() / 2, source.len() - 1] {
            check(&source[..length], Err(CropError::Truncated { format }));
        }
    }
}

#[test]
fn bytes_after_the_picture_do_no_harm() {
    for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::Bmp, ImageFormat::WebP] {
        let source = [rgb(format), b"appended by some tool".to_vec()].concat();
        check(&source, Ok(()));
    }
}

#[test]
fn damaged_pixels_are_undecodable() {
    let mut source = rgb(ImageFormat::Png);
    let data = source.windows(4).position(|name| name == b"IDAT").unwrap();
    source[data + 8] ^= 0xFF;
    let error = crop(&source, 20, 20).unwrap_err();
    assert!(matches!(error, CropError::Undecodable { format: "PNG", .. }), "{error}");
    assert!(error.to_string().ends_with("export it again"), "{error}");
}

/// A PNG of 16x12 pixels and two colours, with more chunks between palette and pixels.
fn palette_png(more: &[u8]) -> Vec<u8> {
    let header = [0, 0, 0, 16, 0, 0, 0, 12, 8, 3, 0, 0, 0];
    let rows: Vec<u8> = (0..12).flat_map(|_| [0].into_iter().chain((0..16).map(|x| x % 2))).collect();
    // One stored block of zlib's, and the checksum it ends with.
    let length = rows.len() as u16;
    let mut pixels = vec![0x78, 0x01, 0x01];
    pixels.extend(length.to_le_bytes());
    pixels.extend((!length).to_le_bytes());
    pixels.extend(&rows);
    let (low, high) = rows.iter().fold((1_u32, 0_u32), |(low, high), &byte| {
        let low = (low + u32::from(byte)) % 65_521;
        (low, (high + low) % 65_521)
    });
    pixels.extend((high << 16 | low).to_be_bytes());
    [
        b"\x89PNG\r\n\x1a\n".to_vec(),
        chunk(b"IHDR", &header),
        chunk(b"PLTE", &[200, 30, 30, 30, 30, 200]),
        more.to_vec(),
        chunk(b"IDAT", &pixels),
        chunk(b"IEND", &[]),
    ]
    .concat()
}

/// A PNG chunk with its checksum.
fn chunk(kind: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let checked = [kind.as_slice(), body].concat();
    let crc = !checked.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(
            crc ^ u32::from(byte),
            |crc, _| {
                if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 }
            },
        )
    });
    [(body.len() as u32).to_be_bytes().as_slice(), &checked, &crc.to_be_bytes()].concat()
}
