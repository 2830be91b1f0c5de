//! The answer has exactly the asked size, the right format, and an honest account of itself.

use granary_engine::{Crop, Format, RetainLocation, crop};
use image::{GenericImageView, ImageFormat, Rgb, RgbImage};

use crate::scene::{self, Background, Spot, Subject};

fn picture(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([(x * 7) as u8, (y * 5) as u8, 90]))
}

/// Decodes what came back and checks it against what was asked.
fn check(source: &RgbImage, encoded_as: ImageFormat, target: (u32, u32)) -> Crop {
    let crop = crop(&scene::encoded(source, encoded_as), target.0, target.1).unwrap();
    let (format, expected) = match encoded_as {
        ImageFormat::Jpeg => (Format::Jpeg, ImageFormat::Jpeg),
        ImageFormat::WebP => (Format::Webp, ImageFormat::WebP),
        _ => (Format::Png, ImageFormat::Png),
    };
    assert_eq!(crop.format, format);
    assert_eq!(image::guess_format(&crop.bytes).unwrap(), expected);
    let decoded = image::load_from_memory(&crop.bytes).unwrap();
    assert_eq!(decoded.dimensions(), target);
    assert_eq!(decoded.color(), image::ColorType::Rgb8);
    check_location(crop.retain_location, source.dimensions(), target);
    crop
}

/// Checks that the scaled source covers the target, and that its scale is the smallest that does.
fn check_location(at: RetainLocation, source: (u32, u32), target: (u32, u32)) {
    assert!(at.x <= 0 && at.y <= 0, "{at:?}");
    assert!(at.width == target.0 || at.height == target.1, "{at:?}");
    assert!(at.x + at.width as i32 >= target.0 as i32, "{at:?}");
    assert!(at.y + at.height as i32 >= target.1 as i32, "{at:?}");
    let scale =
        f64::max(f64::from(target.0) / f64::from(source.0), f64::from(target.1) / f64::from(source.1));
    assert!((f64::from(at.width) - f64::from(source.0) * scale).abs() <= 0.5, "{at:?}");
    assert!((f64::from(at.height) - f64::from(source.1) * scale).abs() <= 0.5, "{at:?}");
}

const FORMATS: [ImageFormat; 4] = [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::Bmp, ImageFormat::WebP];

#[test]
fn every_format_comes_out_at_exactly_the_asked_size() {
    for format in FORMATS {
        for target in [(10, 10), (64, 64), (97, 31), (31, 97), (300, 200)] {
            check(&picture(150, 100), format, target);
        }
    }
}

#[test]
fn the_extremes_of_size_and_shape_are_met() {
    for target in [(10, 10), (2000, 2000), (10, 2000), (2000, 10)] {
        check(&picture(60, 40), ImageFormat::Jpeg, target);
    }
    for source in [(1, 1), (1, 300), (300, 1), (2000, 3), (7, 2000)] {
        for target in [(10, 10), (10, 500), (500, 10)] {
            check(&picture(source.0, source.1), ImageFormat::Png, target);
        }
    }
}

#[test]
fn the_largest_source_is_accepted() {
    check(&picture(2000, 2000), ImageFormat::Jpeg, (400, 300));
}

#[test]
fn the_same_bytes_in_give_the_same_bytes_out() {
    let at = Spot { x: 130, y: 60, size: 50 };
    let drawn = scene::draw(200, 120, Background::Noise, Subject::StripedDisc, at);
    let drawn = image::load_from_memory(&drawn).unwrap().to_rgb8();
    for format in FORMATS {
        let source = scene::encoded(&drawn, format);
        assert_eq!(crop(&source, 90, 110), crop(&source, 90, 110));
    }
}

#[test]
fn the_location_of_a_wide_source_in_a_square_is_as_documented() {
    let at = Spot { x: 700, y: 350, size: 200 };
    let source = scene::draw(1600, 900, Background::Gradient, Subject::RedDisc, at);
    let at = crop(&source, 400, 400).unwrap().retain_location;
    assert_eq!((at.width, at.height, at.y), (711, 400, 0));
    assert!((-176..=-136).contains(&at.x), "{at:?}");
}

#[test]
fn a_target_of_the_sources_shape_keeps_everything() {
    let at = check(&picture(300, 200), ImageFormat::Png, (150, 100)).retain_location;
    let whole = RetainLocation { width: 150, height: 100, x: 0, y: 0 };
    assert_eq!(at, whole);
}

#[test]
fn the_location_says_where_the_pixels_came_from() {
    let at = Spot { x: 140, y: 20, size: 60 };
    let source = scene::draw(300, 100, Background::Clouds, Subject::GreenCross, at);
    let crop = crop(&source, 100, 100).unwrap();
    let start = -crop.retain_location.x;
    assert!((101..=140).contains(&start), "{start}");
    // Nothing is scaled here, so the answer is a part of the source, pixel by pixel.
    let source = image::load_from_memory(&source).unwrap().to_rgb8();
    let answer = image::load_from_memory(&crop.bytes).unwrap().to_rgb8();
    for (x, y, pixel) in answer.enumerate_pixels() {
        assert_eq!(pixel, source.get_pixel(x + start as u32, y));
    }
}

#[test]
fn a_colour_profile_is_carried_over_and_other_metadata_is_not() {
    use image::ImageDecoder;
    let rocket = include_bytes!("../../../tests/images/rocket.jpg");
    let profile = |bytes: &[u8]| {
        let input = std::io::Cursor::new(bytes.to_vec());
        let mut decoder = image::codecs::jpeg::JpegDecoder::new(input).unwrap();
        assert_eq!(decoder.exif_metadata().unwrap(), None);
        decoder.icc_profile().unwrap()
    };
    let crop = crop(rocket, 120, 80).unwrap();
    assert!(profile(rocket).is_some());
    assert_eq!(profile(&crop.bytes), profile(rocket));
}
