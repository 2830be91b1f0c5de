//! Draws pictures of one subject on a background, with a small generator for noise.

use std::io::Cursor;

use image::{ImageFormat, Rgb, RgbImage};

/// What the subject stands on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Background {
    /// Shaded from one side to the other.
    Gradient,
    /// A different colour in every pixel, around one middle colour.
    Noise,
    /// Soft patches of light and dark, like clouds.
    Clouds,
    /// Diagonal stripes.
    Stripes,
    /// Small squares of two colours.
    Chequered,
}

pub(crate) const BACKGROUNDS: [Background; 5] =
    [Background::Gradient, Background::Noise, Background::Clouds, Background::Stripes, Background::Chequered];

/// What there is to find.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Subject {
    RedDisc,
    DarkSquare,
    PaleRing,
    BlueTriangle,
    /// Black and white stripes, on average as light as what is around them.
    StripedDisc,
    GreenCross,
}

pub(crate) const SUBJECTS: [Subject; 6] = [
    Subject::RedDisc,
    Subject::DarkSquare,
    Subject::PaleRing,
    Subject::BlueTriangle,
    Subject::StripedDisc,
    Subject::GreenCross,
];

/// A square around the subject, in pixels of the picture.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spot {
    pub(crate) x: u32,
    pub(crate) y: u32,
    pub(crate) size: u32,
}

/// Draws a picture and encodes it as PNG.
pub(crate) fn draw(width: u32, height: u32, background: Background, subject: Subject, at: Spot) -> Vec<u8> {
    let mut noise = Noise(0x9E37_79B9);
    let picture = RgbImage::from_fn(width, height, |x, y| {
        let ground = ground(background, x, y, width, height, &mut noise);
        let inside = |v: u32, start: u32| (start..start + at.size).contains(&v);
        let drawn = (inside(x, at.x) && inside(y, at.y))
            .then(|| figure(subject, x - at.x, y - at.y, at.size))
            .flatten();
        Rgb(drawn.unwrap_or(ground))
    });
    png(&picture)
}

pub(crate) fn png(picture: &RgbImage) -> Vec<u8> {
    encoded(picture, ImageFormat::Png)
}

pub(crate) fn encoded(picture: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A linear congruential generator (Numerical Recipes' constants).
pub(crate) struct Noise(pub(crate) u32);

impl Noise {
    /// Returns a number below `limit`.
    pub(crate) fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 16) % limit
    }
}

fn ground(background: Background, x: u32, y: u32, width: u32, height: u32, noise: &mut Noise) -> [u8; 3] {
    match background {
        Background::Gradient => {
            let across = (140 * x / width) as u8;
            let down = (60 * y / height) as u8;
            [90 + across / 2, 80 + across / 2 + down, 90 + across]
        }
        Background::Noise => [150, 140, 110].map(|middle| (middle + noise.below(80) - 40) as u8),
        Background::Clouds => {
            let wave = |v: u32, length: f32| (v as f32 / length).sin();
            let light = wave(x + 2 * y, 31.0) + wave(3 * x, 47.0) * wave(y, 23.0);
            [120.0, 140.0, 170.0].map(|middle: f32| (middle + 22.0 * light) as u8)
        }
        Background::Stripes if ((x + y) / 6).is_multiple_of(2) => [170, 160, 120],
        Background::Stripes => [120, 130, 110],
        Background::Chequered if (x / 5 + y / 5).is_multiple_of(2) => [150, 150, 150],
        Background::Chequered => [105, 115, 125],
    }
}

/// Returns the subject's colour at a place of its square, if it reaches there.
fn figure(subject: Subject, x: u32, y: u32, size: u32) -> Option<[u8; 3]> {
    let from_middle = |v: u32| (2 * v + 1) as f32 / size as f32 - 1.0;
    let (across, down) = (from_middle(x), from_middle(y));
    let radius = (across * across + down * down).sqrt();
    match subject {
        Subject::RedDisc => (radius < 1.0).then_some([205, 40, 40]),
        Subject::DarkSquare => Some([35, 30, 45]),
        Subject::PaleRing => (0.55..1.0).contains(&radius).then_some([245, 240, 225]),
        Subject::BlueTriangle => (across.abs() < (down + 1.0) / 2.0).then_some([40, 60, 200]),
        Subject::StripedDisc if radius < 1.0 => Some([if (x / 4).is_multiple_of(2) { 15 } else { 235 }; 3]),
        Subject::StripedDisc => None,
        Subject::GreenCross => (across.abs() < 0.35 || down.abs() < 0.35).then_some([30, 150, 50]),
    }
}
