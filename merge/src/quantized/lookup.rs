//! bitsandbytes' NF4 and FP4: codes of four bits into a table of 16 numbers, two in a byte, the first in
//! its upper half, times the largest value of a block. The largest values are bytes themselves where they
//! are nested: into a table of 256 numbers, times the largest value of a block of those, plus an offset.
//!
//! Reference: Dettmers et al. 2023, <https://arxiv.org/abs/2305.14314>, section 3; bitsandbytes'
//! `dequantize_4bit` and `QuantState.as_dict`.

use serde::Deserialize;

use super::stored::{Kept, Stored, keys_of};
use super::{Dequantize, Weight};
use crate::{Checkpoint, Result};

/// The stored state of a weight, as JSON.
#[derive(Debug, Deserialize)]
pub(super) struct State {
    pub(super) quant_type: String,
    pub(super) blocksize: usize,
    pub(super) shape: Vec<usize>,
    #[serde(default)]
    pub(super) nested_blocksize: usize,
    #[serde(default)]
    pub(super) nested_offset: f64,
}

/// Largest values that are codes themselves.
#[derive(Debug)]
pub(super) struct Nested {
    pub(super) largest: Stored,
    pub(super) table: Stored,
}

/// The tensors of a weight.
#[derive(Debug)]
pub(super) struct Lookup {
    codes: Stored,
    largest: Stored,
    table: Stored,
    nested: Option<Nested>,
    state: State,
    state_key: String,
}

impl Lookup {
    /// The tensors of a weight, if they fit.
    pub(super) fn new(
        codes: Stored,
        largest: Stored,
        table: Stored,
        nested: Option<Nested>,
        state: State,
        state_key: String,
    ) -> Option<Self> {
        let n_elements = (state.shape.iter()).try_fold(1usize, |n, &size| n.checked_mul(size))?;
        let n_blocks = n_elements.div_ceil(state.blocksize.max(1));
        let nested_fits = nested.as_ref().is_none_or(|nested| {
            state.nested_blocksize > 0
                && nested.largest.info.n_elements() == n_blocks.div_ceil(state.nested_blocksize)
                && nested.table.info.n_elements() == 256
                && largest.info.dtype == crate::DType::U8
        });
        let fits = state.blocksize > 0
            && codes.info.n_bytes() == n_elements.div_ceil(2) as u64
            && largest.info.n_elements() == n_blocks
            && table.info.n_elements() == 16
            && (nested.is_some() || largest.info.dtype.is_float())
            && nested_fits;
        fits.then_some(Self {
            codes,
            largest,
            table,
            nested,
            state,
            state_key,
        })
    }

    pub(super) fn into_weight(self) -> Weight {
        let name = self.state.quant_type.to_uppercase();
        Weight {
            scheme: format!("bitsandbytes {name} in blocks of {}", self.state.blocksize),
            shape: self.state.shape.clone(),
            codes: Box::new(self),
        }
    }

    /// Largest values of `n` blocks.
    fn largest(&self, source: &Checkpoint, first: usize, n: usize) -> Result<Vec<f32>> {
        let Some(nested) = &self.nested else {
            return self.largest.floats(source, first, n);
        };
        let codes = self.largest.bytes(source, first, n)?;
        let table = nested.table.floats(source, 0, 256)?;
        let size = self.state.nested_blocksize;
        let start = first / size;
        let n_outer = (first + n - 1) / size - start + 1;
        let outer = nested.largest.floats(source, start, n_outer)?;
        let offset = self.state.nested_offset as f32;
        let values = codes.iter().enumerate().map(|(index, &code)| {
            table[code as usize] * outer[(first + index) / size - start] + offset
        });
        Ok(values.collect())
    }
}

impl Dequantize for Lookup {
    fn fill(&self, source: &Checkpoint, _: &Kept, first: usize, out: &mut [f32]) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        let end = first + out.len();
        let (low, high) = (first / 2, end.div_ceil(2));
        let size = self.codes.info.dtype.size_bytes();
        // Codes may be kept in wider elements than bytes.
        let (start, stop) = (low / size, high.div_ceil(size));
        let bytes = self.codes.bytes(source, start, (stop - start) * size)?;
        let block = first / self.state.blocksize;
        let n_blocks = (end - 1) / self.state.blocksize - block + 1;
        let largest = self.largest(source, block, n_blocks)?;
        let table = self.table.floats(source, 0, 16)?;
        for (index, out) in out.iter_mut().enumerate() {
            let at = first + index;
            let byte = bytes[at / 2 - start * size];
            let code = match at % 2 {
                0 => byte >> 4,
                _ => byte & 0xf,
            };
            *out = table[code as usize] * largest[at / self.state.blocksize - block];
        }
        Ok(())
    }

    fn keys(&self) -> Vec<&str> {
        let nested = self.nested.iter();
        let nested = nested.flat_map(|nested| [&nested.largest, &nested.table]);
        let own = [&self.codes, &self.largest, &self.table].into_iter();
        keys_of(own.chain(nested), std::slice::from_ref(&self.state_key))
    }
}
