//! The minimum barrier distance to the picture's border, approximated by raster scans.
//!
//! The barrier of a path is the highest value on it less the lowest. A place's distance is the
//! smallest barrier of all paths from it to the border. Zhang et al. (see the parent module)
//! sweep back and forth, each pixel trying to do better through the neighbours just visited.

use crate::plane::Plane;

/// The paper uses three; one more settles winding backgrounds.
const SWEEPS: usize = 4;

/// Sums the distances over several channels.
pub(super) fn sum(channels: &[&Plane]) -> Plane {
    let mut total = Plane::new(channels[0].width, channels[0].height, 0.0);
    for channel in channels {
        total = total.zip(&distance(channel), |sum, value| sum + value);
    }
    total
}

/// The best path found so far from a pixel to the border.
#[derive(Clone, Copy)]
struct Path {
    low: f32,
    high: f32,
    barrier: f32,
}

fn distance(channel: &Plane) -> Plane {
    let (width, height) = (channel.width, channel.height);
    let mut paths: Vec<Path> = channel
        .values
        .iter()
        .enumerate()
        .map(|(index, &value)| {
            let (x, y) = (index % width, index / width);
            let at_border = x == 0 || y == 0 || x == width - 1 || y == height - 1;
            Path { low: value, high: value, barrier: if at_border { 0.0 } else { f32::INFINITY } }
        })
        .collect();
    for sweep in 0..SWEEPS {
        for row in 1..height.saturating_sub(1) {
            for column in 1..width.saturating_sub(1) {
                // Forwards from the upper left, then backwards from the lower right.
                let (index, neighbours) = if sweep % 2 == 0 {
                    let index = row * width + column;
                    (index, [index - 1, index - width])
                } else {
                    let index = (height - 1 - row) * width + (width - 1 - column);
                    (index, [index + 1, index + width])
                };
                let value = channel.values[index];
                for neighbour in neighbours {
                    let through = paths[neighbour];
                    let (low, high) = (through.low.min(value), through.high.max(value));
                    if high - low < paths[index].barrier {
                        paths[index] = Path { low, high, barrier: high - low };
                    }
                }
            }
        }
    }
    Plane { values: paths.iter().map(|path| path.barrier).collect(), ..*channel }
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
        assert_eq!(distance(&island).values[4..8], [0.0, 8.0, 8.0, 0.0]);
        let ramp = plane(4, &[1., 3., 5., 7., 1., 3., 5., 7., 1., 3., 5., 7.]);
        assert_eq!(distance(&ramp).values, [0.0; 12]);
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
        assert_eq!(distance(&walled).values[12], 5.0);
    }

    #[test]
    fn a_picture_of_one_row_is_all_border() {
        assert_eq!(distance(&plane(3, &[1., 9., 1.])).values, [0.0; 3]);
    }
}
