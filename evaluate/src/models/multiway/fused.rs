//! A multiway block whose two branches are scheduled by hand.

use candle_core::{Result, Tensor};

use super::block::Kept;
use super::{Block, Segment};
use crate::nn::{
    AttentionBranch, Bias, Buffer, Buffers, FfnBranch, Gradients, Host, Keep, KeptAttention, Mask,
    OnSlices, Tape, host_values, record_on_slices,
};

/// A block, and what it is run with.
struct Fused {
    block: Block,
    segments: Vec<Segment>,
    bias: Option<Tensor>,
    mask: Option<Mask>,
    kept: Kept,
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
    let fused = Fused {
        block: block.clone(),
        segments: segments.to_vec(),
        bias: attended.pairs.map(Tensor::contiguous).transpose()?,
        mask: attended.mask.cloned(),
        kept,
    };
    record_on_slices(tape, fused, x, attended.pairs)
}

impl Fused {
    fn attention<'a>(&'a self, x: &Tensor, keep: Option<&'a [f32]>) -> Result<AttentionBranch<'a>> {
        let (batch, tokens, _) = x.dims3()?;
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

    /// Each segment with its number and, unless it is all there is, where its rows stand.
    fn stretches(&self, x: &Tensor) -> Result<Vec<(usize, Segment, Option<Rows>)>> {
        let (_, tokens, width) = x.dims3()?;
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

impl OnSlices for Fused {
    type Inside = Inside;

    fn forward(&self, x: &Tensor, out: &mut [f32], buffers: &Buffers) -> Result<Inside> {
        let mut middle = buffers.take(out.len());
        let keep = self.kept.attn().map(host_values).transpose()?;
        let branch = self.attention(x, keep.as_deref())?;
        let attention = branch.forward(&mut middle, Host::of(x)?.values(), buffers)?;
        let mut ffn = Vec::with_capacity(self.segments.len());
        for (index, segment, rows) in self.stretches(x)? {
            let keep = self.kept.mlp(index).map(host_values).transpose()?;
            let branch = self.ffn(&segment, keep.as_deref())?;
            let Some(rows) = rows else {
                ffn.push(branch.forward(out, &middle, buffers)?);
                continue;
            };
            let part = rows.gather(&middle, buffers);
            let mut result = buffers.take(part.len());
            ffn.push(branch.forward(&mut result, &part, buffers)?);
            rows.scatter(&result, out);
        }
        Ok(Inside {
            attention,
            middle,
            ffn,
        })
    }

    fn backward(
        &self,
        x: &Tensor,
        g: &mut [f32],
        inside: Inside,
        gradients: &mut Gradients,
        buffers: &Buffers,
    ) -> Result<Vec<Option<Tensor>>> {
        let Inside {
            attention,
            middle,
            ffn,
        } = inside;
        for ((index, segment, rows), before) in self.stretches(x)?.into_iter().zip(ffn) {
            let keep = self.kept.mlp(index).map(host_values).transpose()?;
            let branch = self.ffn(&segment, keep.as_deref())?;
            let Some(rows) = rows else {
                branch.backward(g, &middle, before, gradients, buffers)?;
                continue;
            };
            let part = rows.gather(&middle, buffers);
            let mut part_g = rows.gather(g, buffers);
            branch.backward(&mut part_g, &part, before, gradients, buffers)?;
            rows.scatter(&part_g, g);
        }
        drop(middle);
        let keep = self.kept.attn().map(host_values).transpose()?;
        let branch = self.attention(x, keep.as_deref())?;
        let wants_bias = self.bias.as_ref().is_some_and(Tensor::track_op);
        let x = Host::of(x)?;
        let by_bias = branch.backward(g, x.values(), attention, wants_bias, gradients, buffers)?;
        let Some(bias) = &self.bias else {
            return Ok(Vec::new());
        };
        Ok(vec![match by_bias.is_empty() {
            true => None,
            false => Some(Tensor::from_vec(by_bias, bias.shape(), bias.device())?),
        }])
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
