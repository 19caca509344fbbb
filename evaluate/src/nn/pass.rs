//! What one forward pass carries besides data.

use candle_core::{DType, Result, Tensor};

use super::{Omission, Tape};

/// Sees the inputs of linear layers as they pass by.
pub trait Tap: Sync {
    /// `input: (b, n, in)` goes into the layer whose gram matrix is called `key`; rows that `mask`
    /// leaves out are padding.
    ///
    /// # Errors
    /// Whatever keeps the tap from taking them; it ends the pass.
    fn linear_input(&self, key: &str, input: &Tensor, mask: Option<&Mask>) -> Result<()>;

    /// What a block puts out, `(b, n, d)` each: one sequence, or text and image apart.
    ///
    /// # Errors
    /// As [`Tap::linear_input`].
    fn block_output(&self, block: usize, parts: &[Tensor]) -> Result<()> {
        let _ = (block, parts);
        Ok(())
    }
}

/// How a forward pass is to be run. A graph for gradients is built wherever weights are variables.
#[derive(Clone, Copy, Default)]
pub struct Pass<'a> {
    tap: Option<&'a dyn Tap>,
    omission: Option<&'a Omission>,
    tape: Option<&'a Tape>,
}

impl<'a> Pass<'a> {
    /// A plain pass.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A pass that shows the inputs of linear layers to `tap`.
    #[must_use]
    pub fn tapped(tap: &'a dyn Tap) -> Self {
        Self {
            tap: Some(tap),
            ..Self::default()
        }
    }

    /// The pass with parts left out at random, as training has it.
    #[must_use]
    pub fn omitting(self, omission: &'a Omission) -> Self {
        Self {
            omission: Some(omission),
            ..self
        }
    }

    /// The pass with its blocks recorded on a tape, which then computes their gradients.
    #[must_use]
    pub fn recorded(self, tape: &'a Tape) -> Self {
        Self {
            tape: Some(tape),
            ..self
        }
    }

    /// What is left out at random.
    #[must_use]
    pub fn omission(&self) -> Option<&'a Omission> {
        self.omission
    }

    /// Where blocks are recorded.
    #[must_use]
    pub fn tape(&self) -> Option<&'a Tape> {
        self.tape
    }

    /// Shows an input to the tap, if there is one; `key` is called only then.
    pub(crate) fn show(
        &self,
        key: impl FnOnce() -> String,
        input: &Tensor,
        mask: Option<&Mask>,
    ) -> Result<()> {
        match self.tap {
            Some(tap) => tap.linear_input(&key(), input, mask),
            None => Ok(()),
        }
    }

    /// Shows what a block puts out.
    pub(crate) fn show_block(&self, block: usize, parts: &[Tensor]) -> Result<()> {
        match self.tap {
            Some(tap) => tap.block_output(block, parts),
            None => Ok(()),
        }
    }

    /// Whether anybody looks on, so that nothing may be left out.
    #[must_use]
    pub fn is_tapped(&self) -> bool {
        self.tap.is_some()
    }
}

/// Which tokens of a batch are real: `(b, n)`, 0 for a token, −∞ for padding, ready to be added to
/// attention scores.
#[derive(Clone, Debug)]
pub struct Mask(Tensor);

impl Mask {
    /// From `kept: (b, n)` of any number type, other than 0 for a token.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(kept: &Tensor) -> Result<Self> {
        let kept = kept.ne(0.0)?;
        let zeros = Tensor::zeros(kept.shape(), DType::F32, kept.device())?;
        let out = Tensor::full(f32::NEG_INFINITY, kept.shape(), kept.device())?;
        Ok(Self(kept.where_cond(&zeros, &out)?))
    }

    /// This mask followed by `n` tokens that are all real.
    ///
    /// # Errors
    /// When the device fails.
    pub fn followed_by_tokens(&self, n: usize) -> Result<Self> {
        let b = self.0.dim(0)?;
        let tokens = Tensor::zeros((b, n), DType::F32, self.0.device())?;
        Ok(Self(Tensor::cat(&[&self.0, &tokens], 1)?.contiguous()?))
    }

    /// The mask of tokens `from..from + len`.
    pub(crate) fn narrow(&self, from: usize, len: usize) -> Result<Self> {
        Ok(Self(self.0.narrow(1, from, len)?.contiguous()?))
    }

    /// What is added to attention scores: `(b, n)`.
    #[must_use]
    pub fn added(&self) -> &Tensor {
        &self.0
    }

    /// Token by token, sequence after sequence, whether it is real.
    ///
    /// # Errors
    /// When the device fails.
    pub fn kept(&self) -> Result<Vec<bool>> {
        let added: Vec<f32> = self.0.flatten_all()?.to_vec1()?;
        Ok(added.into_iter().map(|added| added == 0.0).collect())
    }
}
