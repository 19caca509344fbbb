//! A residual block: two or three convolutions, each with its batch norm, and a way around them.

use candle_core::{Result as DeviceResult, Tensor};

use crate::models::towers::{Shapes, sizes};
use crate::nn::{BatchNorm, Linear, Norming, relu};
use crate::{Result, Weights};

/// A convolution that keeps the size of a map except for its stride, and its batch norm.
#[derive(Clone, Debug)]
pub(super) struct Convolved {
    /// `(outputs, inputs of a group, k, k)`.
    weight: Tensor,
    norm: BatchNorm,
    stride: usize,
}

impl Convolved {
    /// Loads `{conv}.weight`, whose shape is that of the file, and the norm.
    ///
    /// # Errors
    /// As [`Weights::get`]; [`crate::ModelFault::BadSize`] for a weight that is of no such convolution.
    pub fn load(weights: &Weights, [conv, norm]: [&str; 2], stride: usize) -> Result<Self> {
        let name = format!("{conv}.weight");
        let shape = sizes::known(weights, "a convolution", Shapes::shape(weights, &name))?;
        let shape = match *shape {
            [outputs, inputs, k, other] if k == other && k % 2 == 1 && inputs > 0 => {
                [outputs, inputs, k, k]
            }
            _ => {
                let fault = format!("`{name}` is {shape:?}, no convolution of an odd square");
                return Err(sizes::bad(weights, &fault));
            }
        };
        Ok(Self {
            weight: weights.get(&name, &shape, Linear::INIT)?,
            norm: BatchNorm::load(weights, norm, shape[0])?,
            stride,
        })
    }

    /// `(b, inputs, h, w) -> (b, outputs, h / stride, w / stride)`.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn forward(&self, x: &Tensor, norming: Norming<'_>) -> DeviceResult<Tensor> {
        let (outputs, inputs, k, _) = self.weight.dims4()?;
        let channels = x.dim(1)?;
        let groups = channels / inputs;
        if groups == 0 || groups * inputs != channels || !outputs.is_multiple_of(groups) {
            candle_core::bail!(
                "a convolution of {inputs} channels does not fit a map of {channels}"
            );
        }
        let y = x.conv2d(&self.weight, k / 2, self.stride, 1, groups)?;
        self.norm.forward(&y, norming)
    }
}

/// A block.
#[derive(Clone, Debug)]
pub(super) struct Block {
    layers: Vec<Convolved>,
    around: Option<Convolved>,
}

impl Block {
    /// Loads `{name}`, of three convolutions where there is a third one; its stride is that of the middle one then, else of
    /// the first.
    ///
    /// # Errors
    /// As [`Convolved::load`].
    pub fn load(weights: &Weights, name: &str, stride: usize) -> Result<Self> {
        let part = |part: &str| format!("{name}.{part}");
        let is_bottleneck = weights.has(&part("conv3."));
        let n_layers = if is_bottleneck { 3 } else { 2 };
        let strided = usize::from(is_bottleneck);
        let layers = (0..n_layers).map(|nth| {
            let names = [
                part(&format!("conv{}", nth + 1)),
                part(&format!("bn{}", nth + 1)),
            ];
            let stride = if nth == strided { stride } else { 1 };
            Convolved::load(weights, [&names[0], &names[1]], stride)
        });
        let around = || {
            let names = ["downsample.0", "downsample.1"].map(part);
            Convolved::load(weights, [&names[0], &names[1]], stride)
        };
        Ok(Self {
            layers: layers.collect::<Result<_>>()?,
            around: weights.has(&part("downsample.")).then(around).transpose()?,
        })
    }

    /// `(b, c, h, w) -> (b, d, h / stride, w / stride)`.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn forward(&self, x: &Tensor, norming: Norming<'_>) -> DeviceResult<Tensor> {
        let mut y = x.clone();
        for (nth, layer) in self.layers.iter().enumerate() {
            y = layer.forward(&y, norming)?;
            if nth + 1 < self.layers.len() {
                y = relu(&y)?;
            }
        }
        let around = match &self.around {
            Some(around) => around.forward(x, norming)?,
            None => x.clone(),
        };
        relu(&(y + around)?)
    }
}
