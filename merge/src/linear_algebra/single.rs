//! Products in single precision, for numbers that choose and are not kept.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// Inner products of all rows of `left` with all rows of `right`, both row-major with rows of `width`: `out` is
/// `(left rows, right rows)`, row-major. One thread does it, so that no sum depends on how many there are.
///
/// # Panics
/// When the lengths do not fit each other.
pub(crate) fn inner_products(left: &[f32], right: &[f32], width: usize, out: &mut [f32]) {
    let (n_left, n_right) = (left.len() / width, right.len() / width);
    assert_eq!(out.len(), n_left * n_right, "a number for each pair");
    if out.is_empty() {
        return;
    }
    matmul(
        MatMut::from_row_major_slice_mut(out, n_left, n_right),
        Accum::Replace,
        MatRef::from_row_major_slice(left, n_left, width),
        MatRef::from_row_major_slice(right, n_right, width).transpose(),
        1.0f32,
        Par::Seq,
    );
}

/// The inner product of two rows of numbers, added up in f64.
pub(crate) fn inner_product(left: &[f32], right: &[f32]) -> f64 {
    crate::vectorized(
        #[inline(always)]
        || sum_of_products(left, right),
    )
}

#[inline(always)]
fn sum_of_products(left: &[f32], right: &[f32]) -> f64 {
    /// Sums side by side, which compilers turn into vectors.
    const LANES: usize = 16;
    let mut sums = [0.0f64; LANES];
    let (left_parts, right_parts) = (left.chunks_exact(LANES), right.chunks_exact(LANES));
    let rest = left_parts.remainder().iter().zip(right_parts.remainder());
    let rest: f64 = rest.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    for (a, b) in left_parts.zip(right_parts) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += f64::from(*a) * f64::from(*b);
        }
    }
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inner_products_are_those_of_each_pair_of_rows() {
        // (1, 2) and (3, 4) with (5, 6), (7, 8) and (9, 10).
        let (left, right) = ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0, 9.0, 10.0]);
        let mut out = [0.0; 6];
        inner_products(&left, &right, 2, &mut out);
        assert_eq!(out, [17.0, 23.0, 29.0, 39.0, 53.0, 67.0]);
        let long: Vec<f32> = (0..37).map(|i| i as f32).collect();
        // 0² + 1² + … + 36² = 36 · 37 · 73 / 6
        assert_eq!(inner_product(&long, &long), 16_206.0);
    }
}
