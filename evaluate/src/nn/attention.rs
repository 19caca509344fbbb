//! Self-attention with packed projections.

use candle_core::{Result, Tensor};

use super::fused::{Packed, PackedBias, Projections};
use super::{Bias, Linear, Pass, Residual, attend_packed, attention_shares, unpack};
use crate::Weights;
use crate::weights::Init;

/// Multi-head self-attention: BEiT's, whose keys have no bias.
#[derive(Clone, Debug)]
pub struct Attention {
    qkv: Linear,
    q_bias: Tensor,
    v_bias: Tensor,
    proj: Linear,
    heads: usize,
    name: String,
}

impl Attention {
    /// Loads `{name}.qkv.weight`, `{name}.q_bias`, `{name}.v_bias` and `{name}.proj`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, name: &str, width: usize, heads: usize) -> crate::Result<Self> {
        let bias = |part: &str| weights.get(&format!("{name}.{part}"), &[width], Init::Zeros);
        let qkv = format!("{name}.qkv");
        Ok(Self {
            qkv: Linear::load_without_bias(weights, &qkv, width, 3 * width)?,
            q_bias: bias("q_bias")?,
            v_bias: bias("v_bias")?,
            proj: Linear::load(weights, &format!("{name}.proj"), width, width)?,
            heads,
            name: name.to_owned(),
        })
    }

    /// The weights for a branch on slices.
    pub(crate) fn packed(&self) -> Packed {
        let bias = PackedBias::WithoutKeys {
            q: self.q_bias.clone(),
            v: self.v_bias.clone(),
        };
        Packed {
            qkv: Projections::Packed(self.qkv.clone(), bias),
            proj: self.proj.clone(),
            heads: self.heads,
        }
    }

    /// Queries, keys and values: `(b, n, d) -> (b, n, 3 d)`. Each call puts the bias together,
    /// for a copy would not follow its parts through training.
    fn project(&self, x: &Tensor) -> Result<Tensor> {
        let none = self.q_bias.detach().zeros_like()?;
        let bias = Tensor::cat(&[&self.q_bias, &none, &self.v_bias], 0)?;
        self.qkv.with_bias(bias).forward(x)
    }

    /// `residual + keep scale ∘ proj(attention(x))`: `(b, n, d) -> (b, n, d)`, in block `block`.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn forward(
        &self,
        x: &Tensor,
        residual: Residual<'_>,
        bias: Bias<'_>,
        block: usize,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        pass.show(|| self.name.clone(), x, bias.mask)?;
        let qkv = self.project(x)?; // (b, n, 3 d)
        pass.show_output(format_args!("attn{block}"), || {
            let [q, k, _] = unpack(&qkv)?;
            attention_shares(&q, &k, bias, self.heads)
        })?;
        let mixed = attend_packed(&qkv, self.heads, usize::MAX, bias)?; // (b, n, d)
        pass.show(|| format!("{}.proj", self.name), &mixed, bias.mask)?;
        self.proj.forward_add(&mixed, residual)
    }

    /// As [`Attention::forward`], for the first token alone: `x: (b, n, d)`, a residual of
    /// `(b, 1, d)`, to `(b, 1, d)`.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn forward_first(
        &self,
        x: &Tensor,
        residual: Residual<'_>,
        bias: Bias<'_>,
    ) -> Result<Tensor> {
        let qkv = self.project(x)?; // (b, n, 3 d)
        let mixed = attend_packed(&qkv, self.heads, 1, bias)?; // (b, 1, d)
        self.proj.forward_add(&mixed, residual)
    }
}
