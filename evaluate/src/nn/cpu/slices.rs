//! Linear layer, LayerNorm and GELU on slices, forward and backward.

use faer::Accum;
use rayon::prelude::*;

use super::gemm::{Matrix, product};
use super::math::{normal, sum_of};

/// Rows that one task takes: enough to be worth a task, few enough to stay in the cache.
const ROWS_PER_TASK: usize = 64;

/// Parts that a sum over rows is split into, whatever the number of threads.
const SUM_PARTS: usize = 8;

/// What follows a linear layer in the same pass over its result.
#[derive(Clone, Copy)]
pub enum Then<'a> {
    /// Nothing.
    Nothing,
    /// Exact GELU.
    Gelu,
    /// `residual + scale ∘ y`; without a scale, `residual + y`.
    Add {
        residual: &'a [f32],
        scale: Option<&'a [f32]>,
    },
}

/// `y = x Wᵀ + b` and what follows. `x: (m, k)`, `w: (n, k)`, `bias: (n)` or empty.
pub fn linear(x: &[f32], w: &[f32], bias: &[f32], k: usize, then: Then<'_>) -> Vec<f32> {
    let (m, n) = (x.len() / k, w.len() / k);
    let mut out = vec![0.0; m * n];
    let (x, w) = (Matrix::packed(x, m, k), Matrix::packed(w, n, k));
    product(&mut out, x.view(), w.view().transpose(), Accum::Replace);
    if !bias.is_empty() || !matches!(then, Then::Nothing) {
        let rows = out.par_chunks_mut(ROWS_PER_TASK * n).enumerate();
        rows.for_each(|(task, rows)| {
            merge::vectorized(
                #[inline(always)]
                || {
                    let first = task * ROWS_PER_TASK;
                    for (row, y) in rows.chunks_exact_mut(n).enumerate() {
                        finish(y, bias, then, first + row);
                    }
                },
            );
        });
    }
    out
}

/// Bias and what follows, for one row.
#[inline(always)]
fn finish(y: &mut [f32], bias: &[f32], then: Then<'_>, row: usize) {
    for (y, b) in y.iter_mut().zip(bias) {
        *y += b;
    }
    match then {
        Then::Nothing => {}
        Then::Gelu => {
            for y in y.iter_mut() {
                *y *= normal(*y).0;
            }
        }
        Then::Add { residual, scale } => {
            let residual = &residual[row * y.len()..][..y.len()];
            match scale {
                Some(scale) => {
                    for ((y, x), s) in y.iter_mut().zip(residual).zip(scale) {
                        *y = x + s * *y;
                    }
                }
                None => {
                    for (y, x) in y.iter_mut().zip(residual) {
                        *y += x;
                    }
                }
            }
        }
    }
}

/// `∂x = g W`: `g: (m, n)`, `w: (n, k)`.
pub fn linear_input_gradient(g: &[f32], w: &[f32], k: usize) -> Vec<f32> {
    let n = w.len() / k;
    let m = g.len() / n;
    let mut out = vec![0.0; m * k];
    let (g, w) = (Matrix::packed(g, m, n), Matrix::packed(w, n, k));
    product(&mut out, g.view(), w.view(), Accum::Replace);
    out
}

/// `∂W = gᵀ x`: `g: (m, n)`, `x: (m, k)`.
pub fn linear_weight_gradient(g: &[f32], x: &[f32], n: usize, k: usize) -> Vec<f32> {
    let m = g.len() / n;
    let mut out = vec![0.0; n * k];
    let (g, x) = (Matrix::packed(g, m, n), Matrix::packed(x, m, k));
    product(&mut out, g.view().transpose(), x.view(), Accum::Replace);
    out
}

/// Sums rows of `n` in a fixed order.
pub fn sum_rows(rows: &[f32], n: usize) -> Vec<f32> {
    let step = (rows.len() / n).div_ceil(SUM_PARTS).max(1);
    let parts: Vec<Vec<f32>> = (rows.par_chunks(step * n))
        .map(|part| {
            let mut sum = vec![0.0; n];
            part.chunks_exact(n).for_each(|row| add_to(&mut sum, row));
            sum
        })
        .collect();
    add_up(parts, n)
}

fn add_to(sum: &mut [f32], row: &[f32]) {
    for (sum, value) in sum.iter_mut().zip(row) {
        *sum += value;
    }
}

fn add_up(parts: Vec<Vec<f32>>, n: usize) -> Vec<f32> {
    let mut sum = vec![0.0; n];
    parts.iter().for_each(|part| add_to(&mut sum, part));
    sum
}

/// Exact GELU, `x Φ(x)`.
pub fn gelu(x: &[f32]) -> Vec<f32> {
    let mut out = x.to_vec();
    out.par_chunks_mut(1 << 14).for_each(|out| {
        merge::vectorized(
            #[inline(always)]
            || {
                for x in out.iter_mut() {
                    *x *= normal(*x).0;
                }
            },
        );
    });
    out
}

/// `∂x = g (Φ(x) + x φ(x))`.
pub fn gelu_gradient(g: &[f32], x: &[f32]) -> Vec<f32> {
    let mut out = g.to_vec();
    let chunks = out.par_chunks_mut(1 << 14).zip(x.par_chunks(1 << 14));
    chunks.for_each(|(out, x)| {
        merge::vectorized(
            #[inline(always)]
            || {
                for (out, &x) in out.iter_mut().zip(x) {
                    let (below, density) = normal(x);
                    *out *= below + x * density;
                }
            },
        );
    });
    out
}

/// Mean and 1 / sqrt(variance + epsilon) of a row.
#[inline(always)]
fn moments(x: &[f32], epsilon: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = sum_of(x, x, |x, _| x) / n;
    let variance = sum_of(x, x, |x, _| (x - mean) * (x - mean)) / n;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

/// LayerNorm over rows of `weight.len()`.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], epsilon: f32) -> Vec<f32> {
    let n = weight.len();
    let mut out = vec![0.0; x.len()];
    let step = ROWS_PER_TASK * n;
    let tasks = out.par_chunks_mut(step).zip(x.par_chunks(step));
    tasks.for_each(|(out, x)| {
        merge::vectorized(
            #[inline(always)]
            || {
                for (out, x) in out.chunks_exact_mut(n).zip(x.chunks_exact(n)) {
                    let (mean, scale) = moments(x, epsilon);
                    let row = out.iter_mut().zip(x).zip(weight).zip(bias);
                    for (((out, x), w), b) in row {
                        *out = (x - mean) * scale * w + b;
                    }
                }
            },
        );
    });
    out
}

/// Gradients of LayerNorm by input, weight and bias.
pub fn layer_norm_gradients(
    g: &[f32],
    x: &[f32],
    weight: &[f32],
    epsilon: f32,
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let n = weight.len();
    let mut by_input = vec![0.0; x.len()];
    let step = (x.len() / n).div_ceil(SUM_PARTS).max(1) * n;
    let tasks = (by_input.par_chunks_mut(step))
        .zip(x.par_chunks(step))
        .zip(g.par_chunks(step));
    let parts: Vec<(Vec<f32>, Vec<f32>)> = tasks
        .map(|((out, x), g)| {
            let (mut by_weight, mut by_bias) = (vec![0.0; n], vec![0.0; n]);
            let mut scaled = vec![0.0; n];
            merge::vectorized(
                #[inline(always)]
                || {
                    let rows = out.chunks_exact_mut(n).zip(x.chunks_exact(n));
                    for ((out, x), g) in rows.zip(g.chunks_exact(n)) {
                        let (mean, scale) = moments(x, epsilon);
                        for i in 0..n {
                            // `out` holds the normalized input until the sums are known.
                            out[i] = (x[i] - mean) * scale;
                            by_weight[i] += g[i] * out[i];
                            by_bias[i] += g[i];
                            scaled[i] = g[i] * weight[i];
                        }
                        let mean_g = sum_of(&scaled, &scaled, |g, _| g) / n as f32;
                        let mean_gx = sum_of(&scaled, out, |g, x| g * x) / n as f32;
                        for (out, g) in out.iter_mut().zip(&scaled) {
                            *out = scale * (g - mean_g - *out * mean_gx);
                        }
                    }
                },
            );
            (by_weight, by_bias)
        })
        .collect();
    let (weights, biases) = parts.into_iter().unzip();
    (by_input, add_up(weights, n), add_up(biases, n))
}

/// `sum += values`.
pub fn add_into(sum: &mut [f32], values: &[f32]) {
    let chunks = sum.par_chunks_mut(1 << 16).zip(values.par_chunks(1 << 16));
    chunks.for_each(|(sum, values)| {
        merge::vectorized(
            #[inline(always)]
            || add_to(sum, values),
        );
    });
}
