//! A layer of BERT on a tape, its two halves scheduled by hand.

use candle_core::{Result, Tensor};

use super::bert::{Dropped, Layer};
use crate::nn::{
    Activation, AttentionHalf, Buffers, FfnHalf, Gradients, Host, KeptHalf, Mask, Recorded,
    Separate, Tape, host_values, in_pool, norm_again,
};

/// A layer that ran on slices, and what its backward pass needs.
struct Fused {
    layer: Layer,
    /// `(b, n, d)`.
    x: Tensor,
    mask: Mask,
    /// Draws the same again in the backward pass, so no factor is kept.
    dropped: Dropped,
    buffers: Buffers,
    /// Computed again where it is missing.
    inside: Option<Inside>,
}

/// What costs a product to compute again, of both halves.
struct Inside {
    attention: KeptHalf,
    ffn: KeptHalf,
}

/// Dropout's factors, empty where nothing is left out.
struct Factors {
    shares: Vec<f32>,
    attention: Vec<f32>,
    ffn: Vec<f32>,
}

/// Runs a layer on slices and notes it on the tape.
pub(super) fn record(
    tape: &Tape,
    layer: &Layer,
    x: &Tensor,
    mask: &Mask,
    dropped: Dropped,
) -> Result<Tensor> {
    let mut fused = Fused {
        layer: layer.clone(),
        x: x.detach().contiguous()?,
        mask: mask.clone(),
        dropped,
        buffers: tape.buffers().clone(),
        inside: None,
    };
    let mut out = vec![0.0; x.elem_count()];
    let inside = in_pool(|| fused.forward(&mut out))?;
    fused.inside = (!tape.keeps_inputs_alone()).then_some(inside);
    tape.record_values(vec![x.clone()], out, x.shape(), Box::new(fused))
}

impl Fused {
    fn factors(&self) -> Result<Factors> {
        let (b, n, _) = self.x.dims3()?;
        let heads = self.layer.attention.n_heads;
        let tokens = self.x.dims();
        Ok(Factors {
            shares: self
                .dropped
                .shares
                .factors(&[b, heads, n, n])?
                .unwrap_or_default(),
            attention: self.dropped.attention.factors(tokens)?.unwrap_or_default(),
            ffn: self.dropped.ffn.factors(tokens)?.unwrap_or_default(),
        })
    }

    fn attention<'a>(&'a self, factors: &'a Factors) -> Result<AttentionHalf<'a>> {
        let (batch, tokens, _) = self.x.dims3()?;
        let attention = &self.layer.attention;
        Ok(AttentionHalf {
            attention: Separate {
                projections: [&attention.query, &attention.key, &attention.value],
                output: &attention.output,
                heads: attention.n_heads,
            },
            norm: &attention.norm,
            mask: Some(&self.mask),
            keep_shares: &factors.shares,
            keep_output: &factors.attention,
            batch,
            tokens,
        })
    }

    fn ffn<'a>(&'a self, factors: &'a Factors) -> FfnHalf<'a> {
        FfnHalf {
            inner: &self.layer.intermediate,
            activation: Activation::Gelu,
            output: &self.layer.output,
            norm: &self.layer.norm,
            keep_output: &factors.ffn,
        }
    }

    fn forward(&self, out: &mut [f32]) -> Result<Inside> {
        let factors = self.factors()?;
        let mut middle = self.buffers.take(out.len());
        let attention = {
            let x = Host::of(&self.x)?;
            let half = self.attention(&factors)?;
            half.forward(&mut middle, x.values(), &self.buffers)?
        };
        let ffn = self.ffn(&factors).forward(out, &middle, &self.buffers)?;
        Ok(Inside { attention, ffn })
    }

    fn gradient_by_x(mut self, by_output: &Tensor, gradients: &mut Gradients) -> Result<Tensor> {
        let mut g = host_values(by_output)?;
        let Inside { attention, ffn } = match self.inside.take() {
            Some(inside) => inside,
            None => self.forward(&mut self.buffers.take(g.len()))?,
        };
        let (factors, buffers) = (self.factors()?, &self.buffers);
        {
            let mut middle = buffers.take(g.len());
            norm_again(&mut middle, &attention, &self.layer.attention.norm)?;
            let half = self.ffn(&factors);
            half.backward(&mut g, &middle, ffn, gradients, buffers)?;
        }
        {
            let x = Host::of(&self.x)?;
            let half = self.attention(&factors)?;
            half.backward(&mut g, x.values(), attention, gradients, buffers)?;
        }
        Tensor::from_vec(g, self.x.shape(), self.x.device())
    }
}

impl Recorded for Fused {
    fn backward(
        self: Box<Self>,
        by_output: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Vec<Option<Tensor>>> {
        let by_x = in_pool(|| self.gradient_by_x(by_output, gradients))?;
        Ok(vec![Some(by_x)])
    }
}
