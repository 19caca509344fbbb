//! The two dense operations of RegMean, behind one trait with two implementations; and, in `spectral`, the
//! decompositions that methods of task vectors need.
//!
//! `faer` builds anywhere and is the default; the feature `lapack` adds `ndarray-linalg` over the
//! system's OpenBLAS. Both are held to the same tests and benches.

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

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    fn implementations() -> Vec<Box<dyn LinearAlgebra>> {
        vec![
            Box::new(Faer),
            #[cfg(feature = "lapack")]
            Box::new(Lapack),
        ]
    }

    #[test]
    fn a_two_by_two_system_is_solved_as_by_hand() {
        for algebra in implementations() {
            // [[1, 2], [3, 4]] · [[2, 1], [1, 3]] = [[4, 7], [10, 15]]
            let weight = array![[1.0, 2.0], [3.0, 4.0]];
            let gram = array![[2.0, 1.0], [1.0, 3.0]];
            let product = algebra.multiply(&weight, &gram);
            assert_eq!(
                product,
                array![[4.0, 7.0], [10.0, 15.0]],
                "{}",
                algebra.name()
            );
            let solved = algebra
                .solve_right(product, gram)
                .expect("positive definite");
            assert!(
                (&solved - &weight).iter().all(|d| d.abs() < 1e-14),
                "{}",
                algebra.name()
            );
        }
    }

    #[test]
    fn a_wide_layer_is_solved_to_a_small_residual() {
        // 40 outputs, 90 inputs: more than one block of either factorization.
        let rows = Array2::from_shape_fn((200, 90), |(i, j)| {
            ((i * 37 + j * 91) % 101) as f64 / 50.0 - 1.0 + f64::from(i % 90 == j)
        });
        let gram = rows.t().dot(&rows);
        let weight =
            Array2::from_shape_fn((40, 90), |(i, j)| ((i * 7 + j * 13) % 29) as f64 - 14.0);
        for algebra in implementations() {
            let product = algebra.multiply(&weight, &gram);
            let solved = algebra
                .solve_right(product.clone(), gram.clone())
                .expect("full rank");
            let residual = (&algebra.multiply(&solved, &gram) - &product)
                .mapv(f64::abs)
                .fold(0.0, |a, &b| f64::max(a, b));
            let scale = product.mapv(f64::abs).fold(0.0, |a, &b| f64::max(a, b));
            assert!(
                residual < 90.0 * f64::EPSILON * scale,
                "{}: {residual}",
                algebra.name()
            );
        }
    }

    #[test]
    fn fewer_rows_than_inputs_are_reported_not_solved() {
        let rows = Array2::from_shape_fn((5, 8), |(i, j)| {
            ((3 * i + 5 * j) % 7) as f64 + 0.1 * (i * j) as f64
        });
        let gram = rows.t().dot(&rows);
        for algebra in implementations() {
            let result = algebra.solve_right(Array2::zeros((2, 8)), gram.clone());
            assert!(result.is_err(), "{}", algebra.name());
        }
    }

    #[test]
    fn a_dead_input_names_its_row() {
        for algebra in implementations() {
            let gram = array![[2.0, 0.0], [0.0, 0.0]];
            let error = algebra
                .solve_right(Array2::zeros((1, 2)), gram)
                .expect_err("singular");
            assert!(
                error.pivot.is_none_or(|pivot| pivot == 1),
                "{}",
                algebra.name()
            );
        }
    }
}
