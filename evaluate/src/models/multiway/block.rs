//! A block of the multiway transformer.

use candle_core::{Result, Tensor};
use merge::Expert;

use super::fused::on_slices;
use super::taped::record;
use super::{Config, Experts};
use crate::Weights;
use crate::nn::{
    Attention, Bias, Buffers, LayerNorm, LayerScale, Mask, Mlp, Pass, Picked, Residual,
};

/// LayerNorm of blocks adds this to the variance.
const EPSILON: f64 = 1e-6;

/// A stretch of a sequence that one expert serves.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Tokens.
    pub len: usize,
    /// The expert that they belong to.
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
    index: usize,
    n_blocks: usize,
    /// Whether drop path draws for each segment of a sequence apart, as VLMo does.
    drops_segments_apart: bool,
}

/// Factors per sequence, `(b)`, of the attention branch and of the FFN branch of each segment.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    attn: Option<Tensor>,
    mlp: Vec<Option<Tensor>>,
}

impl Kept {
    pub(super) fn attn(&self) -> Option<&Tensor> {
        self.attn.as_ref()
    }

    pub(super) fn mlp(&self, segment: usize) -> Option<&Tensor> {
        self.mlp.get(segment)?.as_ref()
    }
}

impl Block {
    /// Loads `{name}.norm1`, `.attn`, `.norm2`, `.mlp`, `.gamma_1` and `.gamma_2`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(
        weights: &Weights,
        name: &str,
        index: usize,
        config: &Config,
    ) -> crate::Result<Self> {
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
            index,
            n_blocks: config.n_blocks,
            drops_segments_apart: config.layout.starts_with("vlmo/"),
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
        attended: Bias<'_>,
        pass: &Pass<'_>,
        buffers: &Buffers,
    ) -> Result<Tensor> {
        let kept = self.kept(x, segments, pass)?;
        let block = on_slices(self, segments, attended, &kept)?;
        match (block, pass.tape()) {
            (Some(block), Some(tape)) if block.is_fusible(tape, x) => block.record(tape, x),
            (Some(block), None) if !pass.is_tapped() && block.runs_alone(x) => {
                block.run(x, buffers)
            }
            (_, Some(tape)) => record(tape, self, x, segments, attended, kept),
            (_, None) => self.compute(x, segments, attended, &kept, pass),
        }
    }

    pub(super) fn norm1(&self, expert: Expert) -> Result<&LayerNorm> {
        self.norm1.of(expert)
    }

    pub(super) fn attention(&self, expert: Expert) -> Result<&Attention> {
        self.attn.of(expert)
    }

    pub(super) fn gamma_1(&self) -> Option<&Tensor> {
        self.gamma_1.factors()
    }

    pub(super) fn norm2(&self, expert: Expert) -> Result<&LayerNorm> {
        self.norm2.of(expert)
    }

    pub(super) fn mlp(&self, expert: Expert) -> Result<&Mlp> {
        self.mlp.of(expert)
    }

    pub(super) fn gamma_2(&self) -> Option<&Tensor> {
        self.gamma_2.factors()
    }

    /// The branches' rows that drop path keeps.
    fn kept(&self, x: &Tensor, segments: &[Segment], pass: &Pass<'_>) -> Result<Kept> {
        let Some(omission) = pass.omission() else {
            return Ok(Kept::default());
        };
        let draw = |branch: &str| {
            omission.branch(self.index, self.n_blocks, branch, x.dim(0)?, x.device())
        };
        let of_segment = |(index, _)| match (self.drops_segments_apart, index) {
            (false, _) | (true, 0) => draw("mlp"),
            (true, _) => draw(&format!("mlp.{index}")),
        };
        Ok(Kept {
            attn: draw("attn")?,
            mlp: (segments.iter().enumerate())
                .map(of_segment)
                .collect::<Result<_>>()?,
        })
    }

    /// The block itself.
    pub(super) fn compute(
        &self,
        x: &Tensor,
        segments: &[Segment],
        attended: Bias<'_>,
        kept: &Kept,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        let Some(first) = segments.first() else {
            return Ok(x.clone());
        };
        let normed = by_segment(segments, x, |_, expert, part| {
            self.norm1.of(expert)?.forward(part)
        })?;
        let attn = self.attn.of(first.expert)?;
        let residual = Residual {
            x,
            scale: self.gamma_1.factors(),
            keep: kept.attn.as_ref(),
        };
        let x = attn.forward(&normed, residual, attended, self.index, pass)?; // (b, n, d)
        let masks = split_mask(segments, attended.mask)?;
        by_segment(segments, &x, |index, expert, part| {
            let normed = self.norm2.of(expert)?.forward(part)?;
            let residual = Residual {
                x: part,
                scale: self.gamma_2.factors(),
                keep: kept.mlp(index),
            };
            let mask = masks.get(index).and_then(Option::as_ref);
            self.mlp.of(expert)?.forward(&normed, residual, mask, pass)
        })
    }

    /// The output of [`Block::forward`] for the first token of a sequence of one segment: `x: (b, n, d) -> (b, 1, d)`.
    /// In the last block most heads look at this alone, and it saves five sixths of the block's work.
    ///
    /// Nobody looks on.
    ///
    /// # Errors
    /// As [`Block::forward`].
    pub fn forward_first(
        &self,
        x: &Tensor,
        segment: Segment,
        attended: Bias<'_>,
        pass: &Pass<'_>,
        buffers: &Buffers,
    ) -> Result<Tensor> {
        let (segments, picked) = ([segment], Picked::first(x.dim(0)?));
        let kept = self.kept(x, &segments, pass)?;
        let block = on_slices(self, &segments, attended, &kept)?;
        match (
            block.and_then(|block| block.picking(picked.clone())),
            pass.tape(),
        ) {
            (Some(block), Some(tape)) if block.is_fusible(tape, x) => block.record(tape, x),
            (Some(block), None) if block.runs_alone(x) => block.run(x, buffers),
            (_, Some(tape)) => {
                let x = record(tape, self, x, &segments, attended, kept)?;
                let [x] = picked.of([&x])?;
                Ok(x)
            }
            (_, None) => self.compute_first(x, segment.expert, attended),
        }
    }

    /// As [`Block::forward_first`], of candle's operations and without omissions.
    fn compute_first(&self, x: &Tensor, expert: Expert, attended: Bias<'_>) -> Result<Tensor> {
        let normed = self.norm1.of(expert)?.forward(x)?;
        let first = x.narrow(1, 0, 1)?.contiguous()?; // (b, 1, d)
        let attn = self.attn.of(expert)?;
        let residual = Residual::scaled(&first, &self.gamma_1);
        let x = attn.forward_first(&normed, residual, attended)?;
        let normed = self.norm2.of(expert)?.forward(&x)?;
        let mlp = self.mlp.of(expert)?;
        let residual = Residual::scaled(&x, &self.gamma_2);
        mlp.forward(&normed, residual, None, &Pass::new())
    }
}

/// Applies `f` to each segment of sequences `(b, n, d)` and puts the results together again; `f`
/// gets the number of the segment, its expert and its tokens.
fn by_segment(
    segments: &[Segment],
    x: &Tensor,
    f: impl Fn(usize, Expert, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    if let [only] = segments {
        return f(0, only.expert, x);
    }
    let mut results = Vec::with_capacity(segments.len());
    let mut from = 0;
    for (index, segment) in segments.iter().enumerate() {
        let part = x.narrow(1, from, segment.len)?.contiguous()?;
        results.push(f(index, segment.expert, &part)?);
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
