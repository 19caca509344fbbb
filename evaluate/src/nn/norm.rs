//! LayerNorm, and vectors of length one.

use candle_core::{D, DType, Result, Tensor};

use super::cpu::{self, ops};
use crate::Weights;
use crate::weights::Init;

/// LayerNorm over the last axis.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    epsilon: f64,
}

impl LayerNorm {
    /// Loads `{name}.weight` and `{name}.bias`, both `(width)`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, name: &str, width: usize, epsilon: f64) -> crate::Result<Self> {
        let weight = weights.get(&format!("{name}.weight"), &[width], Init::Ones)?;
        let bias = weights.get(&format!("{name}.bias"), &[width], Init::Zeros)?;
        Ok(Self::new(weight, bias, epsilon))
    }

    /// Of its weights, `(d)` each.
    pub(crate) fn new(weight: Tensor, bias: Tensor, epsilon: f64) -> Self {
        Self {
            weight,
            bias,
            epsilon,
        }
    }

    /// All weights.
    pub(crate) fn weights(&self) -> [&Tensor; 2] {
        [&self.weight, &self.bias]
    }

    /// `(d)`.
    pub(crate) fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// `(d)`.
    pub(crate) fn bias(&self) -> &Tensor {
        &self.bias
    }

    /// The number added to the variance.
    pub(crate) fn epsilon(&self) -> f32 {
        self.epsilon as f32
    }

    /// `(.., d) -> (.., d)`. Statistics are computed in f32 or wider.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if cpu::takes(x) {
            let epsilon = self.epsilon();
            let op = ops::LayerNorm { epsilon };
            return x.contiguous()?.apply_op3(&self.weight, &self.bias, op);
        }
        let wide = match x.dtype() {
            DType::F16 | DType::BF16 => x.to_dtype(DType::F32)?,
            _ => x.clone(),
        };
        let centered = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
        let variance = centered.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = centered.broadcast_div(&(variance + self.epsilon)?.sqrt()?)?;
        let normed = normed.to_dtype(x.dtype())?;
        normed
            .broadcast_mul(&self.weight)?
            .broadcast_add(&self.bias)
    }
}

/// Vectors along the last axis, scaled to length one.
///
/// # Errors
/// When the device fails.
pub fn unit_length(x: &Tensor) -> Result<Tensor> {
    let x = widened(x)?;
    x.broadcast_div(&length(&x)?)
}

/// `x / (‖x‖ + epsilon)` along the last axis, as ZeroVL has it.
///
/// # Errors
/// When the device fails.
pub fn unit_length_with(x: &Tensor, epsilon: f64) -> Result<Tensor> {
    let x = widened(x)?;
    x.broadcast_div(&(length(&x)? + epsilon)?)
}

fn widened(x: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::F16 | DType::BF16 => x.to_dtype(DType::F32),
        _ => Ok(x.clone()),
    }
}

fn length(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()
}
