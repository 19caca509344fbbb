//! The head of NLVR2 in which the tokens of two images attend to each other.

use candle_core::{D, DType, Tensor};

use super::Config;
use crate::nn::{Bias, Linear, Mask, Pass, attention_shares, mix, relu};
use crate::weights::Init;
use crate::{Result, Weights};

/// The number that hides padding where tokens are pooled.
const HIDDEN: f64 = -1e4;

/// Attention of one sequence to another, with packed projections.
#[derive(Clone, Debug)]
struct Cross {
    weight: Tensor,
    bias: Tensor,
    out: Linear,
    heads: usize,
}

impl Cross {
    fn load(weights: &Weights, name: &str, config: &Config) -> Result<Self> {
        let d = config.width;
        Ok(Self {
            // The published program draws it as Xavier's uniform rule has it, of nearly this deviation.
            weight: weights.get(&format!("{name}.in_proj_weight"), &[3 * d, d], Linear::INIT)?,
            bias: weights.get(&format!("{name}.in_proj_bias"), &[3 * d], Init::Zeros)?,
            out: Linear::load(weights, &format!("{name}.out_proj"), d, d)?,
            heads: config.n_heads,
        })
    }

    fn projection(&self, nth: usize, x: &Tensor) -> Result<Tensor> {
        let d = self.weight.dim(1)?;
        let weight = self.weight.narrow(0, nth * d, d)?.contiguous()?;
        let bias = self.bias.narrow(0, nth * d, d)?.contiguous()?;
        Ok(Linear::new(weight, bias).forward(x)?)
    }

    /// Queries of `x` look at `other`, whose padding `mask` hides: `(b, n, d) -> (b, n, d)`. Dropout falls on shares.
    fn forward(
        &self,
        x: &Tensor,
        other: &Tensor,
        mask: &Mask,
        (pass, name): (&Pass<'_>, &str),
    ) -> Result<Tensor> {
        let [q, k, v] = [(0, x), (1, other), (2, other)].map(|(nth, x)| self.projection(nth, x));
        let (q, k, v) = (q?, k?, v?);
        let bias = Bias {
            pairs: None,
            mask: Some(mask),
        };
        let shares = attention_shares(&q, &k, bias, self.heads)?; // (b, h, n, n)
        pass.show_output(format_args!("{name}_weights"), || shares.mean(1))?;
        let shares = pass.drop(&format!("pairs.{name}"), &shares)?;
        Ok(self.out.forward(&mix(&shares, &v)?)?)
    }
}

/// Two sequences look at each other, their tokens are pooled by learned shares, and both vectors are judged.
#[derive(Clone, Debug)]
pub(super) struct PairsHead {
    looks: [Cross; 2],
    joined: Linear,
    pooled: Linear,
    out: Linear,
}

impl PairsHead {
    /// Loads `attn1`, `attn2`, `fc.0`, `attn_pool.fc.0` and `nlvr2_output`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub(super) fn load(weights: &Weights, config: &Config) -> Result<Self> {
        let d = config.width;
        Ok(Self {
            looks: [
                Cross::load(weights, "attn1", config)?,
                Cross::load(weights, "attn2", config)?,
            ],
            joined: Linear::load(weights, "fc.0", 2 * d, d)?,
            pooled: Linear::load(weights, "attn_pool.fc.0", d, 1)?,
            out: Linear::load(weights, "nlvr2_output", 2 * d, 2)?,
        })
    }

    /// Logits of false and true, `(b, 2)`, of the tokens of two passes, `(b, n, d)` each, with padding.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub(super) fn forward(
        &self,
        [left, right]: [&Tensor; 2],
        mask: &Mask,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        let sides = [
            (left, right, &self.looks[0], "attn1", "left"),
            (right, left, &self.looks[1], "attn2", "right"),
        ];
        let mut pooled = Vec::with_capacity(2);
        for (x, other, look, name, side) in sides {
            let seen = look.forward(x, other, mask, (pass, name))?;
            pass.show_output(format_args!("{name}"), || Ok(seen.clone()))?;
            let both = Tensor::cat(&[&seen, x], D::Minus1)?;
            let joined = pass.drop(
                &format!("pairs.joined.{side}"),
                &relu(&self.joined.forward(&both)?)?,
            )?;
            pass.show_output(format_args!("fc_{side}"), || Ok(joined.clone()))?;
            let one = self.pool(&joined, mask, (pass, side))?;
            pass.show_output(format_args!("pool_{side}"), || Ok(one.clone()))?;
            pooled.push(one);
        }
        Ok(self.out.forward(&Tensor::cat(&pooled, 1)?)?)
    }

    /// `(b, n, d) -> (b, d)`.
    fn pool(&self, x: &Tensor, mask: &Mask, (pass, side): (&Pass<'_>, &str)) -> Result<Tensor> {
        let scores = relu(&self.pooled.forward(x)?)?.squeeze(2)?; // (b, n)
        let scores = scores.to_dtype(DType::F32)?;
        let scores = match mask.added() {
            Some(added) => {
                let hidden = added.ne(0f64)?;
                let all = Tensor::full(HIDDEN as f32, scores.shape(), scores.device())?;
                hidden.where_cond(&all, &scores)?
            }
            None => scores,
        };
        let most = scores.max_keepdim(1)?.detach();
        let shares = scores.broadcast_sub(&most)?.exp()?;
        let shares = shares.broadcast_div(&shares.sum_keepdim(1)?)?;
        let shares = pass.drop(&format!("pairs.pooled.{side}"), &shares)?;
        let shares = shares.to_dtype(x.dtype())?;
        Ok(shares.unsqueeze(1)?.matmul(x)?.squeeze(1)?)
    }
}
