//! Attention, one head of one sequence at a time: from packed queries, keys and values of one sequence,
//! or from queries of one and keys and values of another.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
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
    /// Tokens that ask: the first of each sequence.
    pub queries: usize,
    /// Tokens that are asked.
    pub keys: usize,
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

    /// Elements of one head's scores: `(queries, keys)`.
    fn scores(self) -> usize {
        self.queries * self.keys
    }
}

/// What is done to scores and shares. Empty slices do nothing.
#[derive(Clone, Copy, Default)]
pub struct Added<'a> {
    /// `(h, keys, keys)`, of which the first queries have their rows.
    pub bias: &'a [f32],
    /// `(b, keys)` or `(b, queries, keys)`: 0 for tokens that may be attended to, −∞ or a low number for
    /// the others.
    pub mask: &'a [f32],
    /// Dropout's factors of the shares, `(b, h, queries, keys)`.
    pub keep: &'a [f32],
}

/// Queries, keys and values, wherever they stand.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    queries: Part<'a>,
    keys: Part<'a>,
    values: Part<'a>,
}

/// A part of each row of sequences: queries, keys or values.
#[derive(Clone, Copy)]
struct Part<'a> {
    data: &'a [f32],
    /// Rows of a sequence.
    tokens: usize,
    /// Numbers from one row to the next.
    stride: usize,
    /// Where the part begins in a row.
    first: usize,
}

impl<'a> Asked<'a> {
    /// Of packed `(b, n, 3 d)`.
    pub fn packed(qkv: &'a [f32], sizes: Sizes) -> Self {
        let part = |which: usize| Part {
            data: qkv,
            tokens: sizes.keys,
            stride: 3 * sizes.width(),
            first: which * sizes.width(),
        };
        Self {
            queries: part(0),
            keys: part(1),
            values: part(2),
        }
    }

    /// Of queries `(b, n, d)`, and of keys and values side by side `(b, m, 2 d)`.
    pub fn apart(q: &'a [f32], kv: &'a [f32], sizes: Sizes) -> Self {
        let part = |which: usize| Part {
            data: kv,
            tokens: sizes.keys,
            stride: 2 * sizes.width(),
            first: which * sizes.width(),
        };
        Self {
            queries: Part {
                data: q,
                tokens: sizes.queries,
                stride: sizes.width(),
                first: 0,
            },
            keys: part(0),
            values: part(1),
        }
    }

    /// One head's queries, keys and values of one sequence.
    fn head(self, sizes: Sizes, sequence: usize, head: usize) -> [Matrix<'a>; 3] {
        let matrix = |part: Part<'a>, rows: usize| {
            let of_sequence = part.tokens * part.stride;
            let data = &part.data[sequence * of_sequence..][..of_sequence];
            Matrix {
                data: &data[part.first + head * sizes.head_width..],
                rows,
                columns: sizes.head_width,
                stride: part.stride,
            }
        };
        [
            matrix(self.queries, sizes.queries),
            matrix(self.keys, sizes.keys),
            matrix(self.values, sizes.keys),
        ]
    }
}

/// One head's columns of a sequence's `(queries, d)`.
fn columns(data: &[f32], sizes: Sizes, head: usize) -> Matrix<'_> {
    Matrix {
        data: &data[head * sizes.head_width..],
        rows: sizes.queries,
        columns: sizes.head_width,
        stride: sizes.width(),
    }
}

/// `(b, queries, d)`.
pub fn forward(asked: Asked<'_>, added: Added<'_>, sizes: Sizes) -> Vec<f32> {
    let mut out = vec![0.0; sizes.batch * sizes.queries * sizes.width()];
    forward_into(&mut out, asked, added, sizes);
    out
}

/// [`forward`] into `out: (b, queries, d)`.
pub fn forward_into(out: &mut [f32], asked: Asked<'_>, added: Added<'_>, sizes: Sizes) {
    let d = sizes.width();
    let sequences = out.par_chunks_mut(sizes.queries * d).enumerate();
    sequences.for_each_init(
        || vec![0.0; sizes.scores()],
        |scores, (sequence, out)| {
            let mask = of_sequence(added.mask, sequence, sizes);
            for head in 0..sizes.heads {
                let [queries, keys, values] = asked.head(sizes, sequence, head);
                let bias = head_bias(added.bias, sizes, head);
                probabilities(scores, [queries, keys], bias, mask, sizes);
                let keep = head_keep(added.keep, sizes, sequence, head);
                scores.iter_mut().zip(keep).for_each(|(s, keep)| *s *= keep);
                let out = view_mut(
                    &mut out[head * sizes.head_width..],
                    sizes.queries,
                    sizes.head_width,
                    d,
                );
                let scores = Matrix::packed(scores, sizes.queries, sizes.keys);
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

/// A sequence's part of a mask, `(keys)` or `(queries, keys)`.
fn of_sequence(mask: &[f32], sequence: usize, sizes: Sizes) -> &[f32] {
    let n = mask.len() / sizes.batch.max(1);
    &mask[sequence * n..][..n]
}

fn head_bias(bias: &[f32], sizes: Sizes, head: usize) -> &[f32] {
    let n = sizes.keys * sizes.keys;
    match bias.is_empty() {
        true => &[],
        false => &bias[head * n..][..n],
    }
}

/// One head's factors of one sequence, `(queries, keys)`.
fn head_keep(keep: &[f32], sizes: Sizes, sequence: usize, head: usize) -> &[f32] {
    let n = sizes.scores();
    match keep.is_empty() {
        true => &[],
        false => &keep[(sequence * sizes.heads + head) * n..][..n],
    }
}

/// Softmax of the scaled scores of one head: `(queries, keys)`.
fn probabilities(
    scores: &mut [f32],
    [queries, keys]: [Matrix<'_>; 2],
    bias: &[f32],
    mask: &[f32],
    sizes: Sizes,
) {
    let m = sizes.keys;
    let out = MatMut::from_row_major_slice_mut(scores, sizes.queries, m);
    let keys = keys.view().transpose();
    matmul(
        out,
        Accum::Replace,
        queries.view(),
        keys,
        sizes.scale(),
        Par::Seq,
    );
    // A mask of padding is the same for every query.
    let next_row = if mask.len() > m { m } else { 0 };
    merge::vectorized(
        #[inline(always)]
        || {
            for (query, scores) in scores.chunks_exact_mut(m).enumerate() {
                if !bias.is_empty() {
                    for (score, bias) in scores.iter_mut().zip(&bias[query * m..]) {
                        *score += bias;
                    }
                }
                for (score, mask) in scores.iter_mut().zip(&mask[query * next_row..]) {
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

/// Gradients by packed `qkv` and by the bias (empty without one): `g: (b, n, d)`, every token asking.
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
    let group = group(sizes) * sizes.keys * 3 * sizes.width();
    let groups = by_qkv.par_chunks_mut(group).map(By::Packed);
    of_groups(
        groups,
        g,
        Asked::packed(qkv, sizes),
        added,
        sizes,
        wants_bias,
    )
}

/// Gradients by queries `(b, n, d)`, and by keys and values `(b, m, 2 d)`, from `g: (b, n, d)`.
pub fn gradients_apart_into(
    [by_q, by_kv]: [&mut [f32]; 2],
    g: &[f32],
    [q, kv]: [&[f32]; 2],
    added: Added<'_>,
    sizes: Sizes,
) {
    let (n, d) = (group(sizes), sizes.width());
    let groups = (by_q.par_chunks_mut(n * sizes.queries * d))
        .zip(by_kv.par_chunks_mut(n * sizes.keys * 2 * d))
        .map(|(q, kv)| By::Apart { q, kv });
    of_groups(groups, g, Asked::apart(q, kv, sizes), added, sizes, false);
}

/// Sequences of a group.
fn group(sizes: Sizes) -> usize {
    sizes.batch.div_ceil(SUM_PARTS).max(1)
}

/// Where the gradients of a group of sequences go.
enum By<'a> {
    /// `(b, n, 3 d)`.
    Packed(&'a mut [f32]),
    /// `(b, n, d)` and `(b, m, 2 d)`.
    Apart { q: &'a mut [f32], kv: &'a mut [f32] },
}

impl By<'_> {
    fn sequences(&self, sizes: Sizes) -> usize {
        match self {
            Self::Packed(by) => by.len() / (sizes.keys * 3 * sizes.width()),
            Self::Apart { q, .. } => q.len() / (sizes.queries * sizes.width()),
        }
    }

    /// Where queries (0), keys (1) or values (2) of a sequence begin, and their stride.
    fn part(&mut self, which: usize, sequence: usize, sizes: Sizes) -> (&mut [f32], usize) {
        let d = sizes.width();
        match self {
            Self::Packed(by) => (&mut by[sequence * sizes.keys * 3 * d + which * d..], 3 * d),
            Self::Apart { q, .. } if which == 0 => (&mut q[sequence * sizes.queries * d..], d),
            Self::Apart { kv, .. } => {
                let first = sequence * sizes.keys * 2 * d + (which - 1) * d;
                (&mut kv[first..], 2 * d)
            }
        }
    }
}

/// The gradient by the bias; those by queries, keys and values go where `groups` say.
fn of_groups<'b>(
    groups: impl IndexedParallelIterator<Item = By<'b>>,
    g: &[f32],
    asked: Asked<'_>,
    added: Added<'_>,
    sizes: Sizes,
    wants_bias: bool,
) -> Vec<f32> {
    let n = sizes.scores();
    let of_g = sizes.queries * sizes.width();
    let n_bias = match wants_bias {
        true => sizes.heads * n,
        false => 0,
    };
    let parts: Vec<Vec<f32>> = (groups.enumerate())
        .map(|(part, mut by)| {
            let mut by_bias = vec![0.0; n_bias];
            let mut p = vec![0.0; n];
            let mut dp = vec![0.0; n];
            let mut dropped = vec![0.0; if added.keep.is_empty() { 0 } else { n }];
            for index in 0..by.sequences(sizes) {
                let sequence = part * group(sizes) + index;
                let g = &g[sequence * of_g..][..of_g];
                let mask = of_sequence(added.mask, sequence, sizes);
                for head in 0..sizes.heads {
                    let heads = asked.head(sizes, sequence, head);
                    let bias = head_bias(added.bias, sizes, head);
                    probabilities(&mut p, [heads[0], heads[1]], bias, mask, sizes);
                    let by_bias = match n_bias {
                        0 => &mut [][..],
                        _ => &mut by_bias[head * n..][..n],
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
                    let g = columns(g, sizes, head);
                    one_head(
                        by_bias,
                        shares,
                        &mut dp,
                        heads,
                        g,
                        sizes,
                        |which, product| {
                            let (out, stride) = by.part(which, index, sizes);
                            let rows = if which == 0 {
                                sizes.queries
                            } else {
                                sizes.keys
                            };
                            let out = &mut out[head * sizes.head_width..];
                            let out = view_mut(out, rows, sizes.head_width, stride);
                            let Product { lhs, rhs, scale } = product;
                            matmul(out, Accum::Replace, lhs, rhs, scale, Par::Seq);
                        },
                    );
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
    /// Before dropout, `(queries, keys)`.
    p: &'a [f32],
    /// After it.
    dropped: &'a [f32],
    /// Dropout's factors, or nothing.
    keep: &'a [f32],
}

/// A product of two matrices.
struct Product<'a> {
    lhs: MatRef<'a, f32>,
    rhs: MatRef<'a, f32>,
    scale: f32,
}

/// Gradients of one head of one sequence. `write` takes those by queries (0), keys (1), values (2).
fn one_head(
    by_bias: &mut [f32],
    Shares { p, dropped, keep }: Shares<'_>,
    dp: &mut [f32],
    heads: [Matrix<'_>; 3],
    g: Matrix<'_>,
    sizes: Sizes,
    mut write: impl FnMut(usize, Product<'_>),
) {
    let (n, m) = (sizes.queries, sizes.keys);
    let g = g.view();
    let [queries, keys, values] = heads.map(Matrix::view);
    let product = |lhs, rhs, scale| Product { lhs, rhs, scale };
    let shares = Matrix::packed(dropped, n, m).view();
    write(2, product(shares.transpose(), g, 1.0));
    let out = MatMut::from_row_major_slice_mut(dp, n, m);
    matmul(out, Accum::Replace, g, values.transpose(), 1.0, Par::Seq);
    merge::vectorized(
        #[inline(always)]
        || {
            for (dp, keep) in dp.iter_mut().zip(keep) {
                *dp *= keep;
            }
            for (dp, p) in dp.chunks_exact_mut(m).zip(p.chunks_exact(m)) {
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
    let dp = Matrix::packed(dp, n, m).view();
    write(0, product(dp, keys, sizes.scale()));
    write(1, product(dp.transpose(), queries, sizes.scale()));
}
