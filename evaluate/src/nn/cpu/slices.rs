//! Linear layer, LayerNorm and GELU on slices, forward and backward.

use faer::{Accum, MatRef};
use rayon::prelude::*;

use super::gemm::{Matrix, product, product_alone, product_with_gaps};
use super::math::{exp, normal, sum_of};
use crate::nn::Activation;

/// Rows that one task takes: enough to be worth a task, few enough to stay in the cache.
const ROWS_PER_TASK: usize = 64;

/// Parts that a sum over rows is split into, whatever the number of threads.
const SUM_PARTS: usize = 8;

/// The step after a linear layer in the same pass over its result.
#[derive(Clone, Copy)]
pub enum Then<'a> {
    /// Nothing.
    Nothing,
    /// An activation.
    Activate(Activation),
    /// `residual + keep scale ∘ y`, each factor being 1 where there is none.
    Add {
        residual: &'a [f32],
        scale: Option<&'a [f32]>,
        keep: Option<Keep<'a>>,
    },
}

/// Factors of whole sequences, all of one length.
#[derive(Clone, Copy)]
pub struct Keep<'a> {
    /// One per sequence.
    pub factors: &'a [f32],
    /// Rows of a sequence.
    pub rows: usize,
}

impl Keep<'_> {
    /// The factor of a row.
    #[inline(always)]
    pub fn of(self, row: usize) -> f32 {
        self.factors[row / self.rows]
    }
}

/// `y = x Wᵀ + b` and what follows. `x: (m, k)`, `w: (n, k)`, `bias: (n)` or empty.
pub fn linear(x: &[f32], w: &[f32], bias: &[f32], k: usize, then: Then<'_>) -> Vec<f32> {
    let mut out = vec![0.0; x.len() / k * (w.len() / k)];
    linear_into(&mut out, x, w, bias, k, then);
    out
}

/// [`linear`] into `out: (m, n)`.
pub fn linear_into(out: &mut [f32], x: &[f32], w: &[f32], bias: &[f32], k: usize, then: Then<'_>) {
    let (m, n) = (x.len() / k, w.len() / k);
    let (x, w) = (Matrix::packed(x, m, k), Matrix::packed(w, n, k));
    product(out, x.view(), w.view().transpose(), Accum::Replace);
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
}

/// Whether a product is shared out over threads, or is a task of one already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// It is shared out.
    All,
    /// It is a task.
    One,
}

/// [`linear`] of few rows, turned: `y = W xᵀ + b` and an activation into `out: (n, m)`, of `x: (m, k)`.
///
/// A product brings its left side into an order of its own, which takes as long as multiplying a hundred rows if that is
/// the weight. Turned, it brings `x` into order, which is small.
pub fn turned_linear_into(
    out: &mut [f32],
    x: MatRef<'_, f32>,
    w: &[f32],
    bias: &[f32],
    activation: Option<Activation>,
    threads: Threads,
) {
    let (m, k) = (x.nrows(), x.ncols());
    let w = Matrix::packed(w, w.len() / k, k);
    match threads {
        Threads::All => product(out, w.view(), x.transpose(), Accum::Replace),
        Threads::One => product_alone(out, w.view(), x.transpose()),
    }
    merge::vectorized(
        #[inline(always)]
        || {
            for (at, y) in out.chunks_exact_mut(m).enumerate() {
                let b = bias.get(at).copied().unwrap_or_default();
                y.iter_mut().for_each(|y| *y += b);
                if let Some(activation) = activation {
                    activate(y, activation);
                }
            }
        },
    );
}

/// Linear layers of one width side by side, `(m, N n)`: weights `(n, k)`, biases `(n)`.
pub fn linear_side_by_side_into<const N: usize>(
    out: &mut [f32],
    x: &[f32],
    weights: [&[f32]; N],
    biases: [&[f32]; N],
    k: usize,
) {
    let (m, n) = (x.len() / k, weights[0].len() / k);
    let x = Matrix::packed(x, m, k);
    for (which, weight) in weights.into_iter().enumerate() {
        let weight = Matrix::packed(weight, n, k).view().transpose();
        let out = &mut out[which * n..];
        product_with_gaps(out, N * n, x.view(), weight, Accum::Replace);
    }
    let bias = biases.concat();
    let rows = out.par_chunks_mut(ROWS_PER_TASK * N * n);
    rows.for_each(|rows| {
        merge::vectorized(
            #[inline(always)]
            || {
                for row in rows.chunks_exact_mut(N * n) {
                    add_to(row, &bias);
                }
            },
        );
    });
}

/// `out = x + factors ∘ out`, element by element.
pub fn scaled_onto(out: &mut [f32], x: &[f32], factors: &[f32]) {
    by_element(
        out,
        x,
        factors,
        #[inline(always)]
        |out, x, factor| *out = x + factor * *out,
    );
}

/// `out = factors ∘ x`, element by element.
pub fn scaled_into(out: &mut [f32], x: &[f32], factors: &[f32]) {
    by_element(
        out,
        x,
        factors,
        #[inline(always)]
        |out, x, factor| *out = factor * x,
    );
}

/// Calls `each` with every element of `out`, that of `x` and that of `factors`.
fn by_element(
    out: &mut [f32],
    x: &[f32],
    factors: &[f32],
    each: impl Fn(&mut f32, f32, f32) + Sync,
) {
    let chunks = out.par_chunks_mut(1 << 14).enumerate();
    chunks.for_each(|(chunk, out)| {
        let first = chunk << 14;
        merge::vectorized(
            #[inline(always)]
            || {
                let rest = x[first..].iter().zip(&factors[first..]);
                for (out, (&x, &factor)) in out.iter_mut().zip(rest) {
                    each(out, x, factor);
                }
            },
        );
    });
}

/// Bias and what follows, for one row.
#[inline(always)]
fn finish(y: &mut [f32], bias: &[f32], then: Then<'_>, row: usize) {
    for (y, b) in y.iter_mut().zip(bias) {
        *y += b;
    }
    match then {
        Then::Nothing => {}
        Then::Activate(activation) => activate(y, activation),
        Then::Add {
            residual,
            scale,
            keep,
        } => {
            let residual = &residual[row * y.len()..][..y.len()];
            let keep = keep.map_or(1.0, |keep| keep.of(row));
            match scale {
                Some(scale) => {
                    for ((y, x), s) in y.iter_mut().zip(residual).zip(scale) {
                        *y = x + keep * (s * *y);
                    }
                }
                None => {
                    for (y, x) in y.iter_mut().zip(residual) {
                        *y = x + keep * *y;
                    }
                }
            }
        }
    }
}

/// `∂x = g W`: `g: (m, n)`, `w: (n, k)`.
pub fn linear_input_gradient(g: &[f32], w: &[f32], k: usize) -> Vec<f32> {
    let mut out = vec![0.0; g.len() / (w.len() / k) * k];
    linear_input_gradient_into(&mut out, g, w, k);
    out
}

/// [`linear_input_gradient`] into `out: (m, k)`.
pub fn linear_input_gradient_into(out: &mut [f32], g: &[f32], w: &[f32], k: usize) {
    let n = w.len() / k;
    let m = g.len() / n;
    let (g, w) = (Matrix::packed(g, m, n), Matrix::packed(w, n, k));
    product(out, g.view(), w.view(), Accum::Replace);
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

/// An activation of every number.
pub fn activated(x: &[f32], activation: Activation) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    activate_into(&mut out, x, activation);
    out
}

/// An activation in place of its input.
#[inline(always)]
fn activate(y: &mut [f32], activation: Activation) {
    #[inline(always)]
    fn times(y: &mut [f32], factor: impl Fn(f32) -> f32) {
        y.iter_mut().for_each(|y| *y *= factor(*y));
    }
    match activation {
        Activation::Gelu => times(y, |y| normal(y).0),
        Activation::QuickGelu => times(y, quick),
        Activation::GeluTanh => times(y, |y| by_tanh(y).0),
    }
}

/// σ(1.702 x): the factor of QuickGELU.
#[inline(always)]
fn quick(x: f32) -> f32 {
    1.0 / (1.0 + exp(-1.702 * x))
}

/// `(1 + tanh u) / 2` with `u = √(2/π) (x + 0.044715 x³)`, the factor of GELU by the hyperbolic tangent, and twice the
/// slope of `u`.
#[inline(always)]
fn by_tanh(x: f32) -> (f32, f32) {
    /// √(2/π).
    const SLOPE: f32 = 0.797_884_6;
    const CUBE: f32 = 0.044_715;
    let u = SLOPE * (x + CUBE * x * x * x);
    let share = 1.0 / (1.0 + exp(-2.0 * u));
    (share, 2.0 * SLOPE * (1.0 + 3.0 * CUBE * x * x))
}

/// An activation of `x` into `out`.
pub fn activate_into(out: &mut [f32], x: &[f32], activation: Activation) {
    #[inline(always)]
    fn times(out: &mut [f32], x: &[f32], factor: impl Fn(f32) -> f32) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = x * factor(x);
        }
    }
    let chunks = out.par_chunks_mut(1 << 14).zip(x.par_chunks(1 << 14));
    chunks.for_each(|(out, x)| {
        merge::vectorized(
            #[inline(always)]
            || match activation {
                Activation::Gelu => times(out, x, |x| normal(x).0),
                Activation::QuickGelu => times(out, x, quick),
                Activation::GeluTanh => times(out, x, |x| by_tanh(x).0),
            },
        );
    });
}

/// Turns `g` into the gradient by the input `x` of an activation, and `x` into its output.
pub fn activate_backward_in_place(g: &mut [f32], x: &mut [f32], activation: Activation) {
    let chunks = g.par_chunks_mut(1 << 14).zip(x.par_chunks_mut(1 << 14));
    chunks.for_each(|(g, x)| {
        merge::vectorized(
            #[inline(always)]
            || match activation {
                Activation::Gelu => {
                    for (g, x) in g.iter_mut().zip(x.iter_mut()) {
                        let (below, density) = normal(*x);
                        *g *= below + *x * density;
                        *x *= below;
                    }
                }
                Activation::QuickGelu => {
                    for (g, x) in g.iter_mut().zip(x.iter_mut()) {
                        let share = quick(*x);
                        *g *= share + 1.702 * *x * share * (1.0 - share);
                        *x *= share;
                    }
                }
                Activation::GeluTanh => {
                    for (g, x) in g.iter_mut().zip(x.iter_mut()) {
                        let (share, slope) = by_tanh(*x);
                        *g *= share + *x * share * (1.0 - share) * slope;
                        *x *= share;
                    }
                }
            },
        );
    });
}

/// The gradient by the numbers before an activation, from that by those behind it.
pub fn activation_gradient(g: &[f32], x: &[f32], activation: Activation) -> Vec<f32> {
    let mut out = g.to_vec();
    activate_backward_in_place(&mut out, &mut x.to_vec(), activation);
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
    let mut out = vec![0.0; x.len()];
    layer_norm_into(&mut out, x, weight, bias, epsilon);
    out
}

/// [`layer_norm`] into `out`.
pub fn layer_norm_into(out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], epsilon: f32) {
    let n = weight.len();
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
}

/// Gradients of LayerNorm by input, weight and bias.
pub fn layer_norm_gradients(
    g: &[f32],
    x: &[f32],
    weight: &[f32],
    epsilon: f32,
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let mut by_input = vec![0.0; x.len()];
    let (by_weight, by_bias) = layer_norm_gradients_onto(&mut by_input, g, x, weight, epsilon);
    (by_input, by_weight, by_bias)
}

/// Adds the gradient of LayerNorm by its input to `sum`; gives those by weight and bias.
pub fn layer_norm_gradients_onto(
    sum: &mut [f32],
    g: &[f32],
    x: &[f32],
    weight: &[f32],
    epsilon: f32,
) -> (Vec<f32>, Vec<f32>) {
    let n = weight.len();
    let step = (x.len() / n).div_ceil(SUM_PARTS).max(1) * n;
    let tasks = (sum.par_chunks_mut(step))
        .zip(x.par_chunks(step))
        .zip(g.par_chunks(step));
    let parts: Vec<(Vec<f32>, Vec<f32>)> = tasks
        .map(|((sum, x), g)| {
            let (mut by_weight, mut by_bias) = (vec![0.0; n], vec![0.0; n]);
            let (mut scaled, mut normed) = (vec![0.0; n], vec![0.0; n]);
            merge::vectorized(
                #[inline(always)]
                || {
                    let rows = sum.chunks_exact_mut(n).zip(x.chunks_exact(n));
                    for ((sum, x), g) in rows.zip(g.chunks_exact(n)) {
                        let (mean, scale) = moments(x, epsilon);
                        for i in 0..n {
                            normed[i] = (x[i] - mean) * scale;
                            by_weight[i] += g[i] * normed[i];
                            by_bias[i] += g[i];
                            scaled[i] = g[i] * weight[i];
                        }
                        let mean_g = sum_of(&scaled, &scaled, |g, _| g) / n as f32;
                        let mean_gx = sum_of(&scaled, &normed, |g, x| g * x) / n as f32;
                        for ((sum, g), x) in sum.iter_mut().zip(&scaled).zip(&normed) {
                            *sum += scale * (g - mean_g - x * mean_gx);
                        }
                    }
                },
            );
            (by_weight, by_bias)
        })
        .collect();
    let (weights, biases) = parts.into_iter().unzip();
    (add_up(weights, n), add_up(biases, n))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_and_their_gradients_are_those_of_the_formulas() {
        for activation in [
            Activation::Gelu,
            Activation::QuickGelu,
            Activation::GeluTanh,
        ] {
            let x: Vec<f32> = (-40..=40).map(|step| step as f32 / 8.0).collect();
            let exact = |x: f64| match activation {
                Activation::Gelu => x * f64::from(normal(x as f32).0),
                Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
                Activation::GeluTanh => {
                    let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                    0.5 * x * (1.0 + u.tanh())
                }
            };
            let mut out = vec![0.0; x.len()];
            activate_into(&mut out, &x, activation);
            let (mut g, mut y) = (vec![2.0; x.len()], x.clone());
            activate_backward_in_place(&mut g, &mut y, activation);
            assert_eq!(y, out);
            for ((&x, &y), &g) in x.iter().zip(&out).zip(&g) {
                let x = f64::from(x);
                assert!(
                    (f64::from(y) - exact(x)).abs() < 1e-6,
                    "{activation:?}({x})"
                );
                // Gelu's step is wide, for Φ is known to 1.5e-7 only.
                let slope = (exact(x + 1e-2) - exact(x - 1e-2)) / 2e-2;
                assert!(
                    (f64::from(g) - 2.0 * slope).abs() < 3e-4,
                    "{activation:?}'({x})"
                );
            }
        }
    }
}
