//! The two dense operations of RegMean, behind one trait with two implementations; and, in `spectral`, the
//! decompositions that methods of task vectors need.
//!
//! `faer` builds anywhere and is the default; the feature `lapack` adds `ndarray-linalg` over the
//! system's OpenBLAS. Both are held to the same tests (`tests/linear_algebra.rs`) and benches.

use ndarray::Array2;

mod faer_backend;
#[cfg(feature = "lapack")]
mod lapack_backend;
pub(crate) mod single;
pub(crate) mod spectral;

pub use faer_backend::Faer;
#[cfg(feature = "lapack")]
pub use lapack_backend::Lapack;

/// A matrix that has no Cholesky factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotPositiveDefinite {
    /// The row where the factorization met a pivot that is not positive, counted from 0, if known.
    pub pivot: Option<usize>,
}

/// Dense `f64` linear algebra on all cores.
pub trait LinearAlgebra: Send + Sync {
    /// The library behind it, for provenance and benches.
    fn name(&self) -> &'static str;

    /// `weight · gram`: `(out, in) × (in, in) → (out, in)`; `gram` is symmetric.
    fn multiply(&self, weight: &Array2<f64>, gram: &Array2<f64>) -> Array2<f64>;

    /// X with `X · gram = product`: shapes as in [`LinearAlgebra::multiply`]; `gram` is symmetric
    /// positive definite.
    ///
    /// # Errors
    /// [`NotPositiveDefinite`] when a pivot of the Cholesky factorization is not positive.
    fn solve_right(
        &self,
        product: Array2<f64>,
        gram: Array2<f64>,
    ) -> Result<Array2<f64>, NotPositiveDefinite>;
}

/// The first row whose pivot vanished except for rounding: what earlier rows leave unexplained of its
/// diagonal is below `n ε` of it, so the solution would be noise. `factor` is the diagonal of the
/// Cholesky factor, `diagonal` that of the matrix.
fn weakest_pivot(factor: &[f64], diagonal: &[f64]) -> Option<usize> {
    let tolerance = factor.len() as f64 * f64::EPSILON;
    // Not `<=`, for a pivot that is no number is noise too.
    let is_sound = |(&l, &d): (&f64, &f64)| l * l > tolerance * d;
    let n_sound = factor
        .iter()
        .zip(diagonal)
        .take_while(|&pair| is_sound(pair))
        .count();
    (n_sound < factor.len()).then_some(n_sound)
}

/// The implementation this build prefers.
#[must_use]
pub fn default_algebra() -> std::sync::Arc<dyn LinearAlgebra> {
    #[cfg(feature = "lapack")]
    return std::sync::Arc::new(Lapack);
    #[cfg(not(feature = "lapack"))]
    std::sync::Arc::new(Faer)
}
