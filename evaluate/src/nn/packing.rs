//! Texts without their padding, one after the other.
//!
//! No state of a token depends on the padding behind it, so layers that work row by row may leave it out:
//! linear layers, norms, residual sums. Attention goes text by text anyway.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor};

use super::cpu::sequences::Spans;
use super::{Dropping, Host, Mask};
use crate::crossing;
use crate::nn::omission::scaled;

/// The rows of texts `(b, t)` that are computed: the first ones of each.
#[derive(Clone, Debug)]
pub(crate) struct Packing {
    /// The first row of each text, and the end of the last.
    starts: Arc<[usize]>,
    /// Rows of a text with its padding.
    len: usize,
}

impl Packing {
    /// This number of rows of each text, of `len`.
    pub fn new(rows: impl IntoIterator<Item = usize>, len: usize) -> Self {
        let mut end = 0;
        let ends = rows.into_iter().map(|n| {
            end += n.min(len);
            end
        });
        let starts = std::iter::once(0).chain(ends).collect();
        Self { starts, len }
    }

    /// All `n` rows of each of `batch` sequences.
    pub fn even(batch: usize, n: usize) -> Self {
        Self::new(std::iter::repeat_n(n, batch), n)
    }

    /// The tokens of each text by a padding mask; all rows of a text where padding comes first or between
    /// tokens, or there is nothing else.
    ///
    /// # Errors
    /// For another kind of mask, or when the device fails.
    pub fn of_tokens(mask: &Mask) -> Result<Self> {
        let len = match mask.added() {
            Some(added) => added.dim(1)?,
            None => candle_core::bail!("a causal mask tells of no padding"),
        };
        let kept = mask.kept()?;
        let rows = kept.chunks(len.max(1)).map(|kept| {
            let n = kept.iter().take_while(|&&kept| kept).count();
            match n > 0 && !kept[n..].contains(&true) {
                true => n,
                false => len,
            }
        });
        Ok(Self::new(rows, len))
    }

    /// Texts.
    pub fn batch(&self) -> usize {
        self.starts.len() - 1
    }

    /// Rows of text `text`.
    pub fn rows(&self, text: usize) -> usize {
        self.starts[text + 1] - self.starts[text]
    }

    /// Rows of all texts.
    pub fn n_rows(&self) -> usize {
        self.starts[self.batch()]
    }

    /// Whether any row is left out.
    pub fn leaves_out(&self) -> bool {
        self.n_rows() < self.batch() * self.len
    }

    fn spans(&self) -> Spans<'_> {
        Spans::Between(&self.starts)
    }

    /// The rows of `x: (b, t)` or `(b, t, d)`, `(1, r)` or `(1, r, d)`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn pack(&self, x: &Tensor) -> Result<Tensor> {
        let rows =
            (0..self.batch()).flat_map(|text| (0..self.rows(text)).map(move |at| (text, at)));
        let rows = rows.map(|(text, at)| text * self.len + at);
        select(&x.flatten(0, 1)?, rows)?.unsqueeze(0)
    }

    /// Texts of one length again, zeros in place of padding: `(1, r, d) -> (b, t, d)`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn pad(&self, x: &Tensor) -> Result<Tensor> {
        let (_, n_rows, width) = x.dims3()?;
        let shape = (self.batch(), self.len, width);
        if !self.leaves_out() {
            return x.reshape(shape);
        }
        let nothing = Tensor::zeros((1, width), x.dtype(), x.device())?;
        let x = Tensor::cat(&[&x.squeeze(0)?, &nothing], 0)?;
        let places = (0..self.batch()).flat_map(|text| (0..self.len).map(move |at| (text, at)));
        let rows = places.map(|(text, at)| match at < self.rows(text) {
            true => self.starts[text] + at,
            false => n_rows,
        });
        select(&x, rows)?.reshape(shape)
    }

    /// The rows of each text by itself, views of `(1, n, d)` each.
    ///
    /// # Errors
    /// When the device fails.
    pub fn split(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        let of_text = |text| x.narrow(1, self.starts[text], self.rows(text));
        (0..self.batch()).map(of_text).collect()
    }

    /// The first row of each text: `(1, r, d) -> (1, b, d)`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn firsts(&self, x: &Tensor) -> Result<Tensor> {
        let rows = self.starts[..self.batch()].iter().copied();
        select(&x.squeeze(0)?, rows)?.unsqueeze(0)
    }

    /// Of each text first the rows of one stream, then those of another, `rows` of each: streams that are
    /// packed in two ways, `(1, r, d)` and `(1, s, d)`, to `(1, 2 rows, d)`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn side_by_side(&self, streams: [(&Tensor, &Self); 2]) -> Result<Tensor> {
        let [(one, of_one), (other, of_other)] = streams;
        let rows = (0..self.batch()).flat_map(|text| {
            let n = self.rows(text);
            let first = of_one.starts[text];
            let second = of_one.n_rows() + of_other.starts[text];
            (first..first + n).chain(second..second + n)
        });
        select(&Tensor::cat(&[one, other], 1)?.squeeze(0)?, rows)?.unsqueeze(0)
    }

    /// Of numbers `(b, t, d)` those of the rows.
    fn values(&self, padded: &[f32]) -> Vec<f32> {
        let of_text = padded.len() / self.batch().max(1);
        let width = of_text / self.len.max(1);
        let texts = padded.chunks_exact(of_text.max(1)).enumerate();
        let rows = texts.flat_map(|(text, values)| &values[..self.rows(text) * width]);
        rows.copied().collect()
    }

    /// Dropout's factors of rows `d` wide: those that the padded texts draw.
    ///
    /// # Errors
    /// As [`Dropping::factors`].
    pub fn factors(&self, dropping: &Dropping, width: usize) -> Result<Option<Vec<f32>>> {
        let padded = dropping.factors(&[self.batch(), self.len, width])?;
        Ok(padded.map(|padded| self.values(&padded)))
    }

    /// `x: (1, r, d)` after dropout.
    ///
    /// # Errors
    /// As [`Dropping::apply`].
    pub fn drop(&self, dropping: &Dropping, x: &Tensor) -> Result<Tensor> {
        match self.factors(dropping, x.dim(2)?)? {
            Some(factors) => scaled(x, factors),
            None => Ok(x.clone()),
        }
    }
}

fn select(x: &Tensor, rows: impl Iterator<Item = usize>) -> Result<Tensor> {
    let rows: Vec<u32> = rows.map(|row| row as u32).collect();
    let n = rows.len();
    x.contiguous()?
        .index_select(&crossing::to_device(rows, n, x.device())?, 0)
}

/// The pairs of packed rows of which one looks at the other, and the hidden ones among them.
#[derive(Clone, Debug)]
pub(crate) struct PackedPairs {
    queries: Packing,
    keys: Packing,
    /// Sequences that the keys of a text are of, one after the other: of each the first rows are there.
    parts: usize,
    /// The numbers added to scores, text after text `(queries, keys)`; empty where nothing is hidden.
    hidden: Arc<[f32]>,
}

impl PackedPairs {
    /// Rows that look at each other, or the first ones of them at all.
    ///
    /// # Errors
    /// For a causal mask that is not spelled out.
    pub fn own(queries: &Packing, keys: &Packing, mask: &Mask) -> Result<Self> {
        Self::with(queries, keys.clone(), 1, mask)
    }

    /// Queries that look at the same rows of two streams, under a mask `(b, queries, 2 t)`.
    ///
    /// # Errors
    /// As [`PackedPairs::own`].
    pub fn of_two(queries: &Packing, keys: &Packing, mask: &Mask) -> Result<Self> {
        let twice = Packing {
            starts: keys.starts.iter().map(|start| 2 * start).collect(),
            len: 2 * keys.len,
        };
        Self::with(queries, twice, 2, mask)
    }

    /// Rows that look at other sequences, `(b, m, d)`, all of which they see; a single one, `(1, m, d)`, serves
    /// all texts.
    ///
    /// # Errors
    /// For another number of sequences.
    pub fn of_other(queries: &Packing, others: &Tensor) -> Result<Self> {
        let (n_others, keys, _) = others.dims3()?;
        if n_others != 1 && n_others != queries.batch() {
            candle_core::bail!("{n_others} images for {} texts", queries.batch());
        }
        Ok(Self {
            queries: queries.clone(),
            keys: Packing::even(n_others, keys),
            parts: 1,
            hidden: Arc::new([]),
        })
    }

    fn with(queries: &Packing, keys: Packing, parts: usize, mask: &Mask) -> Result<Self> {
        let mut pairs = Self {
            queries: queries.clone(),
            keys,
            parts,
            hidden: Arc::new([]),
        };
        let Some(added) = mask.added() else {
            candle_core::bail!("packed texts want a causal mask spelled out");
        };
        let hidden = pairs.values(Host::of(added)?.values(), 1);
        if hidden.iter().any(|&added| added != 0.0) {
            pairs.hidden = hidden.into();
        }
        Ok(pairs)
    }

    /// Rows that ask.
    pub fn queries(&self) -> &Packing {
        &self.queries
    }

    /// Whether all texts ask the same rows.
    pub fn shares_keys(&self) -> bool {
        self.keys.batch() == 1 && self.queries.batch() > 1
    }

    /// Rows that are asked.
    pub fn keys(&self) -> &Packing {
        &self.keys
    }

    /// Texts, and the rows of each that ask and that are asked.
    pub(super) fn spans(&self) -> (usize, Spans<'_>, Spans<'_>) {
        let keys = match self.shares_keys() {
            true => Spans::Same(self.keys.len),
            false => self.keys.spans(),
        };
        (self.queries.batch(), self.queries.spans(), keys)
    }

    /// The numbers added to scores.
    pub(super) fn hidden(&self) -> &[f32] {
        &self.hidden
    }

    /// Of numbers `(b, h, queries, keys)`, or `(b, h, 1, keys)` for all queries, those of the pairs.
    fn values(&self, padded: &[f32], heads: usize) -> Vec<f32> {
        let (batch, keys) = (self.queries.batch(), self.keys.len);
        let queries = padded.len() / (batch * heads * keys).max(1);
        let (of_part, mut values) = (keys / self.parts, Vec::new());
        for text in 0..batch {
            let text_of_keys = if self.shares_keys() { 0 } else { text };
            let n = self.keys.rows(text_of_keys) / self.parts;
            for head in 0..heads {
                for query in 0..self.queries.rows(text) {
                    let row = (text * heads + head) * queries + query.min(queries - 1);
                    let row = &padded[row * keys..][..keys];
                    row.chunks_exact(of_part)
                        .for_each(|part| values.extend_from_slice(&part[..n]));
                }
            }
        }
        values
    }

    /// Dropout's factors of the shares of attention: those that the padded texts draw.
    ///
    /// # Errors
    /// As [`Dropping::factors`].
    pub(super) fn factors(&self, dropping: &Dropping, heads: usize) -> Result<Option<Vec<f32>>> {
        let shape = [self.queries.batch(), heads, self.queries.len, self.keys.len];
        let padded = dropping.factors(&shape)?;
        Ok(padded.map(|padded| self.values(&padded, heads)))
    }
}

/// Keeps all rows of texts of which a row that is computed sees no key: it shares its attention by the scores
/// alone, those of padding among them. `mask: (b, n, m)` hides by a finite number.
///
/// # Errors
/// When the mask is not in the CPU's memory.
pub(crate) fn keep_texts_of_blind_rows(rows: &mut [usize], len: usize, mask: &Mask) -> Result<()> {
    let Some(added) = mask.added() else {
        return Ok(());
    };
    let (queries, keys) = match *added.dims() {
        [_, queries, keys] => (queries, keys),
        [_, keys] => (1, keys),
        _ => candle_core::bail!("a mask of {:?}", added.dims()),
    };
    let added = added.to_dtype(DType::F32)?;
    let host = Host::of(&added)?;
    let texts = host.values().chunks_exact((queries * keys).max(1));
    for (rows, mask) in rows.iter_mut().zip(texts) {
        let mut seen = mask.chunks_exact(keys).take(*rows);
        if seen.any(|row| row.iter().all(|&added| added != 0.0)) {
            *rows = len;
        }
    }
    Ok(())
}
