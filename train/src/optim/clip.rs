//! The norm of all gradients together, and the factor that bounds it.

use merge::vectorized;
use rayon::prelude::*;

/// Elements per task; sums of tasks are added in order, so that threads do not change the sum.
const CHUNK: usize = 1 << 16;

/// Partial sums within a task: two of the widest vectors.
const LANES: usize = 16;

/// Added to the norm before dividing, as `torch.nn.utils.clip_grad_norm_` does.
const FLOOR: f64 = 1e-6;

/// `Σ xᵢ²` in f64. Adding up the sums of several slices, and of several ranks, gives the square of the
/// global norm.
#[must_use]
pub fn square_sum(values: &[f32]) -> f64 {
    let parts: Vec<f64> = values.par_chunks(CHUNK).map(chunk_sum).collect();
    parts.iter().sum()
}

/// The factor that brings gradients of this `norm` to at most `max_norm`: never more than 1. NaN if the norm is.
#[must_use]
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    let factor = max_norm / (norm + FLOOR);
    // Not `min`, which would turn NaN into 1.
    if factor > 1.0 { 1.0 } else { factor }
}

fn chunk_sum(values: &[f32]) -> f64 {
    let mut sums = [0.0f64; LANES];
    vectorized(
        #[inline(always)]
        || {
            let (rows, rest) = values.as_chunks::<LANES>();
            for row in rows {
                for (sum, x) in sums.iter_mut().zip(row) {
                    *sum += f64::from(*x) * f64::from(*x);
                }
            }
            for (sum, x) in sums.iter_mut().zip(rest) {
                *sum += f64::from(*x) * f64::from(*x);
            }
        },
    );
    sums.iter().sum()
}
