//! The same through `ndarray-linalg`, over the system's OpenBLAS.

use ndarray::Array2;
use ndarray_linalg::{CholeskyInto, Diag, SolveTriangularInto, UPLO};

use super::{LinearAlgebra, NotPositiveDefinite, weakest_pivot};

/// `ndarray-linalg`, on OpenBLAS's own threads.
pub struct Lapack;

impl LinearAlgebra for Lapack {
    fn name(&self) -> &'static str {
        "lapack"
    }

    fn multiply(&self, weight: &Array2<f64>, gram: &Array2<f64>) -> Array2<f64> {
        weight.dot(gram)
    }

    fn solve_right(
        &self,
        product: Array2<f64>,
        gram: Array2<f64>,
    ) -> Result<Array2<f64>, NotPositiveDefinite> {
        let diagonal = gram.diag().to_vec();
        // LAPACK's message holds the pivot only as text.
        let unknown = |_| NotPositiveDefinite { pivot: None };
        let lower = gram.cholesky_into(UPLO::Lower).map_err(unknown)?;
        if let Some(pivot) = weakest_pivot(&lower.diag().to_vec(), &diagonal) {
            return Err(NotPositiveDefinite { pivot: Some(pivot) });
        }
        // X G = P with G = L Lᵀ: first L Y = Pᵀ, then Lᵀ Xᵀ = Y.
        let half = lower
            .solve_triangular_into(UPLO::Lower, Diag::NonUnit, product.reversed_axes())
            .map_err(unknown)?;
        let solved = lower
            .t()
            .solve_triangular_into(UPLO::Upper, Diag::NonUnit, half)
            .map_err(unknown)?;
        Ok(solved.reversed_axes().as_standard_layout().into_owned())
    }
}
