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

/// `max(x, 0)`, and NaN of NaN. candle's own gives 0 of NaN, behind which a damaged weight looks sound.
///
/// # Errors
/// When the device fails.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    let zeros = x.zeros_like()?;
    // The gradient goes through where x is 0, as candle's own does.
    x.detach().lt(&zeros)?.where_cond(&zeros, x)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn relu_keeps_nan_and_else_gives_the_numbers_and_gradients_of_candle() -> Result<()> {
        let x = Var::new(&[-2.0f32, 0.0, 3.0, f32::NEG_INFINITY], &Device::Cpu)?;
        let (found, expected) = (relu(&x)?, x.relu()?);
        assert_eq!(found.to_vec1::<f32>()?, expected.to_vec1::<f32>()?);
        let gradient = |y: &Tensor| -> Result<Vec<f32>> {
            let gradients = (y * 2.0)?.sum_all()?.backward()?;
            gradients.get(&x).expect("a gradient").to_vec1()
        };
        assert_eq!(gradient(&found)?, gradient(&expected)?);
        let broken = Tensor::new(&[f32::NAN, -f32::NAN], &Device::Cpu)?;
        assert!(relu(&broken)?.to_vec1::<f32>()?.iter().all(|x| x.is_nan()));
        Ok(())
    }
}
