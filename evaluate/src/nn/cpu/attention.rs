//! Attention from packed queries, keys and values, one head of one sequence at a time.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, Par};
use rayon::prelude::*;

use super::gemm::{Matrix, view_mut};
use super::math::{exp, max, sum_of};

/// Groups of sequences over which the gradient of the bias is summed, whatever the threads.
const SUM_PARTS: usize = 8;

/// Sizes of a batch of sequences.
#[derive(Clone, Copy)]
pub struct Sizes {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each.
    pub tokens: usize,
    /// Tokens that ask: the first of each sequence.
    pub queries: usize,
    /// Heads.
    pub heads: usize,
    /// Width of a head.
    pub head_width: usize,
}

impl Sizes {
    fn width(self) -> usize {
        self.heads * self.head_width
    }

    fn scale(self) -> f32 {
        (self.head_width as f32).sqrt().recip()
    }

    /// Elements of the bias: `(h, n, n)`.
    fn bias(self) -> usize {
        self.heads * self.tokens * self.tokens
    }
}

/// What is done to scores and shares. Empty slices do nothing.
#[derive(Clone, Copy, Default)]
pub struct Added<'a> {
    /// `(h, n, n)`.
    pub bias: &'a [f32],
    /// `(b, n)`: 0 for tokens that may be attended to, −∞ or a low number for the others.
    pub mask: &'a [f32],
    /// Dropout's factors of the shares, `(b, h, queries, n)`.
    pub keep: &'a [f32],
}

/// One head's slice of a sequence's `(n, 3 d)`: queries, keys or values.
fn part(qkv: &[f32], sizes: Sizes, which: usize, head: usize) -> Matrix<'_> {
    let first = which * sizes.width() + head * sizes.head_width;
    let rows = if which == 0 {
        sizes.queries
    } else {
        sizes.tokens
    };
    Matrix {
        data: &qkv[first..],
        rows,
        columns: sizes.head_width,
        stride: 3 * sizes.width(),
    }
}

/// One head's columns of a sequence's `(n, d)`.
fn columns(data: &[f32], sizes: Sizes, head: usize) -> Matrix<'_> {
    Matrix {
        data: &data[head * sizes.head_width..],
        rows: sizes.queries,
        columns: sizes.head_width,
        stride: sizes.width(),
    }
}

/// `qkv: (b, n, 3 d) -> (b, queries, d)`.
pub fn forward(qkv: &[f32], added: Added<'_>, sizes: Sizes) -> Vec<f32> {
    let mut out = vec![0.0; sizes.batch * sizes.queries * sizes.width()];
    forward_into(&mut out, qkv, added, sizes);
    out
}

/// [`forward`] into `out: (b, queries, d)`.
pub fn forward_into(out: &mut [f32], qkv: &[f32], added: Added<'_>, sizes: Sizes) {
    let (n, d) = (sizes.tokens, sizes.width());
    let sequences = out.par_chunks_mut(sizes.queries * d).enumerate();
    sequences.for_each_init(
        || vec![0.0; sizes.queries * n],
        |scores, (sequence, out)| {
            let qkv = &qkv[sequence * n * 3 * d..][..n * 3 * d];
            let mask = row(added.mask, sequence, n);
            for head in 0..sizes.heads {
                probabilities(
                    scores,
                    qkv,
                    head_bias(added.bias, sizes, head),
                    mask,
                    sizes,
                    head,
                );
                let keep = head_keep(added.keep, sizes, sequence, head);
                scores.iter_mut().zip(keep).for_each(|(s, keep)| *s *= keep);
                let out = view_mut(
                    &mut out[head * sizes.head_width..],
                    sizes.queries,
                    sizes.head_width,
                    d,
                );
                let scores = Matrix::packed(scores, sizes.queries, n);
                let values = part(qkv, sizes, 2, head);
                matmul(
                    out,
                    Accum::Replace,
                    scores.view(),
                    values.view(),
                    1.0,
                    Par::Seq,
                );
            }
        },
    );
}

fn row(mask: &[f32], sequence: usize, n: usize) -> &[f32] {
    match mask.is_empty() {
        true => &[],
        false => &mask[sequence * n..][..n],
    }
}

fn head_bias(bias: &[f32], sizes: Sizes, head: usize) -> &[f32] {
    let n = sizes.tokens * sizes.tokens;
    match bias.is_empty() {
        true => &[],
        false => &bias[head * n..][..n],
    }
}

/// One head's factors of one sequence, `(queries, n)`.
fn head_keep(keep: &[f32], sizes: Sizes, sequence: usize, head: usize) -> &[f32] {
    let n = sizes.queries * sizes.tokens;
    match keep.is_empty() {
        true => &[],
        false => &keep[(sequence * sizes.heads + head) * n..][..n],
    }
}

/// Softmax of the scaled scores of one head: `(queries, n)`.
fn probabilities(
    scores: &mut [f32],
    qkv: &[f32],
    bias: &[f32],
    mask: &[f32],
    sizes: Sizes,
    head: usize,
) {
    let n = sizes.tokens;
    let (queries, keys) = (part(qkv, sizes, 0, head), part(qkv, sizes, 1, head));
    let out = MatMut::from_row_major_slice_mut(scores, sizes.queries, n);
    let keys = keys.view().transpose();
    matmul(
        out,
        Accum::Replace,
        queries.view(),
        keys,
        sizes.scale(),
        Par::Seq,
    );
    merge::vectorized(
        #[inline(always)]
        || {
            for (query, scores) in scores.chunks_exact_mut(n).enumerate() {
                if !bias.is_empty() {
                    for (score, bias) in scores.iter_mut().zip(&bias[query * n..]) {
                        *score += bias;
                    }
                }
                for (score, mask) in scores.iter_mut().zip(mask) {
                    *score += mask;
                }
                let largest = max(scores);
                if largest == f32::NEG_INFINITY {
                    // All is hidden: nothing is attended to.
                    scores.fill(0.0);
                    continue;
                }
                for score in scores.iter_mut() {
                    *score = exp(*score - largest);
                }
                let share = 1.0 / sum_of(scores, scores, |score, _| score);
                for score in scores.iter_mut() {
                    *score *= share;
                }
            }
        },
    );
}

/// Gradients by `qkv` and by the bias (empty without one): `g: (b, n, d)`, every token asking.
pub fn gradients(g: &[f32], qkv: &[f32], added: Added<'_>, sizes: Sizes) -> (Vec<f32>, Vec<f32>) {
    let mut by_qkv = vec![0.0; qkv.len()];
    let has_bias = !added.bias.is_empty();
    let by_bias = gradients_into(&mut by_qkv, g, qkv, added, sizes, has_bias);
    (by_qkv, by_bias)
}

/// [`gradients`] with those by `qkv` into `by_qkv`; those by the bias are computed only if `wants_bias`.
pub fn gradients_into(
    by_qkv: &mut [f32],
    g: &[f32],
    qkv: &[f32],
    added: Added<'_>,
    sizes: Sizes,
    wants_bias: bool,
) -> Vec<f32> {
    let (n, d) = (sizes.tokens, sizes.width());
    let per_part = sizes.batch.div_ceil(SUM_PARTS).max(1);
    let n_bias = if wants_bias { sizes.bias() } else { 0 };
    let parts: Vec<Vec<f32>> = (by_qkv.par_chunks_mut(per_part * n * 3 * d).enumerate())
        .map(|(part, by_qkv)| {
            let mut by_bias = vec![0.0; n_bias];
            let mut p = vec![0.0; n * n];
            let mut dp = vec![0.0; n * n];
            let mut dropped = vec![0.0; if added.keep.is_empty() { 0 } else { n * n }];
            for (index, by_qkv) in by_qkv.chunks_exact_mut(n * 3 * d).enumerate() {
                let sequence = part * per_part + index;
                let qkv = &qkv[sequence * n * 3 * d..][..n * 3 * d];
                let g = &g[sequence * n * d..][..n * d];
                let mask = row(added.mask, sequence, n);
                for head in 0..sizes.heads {
                    let bias = head_bias(added.bias, sizes, head);
                    probabilities(&mut p, qkv, bias, mask, sizes, head);
                    let by_bias = match n_bias {
                        0 => &mut [][..],
                        _ => &mut by_bias[head * n * n..][..n * n],
                    };
                    let keep = head_keep(added.keep, sizes, sequence, head);
                    for ((dropped, p), keep) in dropped.iter_mut().zip(&p).zip(keep) {
                        *dropped = p * keep;
                    }
                    let shares = Shares {
                        p: &p,
                        dropped: if keep.is_empty() { &p } else { &dropped },
                        keep,
                    };
                    one_head(by_qkv, by_bias, shares, &mut dp, qkv, g, sizes, head);
                }
            }
            by_bias
        })
        .collect();
    sum_of_parts(parts)
}

/// Elements of a sum that one task adds up.
const SUMS_PER_TASK: usize = 1 << 14;

/// The sum of slices of the same length, in their order.
fn sum_of_parts(mut parts: Vec<Vec<f32>>) -> Vec<f32> {
    let Some((first, others)) = parts.split_first_mut() else {
        return Vec::new();
    };
    let tasks = first.par_chunks_mut(SUMS_PER_TASK).enumerate();
    tasks.for_each(|(task, sums)| {
        for part in others.iter() {
            for (sum, value) in sums.iter_mut().zip(&part[task * SUMS_PER_TASK..]) {
                *sum += value;
            }
        }
    });
    std::mem::take(first)
}

/// Softmax of one head of one sequence.
#[derive(Clone, Copy)]
struct Shares<'a> {
    /// Before dropout, `(n, n)`.
    p: &'a [f32],
    /// After it.
    dropped: &'a [f32],
    /// Dropout's factors, or nothing.
    keep: &'a [f32],
}

/// Gradients of one head of one sequence.
#[expect(
    clippy::too_many_arguments,
    reason = "two results, one scratch and the five things they depend on"
)]
fn one_head(
    by_qkv: &mut [f32],
    by_bias: &mut [f32],
    Shares { p, dropped, keep }: Shares<'_>,
    dp: &mut [f32],
    qkv: &[f32],
    g: &[f32],
    sizes: Sizes,
    head: usize,
) {
    let (n, d) = (sizes.tokens, sizes.width());
    let g = columns(g, sizes, head).view();
    let [queries, keys, values] = [0, 1, 2].map(|which| part(qkv, sizes, which, head).view());
    let p_view = Matrix::packed(dropped, n, n).view();
    let mut write = |which: usize, lhs, rhs, scale| {
        let first = which * d + head * sizes.head_width;
        let out = view_mut(&mut by_qkv[first..], n, sizes.head_width, 3 * d);
        matmul(out, Accum::Replace, lhs, rhs, scale, Par::Seq);
    };
    write(2, p_view.transpose(), g, 1.0);
    let out = MatMut::from_row_major_slice_mut(dp, n, n);
    matmul(out, Accum::Replace, g, values.transpose(), 1.0, Par::Seq);
    merge::vectorized(
        #[inline(always)]
        || {
            for (dp, keep) in dp.iter_mut().zip(keep) {
                *dp *= keep;
            }
            for (dp, p) in dp.chunks_exact_mut(n).zip(p.chunks_exact(n)) {
                let mean = sum_of(dp, p, |dp, p| dp * p);
                for (dp, p) in dp.iter_mut().zip(p) {
                    *dp = p * (*dp - mean);
                }
            }
            for (sum, value) in by_bias.iter_mut().zip(dp.iter()) {
                *sum += value;
            }
        },
    );
    let dp = Matrix::packed(dp, n, n).view();
    write(0, dp, keys, sizes.scale());
    write(1, dp.transpose(), queries, sizes.scale());
}
