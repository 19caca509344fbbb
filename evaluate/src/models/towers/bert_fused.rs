//! A layer of BERT, its parts scheduled by hand.

use candle_core::{Result, Tensor};

use super::bert_layer::{Attention, Dropped, DroppedAttention, Layer};
use crate::nn::{
    Activation, AttentionHalf, Buffer, Buffers, CrossHalf, FfnHalf, Gradients, Host,
    KeptAttentionHalf, KeptCrossHalf, KeptFfnHalf, OnSlices, Packing, Sees, Separate, Tape,
    in_pool, project_rows, record_on_slices,
};

/// A layer, and its draws.
struct Fused {
    layer: Layer,
    looks: Looks,
    /// Keys and values of another sequence, side by side, `2 d` wide.
    kv: Option<Tensor>,
    /// Draws the same again in the backward pass, so no factor is kept.
    dropped: Dropped,
}

/// The keys that rows see of their own sequence and of another one, as far as they look at it.
#[derive(Clone)]
pub(super) struct Looks {
    pub own: Option<Sees>,
    pub other: Option<Sees>,
}

/// The parts of all halves that would cost a product to compute again.
struct Inside {
    own: Option<KeptAttentionHalf>,
    other: Option<KeptCrossHalf>,
    ffn: KeptFfnHalf,
}

/// The values that both attentions keep.
type KeptAttentions = (Option<KeptAttentionHalf>, Option<KeptCrossHalf>);

/// Dropout's factors, empty where nothing is left out.
#[derive(Default)]
struct Factors {
    shares: Vec<f32>,
    output: Vec<f32>,
}

impl Factors {
    fn of(dropped: &DroppedAttention, sees: &Sees, attention: &Attention) -> Result<Self> {
        let width = attention.output.weight().dim(0)?;
        Ok(Self {
            shares: sees.share_factors(&dropped.shares, attention.n_heads)?,
            output: sees.row_factors(&dropped.output, width)?,
        })
    }
}

/// Runs a layer on slices and notes it on the tape.
pub(super) fn record(
    tape: &Tape,
    layer: &Layer,
    x: &Tensor,
    kv: Option<&Tensor>,
    looks: Looks,
    dropped: Dropped,
) -> Result<Tensor> {
    let fused = Fused::new(layer, kv, looks, dropped)?;
    record_on_slices(tape, fused, x, kv)
}

/// Runs a layer on slices, without gradients.
pub(super) fn run(
    layer: &Layer,
    x: &Tensor,
    kv: Option<&Tensor>,
    looks: Looks,
    dropped: Dropped,
    buffers: &Buffers,
) -> Result<Tensor> {
    let fused = Fused::new(layer, kv, looks, dropped)?;
    let x = x.contiguous()?;
    let mut out = vec![0.0; x.elem_count()];
    in_pool(|| fused.forward_alone(Host::of(&x)?.values(), &mut out, buffers))?;
    Tensor::from_vec(out, x.shape(), x.device())
}

/// The first token of each text alone after a layer that looks at nothing else, where nothing is left out at
/// random and there are no gradients: `x: (1, r, d) -> (1, b, d)`.
pub(super) fn run_first(
    layer: &Layer,
    x: &Tensor,
    packing: &Packing,
    sees: &Sees,
    buffers: &Buffers,
) -> Result<Tensor> {
    let Some(attention) = &layer.attention else {
        candle_core::bail!("the layer does not look at its own sequence");
    };
    let (x, firsts) = (x.contiguous()?, packing.firsts(x)?);
    let mut out = vec![0.0; firsts.elem_count()];
    in_pool(|| {
        let (x, firsts) = (Host::of(&x)?, Host::of(&firsts)?);
        let kv = project_rows(x.values(), [&attention.key, &attention.value], buffers)?;
        let none = Factors::default();
        let half = attention.asking(&kv, sees, &none);
        let mut after = buffers.take(out.len());
        half.forward(&mut after, firsts.values(), buffers)?;
        layer.ffn(&[]).forward_alone(&mut out, &after, buffers)
    })?;
    Tensor::from_vec(out, firsts.shape(), firsts.device())
}

impl Attention {
    fn among_each_other<'a>(&'a self, sees: &'a Sees, factors: &'a Factors) -> AttentionHalf<'a> {
        AttentionHalf {
            attention: Separate {
                projections: [&self.query, &self.key, &self.value],
                output: &self.output,
                heads: self.n_heads,
            },
            norm: &self.norm,
            sees,
            keep_shares: &factors.shares,
            keep_output: &factors.output,
        }
    }

    fn asking<'a>(&'a self, kv: &'a [f32], sees: &'a Sees, factors: &'a Factors) -> CrossHalf<'a> {
        CrossHalf {
            query: &self.query,
            output: &self.output,
            heads: self.n_heads,
            norm: &self.norm,
            kv,
            sees,
            keep_shares: &factors.shares,
            keep_output: &factors.output,
        }
    }
}

impl Layer {
    fn ffn<'a>(&'a self, factors: &'a [f32]) -> FfnHalf<'a> {
        FfnHalf {
            inner: &self.intermediate,
            activation: Activation::Gelu,
            output: &self.output,
            norm: &self.norm,
            keep_output: factors,
        }
    }
}

impl Fused {
    fn new(layer: &Layer, kv: Option<&Tensor>, looks: Looks, dropped: Dropped) -> Result<Self> {
        Ok(Self {
            layer: layer.clone(),
            looks,
            kv: kv.map(|kv| kv.detach().contiguous()).transpose()?,
            dropped,
        })
    }

    /// The attention to the own sequence, and its mask.
    fn own(&self) -> Option<(&Attention, &Sees)> {
        self.layer.attention.as_ref().zip(self.looks.own.as_ref())
    }

    /// The attention to another sequence, its mask, and its keys and values.
    fn other(&self) -> Option<(&Attention, &Sees, &Tensor)> {
        let attention = self.layer.crossattention.as_ref()?;
        Some((attention, self.looks.other.as_ref()?, self.kv.as_ref()?))
    }

    fn ffn_factors(&self) -> Result<Vec<f32>> {
        let width = self.layer.output.weight().dim(0)?;
        match self.looks.own.as_ref().or(self.looks.other.as_ref()) {
            Some(sees) => sees.row_factors(&self.dropped.ffn, width),
            None => candle_core::bail!("a layer that looks at nothing"),
        }
    }

    /// Both attentions: their output, `None` if the layer has neither, and the values that they keep.
    fn attend(&self, x: &[f32], buffers: &Buffers) -> Result<(Option<Buffer>, KeptAttentions)> {
        let mut middle: Option<Buffer> = None;
        let own = match self.own() {
            None => None,
            Some((attention, sees)) => {
                let factors = Factors::of(&self.dropped.own, sees, attention)?;
                let half = attention.among_each_other(sees, &factors);
                let mut after = buffers.take(x.len());
                let kept = half.forward(&mut after, x, buffers)?;
                middle = Some(after);
                Some(kept)
            }
        };
        let other = match self.other() {
            None => None,
            Some((attention, sees, kv)) => {
                let factors = Factors::of(&self.dropped.other, sees, attention)?;
                let kv = Host::of(kv)?;
                let half = attention.asking(kv.values(), sees, &factors);
                let mut after = buffers.take(x.len());
                let before = middle.as_deref().unwrap_or(x);
                let kept = half.forward(&mut after, before, buffers)?;
                middle = Some(after);
                Some(kept)
            }
        };
        Ok((middle, (own, other)))
    }

    fn forward_alone(&self, x: &[f32], out: &mut [f32], buffers: &Buffers) -> Result<()> {
        let (middle, _) = self.attend(x, buffers)?;
        let factors = self.ffn_factors()?;
        let before = middle.as_deref().unwrap_or(x);
        self.layer.ffn(&factors).forward_alone(out, before, buffers)
    }

    /// The output of attention to the own sequence once more, if the layer has one.
    fn after_own(
        &self,
        n: usize,
        own: Option<&KeptAttentionHalf>,
        buffers: &Buffers,
    ) -> Result<Option<Buffer>> {
        let (Some((attention, sees)), Some(kept)) = (self.own(), own) else {
            return Ok(None);
        };
        let mut out = buffers.take(n);
        let none = Factors::default();
        let half = attention.among_each_other(sees, &none);
        half.output_again(&mut out, kept)?;
        Ok(Some(out))
    }

    /// The output of attention to another sequence once more, if the layer has one.
    fn after_other(
        &self,
        n: usize,
        other: Option<&KeptCrossHalf>,
        buffers: &Buffers,
    ) -> Result<Option<Buffer>> {
        let (Some((attention, sees, kv)), Some(kept)) = (self.other(), other) else {
            return Ok(None);
        };
        let mut out = buffers.take(n);
        let (none, kv) = (Factors::default(), Host::of(kv)?);
        let half = attention.asking(kv.values(), sees, &none);
        half.output_again(&mut out, kept)?;
        Ok(Some(out))
    }
}

impl OnSlices for Fused {
    type Inside = Inside;

    fn forward(&self, x: &Tensor, out: &mut [f32], buffers: &Buffers) -> Result<Inside> {
        let input = Host::of(x)?;
        let (middle, (own, other)) = self.attend(input.values(), buffers)?;
        let factors = self.ffn_factors()?;
        let before = middle.as_deref().unwrap_or(input.values());
        let ffn = self.layer.ffn(&factors).forward(out, before, buffers)?;
        Ok(Inside { own, other, ffn })
    }

    fn backward(
        &self,
        x: &Tensor,
        g: &mut Vec<f32>,
        inside: Inside,
        gradients: &mut Gradients,
        buffers: &Buffers,
    ) -> Result<Vec<Option<Tensor>>> {
        let Inside { own, other, ffn } = inside;
        let (input, n) = (Host::of(x)?, g.len());
        {
            let before = match self.after_other(n, other.as_ref(), buffers)? {
                Some(before) => Some(before),
                None => self.after_own(n, own.as_ref(), buffers)?,
            };
            let before = before.as_deref().unwrap_or(input.values());
            let factors = self.ffn_factors()?;
            let half = self.layer.ffn(&factors);
            half.backward(g, before, ffn, gradients, buffers)?;
        }
        let mut by_others = Vec::new();
        if let (Some((attention, sees, kv)), Some(kept)) = (self.other(), other) {
            let before = self.after_own(n, own.as_ref(), buffers)?;
            let before = before.as_deref().unwrap_or(input.values());
            let factors = Factors::of(&self.dropped.other, sees, attention)?;
            let mut by_kv = vec![0.0; kv.elem_count()];
            let values = Host::of(kv)?;
            let half = attention.asking(values.values(), sees, &factors);
            half.backward(g, &mut by_kv, before, kept, gradients, buffers)?;
            by_others.push(Some(Tensor::from_vec(by_kv, kv.shape(), kv.device())?));
        }
        if let (Some((attention, sees)), Some(kept)) = (self.own(), own) {
            let factors = Factors::of(&self.dropped.own, sees, attention)?;
            let half = attention.among_each_other(sees, &factors);
            half.backward(g, input.values(), kept, gradients, buffers)?;
        }
        Ok(by_others)
    }
}
