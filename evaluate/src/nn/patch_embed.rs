//! Images to tokens.

use candle_core::{Result, Tensor};

use super::Linear;
use crate::Weights;
use crate::weights::Init;

/// A convolution as large as its stride: each patch of an image through one linear layer.
#[derive(Clone, Debug)]
pub struct PatchEmbed {
    proj: Linear,
    patch: usize,
}

impl PatchEmbed {
    /// Loads `{name}.weight: (width, 3, patch, patch)` and `{name}.bias: (width)`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, name: &str, width: usize, patch: usize) -> crate::Result<Self> {
        let bias = weights.get(&format!("{name}.bias"), &[width], Init::Zeros)?;
        Self::load_with(weights, name, width, patch, bias)
    }

    /// Loads `{name}.weight` alone, as CLIP has it.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load_without_bias(
        weights: &Weights,
        name: &str,
        width: usize,
        patch: usize,
    ) -> crate::Result<Self> {
        Self::load_with(weights, name, width, patch, weights.nothing()?)
    }

    fn load_with(
        weights: &Weights,
        name: &str,
        width: usize,
        patch: usize,
        bias: Tensor,
    ) -> crate::Result<Self> {
        let shape = [width, 3, patch, patch];
        let weight = weights.get(&format!("{name}.weight"), &shape, Linear::INIT)?;
        // A view of the same memory, so it follows the weight through training.
        let weight = weight.reshape((width, 3 * patch * patch))?;
        Ok(Self {
            proj: Linear::new(weight, bias),
            patch,
        })
    }

    /// `(b, 3, s, s) -> (b, p, d)`, patches row by row.
    ///
    /// # Errors
    /// When the sides are no multiples of the patch, or the device fails.
    pub fn forward(&self, image: &Tensor) -> Result<Tensor> {
        let (b, c, height, width) = image.dims4()?;
        let p = self.patch;
        if !height.is_multiple_of(p) || !width.is_multiple_of(p) {
            candle_core::bail!("an image of {width} x {height} is not made of patches of {p}");
        }
        let (rows, columns) = (height / p, width / p);
        let patches = image.reshape(&[b, c, rows, p, columns, p][..])?;
        let patches = patches.permute(&[0, 2, 4, 1, 3, 5][..])?.contiguous()?;
        self.proj
            .forward(&patches.reshape((b, rows * columns, c * p * p))?)
    }
}
