//! Matrix products of row-major slices, the result split over threads.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// Products with fewer multiplications than this are not worth waking a second thread.
const LEAST_PARALLEL: usize = 1 << 20;

/// A matrix in a slice: `rows × columns`, each row `stride` elements after the one before.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub columns: usize,
    pub stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows without gaps.
    pub fn packed(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self {
            data,
            rows,
            columns,
            stride: columns,
        }
    }

    /// faer's view of it.
    pub fn view(self) -> MatRef<'a, f32> {
        MatRef::from_row_major_slice_with_stride(self.data, self.rows, self.columns, self.stride)
    }
}

/// A matrix to be written, each row `stride` elements after the one before.
///
/// By way of its transpose: faer 0.24.4 has the strides of `from_row_major_slice_with_stride_mut`
/// the wrong way round.
pub fn view_mut(data: &mut [f32], rows: usize, columns: usize, stride: usize) -> MatMut<'_, f32> {
    MatMut::from_column_major_slice_with_stride_mut(data, columns, rows, stride).transpose_mut()
}

/// `out = lhs · rhs`, or `out += lhs · rhs`, where `out` has rows without gaps.
pub fn product(out: &mut [f32], lhs: MatRef<'_, f32>, rhs: MatRef<'_, f32>, accum: Accum) {
    let (rows, columns) = (lhs.nrows(), rhs.ncols());
    let n_threads = match rows * columns * lhs.ncols() {
        small if small < LEAST_PARALLEL => 1,
        _ => rayon::current_num_threads(),
    };
    let out = MatMut::from_row_major_slice_mut(out, rows, columns);
    split(out, lhs, rhs, accum, n_threads);
}

/// Halves the longer side of the result until there is a part for each thread: then the least has
/// to be brought into the order that the kernels want.
fn split(
    out: MatMut<'_, f32>,
    lhs: MatRef<'_, f32>,
    rhs: MatRef<'_, f32>,
    accum: Accum,
    n_threads: usize,
) {
    let (rows, columns) = (out.nrows(), out.ncols());
    if n_threads < 2 || rows.max(columns) < 2 {
        matmul(out, accum, lhs, rhs, 1.0, Par::Seq);
        return;
    }
    let first = n_threads / 2;
    if rows >= columns {
        let middle = (rows * first / n_threads).max(1);
        let (top, bottom) = out.split_at_row_mut(middle);
        let (lhs_top, lhs_bottom) = lhs.split_at_row(middle);
        rayon::join(
            || split(top, lhs_top, rhs, accum, first),
            || split(bottom, lhs_bottom, rhs, accum, n_threads - first),
        );
    } else {
        let middle = (columns * first / n_threads).max(1);
        let (left, right) = out.split_at_col_mut(middle);
        let (rhs_left, rhs_right) = rhs.split_at_col(middle);
        rayon::join(
            || split(left, lhs, rhs_left, accum, first),
            || split(right, lhs, rhs_right, accum, n_threads - first),
        );
    }
}
