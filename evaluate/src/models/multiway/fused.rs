//! A block on a tape whose two branches are scheduled by hand.

use candle_core::{Result, Tensor};

use super::block::Kept;
use super::{Block, Segment};
use crate::nn::{
    AttentionBranch, Bias, Buffer, Buffers, FfnBranch, Gradients, Host, Keep, KeptAttention, Mask,
    Recorded, Tape, host_values, in_pool,
};

/// A block that ran on slices, and what its backward pass needs.
pub(super) struct Fused {
    block: Block,
    /// `(b, n, d)`.
    x: Tensor,
    segments: Vec<Segment>,
    bias: Option<Tensor>,
    mask: Option<Mask>,
    kept: Kept,
    buffers: Buffers,
    /// Computed anew where it is not there.
    inside: Option<Inside>,
}

/// What costs a product to compute again.
struct Inside {
    attention: KeptAttention,
    /// Between the two branches, `(b, n, d)`.
    middle: Buffer,
    /// Of each segment.
    ffn: Vec<Buffer>,
}

/// Runs a block on slices and notes it on the tape.
pub(super) fn record_fused(
    tape: &Tape,
    block: &Block,
    x: &Tensor,
    segments: &[Segment],
    attended: Bias<'_>,
    kept: Kept,
) -> Result<Tensor> {
    let mut fused = Fused {
        block: block.clone(),
        x: x.detach().contiguous()?,
        segments: segments.to_vec(),
        bias: attended.pairs.map(Tensor::contiguous).transpose()?,
        mask: attended.mask.cloned(),
        kept,
        buffers: tape.buffers().clone(),
        inside: None,
    };
    let mut out = vec![0.0; x.elem_count()];
    let inside = in_pool(|| fused.forward(&mut out))?;
    fused.inside = (!tape.keeps_inputs_alone()).then_some(inside);
    let mut inputs = vec![x.clone()];
    inputs.extend(attended.pairs.cloned());
    tape.record_values(inputs, out, x.shape(), Box::new(fused))
}

impl Fused {
    fn attention<'a>(&'a self, keep: Option<&'a [f32]>) -> Result<AttentionBranch<'a>> {
        let (batch, tokens, _) = self.x.dims3()?;
        let norms = (self.segments.iter())
            .map(|segment| Ok((self.block.norm1(segment.expert)?, segment.len)));
        Ok(AttentionBranch {
            norms: norms.collect::<Result<_>>()?,
            attention: self.block.attention(self.segments[0].expert)?.packed(),
            scale: self.block.gamma_1(),
            keep: keep.map(|factors| Keep {
                factors,
                rows: tokens,
            }),
            attended: Bias {
                pairs: self.bias.as_ref(),
                mask: self.mask.as_ref(),
            },
            batch,
            tokens,
        })
    }

    fn ffn<'a>(&'a self, segment: &Segment, keep: Option<&'a [f32]>) -> Result<FfnBranch<'a>> {
        Ok(FfnBranch {
            norm: self.block.norm2(segment.expert)?,
            mlp: self.block.mlp(segment.expert)?,
            scale: self.block.gamma_2(),
            keep: keep.map(|factors| Keep {
                factors,
                rows: segment.len,
            }),
        })
    }

    fn forward(&self, out: &mut [f32]) -> Result<Inside> {
        let mut middle = self.buffers.take(out.len());
        let keep = self.kept.attn().map(host_values).transpose()?;
        let attention = {
            let x = Host::of(&self.x)?;
            let branch = self.attention(keep.as_deref())?;
            branch.forward(&mut middle, x.values(), &self.buffers)?
        };
        let mut ffn = Vec::with_capacity(self.segments.len());
        for (index, segment, rows) in self.stretches()? {
            let keep = self.kept.mlp(index).map(host_values).transpose()?;
            let branch = self.ffn(&segment, keep.as_deref())?;
            let Some(rows) = rows else {
                ffn.push(branch.forward(out, &middle, &self.buffers)?);
                continue;
            };
            let part = rows.gather(&middle, &self.buffers);
            let mut result = self.buffers.take(part.len());
            ffn.push(branch.forward(&mut result, &part, &self.buffers)?);
            rows.scatter(&result, out);
        }
        Ok(Inside {
            attention,
            middle,
            ffn,
        })
    }

    /// Each segment with its number and, unless it is all there is, where its rows stand.
    fn stretches(&self) -> Result<Vec<(usize, Segment, Option<Rows>)>> {
        let (_, tokens, width) = self.x.dims3()?;
        let mut from = 0;
        let mut stretches = Vec::with_capacity(self.segments.len());
        for (index, segment) in self.segments.iter().enumerate() {
            let rows = Rows {
                from: from * width,
                len: segment.len * width,
                sequence: tokens * width,
            };
            from += segment.len;
            stretches.push((index, *segment, (self.segments.len() > 1).then_some(rows)));
        }
        Ok(stretches)
    }
}

impl Recorded for Fused {
    fn backward(
        self: Box<Self>,
        by_output: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Vec<Option<Tensor>>> {
        in_pool(|| self.gradients_by_inputs(by_output, gradients))
    }
}

impl Fused {
    fn gradients_by_inputs(
        mut self,
        by_output: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Vec<Option<Tensor>>> {
        let mut g = host_values(by_output)?;
        let inside = match self.inside.take() {
            Some(inside) => inside,
            None => self.forward(&mut self.buffers.take(g.len()))?,
        };
        let Inside {
            attention,
            middle,
            ffn,
        } = inside;
        for ((index, segment, rows), before) in self.stretches()?.into_iter().zip(ffn) {
            let keep = self.kept.mlp(index).map(host_values).transpose()?;
            let branch = self.ffn(&segment, keep.as_deref())?;
            let Some(rows) = rows else {
                branch.backward(&mut g, &middle, before, gradients, &self.buffers)?;
                continue;
            };
            let part = rows.gather(&middle, &self.buffers);
            let mut part_g = rows.gather(&g, &self.buffers);
            branch.backward(&mut part_g, &part, before, gradients, &self.buffers)?;
            rows.scatter(&part_g, &mut g);
        }
        drop(middle);
        let keep = self.kept.attn().map(host_values).transpose()?;
        let by_bias = {
            let x = Host::of(&self.x)?;
            let branch = self.attention(keep.as_deref())?;
            let wants_bias = self.bias.as_ref().is_some_and(Tensor::track_op);
            let buffers = &self.buffers;
            branch.backward(
                &mut g,
                x.values(),
                attention,
                wants_bias,
                gradients,
                buffers,
            )?
        };
        let by_x = Tensor::from_vec(g, self.x.shape(), self.x.device())?;
        let mut by_inputs = vec![Some(by_x)];
        if let Some(bias) = &self.bias {
            by_inputs.push(match by_bias.is_empty() {
                true => None,
                false => Some(Tensor::from_vec(by_bias, bias.shape(), bias.device())?),
            });
        }
        Ok(by_inputs)
    }
}

/// Where the tokens of a segment stand in `(b, n, d)`.
#[derive(Clone, Copy)]
struct Rows {
    /// First element in a sequence.
    from: usize,
    /// Elements in a sequence.
    len: usize,
    /// Elements of a whole sequence.
    sequence: usize,
}

impl Rows {
    /// The segment's rows without gaps.
    fn gather(self, x: &[f32], buffers: &Buffers) -> Buffer {
        let mut part = buffers.take(x.len() / self.sequence * self.len);
        let sequences = x.chunks_exact(self.sequence);
        for (part, x) in part.chunks_exact_mut(self.len).zip(sequences) {
            part.copy_from_slice(&x[self.from..][..self.len]);
        }
        part
    }

    /// Puts them back.
    fn scatter(self, part: &[f32], x: &mut [f32]) {
        let sequences = x.chunks_exact_mut(self.sequence);
        for (part, x) in part.chunks_exact(self.len).zip(sequences) {
            x[self.from..][..self.len].copy_from_slice(part);
        }
    }
}
