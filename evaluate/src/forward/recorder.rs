//! Records the outputs of passes.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Result, Tensor};

use crate::nn::{Mask, Pass, Tap};

/// Collects outputs by name, and those of blocks if the caller wants them.
#[derive(Debug)]
pub struct Recorder {
    hidden: bool,
    tensors: Mutex<BTreeMap<String, Tensor>>,
}

impl Recorder {
    /// A recorder without outputs; with `hidden`, it looks into blocks.
    #[must_use]
    pub fn new(hidden: bool) -> Self {
        Self {
            hidden,
            tensors: Mutex::default(),
        }
    }

    /// A pass whose hidden states are recorded as `{stack}.block3` and so on, if they are asked
    /// for.
    #[must_use]
    pub fn pass<'a>(&'a self, stack: &'a str) -> Pass<'a> {
        match self.hidden {
            true => Pass::tapped(self).within(stack),
            false => Pass::new(),
        }
    }

    /// A pass of a family whose towers name their own outputs; hidden states are recorded only if they are
    /// asked for.
    #[must_use]
    pub fn tapped(&self) -> Pass<'_> {
        Pass::tapped(self)
    }

    /// Adds an output. A name that is there already is replaced.
    ///
    /// # Errors
    /// When the device fails.
    pub fn add(&self, name: impl Into<String>, tensor: &Tensor) -> Result<()> {
        let tensor = tensor.detach();
        let tensor = match tensor.dtype() {
            DType::F16 | DType::BF16 => tensor.to_dtype(DType::F32)?,
            _ => tensor,
        };
        self.lock().insert(name.into(), tensor);
        Ok(())
    }

    /// Every output by name.
    #[must_use]
    pub fn into_tensors(self) -> BTreeMap<String, Tensor> {
        let tensors = self.tensors.into_inner();
        tensors.unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Tensor>> {
        // Nothing panics while it is held.
        self.tensors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tap for Recorder {
    fn linear_input(&self, _: &str, _: &Tensor, _: Option<&Mask>) -> Result<()> {
        Ok(())
    }

    fn block_output(&self, block: &str, parts: &[Tensor]) -> Result<()> {
        match self.hidden {
            true => self.add(block, &Tensor::cat(parts, 1)?),
            false => Ok(()),
        }
    }

    fn wants(&self, name: &str) -> bool {
        self.hidden || !is_hidden(name)
    }

    fn output(&self, name: &str, tensor: &Tensor) -> Result<()> {
        self.add(name, tensor)
    }
}

/// Whether a name is that of a state on the way, such as `image.attn0`, and of no result.
fn is_hidden(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    let stem = last.trim_end_matches(|c: char| c.is_ascii_digit());
    matches!(stem, "embed" | "norm" | "attn" | "block" | "layer")
}
