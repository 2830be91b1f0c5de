//! Pictures in memory: two photographs, small synthetic ones in every format, and headers that promise what is not there.

use std::io::Cursor;

use image::{DynamicImage, GrayImage, ImageFormat, Luma, Rgb, RgbImage, Rgba, RgbaImage};

/// A rocket at night, 640x427 RGB JPEG.
pub fn photo_jpeg() -> &'static [u8] {
    include_bytes!("../../images/rocket.jpg")
}

/// A portrait of an astronaut, 512x512 RGB PNG.
pub fn photo_png() -> &'static [u8] {
    include_bytes!("../../images/astronaut.png")
}

/// An RGB PNG whose bytes depend on `seed`: a cheap way to any number of distinct keys.
pub fn tiny_png(width: u32, height: u32, seed: u64) -> Vec<u8> {
    let mut colours = vec![0; (width * height * 3) as usize];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut colours);
    let picture = RgbImage::from_raw(width, height, colours).expect("three bytes for each pixel");
    encode(picture.into(), ImageFormat::Png)
}

/// One colour all over, RGB, in JPEG, PNG, BMP or WebP.
pub fn solid(format: ImageFormat, width: u32, height: u32, rgb: [u8; 3]) -> Vec<u8> {
    encode(RgbImage::from_pixel(width, height, Rgb(rgb)).into(), format)
}

/// A JPEG with one component.
pub fn grey_jpeg(width: u32, height: u32) -> Vec<u8> {
    encode(GrayImage::from_pixel(width, height, Luma([90])).into(), ImageFormat::Jpeg)
}

/// A greyscale PNG.
pub fn grey_png(width: u32, height: u32) -> Vec<u8> {
    encode(GrayImage::from_pixel(width, height, Luma([90])).into(), ImageFormat::Png)
}

/// A PNG with an alpha channel, half transparent.
pub fn alpha_png(width: u32, height: u32) -> Vec<u8> {
    encode(RgbaImage::from_pixel(width, height, Rgba([200, 90, 30, 128])).into(), ImageFormat::Png)
}

/// A JPEG with four components and Adobe's marker, whole and decodable: every block is the same mid tone.
///
/// Written by hand because no encoder at hand makes one. Both Huffman tables know a single one-bit code, which means
/// "no difference" for DC and "end of block" for AC, so a unit of four blocks is one zero byte.
pub fn cmyk_jpeg(width: u16, height: u16) -> Vec<u8> {
    let segment = |marker: u8, payload: &[u8]| {
        let length = u16::try_from(payload.len() + 2).expect("a short segment").to_be_bytes();
        [&[0xff, marker], &length[..], payload].concat()
    };
    let [h, w] = [height.to_be_bytes(), width.to_be_bytes()];
    let frame =
        [&[8, h[0], h[1], w[0], w[1], 4][..], &[1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0, 4, 0x11, 0]].concat();
    let huffman = |class: u8| [&[class, 1][..], &[0; 15], &[0]].concat();
    let units = usize::from(width.div_ceil(8)) * usize::from(height.div_ceil(8));
    [
        &[0xff, 0xd8][..],
        &segment(0xee, b"Adobe\0\x64\0\0\0\0\0"),
        &segment(0xdb, &[&[0][..], &[1; 64]].concat()),
        &segment(0xc0, &frame),
        &segment(0xc4, &huffman(0x00)),
        &segment(0xc4, &huffman(0x10)),
        &segment(0xda, &[4, 1, 0, 2, 0, 3, 0, 4, 0, 0, 63, 0]),
        &vec![0; units],
        &[0xff, 0xd9],
    ]
    .concat()
}

/// A pixel bomb: a well-formed PNG header for a picture of this size, and hardly any data.
pub fn png_header_claiming(width: u32, height: u32) -> Vec<u8> {
    let chunk = |kind: &[u8], data: &[u8]| {
        let body = [kind, data].concat();
        let length = u32::try_from(data.len()).expect("a short chunk").to_be_bytes();
        [&length[..], &body, &crc32(&body).to_be_bytes()].concat()
    };
    // RGB, eight bits; the data are a valid, empty stream.
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    [
        &b"\x89PNG\r\n\x1a\n"[..],
        &chunk(b"IHDR", &header),
        &chunk(b"IDAT", &[0x78, 0x9c, 0x03, 0, 0, 0, 0, 1]),
        &chunk(b"IEND", &[]),
    ]
    .concat()
}

/// The picture with zeros after its end, `length` bytes in all: for limits that must be exact.
///
/// # Panics
///
/// If the picture is longer already.
pub fn padded(picture: &[u8], length: usize) -> Vec<u8> {
    assert!(picture.len() <= length, "the picture has {} bytes already", picture.len());
    let mut bytes = picture.to_vec();
    bytes.resize(length, 0);
    bytes
}

fn encode(picture: DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    picture.write_to(&mut file, format).expect("writing to memory does not fail");
    file.into_inner()
}

/// The checksum of a PNG chunk.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use image::{ColorType, GenericImageView};

    use super::*;

    fn check(bytes: &[u8], format: ImageFormat, size: (u32, u32), colour: ColorType) {
        assert_eq!(image::guess_format(bytes).unwrap(), format);
        let picture = image::load_from_memory(bytes).unwrap();
        assert_eq!((picture.dimensions(), picture.color()), (size, colour));
    }

    #[test]
    fn pictures_are_what_they_are_called() {
        check(photo_jpeg(), ImageFormat::Jpeg, (640, 427), ColorType::Rgb8);
        check(photo_png(), ImageFormat::Png, (512, 512), ColorType::Rgb8);
        for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::Bmp, ImageFormat::WebP] {
            check(&solid(format, 20, 30, [1, 2, 3]), format, (20, 30), ColorType::Rgb8);
        }
        check(&grey_jpeg(20, 30), ImageFormat::Jpeg, (20, 30), ColorType::L8);
        check(&grey_png(20, 30), ImageFormat::Png, (20, 30), ColorType::L8);
        check(&alpha_png(20, 30), ImageFormat::Png, (20, 30), ColorType::Rgba8);
        check(&padded(&grey_png(20, 30), 5000), ImageFormat::Png, (20, 30), ColorType::L8);
        assert_eq!(padded(photo_jpeg(), 200_000).len(), 200_000);
    }

    #[test]
    fn seeds_make_pictures_of_their_own() {
        assert_eq!(tiny_png(8, 8, 1), tiny_png(8, 8, 1));
        assert_ne!(tiny_png(8, 8, 1), tiny_png(8, 8, 2));
        check(&tiny_png(8, 9, 1), ImageFormat::Png, (8, 9), ColorType::Rgb8);
    }

    #[test]
    fn the_four_component_jpeg_has_four_and_can_be_decoded() {
        let bytes = cmyk_jpeg(33, 17);
        let frame = memchr::memmem::find(&bytes, &[0xff, 0xc0]).unwrap();
        assert_eq!(bytes[frame + 9], 4);
        // The decoder turns it into RGB by itself, which is exactly why a gateway has to read the header.
        check(&bytes, ImageFormat::Jpeg, (33, 17), ColorType::Rgb8);
    }

    #[test]
    fn the_bomb_claims_its_size_and_has_no_pixels() {
        let bytes = png_header_claiming(60_000, 50_000);
        assert!(bytes.len() < 100);
        let reader = image::ImageReader::new(Cursor::new(&bytes)).with_guessed_format().unwrap();
        assert_eq!(reader.into_dimensions().unwrap(), (60_000, 50_000));
        assert!(image::load_from_memory(&png_header_claiming(20, 20)).is_err());
    }
}
