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
    name: String,
}

impl Mlp {
    /// Loads `{name}.fc1` and `{name}.fc2`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, name: &str, width: usize, inner: usize) -> crate::Result<Self> {
        Ok(Self {
            fc1: Linear::load(weights, &format!("{name}.fc1"), width, inner)?,
            fc2: Linear::load(weights, &format!("{name}.fc2"), inner, width)?,
            activation: Activation::Gelu,
            name: name.to_owned(),
        })
    }

    /// The same with another activation.
    #[must_use]
    pub fn with_activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    /// What stands between the layers.
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

    /// The same without a graph behind its weights, which go on following the variables.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self {
            fc1: self.fc1.detached(),
            fc2: self.fc2.detached(),
            activation: self.activation,
            name: self.name.clone(),
        }
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
        pass.show(|| format!("{}.fc1", self.name), x, mask)?;
        let inner = self.fc1.forward_active(x, self.activation)?; // (b, n, f)
        pass.show(|| format!("{}.fc2", self.name), &inner, mask)?;
        self.fc2.forward_add(&inner, residual)
    }
}
