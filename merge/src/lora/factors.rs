//! The two factors of an update, and their product row by row.

use super::adapted::Number;
use crate::{Checkpoint, Result, TensorInfo, decode_f32};

/// A tensor of an adapter.
pub(super) type Named = (String, TensorInfo);

/// All elements of a tensor.
pub(super) fn values(adapter: &Checkpoint, (key, info): &Named) -> Result<Vec<f32>> {
    let mut values = vec![0.0; info.n_elements()];
    decode_f32(key, info.dtype, &adapter.read_all(key)?, &mut values)?;
    Ok(values)
}

/// The tensors of an update, without their data.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    /// `A`, `(r, in)`; or the bias of `B`, `(out)`.
    pub(super) a: Named,
    /// `B`, `(out, r)`; none for a bias.
    pub(super) b: Option<Named>,
    /// The rank that the settings say.
    pub(super) rank: usize,
    /// The factor on the product.
    pub(super) scale: f64,
    /// Whether the tensor is the product's transpose: embeddings, and weights stored as `(in, out)`.
    pub(super) is_transposed: bool,
}

impl Pair {
    /// A vector that is added to a bias.
    pub(super) fn bias(key: &str, info: &TensorInfo, scale: f64) -> Self {
        Self {
            a: (key.to_owned(), info.clone()),
            b: None,
            rank: 1,
            scale,
            is_transposed: false,
        }
    }

    /// Whether the product has the shape of the tensor, kernels of convolutions flattened.
    pub(super) fn fits(&self, shape: &[usize]) -> bool {
        let Some((_, b)) = &self.b else {
            return self.a.1.shape == shape;
        };
        let (a, b_dtype, b) = (&self.a.1.shape, b.dtype, &b.shape);
        let [rank, inner @ ..] = a.as_slice() else {
            return false;
        };
        let [outer, b_rank, ones @ ..] = b.as_slice() else {
            return false;
        };
        let is_sound = *rank == self.rank && b_rank == rank && ones.iter().all(|&size| size == 1);
        let product: Vec<usize> = match (self.is_transposed, inner) {
            (true, &[inner]) => vec![inner, *outer],
            (true, _) => return false,
            (false, inner) => std::iter::once(*outer)
                .chain(inner.iter().copied())
                .collect(),
        };
        is_sound && product == shape && b_dtype.is_float()
    }

    /// Its shapes, for messages.
    pub(super) fn in_words(&self) -> String {
        match &self.b {
            None => format!("{:?}", self.a.1.shape),
            Some((_, b)) => format!(
                "A {:?} and B {:?} of rank {}",
                self.a.1.shape, b.shape, self.rank
            ),
        }
    }

    /// Bytes of both once they are read.
    pub(super) fn n_bytes(&self) -> u64 {
        let both = std::iter::once(&self.a).chain(&self.b);
        both.map(|(_, info)| 4 * info.n_elements() as u64).sum()
    }

    /// Reads both.
    pub(super) fn read(&self, adapter: &Checkpoint) -> Result<Factors> {
        let a = values(adapter, &self.a)?;
        let Some(b) = &self.b else {
            return Ok(Factors::new(1, a, vec![1.0], self.scale));
        };
        let b = values(adapter, b)?;
        let rank = self.rank;
        let (left, right) = match self.is_transposed {
            false => (b, a),
            true => (transposed(&a, rank), transposed(&b, b.len() / rank)),
        };
        Ok(Factors::new(rank, left, right, self.scale))
    }
}

/// The transpose of a matrix of `n_rows` rows.
fn transposed(values: &[f32], n_rows: usize) -> Vec<f32> {
    let n_columns = values.len() / n_rows.max(1);
    (0..n_columns)
        .flat_map(|column| (0..n_rows).map(move |row| values[row * n_columns + column]))
        .collect()
}

/// `scale · left · right`, with `left` `(rows, rank)` and `right` `(rank, width)`.
#[derive(Debug)]
pub(super) struct Factors {
    rank: usize,
    width: usize,
    left: Vec<f32>,
    right: Vec<f32>,
    scale: f64,
}

impl Factors {
    /// `scale · left · right` of matrices in rows.
    pub(super) fn new(rank: usize, left: Vec<f32>, right: Vec<f32>, scale: f64) -> Self {
        Self {
            rank,
            width: right.len() / rank.max(1),
            left,
            right,
            scale,
        }
    }

    /// Elements of the product.
    pub(super) fn n_elements(&self) -> usize {
        self.left.len() / self.rank.max(1) * self.width
    }

    /// The whole product.
    pub(super) fn product(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.n_elements()];
        self.fill(0, &mut out);
        out
    }

    /// Writes elements `first..` of the product to `out`, which holds zeros.
    pub(super) fn fill<T: Number>(&self, first: usize, out: &mut [T]) {
        let (mut at, mut rest) = (first, out);
        while !rest.is_empty() {
            let (row, column) = (at / self.width, at % self.width);
            let n = (self.width - column).min(rest.len());
            let (part, after) = rest.split_at_mut(n);
            crate::vectorized(
                #[inline(always)]
                || self.add_row(row, column, part),
            );
            at += n;
            rest = after;
        }
    }

    #[inline(always)]
    fn add_row<T: Number>(&self, row: usize, column: usize, out: &mut [T]) {
        let factors = &self.left[row * self.rank..(row + 1) * self.rank];
        for (&factor, line) in factors.iter().zip(self.right.chunks_exact(self.width)) {
            let factor = T::from(factor);
            for (out, &value) in out.iter_mut().zip(&line[column..]) {
                *out += factor * T::from(value);
            }
        }
        let scale = T::of(self.scale);
        out.iter_mut().for_each(|out| *out = *out * scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_the_same_for_any_split() {
        // [1 2; 3 4] · [5 6 7; 8 9 10] = [21 24 27; 47 54 61], doubled.
        let factors = Factors {
            rank: 2,
            width: 3,
            left: vec![1.0, 2.0, 3.0, 4.0],
            right: vec![5.0, 6.0, 7.0, 8.0, 9.0, 10.0],
            scale: 2.0,
        };
        let expected = [42.0, 48.0, 54.0, 94.0, 108.0, 122.0];
        for first in 0..6 {
            for end in first + 1..=6 {
                let mut out = vec![0.0f32; end - first];
                factors.fill(first, &mut out);
                assert_eq!(out, expected[first..end]);
            }
        }
        assert_eq!(
            transposed(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2),
            [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]
        );
    }
}
