//! A block of the vision transformer, its two branches scheduled by hand.

use candle_core::{Result, Tensor};

use super::vit::{Block, Kept};
use crate::nn::{
    AttentionBranch, Bias, Buffer, Buffers, FfnBranch, Gradients, Host, Keep, KeptAttention,
    OnSlices, Packed, PackedBias, Tape, host_values, record_on_slices,
};

/// A block, and its draws.
struct Fused {
    block: Block,
    kept: Kept,
}

/// What costs a product to compute again.
struct Inside {
    attention: KeptAttention,
    /// Between the two branches, `(b, n, d)`.
    middle: Buffer,
    /// The FFN before its activation.
    ffn: Buffer,
}

/// Runs a block on slices and notes it on the tape.
pub(super) fn record(tape: &Tape, block: &Block, x: &Tensor, kept: Kept) -> Result<Tensor> {
    let block = block.clone();
    record_on_slices(tape, Fused { block, kept }, x, None)
}

impl Fused {
    fn attention<'a>(&'a self, x: &Tensor, keep: Option<&'a [f32]>) -> Result<AttentionBranch<'a>> {
        let (batch, tokens, _) = x.dims3()?;
        let attn = &self.block.attn;
        Ok(AttentionBranch {
            norms: vec![(&self.block.norm1, tokens)],
            attention: Packed {
                qkv: &attn.qkv,
                bias: PackedBias::Whole(attn.qkv.bias()),
                proj: &attn.proj,
                heads: attn.n_heads,
            },
            scale: self.block.ls1.factors(),
            keep: keep.map(|factors| Keep {
                factors,
                rows: tokens,
            }),
            attended: Bias::default(),
            batch,
            tokens,
        })
    }

    fn ffn<'a>(&'a self, x: &Tensor, keep: Option<&'a [f32]>) -> Result<FfnBranch<'a>> {
        let rows = x.dim(1)?;
        Ok(FfnBranch {
            norm: &self.block.norm2,
            mlp: &self.block.mlp,
            scale: self.block.ls2.factors(),
            keep: keep.map(|factors| Keep { factors, rows }),
        })
    }
}

impl OnSlices for Fused {
    type Inside = Inside;

    fn forward(&self, x: &Tensor, out: &mut [f32], buffers: &Buffers) -> Result<Inside> {
        let mut middle = buffers.take(out.len());
        let keep = self.kept.attn.as_ref().map(host_values).transpose()?;
        let attention = self.attention(x, keep.as_deref())?;
        let attention = attention.forward(&mut middle, Host::of(x)?.values(), buffers)?;
        let keep = self.kept.mlp.as_ref().map(host_values).transpose()?;
        let ffn = self.ffn(x, keep.as_deref())?;
        let ffn = ffn.forward(out, &middle, buffers)?;
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
        let keep = self.kept.mlp.as_ref().map(host_values).transpose()?;
        let branch = self.ffn(x, keep.as_deref())?;
        branch.backward(g, &middle, ffn, gradients, buffers)?;
        drop(middle);
        let keep = self.kept.attn.as_ref().map(host_values).transpose()?;
        let branch = self.attention(x, keep.as_deref())?;
        let x = Host::of(x)?;
        branch.backward(g, x.values(), attention, false, gradients, buffers)?;
        Ok(Vec::new())
    }
}
