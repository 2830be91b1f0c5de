//! A grid of numbers the size of the thumbnail: one channel, or one map of what matters.
//!
//! All sums run row by row in one order, so that equal pictures give equal numbers on every
//! machine. Nothing here or in `saliency` calls a transcendental function of the platform.

/// Values row by row from the upper left; both sides at least one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plane {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) values: Vec<f32>,
}

impl Plane {
    pub(crate) fn new(width: usize, height: usize, value: f32) -> Self {
        Plane { width, height, values: vec![value; width * height] }
    }

    /// Computes a plane of the same shape, value by value.
    pub(crate) fn map(&self, function: impl Fn(f32) -> f32) -> Self {
        Plane { values: self.values.iter().map(|&value| function(value)).collect(), ..*self }
    }

    /// Combines two planes of one shape, value by value.
    pub(crate) fn zip(&self, other: &Plane, function: impl Fn(f32, f32) -> f32) -> Self {
        let pairs = self.values.iter().zip(&other.values);
        Plane { values: pairs.map(|(&a, &b)| function(a, b)).collect(), ..*self }
    }

    pub(crate) fn mean(&self) -> f32 {
        let sum: f64 = self.values.iter().map(|&value| f64::from(value)).sum();
        (sum / self.values.len() as f64) as f32
    }

    /// Returns the value that the given share of all values, `0.0..=1.0`, does not exceed.
    pub(crate) fn quantile(&self, share: f32) -> f32 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f32::total_cmp);
        sorted[(share * (sorted.len() - 1) as f32) as usize]
    }

    /// Scales so that the brightest few lies at one, and cuts off above; a plane that is
    /// zero (nearly) everywhere stays as it is, rather than have its noise blown up.
    pub(crate) fn normalised(&self, least: f32) -> Self {
        let top = self.quantile(0.997).max(least);
        self.map(|value| (value / top).clamp(0.0, 1.0))
    }

    /// Averages over squares of `2 * radius + 1`, twice over, which is near enough to a Gaussian.
    /// Beyond the edges the nearest value counts.
    pub(crate) fn blurred(&self, radius: usize) -> Self {
        self.box_blurred(radius).box_blurred(radius)
    }

    /// Averages over squares of `2 * radius + 1`.
    pub(crate) fn box_blurred(&self, radius: usize) -> Self {
        let mut out = self.clone();
        if radius == 0 {
            return out;
        }
        let (width, height) = (self.width, self.height);
        for y in 0..height {
            slide(
                width,
                radius,
                |x| self.values[y * width + x],
                |x, mean| {
                    out.values[y * width + x] = mean;
                },
            );
        }
        let rows = out.clone();
        for x in 0..width {
            slide(
                height,
                radius,
                |y| rows.values[y * width + x],
                |y, mean| {
                    out.values[y * width + x] = mean;
                },
            );
        }
        out
    }
}

/// Hands the mean of every stretch of `2 * radius + 1` values to `put`.
fn slide(length: usize, radius: usize, get: impl Fn(usize) -> f32, mut put: impl FnMut(usize, f32)) {
    let at = |index: usize| f64::from(get(index.saturating_sub(radius).min(length - 1)));
    let count = (2 * radius + 1) as f64;
    let mut sum: f64 = (0..2 * radius + 1).map(at).sum();
    for index in 0..length {
        put(index, (sum / count) as f32);
        sum += at(index + 2 * radius + 1) - at(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blurring_keeps_a_flat_plane_and_spreads_a_point() {
        let flat = Plane::new(7, 5, 3.0);
        assert_eq!(flat.blurred(2), flat);
        let mut point = Plane::new(9, 9, 0.0);
        point.values[4 * 9 + 4] = 81.0;
        let spread = point.box_blurred(1);
        assert_eq!(spread.values[3 * 9 + 3], 9.0);
        assert_eq!(spread.values[2 * 9 + 4], 0.0);
        assert!((spread.mean() - 1.0).abs() < 1e-5);
    }

    #[test]
    fn a_plane_smaller_than_the_radius_can_be_blurred() {
        let dot = Plane::new(1, 1, 2.0);
        assert_eq!(dot.blurred(9), dot);
        assert_eq!(Plane::new(1, 4, 2.0).blurred(9), Plane::new(1, 4, 2.0));
    }

    #[test]
    fn noise_near_zero_is_not_blown_up() {
        let faint = Plane::new(4, 4, 0.1).normalised(5.0);
        assert!(faint.values.iter().all(|&value| value < 0.03));
    }
}
