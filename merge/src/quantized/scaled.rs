//! Elements of eight bits with scales: `w = (q − z) s`.
//!
//! | format | codes | scales |
//! |---|---|---|
//! | FP8 of DeepSeek, Qwen and others | F8_E4M3 | `*_scale_inv`, one per block of 128 × 128 |
//! | FP8 of compressed-tensors, ModelOpt, FBGEMM | F8_E4M3 | `weight_scale`, one per tensor, row, block or group |
//! | MXFP8 | F8_E4M3 | exponents, one per 32 elements of a row |
//! | compressed-tensors int8, bitsandbytes int8 | I8 | one per row or tensor |
//!
//! Codes may be sparse.
//!
//! References: DeepSeek-V3's `weight_dequant`, compressed-tensors' `dequantize`, bitsandbytes'
//! `int8_vectorwise_dequant`; OCP microscaling formats 1.0, section 6.

use super::sparse::Sparse;
use super::stored::{Kept, Stored, each_row, keys_of};
use super::{Dequantize, Weight};
use crate::{Checkpoint, Result};

/// bitsandbytes' factor in place of dividing by 127.
const ONE_127TH: f32 = 0.007_874_016;

/// Codes, all of them or those that are not zero.
#[derive(Debug)]
pub(super) enum Codes {
    /// All.
    All(Stored),
    /// Those that are not zero.
    Sparse(Sparse),
}

impl Codes {
    fn shape(&self) -> &[usize] {
        match self {
            Self::All(stored) => stored.shape(),
            Self::Sparse(sparse) => sparse.shape(),
        }
    }

    fn fill(&self, source: &Checkpoint, first: usize, out: &mut [f32]) -> Result<()> {
        match self {
            Self::All(stored) => stored.fill(source, first, out),
            Self::Sparse(sparse) => sparse.fill(source, first, out),
        }
    }

    fn keys(&self) -> Vec<&str> {
        match self {
            Self::All(stored) => vec![&stored.key],
            Self::Sparse(sparse) => sparse.keys(),
        }
    }
}

/// Codes and scales of a weight whose last two axes are rows and columns.
#[derive(Debug)]
pub(super) struct Scaled {
    codes: Codes,
    scales: Stored,
    /// The numbers subtracted from the codes, on the grid of the scales.
    zeros: Option<Stored>,
    rows: usize,
    width: usize,
    /// Rows and columns that share a scale.
    block: [usize; 2],
    /// Scales of one matrix, down and across.
    grid: [usize; 2],
    /// The factor of the scales.
    factor: Option<f32>,
    others: Vec<String>,
}

impl Scaled {
    /// Codes with the scales that belong to them; `None` if the scales do not fit. `blocks` are sizes of
    /// blocks to try before those that the shapes suggest.
    pub(super) fn new(codes: Codes, scales: Stored, blocks: &[[usize; 2]]) -> Option<Self> {
        let (rows, width, lead) = match codes.shape() {
            &[width] => (1, width, 1),
            [lead @ .., rows, width] => (*rows, *width, lead.iter().product()),
            [] => return None,
        };
        let (block, grid) = blocks_of(scales.shape(), lead, rows, width, blocks)?;
        Some(Self {
            codes,
            scales,
            zeros: None,
            rows,
            width,
            block,
            grid,
            factor: None,
            others: Vec::new(),
        })
    }

    /// With zero points; `None` if they are not where the scales are.
    pub(super) fn with_zeros(self, zeros: Option<Stored>) -> Option<Self> {
        match &zeros {
            Some(zeros) if zeros.shape() != self.scales.shape() => None,
            _ => Some(Self { zeros, ..self }),
        }
    }

    /// bitsandbytes' rows of eight-bit integers, whose scales are largest values.
    pub(super) fn by_largest(self, others: Vec<String>) -> Self {
        Self {
            factor: Some(ONE_127TH),
            others,
            ..self
        }
    }

    /// The grid of the scales, in words.
    pub(super) fn grain(&self) -> String {
        match (self.block, self.grid) {
            (_, [1, 1]) => "with one scale".into(),
            ([1, width], [_, 1]) if width == self.width => "with a scale per row".into(),
            ([1, width], _) => format!("with a scale per {width} elements of a row"),
            ([rows, width], _) => format!("in blocks of {rows} x {width}"),
        }
    }

    /// Whether it is MXFP8.
    pub(super) fn is_microscaled(&self) -> bool {
        self.scales.is_exponent && self.block == [1, 32]
    }

    pub(super) fn into_weight(self, scheme: String) -> Weight {
        Weight {
            scheme,
            shape: self.codes.shape().to_vec(),
            codes: Box::new(self),
        }
    }
}

/// Size of blocks and of their grid, if scales of this shape can belong to `lead` matrices.
fn blocks_of(
    scales: &[usize],
    lead: usize,
    rows: usize,
    width: usize,
    known: &[[usize; 2]],
) -> Option<([usize; 2], [usize; 2])> {
    let n_scales: usize = scales.iter().product();
    if n_scales == 1 {
        // One for all matrices, or for the one.
        return Some(([rows.max(1), width.max(1)], [1, 1]));
    }
    let [down, across] = match scales {
        &[n] if n == rows && lead == 1 => [n, 1],
        &[n] if n == lead => [1, 1],
        [before @ .., down, across] if before.iter().product::<usize>() == lead => [*down, *across],
        _ => return None,
    };
    if down == 0 || across == 0 {
        return None;
    }
    let fits = |[high, wide]: [usize; 2]| {
        high > 0 && wide > 0 && rows.div_ceil(high) == down && width.div_ceil(wide) == across
    };
    let even = [rows / down, width / across];
    let is_even = rows.is_multiple_of(down) && width.is_multiple_of(across);
    let candidates = (known.iter().copied())
        .chain([[128, 128], [1, 32], [1, 128]])
        .chain(is_even.then_some(even));
    let block = candidates.into_iter().find(|&block| fits(block))?;
    // A grid of one row or column says how far it reaches.
    let block = [
        if down == 1 { rows.max(1) } else { block[0] },
        if across == 1 { width.max(1) } else { block[1] },
    ];
    Some((block, [down, across]))
}

impl Dequantize for Scaled {
    fn fill(&self, source: &Checkpoint, _: &Kept, first: usize, out: &mut [f32]) -> Result<()> {
        self.codes.fill(source, first, out)?;
        let (last, [high, wide]) = (first + out.len().max(1) - 1, self.block);
        // Scales of the rows, the first of which is `top`.
        let line = |row: usize| match self.grid {
            [1, 1] if self.scales.info.n_elements() == 1 => 0,
            [down, _] => row / self.rows * down + row % self.rows / high,
        };
        let (top, bottom) = (line(first / self.width), line(last / self.width));
        let across = self.grid[1];
        let n = (bottom - top + 1) * across;
        let scales = self.scales.floats(source, top * across, n)?;
        if let Some(factor) = self.factor {
            each_row(self.width, first, out, |row, _, part| {
                let scale = scales[line(row) - top];
                for value in part {
                    *value = *value * scale * factor;
                }
            });
            return Ok(());
        }
        let zeros = match &self.zeros {
            Some(zeros) => zeros.floats(source, top * across, n)?,
            None => Vec::new(),
        };
        each_row(self.width, first, out, |row, column, part| {
            let start = (line(row) - top) * across;
            let own = &scales[start..start + across];
            let (mut column, mut rest) = (column, part);
            while !rest.is_empty() {
                let block = column / wide;
                let n = (wide.saturating_mul(block + 1) - column).min(rest.len());
                let (now, after) = rest.split_at_mut(n);
                let zero = zeros.get(start + block).copied().unwrap_or(0.0);
                let scale = own[block];
                crate::vectorized(
                    #[inline(always)]
                    || {
                        for value in &mut *now {
                            *value = (*value - zero) * scale;
                        }
                    },
                );
                column += n;
                rest = after;
            }
        });
        Ok(())
    }

    fn keys(&self) -> Vec<&str> {
        let beside = [&self.scales].into_iter().chain(&self.zeros);
        let mut keys = self.codes.keys();
        keys.extend(keys_of(beside, &self.others));
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::blocks_of;

    #[test]
    fn scales_are_known_by_the_shape_of_their_grid() {
        // One for all, one per row, one per matrix.
        let of = |scales: &[usize]| blocks_of(scales, 1, 300, 256, &[]);
        assert_eq!(of(&[]).expect("fits").1, [1, 1]);
        assert_eq!(of(&[1, 1]).expect("fits").1, [1, 1]);
        assert_eq!(of(&[300]).expect("fits"), ([1, 256], [300, 1]));
        assert_eq!(of(&[300, 1]).expect("fits"), ([1, 256], [300, 1]));
        // Blocks of 128, the last cut; groups; exponents per 32.
        assert_eq!(of(&[3, 2]).expect("fits"), ([128, 128], [3, 2]));
        assert_eq!(of(&[300, 8]).expect("fits"), ([1, 32], [300, 8]));
        assert_eq!(of(&[300, 4]).expect("fits"), ([1, 64], [300, 4]));
        assert_eq!(of(&[2, 256]), Some(([150, 1], [2, 256])));
        assert_eq!(of(&[7, 2]), None);
        let known = blocks_of(&[5, 4], 1, 300, 256, &[[64, 64]]);
        assert_eq!(known.expect("fits").0, [64, 64]);
        let several = blocks_of(&[4, 2, 1], 4, 256, 128, &[]);
        assert_eq!(several.expect("fits"), ([128, 128], [2, 1]));
        assert_eq!(blocks_of(&[3, 2, 1], 4, 256, 128, &[]), None);
    }
}
