//! Self-attention with packed projections.

use candle_core::{D, DType, Result, Tensor};

use super::cpu::{self, ops};
use super::{Linear, Mask, Pass, Residual};
use crate::Weights;
use crate::weights::Init;

/// What attention adds to its scores.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attended<'a> {
    /// Relative position bias, `(h, n, n)`.
    pub bias: Option<&'a Tensor>,
    /// Padding.
    pub mask: Option<&'a Mask>,
}

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

    /// The packed projection; its bias is [`Attention::biases`].
    pub(crate) fn qkv(&self) -> &Linear {
        &self.qkv
    }

    /// Biases of queries and of values; keys have none.
    pub(crate) fn biases(&self) -> (&Tensor, &Tensor) {
        (&self.q_bias, &self.v_bias)
    }

    /// The projection after attention.
    pub(crate) fn proj(&self) -> &Linear {
        &self.proj
    }

    /// All weights.
    pub(crate) fn weights(&self) -> Vec<&Tensor> {
        let (qkv, proj) = (self.qkv.weight(), self.proj.weight());
        vec![qkv, &self.q_bias, &self.v_bias, proj, self.proj.bias()]
    }

    /// Heads.
    pub(crate) fn heads(&self) -> usize {
        self.heads
    }

    /// Queries, keys and values: `(b, n, d) -> (b, n, 3 d)`. The bias is put together anew each
    /// time, for a copy would not follow its parts through training.
    fn project(&self, x: &Tensor) -> Result<Tensor> {
        let none = self.q_bias.detach().zeros_like()?;
        let bias = Tensor::cat(&[&self.q_bias, &none, &self.v_bias], 0)?;
        self.qkv.with_bias(bias).forward(x)
    }

    /// The same without a graph behind its weights, which go on following the variables.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self {
            qkv: self.qkv.detached(),
            q_bias: self.q_bias.detach(),
            v_bias: self.v_bias.detach(),
            proj: self.proj.detached(),
            heads: self.heads,
            name: self.name.clone(),
        }
    }

    /// `residual + keep scale ∘ proj(attention(x))`: `(b, n, d) -> (b, n, d)`.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn forward(
        &self,
        x: &Tensor,
        residual: Residual<'_>,
        attended: Attended<'_>,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        pass.show(|| self.name.clone(), x, attended.mask)?;
        let qkv = self.project(x)?; // (b, n, 3 d)
        let mixed = attend(&qkv, self.heads, usize::MAX, attended)?; // (b, n, d)
        pass.show(|| format!("{}.proj", self.name), &mixed, attended.mask)?;
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
        attended: Attended<'_>,
    ) -> Result<Tensor> {
        let qkv = self.project(x)?; // (b, n, 3 d)
        let mixed = attend(&qkv, self.heads, 1, attended)?; // (b, 1, d)
        self.proj.forward_add(&mixed, residual)
    }
}

/// Attention from packed `qkv: (b, n, 3 d)` to `(b, queries, d)`, where only the first `queries`
/// tokens ask. Scores and softmax are computed in f32 or wider.
///
/// # Errors
/// When shapes do not fit or the device fails.
pub fn attend(
    qkv: &Tensor,
    heads: usize,
    queries: usize,
    attended: Attended<'_>,
) -> Result<Tensor> {
    if cpu::takes(qkv) {
        let nothing = Tensor::zeros(0, DType::F32, qkv.device())?;
        let bias = attended.bias.unwrap_or(&nothing).contiguous()?;
        let mask = attended.mask.map_or(&nothing, Mask::added).contiguous()?;
        let op = ops::Attention { heads, queries };
        return qkv.contiguous()?.apply_op3(&bias, &mask, op);
    }
    let (b, n, packed) = qkv.dims3()?;
    let (d, queries) = (packed / 3, queries.min(n));
    let part = |which: usize| {
        let part = qkv.narrow(D::Minus1, which * d, d)?;
        part.reshape((b, n, heads, d / heads))?
            .transpose(1, 2)?
            .contiguous() // (b, h, n, e)
    };
    let (q, k, v) = (part(0)?.narrow(2, 0, queries)?, part(1)?, part(2)?);
    let q = (q * (1.0 / ((d / heads) as f64).sqrt()))?;
    let scores = q.contiguous()?.matmul(&k.t()?.contiguous()?)?; // (b, h, queries, n)
    let mut scores = match scores.dtype() {
        DType::F16 | DType::BF16 => scores.to_dtype(DType::F32)?,
        _ => scores,
    };
    if let Some(bias) = attended.bias {
        let bias = bias.narrow(1, 0, queries)?.to_dtype(scores.dtype())?;
        scores = scores.broadcast_add(&bias.unsqueeze(0)?)?;
    }
    if let Some(mask) = attended.mask {
        let mask = mask.added().to_dtype(scores.dtype())?;
        scores = scores.broadcast_add(&mask.reshape((b, 1, 1, n))?)?;
    }
    // Composed of operations with a gradient: the fused softmax of candle has none.
    let largest = scores.max_keepdim(D::Minus1)?.detach();
    let raised = scores.broadcast_sub(&largest)?.exp()?;
    let shares = raised.broadcast_div(&raised.sum_keepdim(D::Minus1)?)?;
    let mixed = shares.to_dtype(v.dtype())?.matmul(&v)?; // (b, h, queries, e)
    mixed
        .transpose(1, 2)?
        .contiguous()?
        .reshape((b, queries, d))
}
