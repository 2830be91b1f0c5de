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
const LEAST_LIKENESS: f32 = 0.3;

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
    let share = region.pixels.len() as f32 / skin.values.len() as f32;
    let size = ramp(share, 0.002, 0.01) * ramp(share, 0.35, 0.2);
    let slimness = height as f32 / width as f32;
    let shape = ramp(slimness, 0.6, 1.0) * ramp(slimness, 2.4, 1.7);
    if size * shape == 0.0 {
        return 0.0;
    }
    let inside = Inside::look(region, lightness);
    let fullness = ramp(inside.patch, 0.45, 0.7);
    // About a tenth in a face, and next to nothing in a hand or a wooden box.
    let features = ramp(inside.dark, 0.01, 0.06) * ramp(inside.dark, 0.6, 0.35);
    let no_lamp = ramp(inside.glaring, 0.15, 0.03);
    size * shape * fullness * no_lamp * (0.35 + 0.65 * features)
}

/// What fills the ellipse inside a patch's rectangle, in shares of the ellipse.
struct Inside {
    /// Belongs to the patch.
    patch: f32,
    /// In the upper two thirds, is clearly darker than the patch, as eyes and brows are.
    dark: f32,
    /// Is as bright as a lamp.
    glaring: f32,
}

impl Inside {
    fn look(region: &Region, lightness: &Plane) -> Self {
        let of_patch = |index: &usize| lightness.values[*index];
        let sum: f32 = region.pixels.iter().map(of_patch).sum();
        let dark_below = 0.72 * sum / region.pixels.len() as f32;
        let mut members = region.pixels.clone();
        members.sort_unstable();
        let (width, height) = (region.right - region.left, region.bottom - region.top);
        let from_middle = |place: usize, length: usize| (2 * place + 1) as f32 / length as f32 - 1.0;
        let (mut all, mut patch, mut upper, mut dark, mut glaring) = (0, 0, 0, 0, 0);
        for y in 0..height {
            for x in 0..width {
                let (across, down) = (from_middle(x, width), from_middle(y, height));
                if across * across + down * down > 0.8 {
                    continue;
                }
                let index = (region.top + y) * lightness.width + region.left + x;
                let value = lightness.values[index];
                all += 1;
                patch += u32::from(members.binary_search(&index).is_ok());
                glaring += u32::from(value > 245.0);
                if 3 * y < 2 * height {
                    upper += 1;
                    dark += u32::from(value < dark_below);
                }
            }
        }
        let share = |count: u32, all: u32| count as f32 / all.max(1) as f32;
        Inside { patch: share(patch, all), dark: share(dark, upper), glaring: share(glaring, all) }
    }
}

/// Goes from zero at `from` to one at `to`, in a straight line, either way round.
fn ramp(value: f32, from: f32, to: f32) -> f32 {
    ((value - from) / (to - from)).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    const SKIN: Rgb<u8> = Rgb([205, 150, 120]);
    const DARK: Rgb<u8> = Rgb([60, 40, 35]);
    const WALL: Rgb<u8> = Rgb([110, 130, 150]);

    /// Draws an oval of skin of this width and height around (60, 50), with two eyes or without.
    fn oval(width: f32, height: f32, eyes: bool) -> RgbImage {
        RgbImage::from_fn(120, 100, |x, y| {
            let (across, down) = (x as f32 - 60.0, y as f32 - 50.0);
            let (u, v) = (2.0 * across / width, 2.0 * down / height);
            let in_eye = (u.abs() - 0.4).abs() < 0.15 && (v + 0.25).abs() < 0.1;
            match u * u + v * v < 1.0 {
                true if eyes && in_eye => DARK,
                true => SKIN,
                false => WALL,
            }
        })
    }

    #[test]
    fn an_oval_with_eyes_is_a_face_and_its_place_is_known() {
        let faces = find(&oval(30.0, 40.0, true));
        assert_eq!(faces.len(), 1);
        assert!(faces[0].likeness > 0.8, "{faces:?}");
        assert!((43..47).contains(&faces[0].left) && (28..32).contains(&faces[0].top));
        assert!((74..78).contains(&faces[0].right) && (69..73).contains(&faces[0].bottom));
    }

    #[test]
    fn an_oval_without_eyes_is_less_of_a_face() {
        let without = find(&oval(30.0, 40.0, false));
        assert!(without.iter().all(|face| face.likeness < 0.5), "{without:?}");
    }

    #[test]
    fn planks_specks_and_beaches_are_no_faces() {
        assert_eq!(find(&oval(110.0, 20.0, true)), []);
        assert_eq!(find(&oval(5.0, 6.0, true)), []);
        assert_eq!(find(&RgbImage::from_pixel(120, 100, SKIN)), []);
    }

    #[test]
    fn where_everything_has_the_colour_of_skin_it_says_nothing() {
        let mut beach = oval(30.0, 40.0, true);
        assert_eq!(find(&beach).len(), 1);
        for (x, y, pixel) in beach.enumerate_pixels_mut() {
            if x.abs_diff(60) > 19 || y.abs_diff(50) > 24 {
                *pixel = SKIN;
            }
        }
        assert_eq!(find(&beach), []);
    }
}
