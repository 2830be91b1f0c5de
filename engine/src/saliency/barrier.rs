//! The minimum barrier distance to the picture's border, approximated by raster scans.
//!
//! The barrier of a path is the highest value on it less the lowest. A place's distance is the
//! smallest barrier of all paths from it to the border. Zhang et al. (see the parent module)
//! sweep back and forth, each pixel trying to do better through the neighbours just visited.

use crate::plane::Plane;

/// The paper uses three; one more settles winding backgrounds.
const SWEEPS: usize = 4;
/// A border pixel is like the rest if it is this little foreign, in spreads ...
const USUAL_SPREADS: f32 = 2.5;
/// ... or this many times as foreign as half of the border.
const USUAL_TIMES_MEDIAN: f32 = 1.5;

/// Sums the distances to the seeds over several channels.
pub(super) fn sum(channels: &[&Plane], seeds: &[bool]) -> Plane {
    let mut total = Plane::new(channels[0].width, channels[0].height, 0.0);
    for channel in channels {
        total = total.zip(&distance(channel, seeds), |sum, value| sum + value);
    }
    total
}

/// Chooses the pixels of the border that paths lead to: those that look like the rest of the
/// border. The others belong to a subject that touches the edge.
pub(super) fn seeds(foreignness: &Plane) -> Vec<bool> {
    let (width, height) = (foreignness.width, foreignness.height);
    let at_border = |index: usize| {
        let (x, y) = (index % width, index / width);
        x == 0 || y == 0 || x == width - 1 || y == height - 1
    };
    let border = Plane {
        width: 1,
        height: 1,
        values: (0..width * height)
            .filter(|&index| at_border(index))
            .map(|index| foreignness.values[index])
            .collect(),
    };
    let most = (border.quantile(0.5) * USUAL_TIMES_MEDIAN).max(USUAL_SPREADS);
    (0..width * height).map(|index| at_border(index) && foreignness.values[index] <= most).collect()
}

/// The best path found so far from a pixel to a seed.
#[derive(Clone, Copy)]
struct Path {
    low: f32,
    high: f32,
    barrier: f32,
}

fn distance(channel: &Plane, seeds: &[bool]) -> Plane {
    let (width, height) = (channel.width, channel.height);
    let mut paths: Vec<Path> = channel
        .values
        .iter()
        .zip(seeds)
        .map(|(&value, &seed)| Path {
            low: value,
            high: value,
            barrier: if seed { 0.0 } else { f32::INFINITY },
        })
        .collect();
    for sweep in 0..SWEEPS {
        for row in 0..height {
            for column in 0..width {
                // Forwards from the upper left, then backwards from the lower right.
                let forwards = row * width + column;
                let (index, beside, before) = if sweep % 2 == 0 {
                    let index = forwards;
                    (index, index.wrapping_sub(1), index.wrapping_sub(width))
                } else {
                    let index = width * height - 1 - forwards;
                    (index, index + 1, index + width)
                };
                if column > 0 {
                    extend(&mut paths, beside, index, channel.values[index]);
                }
                if row > 0 {
                    extend(&mut paths, before, index, channel.values[index]);
                }
            }
        }
    }
    Plane { values: paths.iter().map(|path| path.barrier).collect(), ..*channel }
}

/// Takes a neighbour's path, if it leads on with a lower barrier than the one known.
#[inline]
fn extend(paths: &mut [Path], from: usize, to: usize, value: f32) {
    let through = paths[from];
    if through.barrier == f32::INFINITY {
        return;
    }
    let (low, high) = (through.low.min(value), through.high.max(value));
    if high - low < paths[to].barrier {
        let barrier = high - low;
        paths[to] = Path { low, high, barrier };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plane(width: usize, rows: &[f32]) -> Plane {
        Plane { width, height: rows.len() / width, values: rows.to_vec() }
    }

    #[test]
    fn an_island_is_as_far_as_it_is_high_and_a_ramp_is_near() {
        let island = plane(4, &[1., 1., 1., 1., 1., 9., 9., 1., 1., 1., 1., 1.]);
        let border = |plane: &Plane| seeds(&Plane::new(plane.width, plane.height, 0.0));
        assert_eq!(distance(&island, &border(&island)).values[4..8], [0.0, 8.0, 8.0, 0.0]);
        let ramp = plane(4, &[1., 3., 5., 7., 1., 3., 5., 7., 1., 3., 5., 7.]);
        assert_eq!(distance(&ramp, &border(&ramp)).values, [0.0; 12]);
    }

    #[test]
    fn a_place_inside_a_wall_is_as_far_as_the_wall() {
        #[rustfmt::skip]
        let walled = plane(5, &[
            0., 0., 0., 0., 0.,
            0., 5., 5., 5., 0.,
            0., 5., 0., 5., 0.,
            0., 5., 5., 5., 0.,
            0., 0., 0., 0., 0.,
        ]);
        let seeds = seeds(&Plane::new(5, 5, 0.0));
        assert_eq!(distance(&walled, &seeds).values[12], 5.0);
    }

    #[test]
    fn a_picture_of_one_row_is_all_border() {
        let row = plane(3, &[1., 9., 1.]);
        assert_eq!(distance(&row, &seeds(&Plane::new(3, 1, 0.0))).values, [0.0; 3]);
    }

    #[test]
    fn a_subject_at_the_edge_is_no_seed_and_so_as_far_as_it_is_high() {
        let mut picture = Plane::new(6, 4, 1.0);
        let mut foreignness = Plane::new(6, 4, 0.5);
        for index in [2, 3, 8, 9] {
            (picture.values[index], foreignness.values[index]) = (7.0, 6.0);
        }
        let far = distance(&picture, &seeds(&foreignness));
        assert_eq!(far.values[..6], [0., 0., 6., 6., 0., 0.]);
    }
}
