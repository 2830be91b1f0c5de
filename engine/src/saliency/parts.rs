//! Takes a map apart into things that hang together.

use std::ops::Range;

use super::faces::Face;
use crate::plane::Plane;

/// Something that should be kept whole if it can be, by how it lies along each axis.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Part {
    /// Its weight in each column and row of the thumbnail, in units of the map.
    pub(crate) columns: Vec<f64>,
    pub(crate) rows: Vec<f64>,
}

/// Connected pixels, and the rectangle around them.
pub(super) struct Region {
    pub(super) pixels: Vec<usize>,
    pub(super) left: usize,
    pub(super) top: usize,
    /// One past the last column and row.
    pub(super) right: usize,
    pub(super) bottom: usize,
}

/// How many things of the map are looked after, faces aside.
const MOST_PARTS: usize = 6;
/// What a certain face weighs, in shares of the whole map.
const FACE_WEIGHT: f64 = 0.8;

/// Returns everything the map holds.
pub(super) fn whole(map: &Plane) -> Part {
    let all: Vec<usize> = (0..map.values.len()).collect();
    Part::of_pixels(map, &all)
}

/// Returns the map's heaviest things.
pub(super) fn things(map: &Plane) -> Vec<Part> {
    let mut parts: Vec<Part> =
        regions(map, otsu(map)).iter().map(|region| Part::of_pixels(map, &region.pixels)).collect();
    parts.sort_by(|a, b| b.weight().total_cmp(&a.weight()));
    parts.truncate(MOST_PARTS);
    parts
}

/// Returns faces as parts, heavy enough to be kept before other things, with some room around
/// them and more above, for hair.
pub(super) fn faces(map: &Plane, faces: &[Face]) -> Vec<Part> {
    let total: f64 = map.values.iter().map(|&value| f64::from(value)).sum();
    faces
        .iter()
        .map(|face| {
            let weight = FACE_WEIGHT * f64::from(face.likeness) * total.max(1.0);
            let (width, height) = (face.right - face.left, face.bottom - face.top);
            let columns = face.left.saturating_sub(width / 8)..face.right + width / 8;
            let rows = face.top.saturating_sub(height / 4)..face.bottom + height / 8;
            let mut part = Part::empty(map);
            spread(&mut part.columns, columns, weight);
            spread(&mut part.rows, rows, weight);
            part
        })
        .collect()
}

/// Spreads a weight evenly over the places of a range that exist.
fn spread(profile: &mut [f64], range: Range<usize>, weight: f64) {
    let range = range.start..range.end.min(profile.len());
    let share = weight / range.len().max(1) as f64;
    profile[range].fill(share);
}

impl Part {
    fn empty(map: &Plane) -> Self {
        Part { columns: vec![0.0; map.width], rows: vec![0.0; map.height] }
    }

    fn of_pixels(map: &Plane, pixels: &[usize]) -> Self {
        let mut part = Part::empty(map);
        for &index in pixels {
            let weight = f64::from(map.values[index]);
            part.columns[index % map.width] += weight;
            part.rows[index / map.width] += weight;
        }
        part
    }

    /// Adds another part of the same thumbnail.
    pub(super) fn add(&mut self, other: &Part) {
        let own = self.columns.iter_mut().chain(&mut self.rows);
        for (own, other) in own.zip(other.columns.iter().chain(&other.rows)) {
            *own += other;
        }
    }

    fn weight(&self) -> f64 {
        self.columns.iter().sum()
    }
}

/// Returns the regions of values over the threshold that touch by sides, in reading order.
pub(super) fn regions(plane: &Plane, threshold: f32) -> Vec<Region> {
    let (width, height) = (plane.width, plane.height);
    let mut open: Vec<bool> = plane.values.iter().map(|&value| value > threshold).collect();
    let mut regions = Vec::new();
    for start in 0..open.len() {
        if !std::mem::take(&mut open[start]) {
            continue;
        }
        let mut pixels = vec![start];
        let (mut left, mut top, mut right, mut bottom) = (width, height, 0, 0);
        let mut next = 0;
        while let Some(&index) = pixels.get(next) {
            next += 1;
            let (x, y) = (index % width, index / width);
            (left, top) = (left.min(x), top.min(y));
            (right, bottom) = (right.max(x + 1), bottom.max(y + 1));
            let neighbours = [
                (x > 0).then(|| index - 1),
                (x + 1 < width).then_some(index + 1),
                (y > 0).then(|| index - width),
                (y + 1 < height).then_some(index + width),
            ];
            for neighbour in neighbours.into_iter().flatten() {
                if std::mem::take(&mut open[neighbour]) {
                    pixels.push(neighbour);
                }
            }
        }
        regions.push(Region { pixels, left, top, right, bottom });
    }
    regions
}

/// Finds the threshold that best splits a map in two: N. Otsu, "A threshold selection method from
/// gray-level histograms", IEEE Trans. SMC 9(1), 1979.
fn otsu(map: &Plane) -> f32 {
    const BINS: usize = 128;
    let top = map.values.iter().fold(0.0, |most: f32, &value| most.max(value));
    let mut histogram = [0_u32; BINS];
    for &value in &map.values {
        histogram[((value / top.max(f32::MIN_POSITIVE)) * (BINS - 1) as f32) as usize] += 1;
    }
    let total = map.values.len() as f64;
    let sum: f64 = (0..BINS).map(|bin| bin as f64 * f64::from(histogram[bin])).sum();
    let (mut best, mut best_spread) = (0, 0.0);
    let (mut below, mut sum_below) = (0.0, 0.0);
    for (bin, &count) in histogram.iter().enumerate() {
        below += f64::from(count);
        sum_below += bin as f64 * f64::from(count);
        let above = total - below;
        if below > 0.0 && above > 0.0 {
            let apart = sum_below / below - (sum - sum_below) / above;
            let spread = below * above * apart * apart;
            if spread > best_spread {
                (best, best_spread) = (bin, spread);
            }
        }
    }
    (best as f32 + 0.5) / (BINS - 1) as f32 * top
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_islands_are_two_regions_and_touching_corners_do_not_join() {
        let mut plane = Plane::new(4, 3, 0.0);
        for index in [0, 1, 6, 7, 11] {
            plane.values[index] = 1.0;
        }
        let regions = regions(&plane, 0.5);
        assert_eq!(regions.len(), 2);
        assert_eq!(regions[0].pixels, [0, 1]);
        let second = &regions[1];
        assert_eq!((second.left, second.top, second.right, second.bottom), (2, 1, 4, 3));
    }

    #[test]
    fn otsu_splits_between_two_heaps() {
        let mut plane = Plane::new(10, 10, 0.1);
        plane.values[..20].fill(0.9);
        let threshold = otsu(&plane);
        assert!(threshold > 0.1 && threshold < 0.9);
        assert_eq!(otsu(&Plane::new(3, 3, 0.0)), 0.0);
    }
}
