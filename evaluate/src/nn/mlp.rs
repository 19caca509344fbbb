//! The feed-forward network of a block.

use candle_core::{Result, Tensor};

use super::{Activation, Linear, Mask, Pass, Residual};
use crate::Weights;

/// Two linear layers with an activation between them: exact GELU unless the family says otherwise.
#[derive(Clone, Debug)]
pub struct Mlp {
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
    names: [String; 2],
}

impl Mlp {
    /// Loads `{name}.fc1` and `{name}.fc2`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, name: &str, width: usize, inner: usize) -> crate::Result<Self> {
        let names = ["fc1", "fc2"].map(|layer| format!("{name}.{layer}"));
        Self::load_named(weights, names, width, inner)
    }

    /// Loads both layers under names of their own.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load_named(
        weights: &Weights,
        names: [String; 2],
        width: usize,
        inner: usize,
    ) -> crate::Result<Self> {
        Ok(Self {
            fc1: Linear::load(weights, &names[0], width, inner)?,
            fc2: Linear::load(weights, &names[1], inner, width)?,
            activation: Activation::Gelu,
            names,
        })
    }

    /// From layers.
    #[cfg(test)]
    pub(crate) fn new(fc1: Linear, fc2: Linear, activation: Activation) -> Self {
        Self {
            fc1,
            fc2,
            activation,
            names: Default::default(),
        }
    }

    /// The same with another activation.
    #[must_use]
    pub fn with_activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    /// The function between the layers.
    pub(crate) fn activation(&self) -> Activation {
        self.activation
    }

    /// All weights.
    pub(crate) fn weights(&self) -> impl Iterator<Item = &Tensor> {
        [&self.fc1, &self.fc2].into_iter().flat_map(Linear::weights)
    }

    /// The first layer, `d -> f`.
    pub(crate) fn fc1(&self) -> &Linear {
        &self.fc1
    }

    /// The second layer, `f -> d`.
    pub(crate) fn fc2(&self) -> &Linear {
        &self.fc2
    }

    /// `residual + keep scale ∘ fc2(activation(fc1(x)))`: `(b, n, d) -> (b, n, d)`.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn forward(
        &self,
        x: &Tensor,
        residual: Residual<'_>,
        mask: Option<&Mask>,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        pass.show(|| self.names[0].clone(), x, mask)?;
        let inner = self.fc1.forward_active(x, self.activation)?; // (b, n, f)
        pass.show(|| self.names[1].clone(), &inner, mask)?;
        self.fc2.forward_add(&inner, residual)
    }
}
