//! Truncated singular value decompositions: the matrix of low rank that is nearest to another.
//!
//! A small matrix, or one of which a large part is asked for, is decomposed as a whole. Of others a random
//! sketch finds the range: `Q` spans `(D Dᵀ)² D Ω` for a matrix `Ω` of a few more columns than the rank, and
//! `Qᵀ D`, which is small, is decomposed. Draws go by seed and name, and no sum depends on the number of
//! threads.
//!
//! Reference: Halko, Martinsson and Tropp 2011, <https://arxiv.org/abs/0909.4061>, algorithms 4.4 and 5.1.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::householder::{
    apply_block_householder_sequence_on_the_left_in_place_scratch,
    apply_block_householder_sequence_on_the_left_in_place_with_conj,
};
use faer::linalg::matmul::matmul;
use faer::linalg::qr::no_pivoting::factor as qr;
use faer::linalg::svd::{self, ComputeSvdVectors};
use faer::{Accum, Conj, Mat, MatMut, MatRef, Par, Spec};
use ndarray::Array2;
use rayon::prelude::*;

use crate::random::Draws;

/// Matrices whose shorter side is no longer are decomposed as a whole.
const SMALL: usize = 256;

/// Columns of a sketch beyond the rank.
const OVERSAMPLING: usize = 10;

/// Powers of `D Dᵀ` in a sketch, which make it see the large singular values better.
const N_POWERS: usize = 2;

/// Columns of the first sketch where the rank is not known.
const FIRST_WIDTH: usize = 64;

/// Rows that one thread multiplies at a time.
const BLOCK_ROWS: usize = 256;

/// The share of the energy that may be missing because f32 holds no more: a relative error of 1e-6, squared.
const ROUNDING: f64 = 1e-12;

/// The rule that cuts a decomposition.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Truncation {
    /// At this rank, or that of the matrix's shorter side.
    Rank(usize),
    /// At the smallest rank that keeps this share of the sum of all squares.
    Energy {
        /// The share, above 0 and at most 1.
        share: f64,
        /// A rank to stop at before.
        max_rank: Option<usize>,
    },
}

/// `left · right`, of which each has the roots of the singular values.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// `U √S`: `(rows, rank)`.
    pub left: Array2<f32>,
    /// `√S Vᵀ`: `(rank, columns)`.
    pub right: Array2<f32>,
    /// The singular values, the largest first.
    pub values: Vec<f64>,
}

/// The iteration for singular values found no end: the matrix holds values that are no numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoConvergence;

/// The nearest matrix of the rank at which `truncation` cuts. `draws` are those of the sketch.
///
/// # Errors
/// [`NoConvergence`].
pub fn truncated(
    matrix: &Array2<f32>,
    truncation: Truncation,
    draws: &Draws,
) -> Result<LowRank, NoConvergence> {
    let (rows, columns) = matrix.dim();
    let shorter = rows.min(columns);
    let (share, max_rank) = match truncation {
        Truncation::Rank(rank) => (None, rank.min(shorter)),
        Truncation::Energy { share, max_rank } => {
            let most = max_rank.unwrap_or(shorter);
            (Some(share), most.min(shorter))
        }
    };
    let energy: f64 = matrix.iter().map(|&value| f64::from(value).powi(2)).sum();
    let mut width = match share {
        None => max_rank + OVERSAMPLING,
        Some(_) => FIRST_WIDTH.min(max_rank + OVERSAMPLING),
    };
    loop {
        let is_whole = shorter <= SMALL || 2 * width >= shorter;
        let found = match is_whole {
            true => Decomposed::whole(matrix)?,
            false => Decomposed::sketched(matrix, width, draws)?,
        };
        let rank = match share {
            None => Some(max_rank),
            Some(share) => found.smallest_rank(share * energy - ROUNDING * energy),
        };
        let is_enough = rank.is_some_and(|rank| rank + OVERSAMPLING <= width);
        if is_whole || is_enough || width >= max_rank + OVERSAMPLING {
            return Ok(found.cut(rank.unwrap_or(max_rank).min(max_rank)));
        }
        width = (4 * width).min(max_rank + OVERSAMPLING);
    }
}

/// The squares of `matrix − left · right`, summed.
#[must_use]
pub fn residual_energy(matrix: &Array2<f32>, left: &Array2<f32>, right: &Array2<f32>) -> f64 {
    let (rows, columns) = matrix.dim();
    let starts: Vec<usize> = (0..rows).step_by(BLOCK_ROWS).collect();
    let sums: Vec<f64> = (starts.into_par_iter())
        .map(|start| {
            let n = BLOCK_ROWS.min(rows - start);
            let mut product = vec![0.0f32; n * columns];
            multiply_into(&mut product, view(left).subrows(start, n), view(right));
            let block = matrix.rows().into_iter().skip(start).take(n);
            let pairs = block.into_iter().flatten().zip(&product);
            pairs
                .map(|(&value, &product)| (f64::from(value) - f64::from(product)).powi(2))
                .sum()
        })
        .collect();
    sums.iter().sum()
}

/// Singular vectors, in columns, and values.
struct Decomposed {
    u: Mat<f64>,
    v: Mat<f64>,
    values: Vec<f64>,
}

impl Decomposed {
    fn whole(matrix: &Array2<f32>) -> Result<Self, NoConvergence> {
        let view = view(matrix);
        let wide = Mat::from_fn(view.nrows(), view.ncols(), |row, column| {
            f64::from(*view.get(row, column))
        });
        Self::of(wide.as_ref())
    }

    fn of(matrix: MatRef<'_, f64>) -> Result<Self, NoConvergence> {
        let (rows, columns) = matrix.shape();
        let size = rows.min(columns);
        let (mut u, mut v) = (Mat::zeros(rows, size), Mat::zeros(columns, size));
        let mut values = Diag::zeros(size);
        let thin = ComputeSvdVectors::Thin;
        let params = Spec::default();
        let scratch = svd::svd_scratch::<f64>(rows, columns, thin, thin, Par::Seq, params);
        svd::svd(
            matrix,
            values.as_mut(),
            Some(u.as_mut()),
            Some(v.as_mut()),
            Par::Seq,
            MemStack::new(&mut MemBuffer::new(scratch)),
            params,
        )
        .map_err(|_| NoConvergence)?;
        let values = values.column_vector().iter().copied().collect();
        Ok(Self { u, v, values })
    }

    /// The largest singular values, by a sketch of `width` columns.
    fn sketched(matrix: &Array2<f32>, width: usize, draws: &Draws) -> Result<Self, NoConvergence> {
        let matrix = view(matrix);
        let mut sketch = vec![0.0f32; matrix.ncols() * width];
        draws.add_normal(1.0, 0, &mut sketch);
        let mut basis = orthonormal(&multiply(matrix, &sketch, width), width);
        for _ in 0..N_POWERS {
            let rows = orthonormal(&multiply(matrix.transpose(), &basis, width), width);
            basis = orthonormal(&multiply(matrix, &rows, width), width);
        }
        // (Qᵀ D)ᵀ, which is long and narrow.
        let projected = multiply(matrix.transpose(), &basis, width);
        let projected = widened(&projected, width);
        let Self { u, v, values } = Self::of(projected.as_ref())?;
        let basis = widened(&basis, width);
        let mut left = Mat::zeros(matrix.nrows(), width);
        matmul(
            left.as_mut(),
            Accum::Replace,
            basis.as_ref(),
            v.as_ref(),
            1.0,
            Par::Seq,
        );
        Ok(Self {
            u: left,
            v: u,
            values,
        })
    }

    /// The smallest rank whose squares add up to `energy`.
    fn smallest_rank(&self, energy: f64) -> Option<usize> {
        let mut sum = 0.0;
        for (index, value) in self.values.iter().enumerate() {
            sum += value * value;
            if sum >= energy {
                return Some(index + 1);
            }
        }
        None
    }

    fn cut(mut self, rank: usize) -> LowRank {
        self.values.truncate(rank);
        let root = |index: usize| self.values[index].max(0.0).sqrt();
        LowRank {
            left: Array2::from_shape_fn((self.u.nrows(), rank), |(row, column)| {
                (self.u[(row, column)] * root(column)) as f32
            }),
            right: Array2::from_shape_fn((rank, self.v.nrows()), |(row, column)| {
                (self.v[(column, row)] * root(row)) as f32
            }),
            values: self.values,
        }
    }
}

/// An array as faer sees it.
fn view(array: &Array2<f32>) -> MatRef<'_, f32> {
    let (rows, columns) = array.dim();
    let slice = array.as_slice().expect("arrays made here are row-major");
    MatRef::from_row_major_slice(slice, rows, columns)
}

/// `matrix · right`, with `right` and the result row by row, `width` columns wide.
fn multiply(matrix: MatRef<'_, f32>, right: &[f32], width: usize) -> Vec<f32> {
    let right = MatRef::from_row_major_slice(right, matrix.ncols(), width);
    let mut out = vec![0.0f32; matrix.nrows() * width];
    (out.par_chunks_mut(BLOCK_ROWS * width).enumerate()).for_each(|(block, out)| {
        let rows = matrix.subrows(block * BLOCK_ROWS, out.len() / width);
        multiply_into(out, rows, right);
    });
    out
}

/// `left · right` on one thread, row by row.
fn multiply_into(out: &mut [f32], left: MatRef<'_, f32>, right: MatRef<'_, f32>) {
    matmul(
        MatMut::from_row_major_slice_mut(out, left.nrows(), right.ncols()),
        Accum::Replace,
        left,
        right,
        1.0,
        Par::Seq,
    );
}

/// A row-major matrix of `width` columns in f64.
fn widened(values: &[f32], width: usize) -> Mat<f64> {
    Mat::from_fn(values.len() / width, width, |row, column| {
        f64::from(values[row * width + column])
    })
}

/// An orthonormal basis of the columns of a long matrix, row by row, as that is.
fn orthonormal(values: &[f32], width: usize) -> Vec<f32> {
    let mut matrix = widened(values, width);
    let rows = matrix.nrows();
    let block = qr::recommended_block_size::<f64>(rows, width);
    let mut factor = Mat::zeros(block, width);
    let params = Spec::default();
    let scratch = qr::qr_in_place_scratch::<f64>(rows, width, block, Par::Seq, params);
    qr::qr_in_place(
        matrix.as_mut(),
        factor.as_mut(),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        params,
    );
    let mut basis = Mat::<f64>::identity(rows, width);
    let scratch =
        apply_block_householder_sequence_on_the_left_in_place_scratch::<f64>(rows, block, width);
    apply_block_householder_sequence_on_the_left_in_place_with_conj(
        matrix.as_ref(),
        factor.as_ref(),
        Conj::No,
        basis.as_mut(),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
    );
    let mut out = vec![0.0; values.len()];
    for (row, out) in out.chunks_exact_mut(width).enumerate() {
        for (column, out) in out.iter_mut().enumerate() {
            *out = basis[(row, column)] as f32;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random columns that are orthonormal.
    fn frame(rows: usize, width: usize, name: &str) -> Vec<f32> {
        let mut values = vec![0.0; rows * width];
        Draws::new(1, name).add_normal(1.0, 0, &mut values);
        orthonormal(&values, width)
    }

    /// A matrix of known singular values.
    fn matrix(rows: usize, columns: usize, values: &[f64]) -> Array2<f32> {
        let width = values.len();
        let (u, v) = (frame(rows, width, "u"), frame(columns, width, "v"));
        Array2::from_shape_fn((rows, columns), |(row, column)| {
            let terms = (0..width).map(|k| {
                values[k] * f64::from(u[row * width + k]) * f64::from(v[column * width + k])
            });
            terms.sum::<f64>() as f32
        })
    }

    fn cut(matrix: &Array2<f32>, truncation: Truncation) -> LowRank {
        truncated(matrix, truncation, &Draws::new(7, "test")).expect("converges")
    }

    fn energy(matrix: &Array2<f32>) -> f64 {
        matrix.iter().map(|&value| f64::from(value).powi(2)).sum()
    }

    /// Two matrices that are decomposed as a whole, and two by a sketch.
    const SHAPES: [(usize, usize); 4] = [(40, 30), (30, 90), (400, 700), (600, 300)];

    #[test]
    fn a_basis_is_orthonormal() {
        let (rows, width) = (300, 20);
        let q = frame(rows, width, "q");
        for i in 0..width {
            for j in 0..width {
                let dot: f64 = (0..rows)
                    .map(|row| f64::from(q[row * width + i]) * f64::from(q[row * width + j]))
                    .sum();
                let expected = f64::from(u8::from(i == j));
                assert!((dot - expected).abs() < 1e-6, "{i} {j} {dot}");
            }
        }
    }

    #[test]
    fn a_matrix_of_low_rank_is_recovered_to_rounding() {
        for (rows, columns) in SHAPES {
            let matrix = matrix(rows, columns, &[5.0, 3.0, 1.0, 0.5]);
            let found = cut(&matrix, Truncation::Rank(4));
            let left = residual_energy(&matrix, &found.left, &found.right);
            let error = (left / energy(&matrix)).sqrt();
            assert!(error < 1e-6, "{rows} x {columns}: {error:e}");
        }
    }

    #[test]
    fn the_error_is_that_of_the_singular_values_left_out() {
        let values: Vec<f64> = (0..25).map(|k| 0.8f64.powi(k)).collect();
        for (rows, columns) in SHAPES {
            let matrix = matrix(rows, columns, &values);
            for rank in [1, 5, 12] {
                let found = cut(&matrix, Truncation::Rank(rank));
                let left = residual_energy(&matrix, &found.left, &found.right);
                // Eckart and Young.
                let expected: f64 = values[rank..].iter().map(|value| value * value).sum();
                let ratio = (left / expected).sqrt();
                assert!(
                    (ratio - 1.0).abs() < 1e-3,
                    "{rows} x {columns}, {rank}: {ratio}"
                );
                assert_eq!(found.values.len(), rank);
                for (found, expected) in found.values.iter().zip(&values) {
                    assert!((found / expected - 1.0).abs() < 1e-3, "{found} {expected}");
                }
            }
        }
    }

    #[test]
    fn energy_chooses_the_smallest_rank_that_suffices() {
        let values = [4.0, 2.0, 2.0, 1.0, 1.0];
        // Of 26: 16, 20, 24, 25, 26.
        let ranks = [
            (0.61, 1),
            (0.62, 2),
            (0.76, 2),
            (0.78, 3),
            (0.93, 4),
            (0.97, 5),
            (1.0, 5),
        ];
        for (rows, columns) in SHAPES {
            let matrix = matrix(rows, columns, &values);
            for (share, rank) in ranks {
                let whole = Truncation::Energy {
                    share,
                    max_rank: None,
                };
                assert_eq!(cut(&matrix, whole).values.len(), rank, "{rows} {share}");
                let capped = Truncation::Energy {
                    share,
                    max_rank: Some(3),
                };
                assert_eq!(cut(&matrix, capped).values.len(), rank.min(3));
            }
        }
    }

    #[test]
    fn a_flat_spectrum_makes_the_sketch_grow() {
        let values = vec![1.0; 200];
        let matrix = matrix(600, 500, &values);
        let share = Truncation::Energy {
            share: 0.5,
            max_rank: None,
        };
        assert_eq!(cut(&matrix, share).values.len(), 100);
    }

    #[test]
    fn one_thread_and_three_give_the_same_bits() {
        let values: Vec<f64> = (0..40).map(|k| 1.0 / f64::from(k + 1)).collect();
        let matrix = matrix(700, 600, &values);
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("threads")
                .install(|| cut(&matrix, Truncation::Rank(8)))
        };
        let (one, three) = (with(1), with(3));
        assert_eq!(one.left, three.left);
        assert_eq!(one.right, three.right);
    }

    #[test]
    fn nothing_and_more_than_everything_have_a_decomposition_too() {
        let zeros = Array2::zeros((3, 5));
        let found = cut(&zeros, Truncation::Rank(9));
        assert_eq!((found.left.dim(), found.right.dim()), ((3, 3), (3, 5)));
        assert!(
            found
                .left
                .iter()
                .chain(&found.right)
                .all(|&value| value == 0.0)
        );
    }
}
