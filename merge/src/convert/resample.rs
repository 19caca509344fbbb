//! Resampling along one axis as a matrix: `(target, source)`, one row per target position.
//!
//! Both ways to resize a square table are separable and linear, so a table `Z` becomes
//! `A Z Aᵀ` with the same `A` for rows and columns.

use faer::linalg::solvers::Solve;
use ndarray::Array2;

/// Sharpness of the cubic convolution kernel, as torch has it.
const CUBIC_A: f64 = -0.75;

/// The interval at which the search for the spacing ratio stops, as published.
const RATIO_INTERVAL: f64 = 1e-6;

/// Fewest source positions of a cubic spline: four, and sides are odd.
pub(super) const SPLINE_MIN_SIDE: usize = 5;

/// Cubic convolution between `source` and `target` positions, as torch's
/// `interpolate(mode="bicubic", align_corners=False)`: half-pixel centers, clamped borders, no
/// smoothing when shrinking.
pub(super) fn bicubic(source: usize, target: usize) -> Array2<f64> {
    let mut weights = Array2::zeros((target, source));
    let step = source as f64 / target as f64;
    for (position, mut row) in weights.rows_mut().into_iter().enumerate() {
        let at = (position as f64 + 0.5) * step - 0.5;
        let base = at.floor();
        for tap in -1..=2 {
            let neighbor = base + f64::from(tap);
            let clamped = neighbor.clamp(0.0, (source - 1) as f64) as usize;
            row[clamped] += cubic_kernel((at - neighbor).abs(), CUBIC_A);
        }
    }
    weights
}

/// Sharpness of the kernel where it is widened when shrinking, as torch and Pillow have it.
const SMOOTH_A: f64 = -0.5;

/// Cubic convolution as torch's `interpolate(mode="bicubic", antialias=True, align_corners=False)`: half-pixel centers,
/// the kernel as wide as the step when shrinking, weights over the existing positions.
pub(super) fn bicubic_smoothed(source: usize, target: usize) -> Array2<f64> {
    smoothed(source, target, 2.0, |distance| {
        cubic_kernel(distance.min(2.0), SMOOTH_A)
    })
}

/// Linear interpolation as torch's `interpolate(mode="linear", align_corners=False)`: half-pixel centers, clamped
/// borders, no smoothing when shrinking.
pub(super) fn linear(source: usize, target: usize) -> Array2<f64> {
    let mut weights = Array2::zeros((target, source));
    let step = source as f64 / target as f64;
    for (position, mut row) in weights.rows_mut().into_iter().enumerate() {
        let at = ((position as f64 + 0.5) * step - 0.5).max(0.0);
        let base = (at.floor() as usize).min(source - 1);
        let share = at - base as f64;
        row[base] += 1.0 - share;
        row[(base + 1).min(source - 1)] += share;
    }
    weights
}

/// Weights of a kernel that reaches so far on either side.
fn smoothed(source: usize, target: usize, reach: f64, kernel: impl Fn(f64) -> f64) -> Array2<f64> {
    let mut weights = Array2::zeros((target, source));
    let step = source as f64 / target as f64;
    let wide = step.max(1.0);
    for (position, mut row) in weights.rows_mut().into_iter().enumerate() {
        let center = (position as f64 + 0.5) * step;
        let first = (center - reach * wide + 0.5).max(0.0) as usize;
        let end = ((center + reach * wide + 0.5) as usize).min(source);
        for at in first..end {
            row[at] = kernel(((at as f64 - center + 0.5) / wide).abs());
        }
        let sum = row.sum();
        row /= sum;
    }
    weights
}

/// Weight of a neighbor at `distance`, from 0 to 2, of a kernel of this sharpness.
fn cubic_kernel(distance: f64, a: f64) -> f64 {
    let d = distance;
    if d <= 1.0 {
        ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0
    } else {
        ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a
    }
}

/// The geometric spacing of BEiT and VLMo: source offsets spread as sums of powers of a ratio so
/// that the outermost meets the outermost target, then an interpolating cubic spline with
/// not-a-knot ends, evaluated at whole offsets clamped to the source's range.
///
/// Both sides must be odd, `source` at least [`SPLINE_MIN_SIDE`]. A `target` below `source` gets the middle of the
/// table, for the ratio of the spacing stays above 1.
pub(super) fn geometric_spline(source: usize, target: usize) -> Array2<f64> {
    let abscissae = geometric_abscissae(source, target);
    let (first, last) = (abscissae[0], abscissae[source - 1]);
    let knots = not_a_knot(&abscissae);
    let reach = (target / 2) as f64;
    let targets: Vec<f64> = (0..target)
        .map(|position| (position as f64 - reach).clamp(first, last))
        .collect();
    // With B the basis at the abscissae and E at the targets, the matrix is E B⁻¹.
    let transposed_basis = transposed_basis(&knots, &abscissae);
    let transposed = transposed_basis
        .partial_piv_lu()
        .solve(self::transposed_basis(&knots, &targets));
    Array2::from_shape_fn((target, source), |(to, from)| transposed[(from, to)])
}

/// Source offsets in units of target offsets, ascending and symmetric around zero.
fn geometric_abscissae(source: usize, target: usize) -> Vec<f64> {
    let (half, reach) = (source / 2, (target / 2) as f64);
    let ratio = spacing_ratio(half, reach);
    let mut positive = Vec::with_capacity(half);
    let (mut offset, mut step) = (0.0, 1.0);
    for _ in 0..half {
        offset += step;
        positive.push(offset);
        step *= ratio;
    }
    let negative = positive.iter().rev().map(|offset| -offset);
    let zero = std::iter::once(0.0);
    negative
        .chain(zero)
        .chain(positive.iter().copied())
        .collect()
}

/// The ratio whose first `n_steps` powers sum up to `reach`, searched between 1.01 and 1.5.
fn spacing_ratio(n_steps: usize, reach: f64) -> f64 {
    let (mut low, mut high) = (1.01, 1.5);
    let mut ratio = f64::midpoint(low, high);
    while high - low > RATIO_INTERVAL {
        ratio = f64::midpoint(low, high);
        if (1.0 - ratio.powi(n_steps as i32)) / (1.0 - ratio) > reach {
            high = ratio;
        } else {
            low = ratio;
        }
    }
    ratio
}

/// Knots of the interpolating cubic spline: ends four-fold, the second and the second to last
/// abscissa left out.
fn not_a_knot(abscissae: &[f64]) -> Vec<f64> {
    let n = abscissae.len();
    let mut knots = vec![abscissae[0]; 4];
    knots.extend_from_slice(&abscissae[2..n - 2]);
    knots.extend([abscissae[n - 1]; 4]);
    knots
}

/// Values of all cubic basis functions (rows) at `points` (columns).
fn transposed_basis(knots: &[f64], points: &[f64]) -> faer::Mat<f64> {
    let n_basis = knots.len() - 4;
    let mut matrix = faer::Mat::zeros(n_basis, points.len());
    for (column, &point) in points.iter().enumerate() {
        let (first, values) = basis_at(knots, point);
        for (offset, value) in values.into_iter().enumerate() {
            matrix[(first + offset, column)] = value;
        }
    }
    matrix
}

/// The four cubic basis functions that are not zero at `point`, and the index of the first, by
/// the recurrence of de Boor.
fn basis_at(knots: &[f64], point: f64) -> (usize, [f64; 4]) {
    let last_span = knots.len() - 5;
    let span = (3..last_span)
        .find(|&span| point < knots[span + 1])
        .unwrap_or(last_span);
    let mut values = [1.0, 0.0, 0.0, 0.0];
    for degree in 1..=3 {
        let mut carried = 0.0;
        for index in 0..degree {
            let right = knots[span + index + 1];
            let left = knots[span + 1 + index - degree];
            let share = values[index] / (right - left);
            values[index] = carried + (right - point) * share;
            carried = (point - left) * share;
        }
        values[degree] = carried;
    }
    (span - 3, values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bicubic_at_the_same_size_is_the_identity() {
        assert_eq!(bicubic(7, 7), Array2::<f64>::eye(7));
    }

    #[test]
    fn geometric_spacing_has_the_published_offsets() {
        // Offsets that the published program computes for windows 14 to 24.
        let published = [
            1.0, 2.0903, 3.2791, 4.5752, 5.9884, 7.5292, 9.2091, 11.0408, 13.0378, 15.2152,
            17.5893, 20.1777, 22.9999,
        ];
        let abscissae = geometric_abscissae(27, 47);
        for (found, expected) in abscissae[14..].iter().zip(published) {
            assert!((found - expected).abs() < 5e-5, "{found} is not {expected}");
        }
        assert!((spacing_ratio(13, 23.0) - 1.090_307).abs() < 5e-7);
        assert!((spacing_ratio(13, 29.0) - 1.125_056).abs() < 5e-7);
        assert!((spacing_ratio(23, 29.0) - 1.020_461).abs() < 5e-7);
    }

    #[test]
    fn a_cubic_polynomial_passes_through_the_spline_unchanged() {
        let cubic = |x: f64| ((0.01 * x - 0.2) * x + 1.5) * x - 3.0;
        let abscissae = geometric_abscissae(9, 15);
        let knots = abscissae.iter().map(|&x| cubic(x)).collect::<Vec<_>>();
        let weights = geometric_spline(9, 15);
        for (position, row) in weights.rows().into_iter().enumerate().skip(1).take(13) {
            let found: f64 = row.iter().zip(&knots).map(|(w, z)| w * z).sum();
            let expected = cubic(position as f64 - 7.0);
            assert!((found - expected).abs() < 1e-9, "{found} is not {expected}");
        }
    }

    #[test]
    fn every_target_is_a_mean_of_sources() {
        for weights in [
            bicubic(5, 11),
            bicubic(11, 5),
            bicubic_smoothed(5, 11),
            bicubic_smoothed(11, 5),
            linear(5, 11),
            linear(11, 5),
            geometric_spline(5, 11),
        ] {
            for row in weights.rows() {
                assert!((row.sum() - 1.0).abs() < 1e-12);
            }
        }
    }
}
