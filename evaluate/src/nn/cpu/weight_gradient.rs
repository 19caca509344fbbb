//! Gradients of a linear layer's weight, bias and following LayerScale.
//!
//! `∂W = gᵀ x` sums over rows. `g` is transposed first: products are a tenth slower where the summed axis of
//! their left side has gaps, and the gradient of the bias is read off the same rows.

use std::ops::Range;

use faer::Accum;
use rayon::prelude::*;

use super::gemm::{Matrix, product};
use super::math::sum_of;
use super::slices::Keep;

/// Side of the squares that a transposition moves: a line of the cache.
const SIDE: usize = 16;

/// Columns of the source that one task transposes.
const COLUMNS_PER_TASK: usize = 8 * SIDE;

/// `keep ∘ g` transposed, of some columns: `g: (m, n)` to `out: (columns, m)`.
pub fn transpose(
    out: &mut [f32],
    g: &[f32],
    n: usize,
    columns: Range<usize>,
    keep: Option<Keep<'_>>,
) {
    let m = g.len() / n;
    let tasks = out.par_chunks_mut(COLUMNS_PER_TASK * m).enumerate();
    tasks.for_each(|(task, out)| {
        let first = columns.start + task * COLUMNS_PER_TASK;
        let columns = out.len() / m;
        merge::vectorized(
            #[inline(always)]
            || {
                for row in (0..m).step_by(SIDE) {
                    for column in (0..columns).step_by(SIDE) {
                        square(out, g, [m, n], [row, column], first, keep);
                    }
                }
            },
        );
    });
}

/// One square of a transposition, at `row` of the source and `column` of the task.
#[inline(always)]
fn square(
    out: &mut [f32],
    g: &[f32],
    [m, n]: [usize; 2],
    [row, column]: [usize; 2],
    first: usize,
    keep: Option<Keep<'_>>,
) {
    let (rows, columns) = ((m - row).min(SIDE), (out.len() / m - column).min(SIDE));
    let factor = |r: usize| keep.map_or(1.0, |keep| keep.of(row + r));
    let mut tile = [[0.0; SIDE]; SIDE];
    if [rows, columns] == [SIDE; 2] {
        // Lengths that the compiler knows: moved by vectors.
        for (r, tile) in tile.iter_mut().enumerate() {
            tile.copy_from_slice(&g[(row + r) * n + first + column..][..SIDE]);
        }
        if keep.is_some() {
            for (r, tile) in tile.iter_mut().enumerate() {
                let factor = factor(r);
                tile.iter_mut().for_each(|value| *value *= factor);
            }
        }
        for c in 0..SIDE {
            let mut line = [0.0; SIDE];
            for (value, tile) in line.iter_mut().zip(&tile) {
                *value = tile[c];
            }
            out[(column + c) * m + row..][..SIDE].copy_from_slice(&line);
        }
        return;
    }
    for (r, tile) in tile.iter_mut().enumerate().take(rows) {
        let source = &g[(row + r) * n + first + column..][..columns];
        let factor = factor(r);
        for (tile, value) in tile.iter_mut().zip(source) {
            *tile = factor * value;
        }
    }
    for c in 0..columns {
        let target = &mut out[(column + c) * m + row..][..rows];
        for (target, tile) in target.iter_mut().zip(&tile) {
            *target = tile[c];
        }
    }
}

/// `sum += gᵀ x`, or `=`: `g_t: (n, m)`, `x: (m, k)`.
pub fn weight(sum: &mut [f32], g_t: &[f32], x: &[f32], n: usize, accum: Accum) {
    let m = g_t.len() / n;
    let (g_t, x) = (Matrix::packed(g_t, n, m), Matrix::packed(x, m, x.len() / m));
    product(sum, g_t.view(), x.view(), accum);
}

/// Sums of `g` by column, from `g_t: (n, m)`.
pub fn bias(g_t: &[f32], n: usize) -> Vec<f32> {
    let rows = g_t.par_chunks_exact(g_t.len() / n).with_min_len(16);
    rows.map(|row| {
        merge::vectorized(
            #[inline(always)]
            || sum_of(row, row, |g, _| g),
        )
    })
    .collect()
}

/// Completes a gradient from `unscaled = (keep g)ᵀ x: (n, k)` where `scale ∘ (x Wᵀ + b)` is added to a sum. It returns
/// each row's product with the weight's, for the gradient by the scale; it adds the row times the scale to `sum`, or
/// leaves it in its place where there is no sum.
///
/// So the gradient by the scale, `Σ keep g (x Wᵀ + b)`, needs no output of the layer.
pub fn scale_rows(
    unscaled: &mut [f32],
    sum: Option<&mut [f32]>,
    scale: &[f32],
    weight: &[f32],
) -> Vec<f32> {
    let k = weight.len() / scale.len();
    let rows = (unscaled.par_chunks_exact_mut(k))
        .zip(weight.par_chunks_exact(k))
        .zip(scale);
    match sum {
        None => rows
            .with_min_len(16)
            .map(|((row, weight), &scale)| {
                merge::vectorized(
                    #[inline(always)]
                    || {
                        let by_scale = sum_of(row, weight, |u, w| u * w);
                        row.iter_mut().for_each(|u| *u *= scale);
                        by_scale
                    },
                )
            })
            .collect(),
        Some(sum) => rows
            .zip(sum.par_chunks_exact_mut(k))
            .with_min_len(16)
            .map(|(((row, weight), &scale), sum)| {
                merge::vectorized(
                    #[inline(always)]
                    || {
                        let by_scale = sum_of(row, weight, |u, w| u * w);
                        for (sum, u) in sum.iter_mut().zip(&*row) {
                            *sum += scale * u;
                        }
                        by_scale
                    },
                )
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transposition_moves_every_element_and_scales_whole_sequences() {
        for (m, n) in [(1_usize, 1), (3, 70), (34, 17), (16, 64), (50, 131)] {
            let g: Vec<f32> = (0..m * n).map(|at| at as f32).collect();
            let rows = m.div_ceil(2);
            let keep = Keep {
                factors: &[1.0, 2.0],
                rows,
            };
            for keep in [None, Some(keep)] {
                let from = n / 3;
                let mut out = vec![-1.0; m * (n - from)];
                transpose(&mut out, &g, n, from..n, keep);
                for (at, &value) in out.iter().enumerate() {
                    let (column, row) = (from + at / m, at % m);
                    let factor = match keep {
                        Some(_) if row >= rows => 2.0,
                        _ => 1.0,
                    };
                    assert_eq!(value, factor * g[row * n + column], "{m} x {n}");
                }
            }
        }
    }
}
