//! compressed-tensors' sparse weights: a bit for each element, and the elements whose bits are set, row by row. All
//! others are zero. The first of eight elements has the lowest bit of a byte of `bitmask`, and each row begins a byte.
//!
//! | format | `compressed` | the first element of a row |
//! |---|---|---|
//! | `sparse-bitmask` | one after the other | `row_offsets` says it |
//! | `sparse-24-bitmask` | in rows of half the width: two of four elements are kept | that of its row |
//!
//! Kept elements may be codes themselves, as `sparse-24-bitmask` is used with FP8.
//!
//! Reference: compressed-tensors' `bitmask_decompress` and `sparse24_bitmask_decompress`, which releases up to 0.14 have.

use super::stored::{Kept, Stored, each_row, keys_of};
use super::{Dequantize, Weight};
use crate::{Checkpoint, DType, QuantizationFault, Result};

/// The most elements of a row, whose bits are read at once.
const MAX_WIDTH: usize = 1 << 24;

/// The tensors of a weight.
#[derive(Debug)]
pub(super) struct Sparse {
    mask: Stored,
    values: Stored,
    /// The number of kept elements before each row; none where all rows keep half.
    offsets: Option<Stored>,
    shape: Vec<usize>,
    /// The tensor that says the shape.
    others: Vec<String>,
    rows: usize,
    width: usize,
}

impl Sparse {
    /// The tensors of a weight of this shape, if they fit; `shape_key` says the shape.
    pub(super) fn new(
        mask: Stored,
        values: Stored,
        offsets: Option<Stored>,
        shape: Vec<usize>,
        shape_key: String,
    ) -> Option<Self> {
        let (&width, lead) = shape.split_last()?;
        // The offsets that the library writes for more axes are no places in the values.
        let rows = match lead {
            [] => 1,
            &[rows] => rows,
            _ => return None,
        };
        let n_bytes = width.div_ceil(8);
        let mask_fits = mask.info.dtype == DType::U8
            && mask.shape().split_last() == Some((&n_bytes, lead))
            && rows > 0
            && (1..=MAX_WIDTH).contains(&width);
        rows.checked_mul(width)?.checked_mul(size_of::<f64>())?;
        let values_fit = match &offsets {
            Some(offsets) => {
                values.shape().len() == 1
                    && offsets.info.dtype == DType::I64
                    && offsets.shape() == lead
            }
            None => width.is_multiple_of(4) && values.shape() == [rows, width / 2],
        };
        (mask_fits && values_fit).then_some(Self {
            mask,
            values,
            offsets,
            shape,
            others: vec![shape_key],
            rows,
            width,
        })
    }

    /// The shape of the weight.
    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The dtype of the kept values.
    pub(super) fn dtype(&self) -> DType {
        self.values.info.dtype
    }

    /// The bits, for messages.
    pub(super) const fn mask(&self) -> &Stored {
        &self.mask
    }

    /// The kind, in words.
    pub(super) const fn kind(&self) -> &'static str {
        match self.offsets {
            Some(_) => "sparse",
            None => "2:4 sparse",
        }
    }

    /// The weight, whose kept elements are numbers.
    pub(super) fn into_weight(self) -> Weight {
        Weight {
            scheme: format!("{} with a bit per element", self.kind()),
            shape: self.shape.clone(),
            codes: Box::new(self),
        }
    }

    /// The tensors that it is made of.
    pub(super) fn keys(&self) -> Vec<&str> {
        let stored = [&self.mask, &self.values].into_iter().chain(&self.offsets);
        keys_of(stored, &self.others)
    }

    /// Elements `first..` as numbers.
    pub(super) fn fill(&self, source: &Checkpoint, first: usize, out: &mut [f32]) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        let (top, bottom) = (first / self.width, (first + out.len() - 1) / self.width);
        let n_bytes = self.width.div_ceil(8);
        let n_rows = bottom - top + 1;
        let mask = self.mask.bytes(source, top * n_bytes, n_rows * n_bytes)?;
        let begins = self.begins(source, top, bottom)?;
        for (row, bits) in mask.chunks_exact(n_bytes).enumerate() {
            self.check(source, top + row, bits, [begins[row], begins[row + 1]])?;
        }
        let row_of = |row: usize| &mask[(row - top) * n_bytes..][..n_bytes];
        let column = first % self.width;
        let mut n_kept = 0;
        each_row(self.width, first, out, |row, column, part| {
            n_kept += n_set(row_of(row), column, column + part.len());
        });
        // The checks counted them.
        let start = begins[0] as usize + n_set(row_of(top), 0, column);
        let mut kept = self.values.floats(source, start, n_kept)?.into_iter();
        each_row(self.width, first, out, |row, column, part| {
            let bits = row_of(row);
            for (at, out) in (column..).zip(part) {
                *out = match is_set(bits, at) {
                    true => kept.next().unwrap_or(0.0),
                    false => 0.0,
                };
            }
        });
        Ok(())
    }

    /// The number of kept elements before each of the rows, and behind the last.
    fn begins(&self, source: &Checkpoint, top: usize, bottom: usize) -> Result<Vec<i64>> {
        let Some(offsets) = &self.offsets else {
            let half = self.width / 2;
            return Ok((top..=bottom + 1).map(|row| (row * half) as i64).collect());
        };
        let end = (bottom + 2).min(self.rows);
        let mut begins = offsets.integers(source, top, end - top)?;
        if bottom + 1 == self.rows {
            begins.push(self.values.info.n_elements() as i64);
        }
        Ok(begins)
    }

    /// Checks that the bits of a row are as many as the values that belong to it.
    fn check(
        &self,
        source: &Checkpoint,
        row: usize,
        bits: &[u8],
        [begin, end]: [i64; 2],
    ) -> Result<()> {
        let n_set = n_set(bits, 0, self.width);
        let is_first = row > 0 || begin == 0;
        let is_there = begin >= 0 && end <= self.values.info.n_elements() as i64;
        match is_first && is_there && end.checked_sub(begin) == Some(n_set as i64) {
            true => Ok(()),
            false => Err(QuantizationFault::Mask {
                path: source.path().into(),
                key: self.mask.key.clone(),
                row,
                n_set,
                begin,
                end,
            }
            .into()),
        }
    }
}

/// Whether an element is kept, by the bits of its row.
const fn is_set(bits: &[u8], column: usize) -> bool {
    bits[column / 8] >> (column % 8) & 1 == 1
}

/// The number of elements `first..end` of a row that are kept.
fn n_set(bits: &[u8], first: usize, end: usize) -> usize {
    let upto = |end: usize| {
        let whole: u32 = bits[..end / 8].iter().map(|byte| byte.count_ones()).sum();
        let rest = (end / 8 * 8..end).filter(|&at| is_set(bits, at)).count();
        whole as usize + rest
    };
    upto(end) - upto(first)
}

impl Dequantize for Sparse {
    fn fill(&self, source: &Checkpoint, _: &Kept, first: usize, out: &mut [f32]) -> Result<()> {
        Self::fill(self, source, first, out)
    }

    fn keys(&self) -> Vec<&str> {
        Self::keys(self)
    }

    /// Kept elements are numbers of the model.
    fn dtype(&self) -> DType {
        self.values.info.dtype
    }
}

#[cfg(test)]
mod tests {
    use super::n_set;

    #[test]
    fn bits_are_counted_from_the_lowest_on() {
        // Elements 0, 2, 9 and 15 are kept.
        let bits = [0b0000_0101, 0b1000_0010];
        assert_eq!(n_set(&bits, 0, 16), 4);
        assert_eq!(n_set(&bits, 0, 15), 3);
        assert_eq!(n_set(&bits, 1, 9), 1);
        assert_eq!(n_set(&bits, 9, 9), 0);
    }
}
