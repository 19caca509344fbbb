//! Decompositions of dense `f64` matrices: singular values, eigenvalues of symmetric matrices, and the nearest
//! matrix with orthonormal rows or columns. Each runs on one thread and gives the same bits on any machine load;
//! callers decompose several matrices at a time. Products are split over threads by rows.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{self, ComputeEigenvectors};
use faer::linalg::matmul::matmul;
use faer::linalg::svd::{self, ComputeSvdVectors};
use faer::{Accum, Mat, MatMut, MatRef, Par, Spec};
use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;

use crate::low_rank::NoConvergence;

/// Directions that several bases share have singular values near 0; those up to this share of the largest are none.
const SHARED_TOLERANCE: f64 = 1e-6;

/// Matrices whose shorter side is no longer are always decomposed as they are.
const SMALL: usize = 64;

/// Singular values from this share of the largest on are found from their squares to eight digits, because these have twice
/// the range of the values and 16 digits.
const WELL_CONDITIONED: f64 = 1e-4;

/// Rows that one thread multiplies at a time.
const BLOCK_ROWS: usize = 128;

/// `left · diag(values) · right`.
#[derive(Clone, Debug)]
pub(crate) struct Svd {
    /// Singular vectors in columns: `(rows, rank)`.
    pub left: Array2<f64>,
    /// Singular values, the largest first.
    pub values: Vec<f64>,
    /// Singular vectors in rows: `(rank, columns)`.
    pub right: Array2<f64>,
}

impl Svd {
    /// All singular values of a matrix, as many as its shorter side.
    ///
    /// # Errors
    /// [`NoConvergence`].
    pub(crate) fn of(matrix: ArrayView2<'_, f64>) -> Result<Self, NoConvergence> {
        let (rows, columns) = matrix.dim();
        let size = rows.min(columns);
        let (mut u, mut v) = (Mat::zeros(rows, size), Mat::zeros(columns, size));
        let values = decomposed(matrix, Some(u.as_mut()), Some(v.as_mut()))?;
        Ok(Self {
            left: Array2::from_shape_fn((rows, size), |(row, rank)| u[(row, rank)]),
            values,
            right: Array2::from_shape_fn((size, columns), |(rank, column)| v[(column, rank)]),
        })
    }

    /// The `rank` largest of a matrix, or all where it has fewer. Where they are few and near enough to the largest they
    /// come from the products of the rows of the shorter side, which takes a fraction of the time.
    ///
    /// # Errors
    /// [`NoConvergence`].
    pub(crate) fn leading(matrix: ArrayView2<'_, f64>, rank: usize) -> Result<Self, NoConvergence> {
        match Self::from_squares(matrix, rank)? {
            Some(found) => Ok(found),
            None => Ok(Self::of(matrix)?.cut(rank)),
        }
    }

    /// As [`Svd::leading`] from squares; `None` where these are not exact enough.
    fn from_squares(
        matrix: ArrayView2<'_, f64>,
        rank: usize,
    ) -> Result<Option<Self>, NoConvergence> {
        let is_wide = matrix.nrows() <= matrix.ncols();
        let shorter = matrix.nrows().min(matrix.ncols());
        if shorter <= SMALL || rank == 0 || 2 * rank > shorter {
            return Ok(None);
        }
        let eigen = Eigen::of(&squares(matrix))?;
        let least = WELL_CONDITIONED * WELL_CONDITIONED * eigen.values[0];
        if eigen.values[rank - 1] <= least {
            return Ok(None);
        }
        let values = eigen.values[..rank].iter();
        let values: Vec<f64> = values.map(|value| value.sqrt()).collect();
        let vectors = eigen.vectors.view().split_at(Axis(1), rank).0;
        let mut across = match is_wide {
            true => product(vectors.t(), matrix),
            false => product(vectors.t(), matrix.t()),
        };
        for (mut row, value) in across.rows_mut().into_iter().zip(&values) {
            row /= *value;
        }
        let own = vectors.to_owned();
        Ok(Some(match is_wide {
            true => Self {
                left: own,
                values,
                right: across,
            },
            false => Self {
                left: across.reversed_axes(),
                values,
                right: own.reversed_axes(),
            },
        }))
    }

    /// Left singular vectors, in columns, and singular values alone.
    ///
    /// # Errors
    /// [`NoConvergence`].
    pub(crate) fn left_of(
        matrix: ArrayView2<'_, f64>,
    ) -> Result<(Array2<f64>, Vec<f64>), NoConvergence> {
        let size = matrix.nrows().min(matrix.ncols());
        let mut u = Mat::zeros(matrix.nrows(), size);
        let values = decomposed(matrix, Some(u.as_mut()), None)?;
        let left = Array2::from_shape_fn((matrix.nrows(), size), |(row, rank)| u[(row, rank)]);
        Ok((left, values))
    }

    /// Those with the `rank` largest singular values.
    pub(crate) fn cut(mut self, rank: usize) -> Self {
        let rank = rank.min(self.values.len());
        self.values.truncate(rank);
        self.left = self.left.view().split_at(Axis(1), rank).0.to_owned();
        self.right = self.right.view().split_at(Axis(0), rank).0.to_owned();
        self
    }

    /// Those whose singular values are above `least`.
    pub(crate) fn above(self, least: f64) -> Self {
        let is_real = |value: &&f64| **value > least;
        let rank = self.values.iter().take_while(is_real).count();
        self.cut(rank)
    }

    /// The largest singular value; 0 for a matrix without any.
    pub(crate) fn largest(&self) -> f64 {
        self.values.first().copied().unwrap_or(0.0)
    }

    /// The matrix again.
    pub(crate) fn product(&self) -> Array2<f64> {
        scaled_product(self.left.view(), &self.values, self.right.view())
    }
}

/// Singular values alone, the largest first.
///
/// # Errors
/// [`NoConvergence`].
pub(crate) fn singular_values(matrix: ArrayView2<'_, f64>) -> Result<Vec<f64>, NoConvergence> {
    decomposed(matrix, None, None)
}

fn decomposed(
    matrix: ArrayView2<'_, f64>,
    left: Option<MatMut<'_, f64>>,
    right: Option<MatMut<'_, f64>>,
) -> Result<Vec<f64>, NoConvergence> {
    let (rows, columns) = matrix.dim();
    if !matrix.iter().all(|value| value.is_finite()) {
        return Err(NoConvergence);
    }
    let mut values = Diag::zeros(rows.min(columns));
    let wanted = |vectors: &Option<MatMut<'_, f64>>| match vectors {
        Some(_) => ComputeSvdVectors::Thin,
        None => ComputeSvdVectors::No,
    };
    let (of_left, of_right) = (wanted(&left), wanted(&right));
    let params = Spec::default();
    let scratch = svd::svd_scratch::<f64>(rows, columns, of_left, of_right, Par::Seq, params);
    let matrix = matrix.as_standard_layout();
    svd::svd(
        view(&matrix.view()),
        values.as_mut(),
        left,
        right,
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        params,
    )
    .map_err(|_| NoConvergence)?;
    let values = values.column_vector().iter();
    Ok(values.map(|value| value.max(0.0)).collect())
}

/// Eigenvectors of a symmetric matrix in columns, and its eigenvalues, the largest first.
#[derive(Clone, Debug)]
pub(crate) struct Eigen {
    /// `(n, n)`.
    pub vectors: Array2<f64>,
    /// The eigenvalues.
    pub values: Vec<f64>,
}

impl Eigen {
    /// Of a symmetric matrix, of which the lower triangle is read.
    ///
    /// # Errors
    /// [`NoConvergence`].
    pub(crate) fn of(matrix: &Array2<f64>) -> Result<Self, NoConvergence> {
        let n = matrix.nrows();
        if !matrix.iter().all(|value| value.is_finite()) {
            return Err(NoConvergence);
        }
        let (mut vectors, mut values) = (Mat::zeros(n, n), Diag::zeros(n));
        let params = Spec::default();
        let yes = ComputeEigenvectors::Yes;
        let scratch = evd::self_adjoint_evd_scratch::<f64>(n, yes, Par::Seq, params);
        let matrix = matrix.as_standard_layout();
        evd::self_adjoint_evd(
            view(&matrix.view()),
            values.as_mut(),
            Some(vectors.as_mut()),
            Par::Seq,
            MemStack::new(&mut MemBuffer::new(scratch)),
            params,
        )
        .map_err(|_| NoConvergence)?;
        // The library has the smallest first.
        Ok(Self {
            vectors: Array2::from_shape_fn((n, n), |(row, rank)| vectors[(row, n - 1 - rank)]),
            values: values.column_vector().iter().rev().copied().collect(),
        })
    }

    /// `left · V · diag(of(value)) · Vᵀ`; eigenvectors for which `of` is 0 are left out.
    pub(crate) fn applied(&self, left: &Array2<f64>, of: impl Fn(f64) -> f64) -> Array2<f64> {
        let factors: Vec<f64> = self.values.iter().map(|&value| of(value)).collect();
        self.weighted(left, &factors)
    }

    /// `left · V · diag(factors) · Vᵀ`; eigenvectors with a factor of 0 are left out.
    pub(crate) fn weighted(&self, left: &Array2<f64>, factors: &[f64]) -> Array2<f64> {
        let kept: Vec<usize> = (0..factors.len()).filter(|&k| factors[k] != 0.0).collect();
        let vectors = self.vectors.select(Axis(1), &kept);
        let mut inner = product(left.view(), vectors.view());
        for (mut column, &k) in inner.columns_mut().into_iter().zip(&kept) {
            column *= factors[k];
        }
        product(inner.view(), vectors.t())
    }
}

/// The nearest matrix with orthonormal rows or columns, `P Q` of the decomposition `P diag(σ) Q`. Directions that the
/// matrix lacks stay empty: what a library returns there is arbitrary.
///
/// # Errors
/// [`NoConvergence`].
pub(crate) fn polar(matrix: ArrayView2<'_, f64>) -> Result<Array2<f64>, NoConvergence> {
    Ok(polar_and_values(matrix, SHARED_TOLERANCE)?.0)
}

/// [`polar`] without the directions whose singular values are up to `tolerance` of the largest, and all singular values.
///
/// # Errors
/// [`NoConvergence`].
pub(crate) fn polar_and_values(
    matrix: ArrayView2<'_, f64>,
    tolerance: f64,
) -> Result<(Array2<f64>, Vec<f64>), NoConvergence> {
    let shorter = matrix.nrows().min(matrix.ncols());
    if shorter > SMALL {
        // `(M Mᵀ)^(−½) M`, where no direction is nearly empty.
        let eigen = Eigen::of(&squares(matrix))?;
        let least = WELL_CONDITIONED.max(tolerance);
        if eigen.values[shorter - 1] > least * least * eigen.values[0] {
            let root = eigen.applied(&Array2::eye(shorter), |value| 1.0 / value.sqrt());
            let nearest = match matrix.nrows() <= matrix.ncols() {
                true => product(root.view(), matrix),
                false => product(matrix, root.view()),
            };
            let values = eigen.values.iter().map(|value| value.sqrt());
            return Ok((nearest, values.collect()));
        }
    }
    let found = Svd::of(matrix)?;
    let (values, least) = (found.values.clone(), tolerance * found.largest());
    let found = found.above(least);
    Ok((product(found.left.view(), found.right.view()), values))
}

/// The products of a matrix's rows or columns with each other, whichever are fewer.
fn squares(matrix: ArrayView2<'_, f64>) -> Array2<f64> {
    match matrix.nrows() <= matrix.ncols() {
        true => product(matrix, matrix.t()),
        false => product(matrix.t(), matrix),
    }
}

/// `left · diag(values) · right`.
pub(crate) fn scaled_product(
    left: ArrayView2<'_, f64>,
    values: &[f64],
    right: ArrayView2<'_, f64>,
) -> Array2<f64> {
    let mut scaled = right.to_owned();
    for (mut row, value) in scaled.rows_mut().into_iter().zip(values) {
        row *= *value;
    }
    product(left, scaled.view())
}

/// `left · right`, on all cores.
pub(crate) fn product(left: ArrayView2<'_, f64>, right: ArrayView2<'_, f64>) -> Array2<f64> {
    let (rows, columns) = (left.nrows(), right.ncols());
    let mut out = vec![0.0; rows * columns];
    if out.is_empty() || left.ncols() == 0 {
        return Array2::zeros((rows, columns));
    }
    let (left, right) = (left.as_standard_layout(), right.as_standard_layout());
    let (left, right) = (left.view(), right.view());
    let (left, right) = (view(&left), view(&right));
    (out.par_chunks_mut(BLOCK_ROWS * columns).enumerate()).for_each(|(block, out)| {
        let n = out.len() / columns;
        matmul(
            MatMut::from_row_major_slice_mut(out, n, columns),
            Accum::Replace,
            left.subrows(block * BLOCK_ROWS, n),
            right,
            1.0,
            Par::Seq,
        );
    });
    // One value for each row and column, by its size above.
    Array2::from_shape_vec((rows, columns), out).unwrap_or_default()
}

/// A row-major array as the library sees it.
fn view<'a>(array: &'a ArrayView2<'_, f64>) -> MatRef<'a, f64> {
    let (rows, columns) = array.dim();
    let slice = array.as_slice().expect("arrays made here are row-major");
    MatRef::from_row_major_slice(slice, rows, columns)
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};

    use super::*;

    fn random(rows: usize, columns: usize, name: &str) -> Array2<f64> {
        let mut values = vec![0.0f32; rows * columns];
        crate::random::Draws::new(3, name).add_normal(1.0, 0, &mut values);
        let values = values.into_iter().map(f64::from).collect();
        Array2::from_shape_vec((rows, columns), values).expect("its size")
    }

    fn distance(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
        (a - b)
            .iter()
            .fold(0.0, |largest, value| f64::max(largest, value.abs()))
    }

    #[test]
    fn singular_values_of_a_small_matrix_are_those_by_hand() {
        // [[3, 0], [0, -2], [0, 0]] has 3 and 2.
        let matrix = array![[3.0, 0.0], [0.0, -2.0], [0.0, 0.0]];
        let found = Svd::of(matrix.view()).expect("converges");
        assert_eq!(found.values, [3.0, 2.0]);
        assert!(distance(&found.product(), &matrix) < 1e-15);
        assert_eq!(singular_values(matrix.t()).expect("converges"), [3.0, 2.0]);
    }

    #[test]
    fn matrices_of_any_shape_are_their_product_again() {
        for (rows, columns) in [(40, 300), (300, 40), (130, 131), (1, 5), (5, 1)] {
            let matrix = random(rows, columns, "any");
            let found = Svd::of(matrix.view()).expect("converges");
            assert!(
                distance(&found.product(), &matrix) < 1e-12,
                "{rows} x {columns}"
            );
            assert!(found.values.is_sorted_by(|a, b| a >= b));
        }
    }

    #[test]
    fn the_largest_come_from_squares_as_from_the_matrix_itself() {
        for (rows, columns) in [(80, 200), (200, 80)] {
            let matrix = random(rows, columns, "leading");
            let (found, expected) = (
                Svd::leading(matrix.view(), 20).expect("converges"),
                Svd::of(matrix.view()).expect("converges").cut(20),
            );
            assert!(
                Svd::from_squares(matrix.view(), 20)
                    .expect("converges")
                    .is_some()
            );
            for (found, expected) in found.values.iter().zip(&expected.values) {
                assert!((found / expected - 1.0).abs() < 1e-12);
            }
            assert!(distance(&found.product(), &expected.product()) < 1e-9);
            let (left, values) = Svd::left_of(matrix.view()).expect("converges");
            assert_eq!((left.dim(), values.len()), ((rows, 80), 80));
            let unit = product(left.t(), left.view());
            assert!(distance(&unit, &Array2::eye(80)) < 1e-12);
            // The same by singular values.
            let whole = Svd::of(matrix.view()).expect("converges");
            let expected = product(whole.left.view(), whole.right.view());
            let found = polar(matrix.view()).expect("converges");
            assert!(distance(&found, &expected) < 1e-11);
        }
        // Of a matrix of rank 3 the fourth value is rounding, which squares would not tell.
        let low = product(random(90, 3, "low").view(), random(3, 120, "rank").view());
        assert!(
            Svd::from_squares(low.view(), 4)
                .expect("converges")
                .is_none()
        );
        let found = Svd::leading(low.view(), 4).expect("converges");
        assert!(found.values[3] < 1e-12 * found.values[0]);
    }

    #[test]
    fn the_polar_factor_of_a_frame_is_the_frame_and_of_a_lower_rank_fills_nothing() {
        let frame = polar(random(50, 8, "frame").view()).expect("converges");
        let unit = product(frame.t(), frame.view());
        assert!(distance(&unit, &Array2::eye(8)) < 1e-12);
        assert!(distance(&polar(frame.view()).expect("converges"), &frame) < 1e-12);
        // The same columns twice: one half of each, and the rank stays 8.
        let twice = ndarray::concatenate![Axis(1), frame, frame];
        let found = polar(twice.view()).expect("converges");
        let expected = &twice * 0.5f64.sqrt();
        assert!(distance(&found, &expected) < 1e-12);
        let nothing = polar(Array2::zeros((4, 3)).view()).expect("converges");
        assert_eq!(nothing, Array2::<f64>::zeros((4, 3)));
    }

    #[test]
    fn a_symmetric_matrix_is_its_eigenvectors_again() {
        let rows = random(90, 60, "gram");
        let gram = product(rows.t(), rows.view());
        let found = Eigen::of(&gram).expect("converges");
        assert!(found.values.is_sorted_by(|a, b| a >= b));
        let again = found.applied(&Array2::eye(60), |value| value);
        assert!(distance(&again, &gram) < 1e-11);
        // [[2, 1], [1, 2]] has 3 and 1.
        let by_hand = Eigen::of(&array![[2.0, 1.0], [1.0, 2.0]]).expect("converges");
        assert!((by_hand.values[0] - 3.0).abs() < 1e-15 && (by_hand.values[1] - 1.0).abs() < 1e-15);
    }

    #[test]
    fn products_are_the_same_on_any_number_of_threads() {
        let (left, right) = (random(400, 70, "left"), random(70, 90, "right"));
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("threads")
                .install(|| product(left.view(), right.view()))
        };
        let found = with(1);
        assert_eq!(found, with(3));
        assert!(distance(&found, &left.dot(&right)) < 1e-12);
    }

    #[test]
    fn a_matrix_with_no_number_is_refused() {
        let matrix = array![[1.0, f64::NAN], [0.0, 1.0]];
        assert!(Svd::of(matrix.view()).is_err() && Eigen::of(&matrix).is_err());
    }
}
