//! 4-bit floats (1-2-1), two in a byte, the first in its lower half.
//!
//! | format | scales | `w` |
//! |---|---|---|
//! | MXFP4 | exponents, one per 32 elements of a row | `q s` |
//! | NVFP4 of compressed-tensors | F8_E4M3, one per 16; `weight_global_scale` | `q (s / g)` |
//! | NVFP4 of ModelOpt | F8_E4M3, one per 16; `weight_scale_2` | `q (s g)` |
//!
//! gpt-oss keeps the weights of its experts as `(experts, outputs, inputs)`, and its model has them as
//! `(experts, inputs, outputs)`: [`Turned`] gives them so.
//!
//! References: OCP microscaling formats 1.0, sections 5.3.3 and 6.3; transformers'
//! `convert_moe_packed_tensors`; compressed-tensors' `dequantize`; ModelOpt's `NVFP4QTensor.dequantize`.

use super::stored::{Kept, Stored, each_row, keys_of};
use super::{Dequantize, Weight};
use crate::dtype::{e2m1_to_f32, e8m0_to_f32};
use crate::{Checkpoint, DType, Result};

/// Elements that share an exponent.
const N_SHARING: usize = 32;

/// A scale for the whole weight.
#[derive(Debug)]
pub(super) enum Global {
    /// The others are divided by it.
    Divisor(Stored),
    /// The others are multiplied by it.
    Factor(Stored),
}

/// Codes in rows.
#[derive(Debug)]
pub(super) struct Fours {
    codes: Stored,
    scales: Stored,
    global: Option<Global>,
    shape: Vec<usize>,
    /// Elements that share a scale.
    n_sharing: usize,
}

impl Fours {
    /// Codes with the scales that belong to them, if those fit.
    pub(super) fn new(codes: Stored, scales: Stored, global: Option<Global>) -> Option<Self> {
        let [lead @ .., half] = codes.shape() else {
            return None;
        };
        let width = if codes.info.dtype == DType::F4 {
            *half
        } else {
            half.checked_mul(2)?
        };
        let mut shape = lead.to_vec();
        shape.push(width);
        let n_sharing = match global {
            Some(_) => 16,
            None => N_SHARING,
        };
        let [scale_lead @ .., n] = scales.shape() else {
            return None;
        };
        let fits = scale_lead == lead && width % n_sharing == 0 && *n == width / n_sharing;
        fits.then_some(Self {
            codes,
            scales,
            global,
            shape,
            n_sharing,
        })
    }

    /// Blocks of 16 bytes along the last axis, as gpt-oss has them, with one exponent each.
    pub(super) fn in_blocks(codes: Stored, scales: Stored) -> Option<Self> {
        let [lead @ .., n_blocks, 16] = codes.shape() else {
            return None;
        };
        let mut shape = lead.to_vec();
        shape.push(n_blocks.checked_mul(N_SHARING)?);
        let fits = scales.shape().split_last() == Some((n_blocks, lead));
        fits.then_some(Self {
            codes,
            scales,
            global: None,
            shape,
            n_sharing: N_SHARING,
        })
    }

    pub(super) fn into_weight(self, scheme: &str) -> Weight {
        Weight {
            scheme: scheme.to_owned(),
            shape: self.shape.clone(),
            codes: Box::new(self),
        }
    }

    /// The same with the last two axes exchanged.
    pub(super) fn turned(self) -> Option<Turned> {
        let &[lead, outputs, inputs] = self.shape.as_slice() else {
            return None;
        };
        Some(Turned {
            rows: self,
            shape: vec![lead, inputs, outputs],
        })
    }
}

impl Dequantize for Fours {
    fn fill(&self, source: &Checkpoint, _: &Kept, first: usize, out: &mut [f32]) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        let end = first + out.len();
        // Tensors of F4 are read from a multiple of four elements on, bytes from any.
        let is_four = self.codes.info.dtype == DType::F4;
        let (start, element) = match is_four {
            true => (first / 4 * 2, first / 4 * 4),
            false => (first / 2, first / 2),
        };
        let n_bytes = end.div_ceil(2) - start;
        let bytes = self.codes.bytes(source, element, n_bytes)?;
        let group = first / self.n_sharing;
        let n_groups = (end - 1) / self.n_sharing - group + 1;
        let mut scales = self.scales.floats(source, group, n_groups)?;
        match &self.global {
            Some(Global::Divisor(global)) => {
                let global = global.number(source)?;
                scales.iter_mut().for_each(|scale| *scale /= global);
            }
            Some(Global::Factor(global)) => {
                let global = global.number(source)?;
                scales.iter_mut().for_each(|scale| *scale *= global);
            }
            None => {}
        }
        for (index, out) in out.iter_mut().enumerate() {
            let at = first + index;
            let byte = bytes[at / 2 - start];
            let code = byte >> (at % 2 * 4);
            *out = e2m1_to_f32(code) * scales[at / self.n_sharing - group];
        }
        Ok(())
    }

    fn keys(&self) -> Vec<&str> {
        let global = self.global.as_ref().map(|global| match global {
            Global::Divisor(stored) | Global::Factor(stored) => stored,
        });
        keys_of([&self.codes, &self.scales].into_iter().chain(global), &[])
    }
}

/// gpt-oss's experts: the codes and exponents of an expert are read at once and kept, for each row of the
/// result takes one element of every row of theirs.
#[derive(Debug)]
pub(super) struct Turned {
    rows: Fours,
    shape: Vec<usize>,
}

impl Turned {
    pub(super) fn into_weight(self, scheme: &str) -> Weight {
        Weight {
            scheme: scheme.to_owned(),
            shape: self.shape.clone(),
            codes: Box::new(self),
        }
    }

    /// Bytes of an expert's codes, and of its exponents.
    fn n_bytes(&self) -> (usize, usize) {
        let n_elements = self.shape[1] * self.shape[2];
        (n_elements / 2, n_elements / N_SHARING)
    }

    /// Codes and then exponents of an expert, four bytes in a word.
    fn read(&self, source: &Checkpoint, expert: usize) -> Result<Vec<u32>> {
        let (n_codes, n_scales) = self.n_bytes();
        let mut words = vec![0u32; (n_codes + n_scales).div_ceil(4)];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
        let (codes, rest) = bytes.split_at_mut(n_codes);
        source.read(&self.rows.codes.key, expert * n_codes, codes)?;
        let scales = &mut rest[..n_scales];
        source.read(&self.rows.scales.key, expert * n_scales, scales)?;
        Ok(words)
    }
}

impl Dequantize for Turned {
    fn fill(&self, source: &Checkpoint, kept: &Kept, first: usize, out: &mut [f32]) -> Result<()> {
        let (inputs, outputs) = (self.shape[1], self.shape[2]);
        let (n_codes, _) = self.n_bytes();
        let per_expert = inputs * outputs;
        let (mut at, mut rest) = (first, out);
        while !rest.is_empty() {
            let expert = at / per_expert;
            let n = ((expert + 1) * per_expert - at).min(rest.len());
            let (part, after) = rest.split_at_mut(n);
            let key = &self.rows.codes.key;
            let words = kept.part(key, expert, || self.read(source, expert))?;
            let (codes, scales) = bytemuck::cast_slice::<u32, u8>(&words).split_at(n_codes);
            each_row(outputs, at % per_expert, part, |input, output, part| {
                for (index, out) in part.iter_mut().enumerate() {
                    let element = (output + index) * inputs + input;
                    let code = codes[element / 2] >> (element % 2 * 4);
                    *out = e2m1_to_f32(code) * e8m0_to_f32(scales[element / N_SHARING]);
                }
            });
            at += n;
            rest = after;
        }
        Ok(())
    }

    fn keys(&self) -> Vec<&str> {
        self.rows.keys()
    }

    fn kept_bytes(&self) -> u64 {
        let (codes, scales) = self.n_bytes();
        (codes + scales) as u64
    }
}
