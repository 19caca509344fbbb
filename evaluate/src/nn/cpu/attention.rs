//! Attention, one head of one sequence at a time: from packed queries, keys and values of one sequence,
//! or from queries of one and keys and values of another.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::gemm::{Matrix, view_mut};
use super::math::{exp, max, sum_of};
use super::sequences::{Place, Sizes};

/// Groups of sequences over which the gradient of the bias is summed, whatever the threads.
const SUM_PARTS: usize = 8;

/// The numbers added to scores and multiplied with shares. Empty slices do nothing.
#[derive(Clone, Copy, Default)]
pub struct Added<'a> {
    /// `(h, keys, keys)`, of which the first queries have their rows; of sequences of one length alone.
    pub bias: &'a [f32],
    /// `(b, keys)` or `(b, queries, keys)`: 0 for tokens that may be attended to, −∞ or a low number for
    /// the others.
    pub mask: &'a [f32],
    /// Dropout's factors of the shares, `(b, h, queries, keys)`.
    pub keep: &'a [f32],
}

impl<'a> Added<'a> {
    /// A sequence's part of the mask, `(keys)` or `(queries, keys)`.
    fn mask_of(self, place: &Place, last: &Place) -> &'a [f32] {
        match self.mask.len() {
            0 => &[],
            n if n == last.pairs.end => &self.mask[place.pairs.clone()],
            _ => &self.mask[place.keys.clone()],
        }
    }

    /// One head's part of the bias, `(keys, keys)`.
    fn bias_of(self, place: &Place, head: usize) -> &'a [f32] {
        let n = place.keys.len() * place.keys.len();
        match self.bias.is_empty() {
            true => &[],
            false => &self.bias[head * n..][..n],
        }
    }

    /// One head's factors of one sequence, `(queries, keys)`.
    fn keep_of(self, place: &Place, head: usize, heads: usize) -> &'a [f32] {
        let (first, n) = (place.pairs.start * heads, place.pairs.len());
        match self.keep.is_empty() {
            true => &[],
            false => &self.keep[first + head * n..][..n],
        }
    }
}

/// Queries, keys and values, wherever they stand.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    queries: Part<'a>,
    keys: Part<'a>,
    values: Part<'a>,
    is_packed: bool,
}

/// A part of each row of sequences: queries, keys or values.
#[derive(Clone, Copy)]
struct Part<'a> {
    data: &'a [f32],
    /// Numbers from one row to the next.
    stride: usize,
    /// The offset of the part in a row.
    first: usize,
}

impl<'a> Asked<'a> {
    /// Of packed `(b, n, 3 d)`.
    pub fn packed(qkv: &'a [f32], sizes: Sizes<'_>) -> Self {
        let part = |which: usize| Part {
            data: qkv,
            stride: 3 * sizes.width(),
            first: which * sizes.width(),
        };
        Self {
            queries: part(0),
            keys: part(1),
            values: part(2),
            is_packed: true,
        }
    }

    /// Of queries `(b, n, d)`, and of keys and values side by side `(b, m, 2 d)`.
    pub fn apart(q: &'a [f32], kv: &'a [f32], sizes: Sizes<'_>) -> Self {
        let part = |which: usize| Part {
            data: kv,
            stride: 2 * sizes.width(),
            first: which * sizes.width(),
        };
        Self {
            queries: Part {
                data: q,
                stride: sizes.width(),
                first: 0,
            },
            keys: part(0),
            values: part(1),
            is_packed: false,
        }
    }

    /// One head's queries, keys and values of one sequence.
    fn head(self, sizes: Sizes<'_>, place: &Place, head: usize) -> [Matrix<'a>; 3] {
        let matrix = |part: Part<'a>, first_row: usize, rows: usize| {
            let first = first_row * part.stride + part.first + head * sizes.head_width;
            Matrix {
                data: &part.data[first..],
                rows,
                columns: sizes.head_width,
                stride: part.stride,
            }
        };
        // Packed queries stand in the rows of the keys beside them, even if the first alone ask.
        let first_query = match self.is_packed {
            true => place.keys.start,
            false => place.queries.start,
        };
        let (first_key, n_keys) = (place.keys.start, place.keys.len());
        [
            matrix(self.queries, first_query, place.queries.len()),
            matrix(self.keys, first_key, n_keys),
            matrix(self.values, first_key, n_keys),
        ]
    }
}

/// One head's columns of a sequence's `(queries, d)`.
fn columns<'a>(data: &'a [f32], sizes: Sizes<'_>, rows: usize, head: usize) -> Matrix<'a> {
    Matrix {
        data: &data[head * sizes.head_width..],
        rows,
        columns: sizes.head_width,
        stride: sizes.width(),
    }
}

/// `(b, queries, d)`.
pub fn forward(asked: Asked<'_>, added: Added<'_>, sizes: Sizes<'_>) -> Vec<f32> {
    let mut out = vec![0.0; sizes.n_queries() * sizes.width()];
    forward_into(&mut out, asked, added, sizes);
    out
}

/// [`forward`] into `out: (b, queries, d)`.
pub fn forward_into(out: &mut [f32], asked: Asked<'_>, added: Added<'_>, sizes: Sizes<'_>) {
    let d = sizes.width();
    let places = sizes.places();
    let Some(last) = places.last() else { return };
    let mut tasks = Vec::with_capacity(places.len());
    let mut rest = out;
    for place in &places {
        let (own, others) = rest.split_at_mut(place.queries.len() * d);
        rest = others;
        tasks.push((place, own));
    }
    tasks.into_par_iter().for_each_init(
        || vec![0.0; sizes.most_pairs()],
        |scores, (place, out)| {
            let (n, m) = (place.queries.len(), place.keys.len());
            let scores = &mut scores[..n * m];
            let mask = added.mask_of(place, last);
            for head in 0..sizes.heads {
                let [queries, keys, values] = asked.head(sizes, place, head);
                let bias = added.bias_of(place, head);
                probabilities(scores, [queries, keys], bias, mask, sizes.scale());
                let keep = added.keep_of(place, head, sizes.heads);
                scores.iter_mut().zip(keep).for_each(|(s, keep)| *s *= keep);
                let out = &mut out[head * sizes.head_width..];
                let out = view_mut(out, n, sizes.head_width, d);
                let scores = Matrix::packed(scores, n, m);
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

/// Softmax of the scaled scores of one head: `(queries, keys)`.
fn probabilities(
    scores: &mut [f32],
    [queries, keys]: [Matrix<'_>; 2],
    bias: &[f32],
    mask: &[f32],
    scale: f32,
) {
    let m = keys.rows;
    let out = MatMut::from_row_major_slice_mut(scores, queries.rows, m);
    let keys = keys.view().transpose();
    matmul(out, Accum::Replace, queries.view(), keys, scale, Par::Seq);
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
                    scores.fill(share_of_hidden(scores));
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

/// The share of each key in a row whose largest score is −∞: 0 where all is hidden, so that nothing is attended to, and
/// NaN where a score is NaN, which [`max`] skips.
#[cold]
fn share_of_hidden(scores: &[f32]) -> f32 {
    match scores.iter().any(|score| score.is_nan()) {
        true => f32::NAN,
        false => 0.0,
    }
}

/// Gradients by packed `qkv` and by the bias (empty without one): `g: (b, n, d)`, every token asking.
pub fn gradients(
    g: &[f32],
    qkv: &[f32],
    added: Added<'_>,
    sizes: Sizes<'_>,
) -> (Vec<f32>, Vec<f32>) {
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
    sizes: Sizes<'_>,
    wants_bias: bool,
) -> Vec<f32> {
    let (places, stride) = (sizes.places(), 3 * sizes.width());
    let mut groups = Vec::new();
    let mut rest = by_qkv;
    for places in places.chunks(group(sizes)) {
        let (own, others) = rest.split_at_mut(n_rows(places, |place| &place.keys) * stride);
        rest = others;
        groups.push((places, By::Packed(own)));
    }
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
    sizes: Sizes<'_>,
) {
    let (places, d) = (sizes.places(), sizes.width());
    let mut groups = Vec::new();
    let (mut rest_q, mut rest_kv) = (by_q, by_kv);
    for places in places.chunks(group(sizes)) {
        let (q, others) = rest_q.split_at_mut(n_rows(places, |place| &place.queries) * d);
        rest_q = others;
        let (kv, others) = rest_kv.split_at_mut(n_rows(places, |place| &place.keys) * 2 * d);
        rest_kv = others;
        groups.push((places, By::Apart { q, kv }));
    }
    of_groups(groups, g, Asked::apart(q, kv, sizes), added, sizes, false);
}

/// Sequences of a group.
fn group(sizes: Sizes<'_>) -> usize {
    sizes.batch.div_ceil(SUM_PARTS).max(1)
}

/// Rows of a group.
fn n_rows(places: &[Place], rows: impl Fn(&Place) -> &Range<usize>) -> usize {
    places.iter().map(|place| rows(place).len()).sum()
}

/// The target of the gradients of a group of sequences.
enum By<'a> {
    /// `(b, n, 3 d)`.
    Packed(&'a mut [f32]),
    /// `(b, n, d)` and `(b, m, 2 d)`.
    Apart { q: &'a mut [f32], kv: &'a mut [f32] },
}

impl By<'_> {
    /// The offset of queries (0), keys (1) or values (2) of a sequence, their stride and their rows. The group begins
    /// with the sequence `first`.
    fn part(
        &mut self,
        which: usize,
        place: &Place,
        first: &Place,
        sizes: Sizes<'_>,
    ) -> (&mut [f32], usize, usize) {
        let d = sizes.width();
        let query = place.queries.start - first.queries.start;
        let key = place.keys.start - first.keys.start;
        let rows = match which {
            0 => place.queries.len(),
            _ => place.keys.len(),
        };
        match self {
            Self::Packed(by) => (&mut by[key * 3 * d + which * d..], 3 * d, rows),
            Self::Apart { q, .. } if which == 0 => (&mut q[query * d..], d, rows),
            Self::Apart { kv, .. } => (&mut kv[key * 2 * d + (which - 1) * d..], 2 * d, rows),
        }
    }
}

/// The gradient by the bias; those by queries, keys and values go where `groups` say.
fn of_groups(
    groups: Vec<(&[Place], By<'_>)>,
    g: &[f32],
    asked: Asked<'_>,
    added: Added<'_>,
    sizes: Sizes<'_>,
    wants_bias: bool,
) -> Vec<f32> {
    let Some(last) = groups.last().and_then(|(places, _)| places.last()).cloned() else {
        return Vec::new();
    };
    let (most, d) = (sizes.most_pairs(), sizes.width());
    let n_bias = match wants_bias {
        true => sizes.heads * most,
        false => 0,
    };
    let parts: Vec<Vec<f32>> = (groups.into_par_iter())
        .map(|(places, mut by)| {
            let mut by_bias = vec![0.0; n_bias];
            let mut p = vec![0.0; most];
            let mut dp = vec![0.0; most];
            let mut dropped = vec![0.0; if added.keep.is_empty() { 0 } else { most }];
            for place in places {
                let (rows, n) = (place.queries.len(), place.pairs.len());
                let g = &g[place.queries.start * d..][..rows * d];
                let (p, dp) = (&mut p[..n], &mut dp[..n]);
                let mask = added.mask_of(place, &last);
                for head in 0..sizes.heads {
                    let heads = asked.head(sizes, place, head);
                    let bias = added.bias_of(place, head);
                    probabilities(p, [heads[0], heads[1]], bias, mask, sizes.scale());
                    let by_bias = match n_bias {
                        0 => &mut [][..],
                        _ => &mut by_bias[head * n..][..n],
                    };
                    let keep = added.keep_of(place, head, sizes.heads);
                    for ((dropped, p), keep) in dropped.iter_mut().zip(&*p).zip(keep) {
                        *dropped = p * keep;
                    }
                    let shares = Shares {
                        p: &*p,
                        dropped: if keep.is_empty() { &*p } else { &dropped[..n] },
                        keep,
                    };
                    let g = columns(g, sizes, rows, head);
                    one_head(
                        by_bias,
                        shares,
                        dp,
                        heads,
                        g,
                        sizes.scale(),
                        |which, product| {
                            let (out, stride, rows) = by.part(which, place, &places[0], sizes);
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
    scale: f32,
    mut write: impl FnMut(usize, Product<'_>),
) {
    let (n, m) = (heads[0].rows, heads[1].rows);
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
    write(0, product(dp, keys, scale));
    write(1, product(dp.transpose(), queries, scale));
}
