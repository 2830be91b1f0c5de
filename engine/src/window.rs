//! Chooses the window of the source that becomes the new picture.
//!
//! The window is the largest one of the target's shape that fits, so it spans the source in one
//! direction and slides in the other. It slides to where it keeps most of what matters, with what
//! it keeps near its middle, and without cutting through anything that could stay whole.

use image::RgbImage;

use crate::saliency::{self, Attention, Part};
use crate::{CropError, RetainLocation};

/// Says where the whole source lies in a new picture of `width` x `height`.
pub(crate) fn place(pixels: &RgbImage, width: u32, height: u32) -> Result<RetainLocation, CropError> {
    let slide = Slide::new(pixels, width, height);
    let mut placement = RetainLocation { width, height, x: 0, y: 0 };
    let start = if slide.slack() == 0 { 0 } else { slide.best_start(&saliency::attend(pixels)?) };
    // At most 2000 times 2000 pixels, so an i32 holds it.
    let offset = -i32::try_from(start).map_err(CropError::internal)?;
    match slide.axis {
        Axis::Horizontal => (placement.width, placement.x) = (slide.scaled, offset),
        Axis::Vertical => (placement.height, placement.y) = (slide.scaled, offset),
    }
    Ok(placement)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Axis {
    Horizontal,
    Vertical,
}

/// The direction in which the window can move, in pixels of the new picture.
#[derive(Debug, PartialEq, Eq)]
struct Slide {
    axis: Axis,
    /// Length of the whole scaled source.
    scaled: u32,
    /// Length of the window.
    target: u32,
}

impl Slide {
    fn new(pixels: &RgbImage, width: u32, height: u32) -> Self {
        let (source_width, source_height) = (pixels.width(), pixels.height());
        let wider_than_target =
            u64::from(source_width) * u64::from(height) > u64::from(width) * u64::from(source_height);
        if wider_than_target {
            Slide {
                axis: Axis::Horizontal,
                scaled: scaled(source_width, height, source_height).max(width),
                target: width,
            }
        } else {
            Slide {
                axis: Axis::Vertical,
                scaled: scaled(source_height, width, source_width).max(height),
                target: height,
            }
        }
    }

    fn slack(&self) -> u32 {
        self.scaled - self.target
    }

    /// Returns how many pixels to cut away before the window.
    fn best_start(&self, attention: &Attention) -> u32 {
        let profile = Profile::new(attention, self.axis);
        let length = profile.whole.len() as f64;
        let window = length * f64::from(self.target) / f64::from(self.scaled);
        let steps = self.slack().min(STEPS_PER_PIXEL * profile.whole.len() as u32);
        // From the middle outwards, so that of equal places the most central wins.
        let mut order: Vec<u32> = (0..=steps).collect();
        order.sort_by_key(|&step| (2 * step).abs_diff(steps));
        let mut best = (f64::NEG_INFINITY, 0);
        for step in order {
            let start = (length - window) * f64::from(step) / f64::from(steps);
            let score = profile.score(start, window);
            if score > best.0 + LEAST_GAIN {
                best = (score, step);
            }
        }
        // Both factors are at most 4000000 and 8000, and the quotient at most the slack.
        (u64::from(self.slack()) * u64::from(best.1) / u64::from(steps)) as u32
    }
}

/// How finely starts are tried, in steps per pixel of the thumbnail.
const STEPS_PER_PIXEL: u32 = 4;
/// A score must be better by this to count as better, and not as rounding.
const LEAST_GAIN: f64 = 1e-9;
/// How much less a place at the window's edge counts than one in its middle.
const EDGE_LOSS: f64 = 0.3;
/// What cutting a thing in half costs, in shares of the thing's weight.
const CUT_COST: f64 = 0.5;

/// What it costs to have the main thing's middle at the window's edge.
const OFF_CENTRE_COST: f64 = 0.25;

/// What matters along the axis of the slide. All sums to one.
struct Profile {
    whole: Vec<f64>,
    parts: Vec<Vec<f64>>,
    /// Where the main thing's middle is.
    main: Option<f64>,
}

impl Profile {
    fn new(attention: &Attention, axis: Axis) -> Self {
        let along = |part: &Part| match axis {
            Axis::Horizontal => part.columns.clone(),
            Axis::Vertical => part.rows.clone(),
        };
        let mut whole = along(&attention.whole);
        let mut parts: Vec<Vec<f64>> = attention.parts.iter().map(along).collect();
        let total: f64 = whole.iter().sum();
        if total > 0.0 {
            for profile in parts.iter_mut().chain([&mut whole]) {
                profile.iter_mut().for_each(|weight| *weight /= total);
            }
        }
        let main = parts.first().and_then(|part| middle_of(part));
        Profile { whole, parts, main }
    }

    /// Says how good a window is; `start` and `window` in pixels of the thumbnail.
    fn score(&self, start: f64, window: f64) -> f64 {
        let middle = start + window / 2.0;
        let kept = sum_within(&self.whole, start, window, |place| {
            let off = (place - middle) / (window / 2.0);
            1.0 - EDGE_LOSS * off * off
        });
        let cuts: f64 = self
            .parts
            .iter()
            .map(|part| {
                let weight: f64 = part.iter().sum();
                let inside = sum_within(part, start, window, |_| 1.0);
                4.0 * inside * (weight - inside).max(0.0) / weight.max(f64::MIN_POSITIVE)
            })
            .sum();
        let off_centre = self.main.map_or(0.0, |main| {
            let off = (main - middle) / (window / 2.0);
            (off * off).min(1.0)
        });
        kept - CUT_COST * cuts - OFF_CENTRE_COST * off_centre
    }
}

/// Returns the centre of gravity of a profile that holds anything.
fn middle_of(profile: &[f64]) -> Option<f64> {
    let weight: f64 = profile.iter().sum();
    let moments = profile.iter().enumerate();
    let moment: f64 = moments.map(|(index, weight)| (index as f64 + 0.5) * weight).sum();
    (weight > 0.0).then(|| moment / weight)
}

/// Sums a profile over a window whose ends may lie inside pixels.
fn sum_within(profile: &[f64], start: f64, window: f64, factor: impl Fn(f64) -> f64) -> f64 {
    let end = start + window;
    let (first, last) = (start as usize, (end.ceil() as usize).min(profile.len()));
    (first..last)
        .map(|index| {
            let (low, high) = (start.max(index as f64), end.min((index + 1) as f64));
            profile[index] * (high - low).max(0.0) * factor((low + high) / 2.0)
        })
        .sum()
}

/// Scales a length by `by / of`, to the nearest pixel.
fn scaled(length: u32, by: u32, of: u32) -> u32 {
    let (length, by, of) = (u64::from(length), u64::from(by), u64::from(of));
    // At most 2000 times 2000.
    ((2 * length * by + of) / (2 * of)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attention(columns: &[f64], parts: &[&[f64]]) -> Attention {
        let part = |columns: &[f64]| Part { columns: columns.to_vec(), rows: vec![1.0] };
        Attention { whole: part(columns), parts: parts.iter().map(|columns| part(columns)).collect() }
    }

    #[test]
    fn the_axis_and_the_scaled_length_follow_from_the_shapes() {
        let check = |source: (u32, u32), target: (u32, u32), axis, scaled| {
            let slide = Slide::new(&RgbImage::new(source.0, source.1), target.0, target.1);
            assert_eq!((slide.axis, slide.scaled), (axis, scaled), "{source:?} {target:?}");
        };
        check((1600, 900), (400, 400), Axis::Horizontal, 711);
        check((900, 1600), (400, 400), Axis::Vertical, 711);
        check((640, 427), (300, 200), Axis::Vertical, 200);
        check((100, 100), (30, 20), Axis::Vertical, 30);
        check((2000, 1), (10, 2000), Axis::Horizontal, 4_000_000);
        // Rounding down would leave the target uncovered.
        check((1001, 1000), (500, 500), Axis::Horizontal, 501);
        check((2000, 1999), (10, 10), Axis::Horizontal, 10);
    }

    /// Ten pixels of thumbnail for a hundred of the scaled source, and a window of forty.
    fn best_start(attention: &Attention) -> u32 {
        let slide = Slide { axis: Axis::Horizontal, scaled: 100, target: 40 };
        slide.best_start(attention)
    }

    #[test]
    fn a_lone_thing_ends_up_in_the_middle_of_the_window() {
        let lone = [0., 0., 0., 0., 0., 0., 1., 0., 0., 0.];
        assert_eq!(best_start(&attention(&lone, &[&lone])), 45);
    }

    #[test]
    fn with_nothing_to_see_the_window_stays_in_the_middle() {
        assert_eq!(best_start(&attention(&[0.0; 10], &[])), 30);
    }

    #[test]
    fn a_thing_that_does_not_fit_beside_the_main_one_is_left_out_rather_than_cut() {
        let main = [0., 2., 2., 0., 0., 0., 0., 0., 0., 0.];
        let other = [0., 0., 0., 0., 3., 1., 1., 1., 1., 1.];
        let whole = [0., 2., 2., 0., 3., 1., 1., 1., 1., 1.];
        assert_eq!(best_start(&attention(&whole, &[&main, &other])), 0);
    }

    #[test]
    fn the_main_thing_is_nearer_the_middle_than_its_weight_alone_would_have_it() {
        let main = [0., 0., 0., 5., 0., 0., 0., 0., 0., 0.];
        let whole = [0., 0., 0., 5., 0., 4., 0., 0., 0., 0.];
        let start = best_start(&attention(&whole, &[&main]));
        // Weight alone puts the middle of the window at 44, and so its start at 24.
        assert!((15..=22).contains(&start), "{start}");
    }
}
