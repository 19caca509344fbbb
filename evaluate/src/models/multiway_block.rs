//! A block of the multiway transformer.

use candle_core::{Result, Tensor};
use merge::Expert;

use super::{Config, Experts};
use crate::Weights;
use crate::nn::{Attended, Attention, LayerNorm, LayerScale, Mask, Mlp, Pass};

/// LayerNorm of blocks adds this to the variance.
const EPSILON: f64 = 1e-6;

/// A stretch of a sequence that one expert serves.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Tokens.
    pub len: usize,
    /// Whom they belong to.
    pub expert: Expert,
}

/// Attention and FFN with residual branches, norms before each, and a copy of some or all of these
/// per modality. LayerScale is shared in every form.
#[derive(Clone, Debug)]
pub struct Block {
    norm1: Experts<LayerNorm>,
    attn: Experts<Attention>,
    norm2: Experts<LayerNorm>,
    mlp: Experts<Mlp>,
    gamma_1: LayerScale,
    gamma_2: LayerScale,
}

impl Block {
    /// Loads `{name}.norm1`, `.attn`, `.norm2`, `.mlp`, `.gamma_1` and `.gamma_2`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, name: &str, config: &Config) -> crate::Result<Self> {
        let width = config.width;
        let part = |part: &str| format!("{name}.{part}");
        let norm = |name: &str| LayerNorm::load(weights, name, width, EPSILON);
        let scale = |name: &str| match config.has_layer_scale {
            true => LayerScale::load(weights, name, width),
            false => Ok(LayerScale::none()),
        };
        Ok(Self {
            norm1: Experts::load(weights, &part("norm1"), norm)?,
            attn: Experts::load(weights, &part("attn"), |name| {
                Attention::load(weights, name, width, config.n_heads)
            })?,
            norm2: Experts::load(weights, &part("norm2"), norm)?,
            mlp: Experts::load(weights, &part("mlp"), |name| {
                Mlp::load(weights, name, width, config.ffn_width)
            })?,
            gamma_1: scale(&part("gamma_1"))?,
            gamma_2: scale(&part("gamma_2"))?,
        })
    }

    /// `x: (b, n, d) -> (b, n, d)`, where all tokens attend to all. Norms and FFN go by segment;
    /// attention is the first segment's, which serves all where experts own attention.
    ///
    /// # Errors
    /// When the block lacks an expert, shapes do not fit or the device fails.
    pub fn forward(
        &self,
        x: &Tensor,
        segments: &[Segment],
        attended: Attended<'_>,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        let Some(first) = segments.first() else {
            return Ok(x.clone());
        };
        let normed = by_segment(segments, &[x], |expert, parts| {
            self.norm1.of(expert)?.forward(&parts[0])
        })?;
        let attn = self.attn.of(first.expert)?;
        let x = attn.forward(&normed, x, &self.gamma_1, attended, pass)?; // (b, n, d)
        let masks = split_mask(segments, attended.mask)?;
        let mut masks = masks.iter();
        by_segment(segments, &[&x], |expert, parts| {
            let mask = masks.next().and_then(Option::as_ref);
            let normed = self.norm2.of(expert)?.forward(&parts[0])?;
            let mlp = self.mlp.of(expert)?;
            mlp.forward(&normed, &parts[0], &self.gamma_2, mask, pass)
        })
    }

    /// What [`Block::forward`] gives for the first token of a sequence of one segment:
    /// `x: (b, n, d) -> (b, 1, d)`. In the last block that is all that most heads look at, and it
    /// saves five sixths of the block's work.
    ///
    /// # Errors
    /// As [`Block::forward`].
    pub fn forward_first(
        &self,
        x: &Tensor,
        expert: Expert,
        attended: Attended<'_>,
    ) -> Result<Tensor> {
        let normed = self.norm1.of(expert)?.forward(x)?;
        let first = x.narrow(1, 0, 1)?.contiguous()?; // (b, 1, d)
        let attn = self.attn.of(expert)?;
        let x = attn.forward_first(&normed, &first, &self.gamma_1, attended)?;
        let normed = self.norm2.of(expert)?.forward(&x)?;
        let mlp = self.mlp.of(expert)?;
        mlp.forward(&normed, &x, &self.gamma_2, None, &Pass::new())
    }
}

/// Applies `f` to each segment of sequences `(b, n, d)` and puts the results together again.
fn by_segment(
    segments: &[Segment],
    tensors: &[&Tensor],
    mut f: impl FnMut(Expert, &[Tensor]) -> Result<Tensor>,
) -> Result<Tensor> {
    if let [only] = segments {
        let whole: Vec<Tensor> = tensors.iter().map(|&tensor| tensor.clone()).collect();
        return f(only.expert, &whole);
    }
    let mut results = Vec::with_capacity(segments.len());
    let mut from = 0;
    for segment in segments {
        let parts = tensors
            .iter()
            .map(|t| t.narrow(1, from, segment.len)?.contiguous());
        results.push(f(segment.expert, &parts.collect::<Result<Vec<_>>>()?)?);
        from += segment.len;
    }
    Tensor::cat(&results, 1)
}

fn split_mask(segments: &[Segment], mask: Option<&Mask>) -> Result<Vec<Option<Mask>>> {
    let mut from = 0;
    let parts = segments.iter().map(|segment| {
        let part = mask.map(|mask| mask.narrow(from, segment.len)).transpose();
        from += segment.len;
        part
    });
    parts.collect()
}
