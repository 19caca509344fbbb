//! compressed-tensors' packed integers: `weight_packed`, words of 32 bits that hold the elements of a row,
//! the first in the lowest bits; `w = (q − z) s`, where q and z are stored with half of their range added.
//!
//! Reference: compressed-tensors' `unpack_from_int32` and `dequantize`.

use super::stored::{Kept, Stored, each_row, keys_of};
use super::{Dequantize, Weight};
use crate::{Checkpoint, Result};

/// The tensors of a weight.
#[derive(Debug)]
pub(super) struct Packed {
    codes: Stored,
    scales: Stored,
    /// Packed along the rows.
    zeros: Option<Stored>,
    /// Each column's group.
    groups: Option<Vec<u32>>,
    others: Vec<String>,
    bits: usize,
    rows: usize,
    width: usize,
}

impl Packed {
    /// The tensors of a weight of `[rows, width]` elements of `bits`, if they fit.
    pub(super) fn new(
        codes: Stored,
        scales: Stored,
        zeros: Option<Stored>,
        groups: Option<Vec<u32>>,
        others: Vec<String>,
        bits: usize,
        [rows, width]: [usize; 2],
    ) -> Option<Self> {
        if !matches!(bits, 2 | 4 | 8) || width == 0 {
            return None;
        }
        let per_word = 32 / bits;
        let n_groups = match *scales.shape() {
            [n] if n == rows => 1,
            [n, n_groups] if n == rows => n_groups,
            _ => return None,
        };
        let zeros_fit = zeros
            .as_ref()
            .is_none_or(|zeros| zeros.shape() == [rows.div_ceil(per_word), n_groups]);
        let groups_fit = match &groups {
            Some(groups) => {
                groups.len() == width && groups.iter().all(|&group| (group as usize) < n_groups)
            }
            None => n_groups > 0 && width % n_groups == 0,
        };
        let fits = codes.shape() == [rows, width.div_ceil(per_word)] && zeros_fit && groups_fit;
        fits.then_some(Self {
            codes,
            scales,
            zeros,
            groups,
            others,
            bits,
            rows,
            width,
        })
    }

    pub(super) fn into_weight(self) -> Weight {
        let n_groups = self.n_groups();
        let scheme = match n_groups {
            1 => format!("packed integers of {} bits", self.bits),
            n => format!(
                "packed integers of {} bits in groups of {}",
                self.bits,
                self.width / n
            ),
        };
        Weight {
            scheme,
            shape: vec![self.rows, self.width],
            codes: Box::new(self),
        }
    }

    fn n_groups(&self) -> usize {
        self.scales.shape().get(1).copied().unwrap_or(1)
    }

    /// The code at a place of a word, without its offset.
    fn code(&self, word: [u8; 4], place: usize) -> f32 {
        let mask = (1u32 << self.bits) - 1;
        let code = u32::from_le_bytes(word) >> (place * self.bits) & mask;
        code as f32 - (1 << (self.bits - 1)) as f32
    }
}

impl Dequantize for Packed {
    fn fill(&self, source: &Checkpoint, _: &Kept, first: usize, out: &mut [f32]) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        let (top, bottom) = (first / self.width, (first + out.len() - 1) / self.width);
        let (n_rows, n_groups, per_word) = (bottom - top + 1, self.n_groups(), 32 / self.bits);
        let words = self.width.div_ceil(per_word);
        let bytes = self.codes.bytes(source, top * words, n_rows * words * 4)?;
        let (codes, _) = bytes.as_chunks::<4>();
        let scales = self
            .scales
            .floats(source, top * n_groups, n_rows * n_groups)?;
        let first_zeros = top / per_word;
        let zeros = match &self.zeros {
            Some(zeros) => {
                let n = (bottom / per_word - first_zeros + 1) * n_groups;
                zeros.bytes(source, first_zeros * n_groups, n * 4)?
            }
            None => Vec::new(),
        };
        let (zeros, _) = zeros.as_chunks::<4>();
        each_row(self.width, first, out, |row, column, part| {
            for (index, out) in part.iter_mut().enumerate() {
                let column = column + index;
                let group = match &self.groups {
                    Some(groups) => groups[column] as usize,
                    None => column / (self.width / n_groups),
                };
                let q = self.code(
                    codes[(row - top) * words + column / per_word],
                    column % per_word,
                );
                let zero = match zeros.is_empty() {
                    true => 0.0,
                    false => {
                        let word = zeros[(row / per_word - first_zeros) * n_groups + group];
                        self.code(word, row % per_word)
                    }
                };
                *out = (q - zero) * scales[(row - top) * n_groups + group];
            }
        });
        Ok(())
    }

    fn keys(&self) -> Vec<&str> {
        let stored = [&self.codes, &self.scales].into_iter().chain(&self.zeros);
        keys_of(stored, &self.others)
    }
}
