//! GPTQ and AWQ: integers of few bits in words of 32, a word-matrix with a column per output, so that
//! the weight as the model has it, `(outputs, inputs)`, is its transpose: `w = (q − z) s`.
//!
//! | | `qweight` | a word holds | `qzeros` | z |
//! |---|---|---|---|---|
//! | GPTQ | `(inputs · bits / 32, outputs)` | inputs, the first in the lowest bits | `(groups, outputs · bits / 32)` | stored − 1, but as it is in `gptq_v2` |
//! | AWQ | `(inputs, outputs · 4 / 32)` | eight outputs, in the order 0 2 4 6 1 3 5 7 | likewise | as it is |
//!
//! `scales` are `(groups, outputs)`; `g_idx`, if there is one, is each input's group.
//!
//! References: AutoGPTQ's `qlinear_cuda`, GPTQModel's `gptq_v2`; AutoAWQ's `dequantize_gemm`.

use super::stored::{Kept, Stored, each_row, keys_of};
use super::{Dequantize, Weight};
use crate::{Checkpoint, DType, Result, decode_f32};

/// Outputs whose words are read together; a multiple of 32, so that they begin with a word.
const BAND: usize = 256;

/// AWQ's places of a word's outputs, counted in codes from its lowest bits.
const AWQ_PLACES: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// The order in which words are filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// By inputs, with this taken from a zero point that is stored.
    Gptq {
        /// The number added to stored zero points.
        zero_offset: u32,
    },
    /// By outputs.
    Awq,
}

/// The tensors of a weight.
#[derive(Debug)]
pub(super) struct Columns {
    codes: Stored,
    zeros: Stored,
    scales: Stored,
    groups: Option<Stored>,
    order: Order,
    bits: usize,
    inputs: usize,
    outputs: usize,
}

impl Columns {
    /// The tensors of a GPTQ weight, if they fit; `offset` is the number added to zero points.
    pub(super) fn gptq(
        codes: Stored,
        zeros: Stored,
        scales: Stored,
        groups: Option<Stored>,
        zero_offset: u32,
    ) -> Option<Self> {
        let (&[words, outputs], &[n_groups, zero_words]) = (codes.shape(), zeros.shape()) else {
            return None;
        };
        // Codes fill words along the inputs, and zero points along the outputs.
        let n_inputs = |bits: usize| match &groups {
            Some(groups) => Some(groups.info.n_elements()),
            None => Some(words.checked_mul(32)? / bits),
        };
        let candidates = [4, 8, 3, 2]
            .into_iter()
            .filter_map(|bits| Some((bits, n_inputs(bits)?)));
        let (bits, inputs) = candidates.into_iter().find(|&(bits, inputs)| {
            (inputs * bits).div_ceil(32) == words && (outputs * bits).div_ceil(32) == zero_words
        })?;
        let is_even = n_groups > 0 && inputs % n_groups == 0;
        let fits =
            scales.shape() == [n_groups, outputs] && n_groups > 0 && (is_even || groups.is_some());
        fits.then_some(Self {
            codes,
            zeros,
            scales,
            groups,
            order: Order::Gptq { zero_offset },
            bits,
            inputs,
            outputs,
        })
    }

    /// The tensors of an AWQ weight, if they fit.
    pub(super) fn awq(codes: Stored, zeros: Stored, scales: Stored) -> Option<Self> {
        let (&[inputs, words], &[n_groups, outputs]) = (codes.shape(), scales.shape()) else {
            return None;
        };
        let fits = outputs == words.checked_mul(8)?
            && zeros.shape() == [n_groups, words]
            && n_groups > 0
            && inputs % n_groups == 0;
        fits.then_some(Self {
            codes,
            zeros,
            scales,
            groups: None,
            order: Order::Awq,
            bits: 4,
            inputs,
            outputs,
        })
    }

    pub(super) fn into_weight(self) -> Weight {
        let name = match self.order {
            Order::Gptq { .. } => "GPTQ",
            Order::Awq => "AWQ",
        };
        let n_groups = self.scales.shape()[0].max(1);
        let scheme = match self.inputs / n_groups {
            _ if n_groups == 1 => format!("{name} of {} bits", self.bits),
            per_group => format!("{name} of {} bits in groups of {per_group}", self.bits),
        };
        Weight {
            scheme,
            shape: vec![self.outputs, self.inputs],
            codes: Box::new(self),
        }
    }

    fn n_groups(&self) -> usize {
        self.scales.shape()[0]
    }

    /// The number of outputs in a band.
    fn in_band(&self, band: usize) -> usize {
        BAND.min(self.outputs - band * BAND)
    }

    /// The numbers of words of `outputs` outputs in a row of codes and in one of zero points.
    fn words(&self, outputs: usize) -> (usize, usize) {
        let packed = (outputs * self.bits).div_ceil(32);
        match self.order {
            Order::Gptq { .. } => (outputs, packed),
            Order::Awq => (packed, packed),
        }
    }

    /// Codes, zero points, scales (as bits of f32) and groups of a band, one after the other.
    fn read(&self, source: &Checkpoint, band: usize) -> Result<Vec<u32>> {
        let n = self.in_band(band);
        let mut words = Vec::new();
        let mut rows = |stored: &Stored, start: usize, n: usize| {
            let &[n_rows, width] = stored.shape() else {
                return Ok(());
            };
            let size = stored.info.dtype.size_bytes();
            let mut bytes = vec![0; n * size];
            let mut values = vec![0.0; n];
            for row in 0..n_rows {
                source.read(&stored.key, row * width + start, &mut bytes)?;
                if stored.info.dtype == DType::I32 {
                    words.extend_from_slice(&word_of(&bytes));
                } else {
                    decode_f32(&stored.key, stored.info.dtype, &bytes, &mut values)?;
                    words.extend(values.iter().map(|value| value.to_bits()));
                }
            }
            Ok::<(), crate::Error>(())
        };
        let (first_codes, first_zeros) = self.words(band * BAND);
        let (n_codes, n_zeros) = self.words(n);
        rows(&self.codes, first_codes, n_codes)?;
        rows(&self.zeros, first_zeros, n_zeros)?;
        rows(&self.scales, band * BAND, n)?;
        match &self.groups {
            Some(groups) => {
                let bytes = groups.bytes(source, 0, 4 * self.inputs)?;
                let n_groups = self.n_groups() as u32;
                let groups = word_of(&bytes);
                // A damaged file must not lead beyond the scales.
                words.extend(groups.iter().map(|&group| group.min(n_groups - 1)));
            }
            None => {
                let per_group = self.inputs / self.n_groups();
                words.extend((0..self.inputs).map(|input| (input / per_group) as u32));
            }
        }
        Ok(words)
    }
}

fn word_of(bytes: &[u8]) -> Vec<u32> {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|&word| u32::from_le_bytes(word)).collect()
}

/// The code that begins with bit `first` of words that follow each other at a distance.
fn code(words: &[u32], start: usize, distance: usize, first: usize, bits: usize) -> u32 {
    let (word, shift) = (first / 32, first % 32);
    let low = u64::from(words[start + word * distance]);
    let high = match shift + bits > 32 {
        true => u64::from(words[start + (word + 1) * distance]),
        false => 0,
    };
    ((high << 32 | low) >> shift) as u32 & ((1 << bits) - 1)
}

impl Dequantize for Columns {
    fn fill(&self, source: &Checkpoint, kept: &Kept, first: usize, out: &mut [f32]) -> Result<()> {
        let per_band = BAND * self.inputs;
        let (mut at, mut rest) = (first, out);
        while !rest.is_empty() {
            let band = at / per_band;
            let n = ((band + 1) * per_band - at).min(rest.len());
            let (part, after) = rest.split_at_mut(n);
            let words = kept.part(&self.codes.key, band, || self.read(source, band))?;
            let in_band = self.in_band(band);
            let (code_words, zero_words) = self.words(in_band);
            let n_rows = self.codes.shape()[0];
            let (codes, others) = words.split_at(n_rows * code_words);
            let (zeros, others) = others.split_at(self.n_groups() * zero_words);
            let (scales, groups) = others.split_at(self.n_groups() * in_band);
            each_row(self.inputs, at % per_band, part, |output, input, part| {
                let place = match self.order {
                    Order::Gptq { .. } => output,
                    Order::Awq => output / 8 * 8 + AWQ_PLACES[output % 8],
                };
                for (index, out) in part.iter_mut().enumerate() {
                    let input = input + index;
                    let group = groups[input] as usize;
                    let zero = code(zeros, group * zero_words, 1, place * self.bits, self.bits);
                    let (q, zero) = match self.order {
                        Order::Gptq { zero_offset } => (
                            code(codes, output, code_words, input * self.bits, self.bits),
                            zero + zero_offset,
                        ),
                        Order::Awq => (
                            code(codes, input * code_words, 1, place * self.bits, self.bits),
                            zero,
                        ),
                    };
                    let scale = f32::from_bits(scales[group * in_band + output]);
                    *out = (q as f32 - zero as f32) * scale;
                }
            });
            at += n;
            rest = after;
        }
        Ok(())
    }

    fn keys(&self) -> Vec<&str> {
        let own = [&self.codes, &self.zeros, &self.scales].into_iter();
        keys_of(own.chain(&self.groups), &[])
    }

    fn kept_bytes(&self) -> u64 {
        let (codes, zeros) = self.words(BAND.min(self.outputs));
        let per_group = zeros + BAND.min(self.outputs);
        4 * (self.codes.shape()[0] * codes + self.n_groups() * per_group + self.inputs) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::code;

    #[test]
    fn codes_of_three_bits_cross_words() {
        // 0, 1, 2 … of three bits each: the eleventh, 2, has two bits in the first word.
        let bits: u128 = (0..32).map(|n: u128| (n % 8) << (3 * n)).sum();
        let words: Vec<u32> = (0..3).map(|word| (bits >> (32 * word)) as u32).collect();
        let found: Vec<u32> = (0..32).map(|n| code(&words, 0, 1, 3 * n, 3)).collect();
        let expected: Vec<u32> = (0..32).map(|n| n % 8).collect();
        assert_eq!(found, expected);
    }
}
