//! A layer of BERT, its two halves scheduled by hand.

use candle_core::{Result, Tensor};

use super::bert::{Dropped, Layer};
use crate::nn::{
    Activation, AttentionHalf, Buffers, FfnHalf, Gradients, Host, KeptAttentionHalf, KeptFfnHalf,
    Mask, OnSlices, Separate, Tape, record_on_slices,
};

/// A layer, and its draws.
struct Fused {
    layer: Layer,
    mask: Mask,
    /// Draws the same again in the backward pass, so no factor is kept.
    dropped: Dropped,
}

/// What costs a product to compute again, of both halves.
struct Inside {
    attention: KeptAttentionHalf,
    ffn: KeptFfnHalf,
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
    let fused = Fused {
        layer: layer.clone(),
        mask: mask.clone(),
        dropped,
    };
    record_on_slices(tape, fused, x, None)
}

impl Fused {
    fn factors(&self, x: &Tensor) -> Result<Factors> {
        let (b, n, _) = x.dims3()?;
        let (dropped, heads) = (&self.dropped, self.layer.attention.n_heads);
        let shares = dropped.shares.factors(&[b, heads, n, n])?;
        Ok(Factors {
            shares: shares.unwrap_or_default(),
            attention: dropped.attention.factors(x.dims())?.unwrap_or_default(),
            ffn: dropped.ffn.factors(x.dims())?.unwrap_or_default(),
        })
    }

    fn attention<'a>(&'a self, x: &Tensor, factors: &'a Factors) -> Result<AttentionHalf<'a>> {
        let (batch, tokens, _) = x.dims3()?;
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
}

impl OnSlices for Fused {
    type Inside = Inside;

    fn forward(&self, x: &Tensor, out: &mut [f32], buffers: &Buffers) -> Result<Inside> {
        let factors = self.factors(x)?;
        let mut middle = buffers.take(out.len());
        let half = self.attention(x, &factors)?;
        let attention = half.forward(&mut middle, Host::of(x)?.values(), buffers)?;
        let ffn = self.ffn(&factors).forward(out, &middle, buffers)?;
        Ok(Inside { attention, ffn })
    }

    fn backward(
        &self,
        x: &Tensor,
        g: &mut [f32],
        inside: Inside,
        gradients: &mut Gradients,
        buffers: &Buffers,
    ) -> Result<Vec<Option<Tensor>>> {
        let Inside { attention, ffn } = inside;
        let factors = self.factors(x)?;
        let half = self.attention(x, &factors)?;
        {
            let mut middle = buffers.take(g.len());
            half.output_again(&mut middle, &attention)?;
            let ffn_half = self.ffn(&factors);
            ffn_half.backward(g, &middle, ffn, gradients, buffers)?;
        }
        let x = Host::of(x)?;
        half.backward(g, x.values(), attention, gradients, buffers)?;
        Ok(Vec::new())
    }
}
