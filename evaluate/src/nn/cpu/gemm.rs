//! Matrix products of row-major slices, split over threads by rows of the result.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

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
    if rows == 0 || columns == 0 {
        return;
    }
    let n_threads = match rows * columns * lhs.ncols() {
        small if small < LEAST_PARALLEL => 1,
        _ => rayon::current_num_threads().min(rows),
    };
    let step = rows.div_ceil(n_threads);
    let chunk = |(index, out): (usize, &mut [f32])| {
        let n = out.len() / columns;
        let lhs = lhs.subrows(index * step, n);
        let out = MatMut::from_row_major_slice_mut(out, n, columns);
        matmul(out, accum, lhs, rhs, 1.0, Par::Seq);
    };
    if n_threads == 1 {
        chunk((0, out));
    } else {
        out.par_chunks_mut(step * columns)
            .enumerate()
            .for_each(chunk);
    }
}
