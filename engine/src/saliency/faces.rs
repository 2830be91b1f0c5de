//! Finds what may be faces: patches of skin colour that have a face's shape and features.
//!
//! Nothing here is learned from pictures of people; it is a prior, not a detector. It knows a
//! face as a compact patch of skin colour, neither tiny nor huge, a little higher than wide, with
//! darker places (eyes, brows, mouth) inside it. Where much of a picture has the colour of skin
//! (sand, wood, brick), the colour says nothing and the cue fades.

use image::RgbImage;

use super::colour;
use super::parts::{self, Region};
use crate::plane::Plane;

/// A patch that may be a face, as a rectangle of the thumbnail.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Face {
    pub(crate) left: usize,
    pub(crate) top: usize,
    /// One past the last column and row.
    pub(crate) right: usize,
    pub(crate) bottom: usize,
    /// How much it looks like a face, zero to one.
    pub(crate) likeness: f32,
}

/// A patch less likely than this is nothing.
const LEAST_LIKENESS: f32 = 0.15;

/// Returns the patches that look most like faces, the likeliest first, four at most.
pub(crate) fn find(thumbnail: &RgbImage) -> Vec<Face> {
    let (width, height) = (thumbnail.width() as usize, thumbnail.height() as usize);
    let mut skin = Plane::new(width, height, 0.0);
    for (value, pixel) in skin.values.iter_mut().zip(thumbnail.pixels()) {
        *value = colour::skin(*pixel);
    }
    let skin = skin.box_blurred(1);
    let share = skin.values.iter().filter(|&&value| value > 0.5).count() as f32 / skin.values.len() as f32;
    // From a quarter of the picture on it fades, and at three fifths nothing is left.
    let trust = ((0.6 - share) / 0.35).clamp(0.0, 1.0);
    let lightness = Plane {
        width,
        height,
        values: thumbnail.pixels().map(|pixel| pixel.0.map(f32::from).iter().sum::<f32>() / 3.0).collect(),
    };
    let mut faces: Vec<Face> = parts::regions(&skin, 0.5)
        .into_iter()
        .map(|region| Face {
            left: region.left,
            top: region.top,
            right: region.right,
            bottom: region.bottom,
            likeness: trust * likeness(&region, &skin, &lightness),
        })
        .filter(|face| face.likeness >= LEAST_LIKENESS)
        .collect();
    faces.sort_by(|a, b| b.likeness.total_cmp(&a.likeness));
    faces.truncate(4);
    faces
}

/// Multiplies what is known of faces.
fn likeness(region: &Region, skin: &Plane, lightness: &Plane) -> f32 {
    let (width, height) = (region.right - region.left, region.bottom - region.top);
    let area = region.pixels.len() as f32;
    let share = area / skin.values.len() as f32;
    let size = ramp(share, 0.001, 0.004) * ramp(share, 0.35, 0.2);
    let slimness = height as f32 / width as f32;
    let shape = ramp(slimness, 0.6, 1.0) * ramp(slimness, 2.4, 1.7);
    let fullness = ramp(area / (width * height) as f32, 0.3, 0.55);
    size * shape * fullness * (0.35 + 0.65 * features(region, lightness))
}

/// Measures how much of a patch's upper two thirds is clearly darker than the patch, as eyes and
/// brows are: about a tenth in a face, and next to nothing in a hand or a wooden box.
fn features(region: &Region, lightness: &Plane) -> f32 {
    let sum: f32 = region.pixels.iter().map(|&index| lightness.values[index]).sum();
    let dark = 0.72 * sum / region.pixels.len() as f32;
    // The middle of the rectangle, where there is no background.
    let (width, height) = (region.right - region.left, region.bottom - region.top);
    let columns = region.left + width / 5..region.right - width / 5;
    let rows = region.top + height / 8..region.top + height * 2 / 3;
    let mut counts = (0, 0);
    for y in rows {
        for x in columns.clone() {
            counts.0 += usize::from(lightness.values[y * lightness.width + x] < dark);
            counts.1 += 1;
        }
    }
    let share = counts.0 as f32 / counts.1.max(1) as f32;
    ramp(share, 0.01, 0.06) * ramp(share, 0.6, 0.35)
}

/// Goes from zero at `from` to one at `to`, in a straight line, either way round.
fn ramp(value: f32, from: f32, to: f32) -> f32 {
    ((value - from) / (to - from)).clamp(0.0, 1.0)
}
