//! A layer of BERT, its parts scheduled by hand.

use candle_core::{Result, Tensor};

use super::bert_layer::{Attention, Dropped, DroppedAttention, Layer, OwnedSight};
use crate::nn::{
    Activation, AttentionHalf, Buffer, Buffers, CrossHalf, FfnHalf, Gradients, Host,
    KeptAttentionHalf, KeptCrossHalf, KeptFfnHalf, OnSlices, Separate, Tape, record_on_slices,
};

/// A layer, and its draws.
struct Fused {
    layer: Layer,
    sight: OwnedSight,
    /// Keys and values of another sequence, `(b, m, 2 d)`.
    kv: Option<Tensor>,
    /// Draws the same again in the backward pass, so no factor is kept.
    dropped: Dropped,
}

/// What costs a product to compute again, of all parts.
struct Inside {
    own: Option<KeptAttentionHalf>,
    other: Option<KeptCrossHalf>,
    ffn: KeptFfnHalf,
}

/// Dropout's factors, empty where nothing is left out.
#[derive(Default)]
struct Factors {
    shares: Vec<f32>,
    output: Vec<f32>,
}

impl Factors {
    /// Of attention to `keys` tokens.
    fn of(dropped: &DroppedAttention, x: &Tensor, heads: usize, keys: usize) -> Result<Self> {
        let (b, n, _) = x.dims3()?;
        let shares = dropped.shares.factors(&[b, heads, n, keys])?;
        Ok(Self {
            shares: shares.unwrap_or_default(),
            output: dropped.output.factors(x.dims())?.unwrap_or_default(),
        })
    }
}

/// Runs a layer on slices and notes it on the tape.
pub(super) fn record(
    tape: &Tape,
    layer: &Layer,
    x: &Tensor,
    kv: Option<&Tensor>,
    sight: OwnedSight,
    dropped: Dropped,
) -> Result<Tensor> {
    let own_kv = kv.map(|kv| kv.detach().contiguous()).transpose()?;
    let fused = Fused {
        layer: layer.clone(),
        sight,
        kv: own_kv,
        dropped,
    };
    record_on_slices(tape, fused, x, kv)
}

impl Fused {
    fn own<'a>(
        &'a self,
        attention: &'a Attention,
        x: &Tensor,
        factors: &'a Factors,
    ) -> Result<AttentionHalf<'a>> {
        let (batch, tokens, _) = x.dims3()?;
        Ok(AttentionHalf {
            attention: Separate {
                projections: [&attention.query, &attention.key, &attention.value],
                output: &attention.output,
                heads: attention.n_heads,
            },
            norm: &attention.norm,
            mask: self.sight.own.as_ref(),
            keep_shares: &factors.shares,
            keep_output: &factors.output,
            batch,
            tokens,
        })
    }

    fn own_factors(&self, attention: &Attention, x: &Tensor) -> Result<Factors> {
        Factors::of(&self.dropped.own, x, attention.n_heads, x.dim(1)?)
    }

    fn other<'a>(
        &'a self,
        attention: &'a Attention,
        x: &Tensor,
        kv: &'a Host<'_>,
        factors: &'a Factors,
    ) -> Result<CrossHalf<'a>> {
        let (batch, tokens, width) = x.dims3()?;
        Ok(CrossHalf {
            query: &attention.query,
            output: &attention.output,
            heads: attention.n_heads,
            norm: &attention.norm,
            keys: kv.values().len() / (batch * 2 * width).max(1),
            kv: kv.values(),
            mask: self.sight.other.as_ref(),
            keep_shares: &factors.shares,
            keep_output: &factors.output,
            batch,
            tokens,
        })
    }

    fn other_factors(&self, attention: &Attention, x: &Tensor, kv: &Tensor) -> Result<Factors> {
        Factors::of(&self.dropped.other, x, attention.n_heads, kv.dim(1)?)
    }

    /// The attention to another sequence, and its keys and values.
    fn looking(&self) -> Option<(&Attention, &Tensor)> {
        self.layer.crossattention.as_ref().zip(self.kv.as_ref())
    }

    fn ffn<'a>(&'a self, factors: &'a [f32]) -> FfnHalf<'a> {
        FfnHalf {
            inner: &self.layer.intermediate,
            activation: Activation::Gelu,
            output: &self.layer.output,
            norm: &self.layer.norm,
            keep_output: factors,
        }
    }

    /// The output of attention to the own sequence once more, if the layer has one.
    fn after_own(
        &self,
        x: &Tensor,
        own: Option<&KeptAttentionHalf>,
        buffers: &Buffers,
    ) -> Result<Option<Buffer>> {
        let (Some(attention), Some(kept)) = (&self.layer.attention, own) else {
            return Ok(None);
        };
        let mut out = buffers.take(x.elem_count());
        let none = Factors::default();
        self.own(attention, x, &none)?
            .output_again(&mut out, kept)?;
        Ok(Some(out))
    }

    /// The output of attention to another sequence once more, if the layer has one.
    fn after_other(
        &self,
        x: &Tensor,
        other: Option<&KeptCrossHalf>,
        buffers: &Buffers,
    ) -> Result<Option<Buffer>> {
        let (Some((attention, kv)), Some(kept)) = (self.looking(), other) else {
            return Ok(None);
        };
        let mut out = buffers.take(x.elem_count());
        let (none, kv) = (Factors::default(), Host::of(kv)?);
        self.other(attention, x, &kv, &none)?
            .output_again(&mut out, kept)?;
        Ok(Some(out))
    }
}

impl OnSlices for Fused {
    type Inside = Inside;

    fn forward(&self, x: &Tensor, out: &mut [f32], buffers: &Buffers) -> Result<Inside> {
        let input = Host::of(x)?;
        let mut middle: Option<Buffer> = None;
        let own = match &self.layer.attention {
            None => None,
            Some(attention) => {
                let factors = self.own_factors(attention, x)?;
                let half = self.own(attention, x, &factors)?;
                let mut after = buffers.take(out.len());
                let kept = half.forward(&mut after, input.values(), buffers)?;
                middle = Some(after);
                Some(kept)
            }
        };
        let other = match self.looking() {
            None => None,
            Some((attention, kv)) => {
                let (factors, kv) = (self.other_factors(attention, x, kv)?, Host::of(kv)?);
                let half = self.other(attention, x, &kv, &factors)?;
                let mut after = buffers.take(out.len());
                let before = middle.as_deref().unwrap_or(input.values());
                let kept = half.forward(&mut after, before, buffers)?;
                middle = Some(after);
                Some(kept)
            }
        };
        let factors = self.dropped.ffn.factors(x.dims())?.unwrap_or_default();
        let before = middle.as_deref().unwrap_or(input.values());
        let ffn = self.ffn(&factors).forward(out, before, buffers)?;
        Ok(Inside { own, other, ffn })
    }

    fn backward(
        &self,
        x: &Tensor,
        g: &mut [f32],
        inside: Inside,
        gradients: &mut Gradients,
        buffers: &Buffers,
    ) -> Result<Vec<Option<Tensor>>> {
        let Inside { own, other, ffn } = inside;
        let input = Host::of(x)?;
        {
            let before = match self.after_other(x, other.as_ref(), buffers)? {
                Some(before) => Some(before),
                None => self.after_own(x, own.as_ref(), buffers)?,
            };
            let before = before.as_deref().unwrap_or(input.values());
            let factors = self.dropped.ffn.factors(x.dims())?.unwrap_or_default();
            let half = self.ffn(&factors);
            half.backward(g, before, ffn, gradients, buffers)?;
        }
        let mut by_others = Vec::new();
        if let (Some((attention, kv)), Some(kept)) = (self.looking(), other) {
            let before = self.after_own(x, own.as_ref(), buffers)?;
            let before = before.as_deref().unwrap_or(input.values());
            let factors = self.other_factors(attention, x, kv)?;
            let mut by_kv = vec![0.0; kv.elem_count()];
            let values = Host::of(kv)?;
            let half = self.other(attention, x, &values, &factors)?;
            half.backward(g, &mut by_kv, before, kept, gradients, buffers)?;
            by_others.push(Some(Tensor::from_vec(by_kv, kv.shape(), kv.device())?));
        }
        if let (Some(attention), Some(kept)) = (&self.layer.attention, own) {
            let factors = self.own_factors(attention, x)?;
            let half = self.own(attention, x, &factors)?;
            half.backward(g, input.values(), kept, gradients, buffers)?;
        }
        Ok(by_others)
    }
}
