//! Says how much each part of a picture matters, on a thumbnail of it.
//!
//! Four published cues, none of them learned, are added up:
//!
//! - *barrier*: how different a place is from every path to the picture's border, by the minimum
//!   barrier distance: J. Zhang, S. Sclaroff, Z. Lin, X. Shen, B. Price, R. Mech, "Minimum Barrier
//!   Salient Object Detection at 80 FPS", ICCV 2015 (after R. Strand et al., "The minimum barrier
//!   distance", CVIU 117, 2013). A background that touches the border, flat, shaded or noisy,
//!   scores low; what it surrounds scores high;
//! - *foreignness*: how unlike the colours along the border a place is, from the same paper; this
//!   one sees a subject on a background too busy for paths;
//! - *contrast*: distance from the mean colour: R. Achanta, S. Hemami, F. Estrada, S. Susstrunk,
//!   "Frequency-tuned Salient Region Detection", CVPR 2009; this one sees a subject that itself
//!   touches the border;
//! - *faces*: patches of skin colour with the shape of a face; see [`faces`].
//!
//! Besides the three channels of CIE Lab the first two cues look at a fourth: how restless the
//! lightness is nearby. That tells a smooth subject from a rough background and the reverse.
//! A mild preference for the middle (B. Tatler, "The central fixation bias", J. of Vision 7(14),
//! 2007) settles what is left.

mod barrier;
mod border;
mod colour;
mod faces;
mod parts;

use image::RgbImage;

use crate::CropError;
use crate::plane::Plane;
use crate::resize::{self, FilterType, Window};

pub(crate) use parts::Part;

/// The thumbnail's longer side, in pixels. Larger sees no better and costs in proportion.
const THUMBNAIL_SIDE: u32 = 192;

/// What matters in a picture, and what belongs together.
pub(crate) struct Attention {
    /// Everything together.
    pub(crate) whole: Part,
    /// Things that should not be cut through. The first is the main one: the likeliest face, or
    /// else the heaviest thing; there may be none at all.
    pub(crate) parts: Vec<Part>,
}

/// Looks at a picture.
pub(crate) fn attend(pixels: &RgbImage) -> Result<Attention, CropError> {
    let thumbnail = shrink(pixels)?;
    let channels = Channels::of(&thumbnail);
    let map = combine(&channels);
    let faces = parts::faces(&map, &faces::find(&thumbnail));
    let mut whole = parts::whole(&map);
    faces.iter().for_each(|face| whole.add(face));
    let parts = faces.into_iter().chain(parts::things(&map)).collect();
    Ok(Attention { whole, parts })
}

/// Scales down to the thumbnail's size; a picture smaller than that stays as it is.
fn shrink(pixels: &RgbImage) -> Result<RgbImage, CropError> {
    let longest = pixels.width().max(pixels.height());
    if longest <= THUMBNAIL_SIDE {
        return Ok(pixels.clone());
    }
    let side = |length: u32| (length * THUMBNAIL_SIDE).div_ceil(longest);
    let (width, height) = (side(pixels.width()), side(pixels.height()));
    resize::resize(pixels, Window::all(pixels), width, height, FilterType::Hamming)
}

/// What the cues look at.
struct Channels {
    /// Lightness and the two colour axes, lightly smoothed.
    fine: [Plane; 3],
    /// The same three, smoothed until textures melt.
    coarse: [Plane; 3],
    /// How restless the lightness is nearby.
    texture: Plane,
}

impl Channels {
    fn of(thumbnail: &RgbImage) -> Self {
        let lab = colour::lab(thumbnail);
        let shorter = thumbnail.width().min(thumbnail.height()) as usize;
        let texture = texture(&lab[0]).blurred((shorter / 40).max(1));
        Channels {
            coarse: [0, 1, 2].map(|channel| lab[channel].blurred((shorter / 30).max(1))),
            fine: lab.map(|channel| channel.box_blurred(1)),
            texture,
        }
    }
}

/// Measures the standard deviation of lightness in squares of five pixels.
fn texture(lightness: &Plane) -> Plane {
    let mean = lightness.box_blurred(2);
    let mean_square = lightness.map(|value| value * value).box_blurred(2);
    mean_square.zip(&mean, |square, mean| (square - mean * mean).max(0.0).sqrt())
}

/// Adds up the cues other than faces.
fn combine(channels: &Channels) -> Plane {
    let foreign = border::foreignness(&channels.coarse, &channels.texture);
    let barrier = barriers(channels, &barrier::seeds(&foreign));
    let contrast = contrast(&channels.coarse);
    let mut map = Plane::new(foreign.width, foreign.height, 0.0);
    for (weight, cue, least) in [(0.45, barrier, 30.0), (0.35, foreign, 3.0), (0.2, contrast, 10.0)] {
        let cue = promoted(&cue.normalised(least));
        map = map.zip(&cue, |sum, value| sum + weight * value);
    }
    let floor = map.quantile(0.4);
    let map = map.map(|value| (value - floor).max(0.0));
    let map = centred(&map);
    map.map(|value| value * value)
}

/// Adds up barriers on two scales; the coarser counts double, being blind to texture.
fn barriers(channels: &Channels, seeds: &[bool]) -> Plane {
    let [l, a, b] = &channels.fine;
    let fine = barrier::sum(&[l, a, b], seeds);
    let [l, a, b] = &channels.coarse;
    let coarse = barrier::sum(&[l, a, b, &channels.texture], seeds);
    fine.zip(&coarse, |fine, coarse| fine + 2.0 * coarse)
}

/// Weakens a cue in proportion to how much of the picture it calls special: L. Itti, C. Koch,
/// E. Niebur, "A model of saliency-based visual attention", IEEE Trans. PAMI 20(11), 1998.
fn promoted(cue: &Plane) -> Plane {
    let rest = 1.0 - cue.mean();
    cue.map(|value| value * rest * rest)
}

/// Measures each place's distance from the mean colour.
fn contrast(channels: &[Plane; 3]) -> Plane {
    let mut sum = Plane::new(channels[0].width, channels[0].height, 0.0);
    for channel in channels {
        let mean = channel.mean();
        sum = sum.zip(channel, |sum, value| sum + (value - mean) * (value - mean));
    }
    sum.map(f32::sqrt)
}

/// Takes a little from what lies far from the middle: three tenths in the corners.
fn centred(map: &Plane) -> Plane {
    let mut out = map.clone();
    let square = |index: usize, length: usize| {
        let place = (2 * index + 1) as f32 / length as f32 - 1.0;
        place * place
    };
    for y in 0..map.height {
        for x in 0..map.width {
            let far = (square(x, map.width) + square(y, map.height)) / 2.0;
            out.values[y * map.width + x] *= 1.0 - 0.3 * far;
        }
    }
    out
}
