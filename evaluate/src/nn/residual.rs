//! Residual branches.

use candle_core::{Result, Tensor};

use super::LayerScale;

/// The sum that a branch's output is added to, and its factors.
#[derive(Clone, Copy)]
pub struct Residual<'a> {
    /// `(b, n, d)`.
    pub x: &'a Tensor,
    /// Factors per channel, `(d)`: LayerScale's.
    pub scale: Option<&'a Tensor>,
    /// Factors per sequence, `(b)`: drop path's.
    pub keep: Option<&'a Tensor>,
}

impl<'a> Residual<'a> {
    /// A sum with LayerScale.
    #[must_use]
    pub fn scaled(x: &'a Tensor, scale: &'a LayerScale) -> Self {
        Self {
            scale: scale.factors(),
            ..Self::plain(x)
        }
    }

    /// A plain sum.
    #[must_use]
    pub fn plain(x: &'a Tensor) -> Self {
        Self {
            x,
            scale: None,
            keep: None,
        }
    }

    /// `x + keep scale ∘ y`, of candle's own operations.
    pub(crate) fn add(&self, y: Tensor) -> Result<Tensor> {
        let y = match self.scale {
            Some(scale) => y.broadcast_mul(scale)?,
            None => y,
        };
        match self.keep {
            Some(keep) => {
                let keep = keep.to_dtype(y.dtype())?.reshape(((), 1, 1))?;
                self.x + y.broadcast_mul(&keep)?
            }
            None => self.x + y,
        }
    }
}
