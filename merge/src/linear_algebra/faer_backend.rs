//! The default implementation, in Rust throughout.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par, Spec};
use ndarray::Array2;

use super::{LinearAlgebra, NotPositiveDefinite, weakest_pivot};

/// `faer`, on rayon's threads.
pub struct Faer;

impl LinearAlgebra for Faer {
    fn name(&self) -> &'static str {
        "faer"
    }

    fn multiply(&self, weight: &Array2<f64>, gram: &Array2<f64>) -> Array2<f64> {
        let mut product = Array2::zeros((weight.nrows(), gram.ncols()));
        // Row-major arrays are their transposes in faer's column-major eyes, so this computes
        // (W G)ᵀ = G Wᵀ, using that G is symmetric.
        let (weight, gram) = (transposed(weight), transposed(gram));
        matmul(
            transposed_mut(&mut product),
            Accum::Replace,
            gram,
            weight,
            1.0,
            parallelism(),
        );
        product
    }

    fn solve_right(
        &self,
        mut product: Array2<f64>,
        mut gram: Array2<f64>,
    ) -> Result<Array2<f64>, NotPositiveDefinite> {
        let width = gram.nrows();
        let diagonal = gram.diag().to_vec();
        let params = Spec::default();
        let mut memory = MemBuffer::new(llt::factor::cholesky_in_place_scratch::<f64>(
            width,
            parallelism(),
            params,
        ));
        llt::factor::cholesky_in_place(
            transposed_mut(&mut gram),
            Default::default(),
            parallelism(),
            MemStack::new(&mut memory),
            params,
        )
        .map_err(|llt::factor::LltError::NonPositivePivot { index }| {
            NotPositiveDefinite { pivot: Some(index) }
        })?;
        if let Some(pivot) = weakest_pivot(&gram.diag().to_vec(), &diagonal) {
            return Err(NotPositiveDefinite { pivot: Some(pivot) });
        }
        llt::solve::solve_in_place(
            transposed(&gram),
            transposed_mut(&mut product),
            parallelism(),
            MemStack::new(&mut MemBuffer::new(
                llt::solve::solve_in_place_scratch::<f64>(width, 0, parallelism()),
            )),
        );
        Ok(product)
    }
}

fn parallelism() -> Par {
    match rayon::current_num_threads() {
        1 => Par::Seq,
        threads => Par::rayon(threads),
    }
}

/// The transpose of a row-major array, without a copy.
fn transposed(array: &Array2<f64>) -> MatRef<'_, f64> {
    let (rows, columns) = array.dim();
    let slice = array.as_slice().expect("arrays made here are row-major");
    MatRef::from_column_major_slice(slice, columns, rows)
}

fn transposed_mut(array: &mut Array2<f64>) -> MatMut<'_, f64> {
    let (rows, columns) = array.dim();
    let slice = array
        .as_slice_mut()
        .expect("arrays made here are row-major");
    MatMut::from_column_major_slice_mut(slice, columns, rows)
}
