//! Linear layers.

use candle_core::{Result, Tensor};

use super::cpu::{self, ops, slices};
use super::{Activation, Residual};
use crate::Weights;
use crate::weights::Init;

/// `y = x Wᵀ + b` over the last axis.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Tensor,
}

/// The step after a linear layer in the same pass over memory.
enum Then<'a> {
    Nothing,
    Activate(Activation),
    Add(Residual<'a>),
}

impl Linear {
    /// The first values of weights, as in BERT and BEiT.
    pub(crate) const INIT: Init = Init::Normal(0.02);

    /// Loads `{name}.weight: (outputs, inputs)` and `{name}.bias: (outputs)`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(
        weights: &Weights,
        name: &str,
        inputs: usize,
        outputs: usize,
    ) -> crate::Result<Self> {
        let bias = weights.get(&format!("{name}.bias"), &[outputs], Init::Zeros)?;
        Self::load_with(weights, name, inputs, outputs, bias)
    }

    /// Loads `{name}.weight` alone.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load_without_bias(
        weights: &Weights,
        name: &str,
        inputs: usize,
        outputs: usize,
    ) -> crate::Result<Self> {
        Self::load_with(weights, name, inputs, outputs, weights.nothing()?)
    }

    fn load_with(
        weights: &Weights,
        name: &str,
        inputs: usize,
        outputs: usize,
        bias: Tensor,
    ) -> crate::Result<Self> {
        let name = format!("{name}.weight");
        let weight = weights.get(&name, &[outputs, inputs], Linear::INIT)?;
        Ok(Self { weight, bias })
    }

    /// From a weight `(out, in)` and a bias `(out)`.
    pub(crate) fn new(weight: Tensor, bias: Tensor) -> Self {
        Self { weight, bias }
    }

    /// `(out, in)`.
    pub(crate) fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// `(out)`, or nothing.
    pub(crate) fn bias(&self) -> &Tensor {
        &self.bias
    }

    /// Weight and bias.
    pub(crate) fn weights(&self) -> [&Tensor; 2] {
        [&self.weight, &self.bias]
    }

    /// The same layer with another bias.
    pub(crate) fn with_bias(&self, bias: Tensor) -> Self {
        Self::new(self.weight.clone(), bias)
    }

    /// `(.., in) -> (.., out)`.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, Then::Nothing)
    }

    /// `gelu(forward(x))`.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn forward_gelu(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_active(x, Activation::Gelu)
    }

    /// `activation(forward(x))`.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn forward_active(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        self.run(x, Then::Activate(activation))
    }

    /// `residual + keep scale ∘ forward(x)`.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn forward_add(&self, x: &Tensor, residual: Residual<'_>) -> Result<Tensor> {
        self.run(x, Then::Add(residual))
    }

    fn run(&self, x: &Tensor, then: Then<'_>) -> Result<Tensor> {
        if !cpu::takes(x) {
            return self.composed(x, then);
        }
        let x = x.contiguous()?;
        let tracks = |tensor: &Tensor| tensor.track_op();
        let in_graph = [&x, &self.weight, &self.bias].into_iter().any(tracks)
            || matches!(then, Then::Add(residual)
                if tracks(residual.x) || residual.scale.is_some_and(tracks)
                    || residual.keep.is_some());
        if in_graph {
            let y = x.apply_op3(&self.weight, &self.bias, ops::Linear)?;
            return follow(y, then);
        }
        let (n, k) = self.weight.dims2()?;
        let shape = ops::with_last(x.shape(), n);
        let out = match then {
            Then::Nothing => ops::with_slices([&x, &self.weight, &self.bias], |[x, w, b]| {
                slices::linear(x, w, b, k, slices::Then::Nothing)
            }),
            Then::Activate(activation) => {
                ops::with_slices([&x, &self.weight, &self.bias], |[x, w, b]| {
                    slices::linear(x, w, b, k, slices::Then::Activate(activation))
                })
            }
            Then::Add(residual) => {
                let scale = residual.scale;
                let scaled = scale.unwrap_or(residual.x);
                let tensors = [&x, &self.weight, &self.bias, residual.x, scaled];
                ops::with_slices(tensors, |[x, w, b, residual, factors]| {
                    let scale = scale.is_some().then_some(factors);
                    let then = slices::Then::Add {
                        residual,
                        scale,
                        keep: None,
                    };
                    slices::linear(x, w, b, k, then)
                })
            }
        }?;
        Tensor::from_vec(out, shape, x.device())
    }

    /// The same of candle's own operations, for other devices and dtypes.
    fn composed(&self, x: &Tensor, then: Then<'_>) -> Result<Tensor> {
        let (n, k) = self.weight.dims2()?;
        let rows = x.contiguous()?.reshape(((), k))?;
        let y = rows.matmul(&self.weight.t()?)?;
        let y = match self.bias.elem_count() {
            0 => y,
            _ => y.broadcast_add(&self.bias)?,
        };
        follow(y.reshape(ops::with_last(x.shape(), n))?, then)
    }
}

fn follow(y: Tensor, then: Then<'_>) -> Result<Tensor> {
    match then {
        Then::Nothing => Ok(y),
        Then::Activate(activation) => activation.forward(&y),
        Then::Add(residual) => residual.add(y),
    }
}
