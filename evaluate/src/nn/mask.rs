//! Masks: the tokens that attention may read.

use crate::crossing;
use candle_core::{DType, Device, Result, Tensor};

/// The keys that each query sees, as numbers added to attention scores: 0 where it sees, the model's value for "hidden"
/// where it does not.
///
/// A model hides with one value throughout. −∞ hides for good, and a query that sees nothing then
/// attends to nothing and gets zeros. A finite value (−10,000, the lowest float) leaves such a query
/// the softmax of its scores among themselves, as the published programs that use one have it.
#[derive(Clone, Debug)]
pub enum Mask {
    /// The same keys for every query of a sequence: `(b, m)`, padding hidden.
    Padding(Tensor),
    /// Each query sees the keys up to its own place, the last query the last key.
    Causal,
    /// A choice for each pair of query and key: `(b, n, m)`.
    Pairs(Tensor),
}

impl Mask {
    /// Padding, hidden by −∞. `kept: (b, m)` of any number type, other than 0 for a token.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(kept: &Tensor) -> Result<Self> {
        Self::padding(kept, f32::NEG_INFINITY)
    }

    /// Padding, hidden by `hidden`. `kept: (b, m)` of any number type, other than 0 for a token.
    ///
    /// # Errors
    /// When the device fails.
    pub fn padding(kept: &Tensor, hidden: f32) -> Result<Self> {
        added(kept, hidden).map(Self::Padding)
    }

    /// A choice for each pair: `seen: (b, n, m)` of any number type, other than 0 where a query sees
    /// a key.
    ///
    /// # Errors
    /// When the device fails.
    pub fn pairs(seen: &Tensor, hidden: f32) -> Result<Self> {
        added(seen, hidden).map(Self::Pairs)
    }

    /// A padding mask followed by `n` tokens that are all real.
    ///
    /// # Errors
    /// For another kind of mask, or when the device fails.
    pub fn followed_by_tokens(&self, n: usize) -> Result<Self> {
        let padding = self.as_padding()?;
        let b = padding.dim(0)?;
        let tokens = Tensor::zeros((b, n), DType::F32, padding.device())?;
        let joined = Tensor::cat(&[padding, &tokens], 1)?;
        Ok(Self::Padding(joined.contiguous()?))
    }

    /// A padding mask followed by another one.
    ///
    /// # Errors
    /// For another kind of mask, or when the device fails.
    pub fn followed_by(&self, other: &Self) -> Result<Self> {
        let joined = Tensor::cat(&[self.as_padding()?, other.as_padding()?], 1)?;
        Ok(Self::Padding(joined.contiguous()?))
    }

    /// The padding mask of tokens `from..from + len`.
    pub(crate) fn narrow(&self, from: usize, len: usize) -> Result<Self> {
        let part = self.as_padding()?.narrow(1, from, len)?;
        Ok(Self::Padding(part.contiguous()?))
    }

    /// The numbers added to attention scores, `(b, m)` or `(b, n, m)`; `None` for [`Mask::Causal`], which depends on
    /// the lengths alone.
    #[must_use]
    pub fn added(&self) -> Option<&Tensor> {
        match self {
            Self::Padding(added) | Self::Pairs(added) => Some(added),
            Self::Causal => None,
        }
    }

    /// The numbers added to scores of `n` queries and `m` keys, in a shape that broadcasts to `(b, h, n, m)`.
    pub(crate) fn for_scores(&self, n: usize, m: usize, device: &Device) -> Result<Tensor> {
        match self {
            Self::Padding(added) => added.unsqueeze(1)?.unsqueeze(1),
            Self::Pairs(added) => added.unsqueeze(1),
            Self::Causal => {
                let sees = |query: usize, key: usize| key + n <= query + m;
                let added = (0..n * m).map(|at| match sees(at / m, at % m) {
                    true => 0.0,
                    false => f32::NEG_INFINITY,
                });
                crossing::to_device(added.collect::<Vec<f32>>(), (1, 1, n, m), device)
            }
        }
    }

    /// Token by token, sequence after sequence, whether it is real. Empty where all are.
    ///
    /// # Errors
    /// For a mask of pairs, which does not tell, or when the device fails.
    pub fn kept(&self) -> Result<Vec<bool>> {
        if matches!(self, Self::Causal) {
            return Ok(Vec::new());
        }
        let added: Vec<f32> = crossing::to_memory(self.as_padding()?)?;
        Ok(added.into_iter().map(|added| added == 0.0).collect())
    }

    fn as_padding(&self) -> Result<&Tensor> {
        match self {
            Self::Padding(added) => Ok(added),
            _ => candle_core::bail!("only a padding mask tells which tokens are real"),
        }
    }
}

fn added(seen: &Tensor, hidden: f32) -> Result<Tensor> {
    let seen = seen.ne(0.0)?;
    let zeros = Tensor::zeros(seen.shape(), DType::F32, seen.device())?;
    let out = Tensor::full(hidden, seen.shape(), seen.device())?;
    seen.where_cond(&zeros, &out)
}
