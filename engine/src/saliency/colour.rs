//! Colour as people see it, and the colours that skin has.
//!
//! The roots these need are computed here from multiplication and division alone, which give the
//! same bits everywhere; the platform's `powf` and `cbrt` may not.

use image::{Rgb, RgbImage};

use crate::plane::Plane;

/// Computes CIE Lab under D65: lightness 0 to 100, then green to red, then blue to yellow.
pub(super) fn lab(pixels: &RgbImage) -> [Plane; 3] {
    let (width, height) = (pixels.width() as usize, pixels.height() as usize);
    let mut planes = [(); 3].map(|()| Plane::new(width, height, 0.0));
    for (index, pixel) in pixels.pixels().enumerate() {
        for (plane, value) in planes.iter_mut().zip(lab_of(*pixel)) {
            plane.values[index] = value;
        }
    }
    planes
}

fn lab_of(Rgb(pixel): Rgb<u8>) -> [f32; 3] {
    let [r, g, b] = pixel.map(|value| LINEAR[usize::from(value)]);
    // IEC 61966-2-1's matrix, each row divided by the white point.
    let x = 0.433_953 * r + 0.376_219 * g + 0.189_828 * b;
    let y = 0.212_671 * r + 0.715_160 * g + 0.072_169 * b;
    let z = 0.017_758 * r + 0.109_477 * g + 0.872_766 * b;
    let [x, y, z] = [x, y, z].map(lab_curve);
    [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
}

/// Linear light for each 8-bit value, from sRGB's curve.
static LINEAR: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut value = 0;
    while value < 256 {
        let encoded = value as f32 / 255.0;
        table[value] = if encoded <= 0.040_45 {
            encoded / 12.92
        } else {
            let base = (encoded + 0.055) / 1.055;
            // 2.4 is 2 + 2/5.
            base * base * root(base * base, 5)
        };
        value += 1;
    }
    table
};

const CURVE_STEPS: usize = 1024;

/// Lab's curve at evenly spaced points.
static CURVE: [f32; CURVE_STEPS + 1] = {
    let mut table = [0.0; CURVE_STEPS + 1];
    let mut step = 0;
    while step <= CURVE_STEPS {
        let light = step as f32 / CURVE_STEPS as f32;
        table[step] = if light > 0.008_856 { root(light, 3) } else { 7.787 * light + 16.0 / 116.0 };
        step += 1;
    }
    table
};

fn lab_curve(light: f32) -> f32 {
    let place = light.clamp(0.0, 1.0) * CURVE_STEPS as f32;
    let step = (place as usize).min(CURVE_STEPS - 1);
    let (low, high) = (CURVE[step], CURVE[step + 1]);
    low + (high - low) * (place - step as f32)
}

/// Finds a root of a value between zero and one, by Newton's method from above.
const fn root(value: f32, degree: u32) -> f32 {
    let mut guess = 1.0;
    let mut round = 0;
    while round < 24 {
        let mut power = 1.0;
        let mut factor = 1;
        while factor < degree {
            power *= guess;
            factor += 1;
        }
        guess -= (guess - value / power) / degree as f32;
        round += 1;
    }
    guess
}

/// Says how likely a colour is skin's, zero to one, whatever the skin's tone.
///
/// Chrominance only, after D. Chai and K. Ngan, "Face segmentation using skin-color map in
/// videophone applications", IEEE Trans. CSVT 9(4), 1999: skin lies within Cb 77 to 127 and
/// Cr 133 to 173. The edges are softened here.
pub(super) fn skin(Rgb([r, g, b]): Rgb<u8>) -> f32 {
    let [r, g, b] = [r, g, b].map(f32::from);
    let luma = 0.299 * r + 0.587 * g + 0.114 * b;
    if luma < 40.0 {
        return 0.0;
    }
    let cb = 128.0 + 0.564 * (b - luma);
    let cr = 128.0 + 0.713 * (r - luma);
    let (from_cb, from_cr) = ((cb - 102.0) / 27.0, (cr - 153.0) / 20.0);
    let square = from_cb * from_cb + from_cr * from_cr;
    1.0 / (1.0 + square * square)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lab_matches_known_colours() {
        let check = |rgb, expected: [f32; 3]| {
            for (value, expected) in lab_of(Rgb(rgb)).into_iter().zip(expected) {
                assert!((value - expected).abs() < 0.6, "{rgb:?}: {value} {expected}");
            }
        };
        check([0, 0, 0], [0.0, 0.0, 0.0]);
        check([255, 255, 255], [100.0, 0.0, 0.0]);
        check([119, 119, 119], [50.0, 0.0, 0.0]);
        check([255, 0, 0], [53.2, 80.1, 67.2]);
        check([0, 255, 0], [87.7, -86.2, 83.2]);
        check([0, 0, 255], [32.3, 79.2, -107.9]);
    }

    #[test]
    fn skin_of_all_tones_is_told_from_other_things() {
        for tone in [[255, 219, 172], [224, 172, 105], [198, 134, 66], [141, 85, 36], [96, 60, 40]] {
            assert!(skin(Rgb(tone)) > 0.5, "{tone:?}: {}", skin(Rgb(tone)));
        }
        for other in [[90, 140, 220], [60, 130, 50], [128, 128, 128], [240, 90, 30], [20, 10, 8]] {
            assert!(skin(Rgb(other)) < 0.4, "{other:?}: {}", skin(Rgb(other)));
        }
    }
}
