//! Relative position bias: a learned number per head for every pair of positions.

use candle_core::{Result, Tensor};
use merge::layouts::Window;
use rayon::prelude::*;

use super::{Gradients, Host, Pass, Recorded, is_leaf};
use crate::Weights;
use crate::crossing;
use crate::weights::Init;

/// The bias table of all blocks, and which row serves which pair.
///
/// Bao et al. 2021, "BEiT", section 2.4, <https://arxiv.org/abs/2106.08254>; with text as in
/// Sung et al. 2023.
#[derive(Clone, Debug)]
pub struct RelativePosition {
    /// `(rows, h L)`.
    table: Tensor,
    window: Window,
    heads: usize,
}

/// The table at hand for all pairs of a sequence.
#[derive(Clone, Debug)]
pub struct Pairs {
    /// `(rows, h L)`.
    table: Tensor,
    /// `(h L, rows)`, so that one head's numbers stand together.
    transposed: Tensor,
    rows: Tensor,
    n: usize,
    heads: usize,
}

impl RelativePosition {
    /// Loads `relative_position_bias_table: (rows, h L)`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(
        weights: &Weights,
        window: Window,
        blocks: usize,
        heads: usize,
    ) -> crate::Result<Self> {
        let shape = [window.table_rows(), blocks * heads];
        let table = weights.get("relative_position_bias_table", &shape, Init::Zeros)?;
        Ok(Self {
            table,
            window,
            heads,
        })
    }

    /// The window of the table.
    #[must_use]
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// Pairs of image tokens.
    ///
    /// # Errors
    /// When the device fails.
    pub fn image(&self) -> Result<Pairs> {
        self.pairs(self.window.image(), self.window.image_tokens())
    }

    /// Pairs of the first `len` text positions.
    ///
    /// # Errors
    /// When the device fails.
    pub fn text(&self, len: usize) -> Result<Pairs> {
        self.pairs(self.window.text(len), len)
    }

    /// Pairs of `len` text positions and the image tokens after them.
    ///
    /// # Errors
    /// When the device fails.
    pub fn joint(&self, len: usize) -> Result<Pairs> {
        self.pairs(self.window.joint(len), len + self.window.image_tokens())
    }

    /// Pairs of tokens of the image and of the `len` text positions behind it.
    ///
    /// # Errors
    /// When the device fails.
    pub fn image_first(&self, len: usize) -> Result<Pairs> {
        let n = len + self.window.image_tokens();
        self.pairs(self.window.image_first(len), n)
    }

    fn pairs(&self, rows: Vec<i64>, n: usize) -> Result<Pairs> {
        let rows = rows.into_iter().map(|row| row as u32).collect();
        Ok(Pairs {
            table: self.table.clone(),
            transposed: self.table.t()?.contiguous()?,
            rows: crossing::to_device(rows, n * n, self.table.device())?,
            n,
            heads: self.heads,
        })
    }
}

impl Pairs {
    /// The rows of the table that pairs read, `(n, n)`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn rows(&self) -> Result<Tensor> {
        let rows = self.rows.reshape((self.n, self.n))?;
        rows.to_dtype(candle_core::DType::I64)
    }

    /// The bias of one block: `(h, n, n)`. On the tape of the pass, if there is one, gradients are
    /// then added where they belong.
    ///
    /// # Errors
    /// When the device fails.
    pub fn bias(&self, block: usize, pass: &Pass<'_>) -> Result<Tensor> {
        match pass.tape() {
            Some(tape) if tape.fuses() && is_leaf(&self.table) && self.table.is_variable() => {
                let bias = self.look_up(&self.transposed.detach(), block)?;
                let segment = LookedUp {
                    table: self.table.clone(),
                    rows: self.rows.to_vec1()?,
                    first: block * self.heads,
                };
                tape.record(Vec::new(), &bias, Box::new(segment))
            }
            _ => self.look_up(&self.transposed, block),
        }
    }

    fn look_up(&self, transposed: &Tensor, block: usize) -> Result<Tensor> {
        let table = transposed.narrow(0, block * self.heads, self.heads)?;
        let bias = table.contiguous()?.index_select(&self.rows, 1)?; // (h, n²)
        bias.reshape((self.heads, self.n, self.n))
    }
}

/// Columns of the table at hand for the pairs of a sequence.
struct LookedUp {
    table: Tensor,
    /// Of each pair.
    rows: Vec<u32>,
    /// The first head's column.
    first: usize,
}

impl Recorded for LookedUp {
    fn backward(
        self: Box<Self>,
        by_output: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Vec<Option<Tensor>>> {
        let (n_rows, width) = self.table.dims2()?;
        let by_output = by_output.contiguous()?;
        let by_output = Host::of(&by_output)?;
        let Some(sum) = gradients.host(&self.table) else {
            return Ok(Vec::new());
        };
        let by_head = by_output.values().par_chunks_exact(self.rows.len());
        let by_head: Vec<Vec<f32>> = by_head
            .map(|by_pair| {
                let mut by_row = vec![0.0; n_rows];
                for (&row, value) in self.rows.iter().zip(by_pair) {
                    by_row[row as usize] += value;
                }
                by_row
            })
            .collect();
        for (head, by_row) in by_head.iter().enumerate() {
            let column = sum[self.first + head..].iter_mut().step_by(width);
            column.zip(by_row).for_each(|(sum, value)| *sum += value);
        }
        Ok(Vec::new())
    }
}
