//! A picture stored turned or mirrored, with an EXIF tag saying so, is handled upright.

use std::io::Cursor;

use granary_engine::crop;
use image::codecs::png::PngEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder, ImageFormat, Rgb, RgbImage};

use crate::scene;

/// No two of its corners are alike, and it is wider than high.
fn upright() -> RgbImage {
    RgbImage::from_fn(72, 48, |x, y| {
        Rgb([(3 * x) as u8, (5 * y) as u8, if x < 24 && y < 24 { 250 } else { 40 }])
    })
}

/// Stores a picture the way a camera with this orientation would (EXIF 2.32, tag 274): the tag
/// says which sides of the scene the first stored row and column show.
fn stored(upright: &RgbImage, orientation: u16) -> RgbImage {
    let (right, bottom) = (upright.width() - 1, upright.height() - 1);
    let size = match orientation {
        1..=4 => upright.dimensions(),
        _ => (upright.height(), upright.width()),
    };
    RgbImage::from_fn(size.0, size.1, |x, y| {
        let (x, y) = match orientation {
            1 => (x, y),
            2 => (right - x, y),
            3 => (right - x, bottom - y),
            4 => (x, bottom - y),
            5 => (y, x),
            6 => (right - y, x),
            7 => (right - y, bottom - x),
            8 => (y, bottom - x),
            _ => unreachable!(),
        };
        *upright.get_pixel(x, y)
    })
}

/// A TIFF structure of one entry: tag 274, type 3 (short), one value.
fn exif(orientation: u16) -> Vec<u8> {
    let mut tiff = b"MM\0\x2A\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01".to_vec();
    tiff.extend(orientation.to_be_bytes());
    tiff.extend([0; 6]);
    tiff
}

/// Puts an EXIF segment right after a JPEG's first marker.
fn jpeg(picture: &RgbImage, orientation: u16) -> Vec<u8> {
    let plain = scene::encoded(picture, ImageFormat::Jpeg);
    let body = [b"Exif\0\0".as_slice(), &exif(orientation)].concat();
    let length = (body.len() as u16 + 2).to_be_bytes();
    [&plain[..2], &[0xFF, 0xE1], &length, &body, &plain[2..]].concat()
}

fn with_exif(mut encoder: impl ImageEncoder, picture: &RgbImage, orientation: u16) {
    encoder.set_exif_metadata(exif(orientation)).unwrap();
    let (width, height) = picture.dimensions();
    encoder.write_image(picture, width, height, ExtendedColorType::Rgb8).unwrap();
}

fn cropped(source: &[u8], target: (u32, u32)) -> RgbImage {
    let crop = crop(source, target.0, target.1).unwrap();
    image::load_from_memory(&crop.bytes).unwrap().to_rgb8()
}

#[test]
fn a_jpeg_of_any_orientation_looks_like_the_upright_one() {
    let upright = upright();
    let expected = cropped(&jpeg(&upright, 1), (60, 40));
    for orientation in 1..=8 {
        let source = jpeg(&stored(&upright, orientation), orientation);
        let answer = cropped(&source, (60, 40));
        // JPEG loses a little, and not the same in every direction.
        let apart: u64 = answer.iter().zip(expected.iter()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        let mean = apart as f64 / expected.len() as f64;
        assert!(mean < 4.0, "orientation {orientation}: {mean}");
    }
}

#[test]
fn png_and_webp_of_any_orientation_give_the_same_answer_as_the_upright_one() {
    let upright = upright();
    for target in [(60, 40), (30, 60), (60, 20)] {
        let expected = cropped(&scene::encoded(&upright, ImageFormat::Png), target);
        for orientation in 1..=8 {
            let picture = stored(&upright, orientation);
            let mut png = Cursor::new(Vec::new());
            with_exif(PngEncoder::new(&mut png), &picture, orientation);
            assert_eq!(cropped(png.get_ref(), target), expected, "PNG {orientation}");
            let mut webp = Cursor::new(Vec::new());
            with_exif(WebPEncoder::new_lossless(&mut webp), &picture, orientation);
            assert_eq!(cropped(webp.get_ref(), target), expected, "WebP {orientation}");
        }
    }
}

#[test]
fn a_tag_of_no_meaning_changes_nothing() {
    let upright = upright();
    let expected = cropped(&jpeg(&upright, 1), (60, 40));
    assert_eq!(cropped(&jpeg(&upright, 9), (60, 40)), expected);
}
