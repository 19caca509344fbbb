//! The function between the two layers of a feed-forward network.

use candle_core::{Result, Tensor};
use merge::layouts::ClipActivation;

use super::cpu::{self, ops};

/// The function between two linear layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// Exact GELU, `x Φ(x)`: BERT, BEiT, timm's ViT.
    #[default]
    Gelu,
    /// `x σ(1.702 x)`: CLIP.
    QuickGelu,
    /// GELU by the hyperbolic tangent: SigLIP.
    GeluTanh,
}

impl From<ClipActivation> for Activation {
    fn from(activation: ClipActivation) -> Self {
        match activation {
            ClipActivation::QuickGelu => Self::QuickGelu,
            ClipActivation::Gelu => Self::Gelu,
            ClipActivation::GeluTanh => Self::GeluTanh,
        }
    }
}

impl Activation {
    /// The function of every element.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        if cpu::takes(x) {
            return x.contiguous()?.apply_op1(ops::Activate(self));
        }
        match self {
            Self::Gelu => x.gelu_erf(),
            Self::GeluTanh => x.gelu(),
            Self::QuickGelu => x * candle_nn::ops::sigmoid(&(x * 1.702)?)?,
        }
    }
}

/// Exact GELU, `x Φ(x)`.
///
/// # Errors
/// When the device fails.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    Activation::Gelu.forward(x)
}
