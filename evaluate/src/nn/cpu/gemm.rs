//! Matrix products of row-major slices, over threads.

use faer::{Accum, MatMut, MatRef};
use gemm::Parallelism;

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
///
/// # Panics
///
/// If the shapes do not go together.
pub fn product(out: &mut [f32], lhs: MatRef<'_, f32>, rhs: MatRef<'_, f32>, accum: Accum) {
    let columns = rhs.ncols();
    assert_eq!(
        Some(out.len()),
        lhs.nrows().checked_mul(columns),
        "rows by columns"
    );
    product_with_gaps(out, columns, lhs, rhs, accum);
}

/// `out = lhs · rhs` on the calling thread alone, for work that is shared out already. The same bits as [`product`].
///
/// # Panics
///
/// If the shapes do not go together.
pub fn product_alone(out: &mut [f32], lhs: MatRef<'_, f32>, rhs: MatRef<'_, f32>) {
    let columns = rhs.ncols();
    assert_eq!(
        Some(out.len()),
        lhs.nrows().checked_mul(columns),
        "rows by columns"
    );
    multiply(out, columns, lhs, rhs, Accum::Replace, Parallelism::None);
}

/// [`product`] into rows that begin `stride` elements after one another; what lies between them stays.
///
/// # Panics
///
/// If the shapes do not go together.
pub fn product_with_gaps(
    out: &mut [f32],
    stride: usize,
    lhs: MatRef<'_, f32>,
    rhs: MatRef<'_, f32>,
    accum: Accum,
) {
    let threads = Parallelism::Rayon(rayon::current_num_threads());
    multiply(out, stride, lhs, rhs, accum, threads);
}

/// [`product_with_gaps`] on these threads.
///
/// By the `gemm` crate, whose kernels for these shapes are a sixth faster than faer's and share what
/// they bring into order between threads; its interface takes pointers, so `unsafe` is needed here, once.
///
/// # Panics
///
/// If the shapes do not go together.
#[expect(unsafe_code, reason = "the interface of gemm takes pointers")]
fn multiply(
    out: &mut [f32],
    stride: usize,
    lhs: MatRef<'_, f32>,
    rhs: MatRef<'_, f32>,
    accum: Accum,
    threads: Parallelism,
) {
    let (rows, columns, depth) = (lhs.nrows(), rhs.ncols(), lhs.ncols());
    assert_eq!(
        depth,
        rhs.nrows(),
        "a row of the left meets a column of the right"
    );
    if rows == 0 || columns == 0 {
        return;
    }
    let end = (rows - 1)
        .checked_mul(stride)
        .and_then(|last| last.checked_add(columns));
    assert!(
        columns <= stride && end.is_some_and(|end| end <= out.len()),
        "rows apart from each other, within the slice"
    );
    let adds = matches!(accum, Accum::Add);
    if depth == 0 {
        if !adds {
            let rows = out.chunks_mut(stride).take(rows);
            rows.for_each(|row| row[..columns].fill(0.0));
        }
        return;
    }
    // SAFETY: element (r, c) of the result is at `r · stride + c` of `out`, below `out.len()` and of no
    // other row (asserted), and no one else can see `out` while it is borrowed mutably. Of `lhs` and
    // `rhs` faer's views guarantee that every element within their sizes can be read at their pointers
    // and strides; their sizes are (rows, depth) and (depth, columns) (asserted). The kernels read and
    // write nothing beyond these sizes.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            depth,
            out.as_mut_ptr(),
            1,
            stride as isize,
            adds,
            lhs.as_ptr(),
            lhs.col_stride(),
            lhs.row_stride(),
            rhs.as_ptr(),
            rhs.col_stride(),
            rhs.row_stride(),
            1.0, // of the numbers in `out`, if they are read
            1.0, // of the product
            false,
            false,
            false,
            threads,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, step: usize) -> Vec<f32> {
        (0..n).map(|at| ((at * step) % 17) as f32 - 8.0).collect()
    }

    #[test]
    fn threads_change_no_bit() {
        let (m, n, k) = (197, 300, 1100);
        let share = |at: usize| ((at * 7919) % 1009) as f32 / 1009.0 - 0.5;
        let x: Vec<f32> = (0..m * k).map(share).collect();
        let y: Vec<f32> = (0..n * k).map(|at| share(at + 11)).collect();
        let of = |n_threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads);
            let mut out = vec![0.0; m * n];
            pool.build().expect("threads").install(|| {
                let (x, y) = (Matrix::packed(&x, m, k), Matrix::packed(&y, n, k));
                product(&mut out, x.view(), y.view().transpose(), Accum::Replace);
            });
            out
        };
        let alone = of(1);
        let (x_of, y_of) = (Matrix::packed(&x, m, k), Matrix::packed(&y, n, k));
        let mut out = vec![0.0; m * n];
        product_alone(&mut out, x_of.view(), y_of.view().transpose());
        assert_eq!(out, alone);
        for n_threads in [2, 3, 5] {
            assert_eq!(of(n_threads), alone);
        }
    }

    #[test]
    fn products_are_those_of_the_definition_in_every_order_of_the_axes() {
        for (m, n, k) in [
            (1, 1, 1),
            (5, 3, 0),
            (3, 5, 7),
            (33, 70, 129),
            (130, 200, 96),
        ] {
            let (x, y) = (numbers(m * k, 5), numbers(k * n, 7));
            let mut sum = vec![0.0; m * n];
            for at in 0..m * n * k {
                let (r, c, i) = (at / (n * k), at / k % n, at % k);
                sum[r * n + c] += x[r * k + i] * y[i * n + c];
            }
            let transposed = |values: &[f32], rows: usize, columns: usize| -> Vec<f32> {
                let of = |at: usize| values[at % rows * columns + at / rows];
                (0..rows * columns).map(of).collect()
            };
            let (x_t, y_t) = (transposed(&x, m, k), transposed(&y, k, n));
            let lefts = [
                Matrix::packed(&x, m, k).view(),
                Matrix::packed(&x_t, k, m).view().transpose(),
            ];
            let rights = [
                Matrix::packed(&y, k, n).view(),
                Matrix::packed(&y_t, n, k).view().transpose(),
            ];
            for (lhs, rhs) in lefts.into_iter().flat_map(|l| rights.map(|r| (l, r))) {
                let mut out = vec![f32::NAN; m * n];
                product(&mut out, lhs, rhs, Accum::Replace);
                assert_eq!(out, sum);
                product(&mut out, lhs, rhs, Accum::Add);
                let twice: Vec<f32> = sum.iter().map(|value| 2.0 * value).collect();
                assert_eq!(out, twice);
            }
        }
    }
}
