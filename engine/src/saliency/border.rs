//! How unlike the picture's border a place is, in colour and texture.
//!
//! Zhang et al. (see the parent module) take the four strips along the edges for examples of
//! background, and measure distance from each in units of that strip's own spread
//! (Mahalanobis), so that a motley background asks for a stronger difference. Of the four
//! distances the largest is left out: one side may belong to the subject.

use crate::plane::Plane;

/// A strip's thickness as a share of the picture's side: one in this many.
const STRIP: usize = 10;
/// Spread that every strip is granted in each channel, in Lab units squared, so that a flat
/// background does not make everything else infinitely foreign.
const LEAST_VARIANCE: f64 = 20.0;
/// The same for texture.
const LEAST_TEXTURE_VARIANCE: f64 = 4.0;
/// Beyond this many spreads, more is not more foreign.
const SATURATION: f32 = 8.0;

/// Measures each place's distance from the border's strips, in spreads.
pub(super) fn foreignness(lab: &[Plane; 3], texture: &Plane) -> Plane {
    let (width, height) = (texture.width, texture.height);
    let (across, down) = ((width / STRIP).max(1), (height / STRIP).max(1));
    let strips = [
        (0..width, 0..down),
        (0..width, height - down..height),
        (0..across, 0..height),
        (width - across..width, 0..height),
    ];
    let strips = strips.map(|(columns, rows)| {
        let indices: Vec<usize> = rows.flat_map(|y| columns.clone().map(move |x| y * width + x)).collect();
        Strip::learn(lab, texture, &indices)
    });
    let mut out = Plane::new(width, height, 0.0);
    for (index, value) in out.values.iter_mut().enumerate() {
        let colour = [0, 1, 2].map(|channel| lab[channel].values[index]);
        let distances =
            strips.each_ref().map(|strip| strip.distance(colour, texture.values[index]).min(SATURATION));
        let largest = distances.iter().fold(0.0, |most: f32, &d| most.max(d));
        *value = (distances.iter().sum::<f32>() - largest) / 3.0;
    }
    out
}

/// What one strip looks like.
struct Strip {
    mean: [f32; 3],
    /// Inverse of the colours' covariance.
    inverse: [[f32; 3]; 3],
    texture_mean: f32,
    texture_variance: f32,
}

impl Strip {
    fn learn(lab: &[Plane; 3], texture: &Plane, indices: &[usize]) -> Self {
        let count = indices.len() as f64;
        let mean_of = |value: &dyn Fn(usize) -> f64| -> f64 {
            indices.iter().map(|&index| value(index)).sum::<f64>() / count
        };
        let at = |channel: usize, index: usize| f64::from(lab[channel].values[index]);
        let mean = [0, 1, 2].map(|channel| mean_of(&|index| at(channel, index)));
        let covariance = [0, 1, 2].map(|row| {
            [0, 1, 2].map(|column| {
                let together =
                    mean_of(&|index| (at(row, index) - mean[row]) * (at(column, index) - mean[column]));
                together + if row == column { LEAST_VARIANCE } else { 0.0 }
            })
        });
        let texture_at = |index: usize| f64::from(texture.values[index]);
        let texture_mean = mean_of(&texture_at);
        let texture_variance = mean_of(&|index| (texture_at(index) - texture_mean).powi(2));
        Strip {
            mean: mean.map(|value| value as f32),
            inverse: inverse(covariance),
            texture_mean: texture_mean as f32,
            texture_variance: (texture_variance + LEAST_TEXTURE_VARIANCE) as f32,
        }
    }

    fn distance(&self, colour: [f32; 3], texture: f32) -> f32 {
        let apart = [0, 1, 2].map(|channel| colour[channel] - self.mean[channel]);
        let mut square = 0.0;
        for (row, inverse) in self.inverse.iter().enumerate() {
            for (column, weight) in inverse.iter().enumerate() {
                square += apart[row] * weight * apart[column];
            }
        }
        let texture = texture - self.texture_mean;
        (square + texture * texture / self.texture_variance).max(0.0).sqrt()
    }
}

/// Inverts a covariance matrix, which is positive definite by what has been added to it.
fn inverse(m: [[f64; 3]; 3]) -> [[f32; 3]; 3] {
    let minor = |row: usize, column: usize| {
        let (r, s) = ((row + 1) % 3, (row + 2) % 3);
        let (c, d) = ((column + 1) % 3, (column + 2) % 3);
        m[r][c] * m[s][d] - m[r][d] * m[s][c]
    };
    let determinant: f64 = (0..3).map(|column| m[0][column] * minor(0, column)).sum();
    [0, 1, 2].map(|row| [0, 1, 2].map(|column| (minor(column, row) / determinant) as f32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_times_its_inverse_is_one() {
        let m = [[4.0, 1.0, 0.5], [1.0, 3.0, -1.0], [0.5, -1.0, 5.0]];
        let inverse = inverse(m);
        for (row, values) in m.iter().enumerate() {
            for column in 0..3 {
                let products = values.iter().zip(&inverse);
                let sum: f64 = products.map(|(a, b)| a * f64::from(b[column])).sum();
                let expected = f64::from(u8::from(row == column));
                assert!((sum - expected).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn a_spot_is_foreign_even_if_it_touches_one_edge() {
        let flat = Plane::new(40, 40, 0.0);
        let mut red = flat.clone();
        for y in 10..30 {
            red.values[y * 40..y * 40 + 10].fill(60.0);
        }
        let foreign = foreignness(&[flat.clone(), red, flat.clone()], &flat);
        assert!(foreign.values[20 * 40 + 5] > 3.0);
        assert!(foreign.values[20 * 40 + 30] < 0.5);
    }

    #[test]
    fn a_subject_along_a_whole_edge_does_not_make_the_background_foreign() {
        let flat = Plane::new(40, 40, 0.0);
        let mut red = flat.clone();
        for row in red.values.chunks_exact_mut(40) {
            row[..6].fill(60.0);
        }
        let foreign = foreignness(&[flat.clone(), red, flat.clone()], &flat);
        assert!(foreign.values[20 * 40 + 3] > 1.5);
        assert!(foreign.values[20 * 40 + 30] < 0.5);
    }
}
