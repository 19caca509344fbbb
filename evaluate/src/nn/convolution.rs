//! Convolutions that keep the size of an image.

use candle_core::{Result, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, Module};

/// A convolution of stride one: beyond the border are zeros.
#[derive(Clone, Debug)]
pub struct Convolution(Conv2d);

impl Convolution {
    /// From a weight `(outputs, inputs, k, k)`, where `k` is odd, and a bias `(outputs)`.
    ///
    /// # Errors
    /// When the weight has not four axes.
    pub fn new(weight: Tensor, bias: Tensor) -> Result<Self> {
        let (_, _, kernel, _) = weight.dims4()?;
        let config = Conv2dConfig {
            padding: kernel / 2,
            ..Conv2dConfig::default()
        };
        Ok(Self(Conv2d::new(weight, Some(bias), config)))
    }

    /// Channels of the output and of the input.
    ///
    /// # Errors
    /// Never: a weight has four axes.
    pub fn channels(&self) -> Result<(usize, usize)> {
        let (outputs, inputs, ..) = self.0.weight().dims4()?;
        Ok((outputs, inputs))
    }

    /// `(b, inputs, h, w) -> (b, outputs, h, w)`.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(x)
    }
}
