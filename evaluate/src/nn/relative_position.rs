//! Relative position bias: a learned number per head for every pair of positions.

use candle_core::{Result, Tensor};
use merge::layouts::Window;

use crate::Weights;
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
    /// `(h L, rows)`: transposed, so that one head's numbers stand together.
    table: Tensor,
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

    /// What the table is laid out for.
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

    fn pairs(&self, rows: Vec<i64>, n: usize) -> Result<Pairs> {
        let rows = rows.into_iter().map(|row| row as u32).collect();
        Ok(Pairs {
            table: self.table.t()?.contiguous()?,
            rows: Tensor::from_vec(rows, n * n, self.table.device())?,
            n,
            heads: self.heads,
        })
    }
}

impl Pairs {
    /// The bias of one block: `(h, n, n)`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn bias(&self, block: usize) -> Result<Tensor> {
        let table = self.table.narrow(0, block * self.heads, self.heads)?;
        let bias = table.contiguous()?.index_select(&self.rows, 1)?; // (h, n²)
        bias.reshape((self.heads, self.n, self.n))
    }
}
