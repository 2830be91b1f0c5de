//! No input makes the engine panic, and what it answers is always what was asked.

use std::io::Read;

use granary_engine::{CropError, crop};
use image::{GenericImageView, ImageFormat, Rgb, RgbImage};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::scene;

const PROGRESSIVE: &[u8] = include_bytes!("../../../tests/images/rocket-progressive.jpg");
const LOSSY: &[u8] = include_bytes!("../../../tests/images/rocket-lossy.webp");

fn sources() -> Vec<Vec<u8>> {
    let picture =
        RgbImage::from_fn(48, 32, |x, y| Rgb([(x * 5) as u8, (y * 7) as u8, ((x * y) % 251) as u8]));
    let mut palette = std::io::Cursor::new(Vec::new());
    let grey = image::DynamicImage::ImageRgb8(picture.clone()).to_luma8();
    grey.write_to(&mut palette, ImageFormat::Bmp).unwrap();
    let mut palette = palette.into_inner();
    // One colour that is no grey makes it acceptable.
    palette[60] ^= 0x40;
    [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::Bmp, ImageFormat::WebP]
        .map(|format| scene::encoded(&picture, format))
        .into_iter()
        .chain([palette, PROGRESSIVE.to_vec(), LOSSY.to_vec()])
        .collect()
}

/// A way to damage a file.
#[derive(Debug, Clone)]
enum Damage {
    /// Replaces one byte, near the start where headers are if `early`.
    Byte { at: prop::sample::Index, value: u8, early: bool },
    /// Flips one bit.
    Bit { at: prop::sample::Index, bit: u8 },
    /// Takes bytes out.
    Remove { at: prop::sample::Index, count: usize },
    /// Puts bytes in.
    Insert { at: prop::sample::Index, bytes: Vec<u8> },
    /// Drops everything from here on.
    Cut { at: prop::sample::Index },
}

impl Damage {
    fn strategy() -> impl Strategy<Value = Damage> {
        let at = any::<prop::sample::Index>;
        prop_oneof![
            6 => (at(), any::<u8>(), any::<bool>())
                .prop_map(|(at, value, early)| Damage::Byte { at, value, early }),
            4 => (at(), 0_u8..8).prop_map(|(at, bit)| Damage::Bit { at, bit }),
            1 => (at(), 1_usize..40).prop_map(|(at, count)| Damage::Remove { at, count }),
            1 => (at(), vec(any::<u8>(), 1..40)).prop_map(|(at, bytes)| Damage::Insert { at, bytes }),
            1 => at().prop_map(|at| Damage::Cut { at }),
        ]
    }

    fn apply(&self, file: &mut Vec<u8>) {
        if file.is_empty() {
            return;
        }
        let length = file.len();
        match self {
            Damage::Byte { at, value, early } => {
                let reach = if *early { length.min(120) } else { length };
                file[at.index(reach)] = *value;
            }
            Damage::Bit { at, bit } => file[at.index(length)] ^= 1 << bit,
            Damage::Remove { at, count } => {
                let start = at.index(length);
                file.drain(start..(start + count).min(length));
            }
            Damage::Insert { at, bytes } => {
                let start = at.index(length);
                file.splice(start..start, bytes.iter().copied());
            }
            Damage::Cut { at } => file.truncate(at.index(length)),
        }
    }
}

/// Checks the answer to any file at all.
fn check(file: &[u8], width: u32, height: u32) {
    match crop(file, width, height) {
        Ok(crop) => {
            let size = image::load_from_memory(&crop.bytes).unwrap().dimensions();
            assert_eq!(size, (width, height));
        }
        Err(CropError::Internal { reason }) => panic!("accepted, then failed: {reason}"),
        Err(_) => {}
    }
}

proptest! {
    #[test]
    fn damaged_files_never_make_it_panic(
        which in 0_usize..7,
        damages in vec(Damage::strategy(), 1..6),
        width in 10_u32..40,
        height in 10_u32..40,
    ) {
        let mut file = sources().swap_remove(which);
        for damage in &damages {
            damage.apply(&mut file);
        }
        check(&file, width, height);
    }

    #[test]
    fn bytes_that_only_start_like_a_picture_never_make_it_panic(
        start in prop::sample::select(vec![
            b"\xFF\xD8\xFF".as_slice(),
            b"\x89PNG\r\n\x1a\n\0\0\0\x0DIHDR\0\0\0\x20\0\0\0\x20\x08\x02\0\0\0",
            b"BM",
            b"RIFF\x40\0\0\0WEBPVP8L",
            b"RIFF\x40\0\0\0WEBPVP8X",
        ]),
        rest in vec(any::<u8>(), 0..200),
    ) {
        check(&[start, &rest].concat(), 20, 20);
    }

    #[test]
    fn any_source_and_target_fit_together(
        source_width in 1_u32..90,
        source_height in 1_u32..90,
        width in 10_u32..120,
        height in 10_u32..120,
    ) {
        let picture = RgbImage::from_fn(source_width, source_height, |x, y| {
            Rgb([(x * 11) as u8, (y * 13) as u8, ((x ^ y) * 3) as u8])
        });
        let crop = crop(&scene::png(&picture), width, height).unwrap();
        let size = image::load_from_memory(&crop.bytes).unwrap().dimensions();
        prop_assert_eq!(size, (width, height));
        let at = crop.retain_location;
        prop_assert!(at.x <= 0 && at.y <= 0);
        prop_assert!(at.x + at.width as i32 >= width as i32);
        prop_assert!(at.y + at.height as i32 >= height as i32);
    }
}

/// A PNG chunk with its checksum.
fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let mut checksum = flate2::Crc::new();
    checksum.update(kind);
    checksum.update(data);
    [&(data.len() as u32).to_be_bytes(), &kind[..], data, &checksum.sum().to_be_bytes()].concat()
}

/// A PNG with an RGB profile of so many bytes.
fn with_profile(length: u64) -> Vec<u8> {
    let mut header = [0; 128];
    header[16..20].copy_from_slice(b"RGB ");
    let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::copy(&mut header.as_slice().chain(std::io::repeat(0)).take(length), &mut packed).unwrap();
    let profile = [b"large\0\0", &packed.finish().unwrap()[..]].concat();
    let picture = RgbImage::from_fn(48, 32, |x, y| Rgb([x as u8, y as u8, 7]));
    let mut file = scene::encoded(&picture, ImageFormat::Png);
    // After the signature and the header.
    file.splice(33..33, chunk(b"iCCP", &profile));
    file
}

#[cfg(target_os = "linux")]
#[test]
fn profile_of_megabytes_in_a_png_of_kilobytes_is_dropped_before_it_takes_memory() {
    let peak = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let has_profile = |bytes: &[u8]| bytes.windows(4).any(|kind| kind == b"iCCP");
    let small = crop(&with_profile(1 << 20), 24, 16).unwrap();
    assert!(has_profile(&small.bytes));
    let bomb = with_profile(60 << 20);
    assert!(bomb.len() < 100_000, "{}", bomb.len());
    let before = peak();
    let crop = crop(&bomb, 24, 16).unwrap();
    let taken = peak() - before;
    assert!(!has_profile(&crop.bytes));
    assert!(taken < 16 << 10, "{taken} KiB");
}
