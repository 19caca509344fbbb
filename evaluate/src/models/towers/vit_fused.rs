//! A block of the vision transformer on a tape, its two branches scheduled by hand.

use candle_core::{Result, Tensor};

use super::vit::{Block, Kept};
use crate::nn::{
    AttentionBranch, Bias, Buffer, Buffers, FfnBranch, Gradients, Host, Keep, KeptAttention,
    Packed, PackedBias, Recorded, Tape, host_values, in_pool,
};

/// A block that ran on slices, and what its backward pass needs.
struct Fused {
    block: Block,
    /// `(b, n, d)`.
    x: Tensor,
    kept: Kept,
    buffers: Buffers,
    /// Computed again where it is missing.
    inside: Option<Inside>,
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
    let mut fused = Fused {
        block: block.clone(),
        x: x.detach().contiguous()?,
        kept,
        buffers: tape.buffers().clone(),
        inside: None,
    };
    let mut out = vec![0.0; x.elem_count()];
    let inside = in_pool(|| fused.forward(&mut out))?;
    fused.inside = (!tape.keeps_inputs_alone()).then_some(inside);
    tape.record_values(vec![x.clone()], out, x.shape(), Box::new(fused))
}

impl Fused {
    fn attention<'a>(&'a self, keep: Option<&'a [f32]>) -> Result<AttentionBranch<'a>> {
        let (batch, tokens, _) = self.x.dims3()?;
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
            keep: self.keep(keep)?,
            attended: Bias::default(),
            batch,
            tokens,
        })
    }

    fn ffn<'a>(&'a self, keep: Option<&'a [f32]>) -> Result<FfnBranch<'a>> {
        Ok(FfnBranch {
            norm: &self.block.norm2,
            mlp: &self.block.mlp,
            scale: self.block.ls2.factors(),
            keep: self.keep(keep)?,
        })
    }

    fn keep<'a>(&self, factors: Option<&'a [f32]>) -> Result<Option<Keep<'a>>> {
        let rows = self.x.dim(1)?;
        Ok(factors.map(|factors| Keep { factors, rows }))
    }

    fn forward(&self, out: &mut [f32]) -> Result<Inside> {
        let mut middle = self.buffers.take(out.len());
        let keep = self.kept.attn.as_ref().map(host_values).transpose()?;
        let attention = {
            let x = Host::of(&self.x)?;
            let branch = self.attention(keep.as_deref())?;
            branch.forward(&mut middle, x.values(), &self.buffers)?
        };
        let keep = self.kept.mlp.as_ref().map(host_values).transpose()?;
        let ffn = self.ffn(keep.as_deref())?;
        let ffn = ffn.forward(out, &middle, &self.buffers)?;
        Ok(Inside {
            attention,
            middle,
            ffn,
        })
    }

    fn gradient_by_x(mut self, by_output: &Tensor, gradients: &mut Gradients) -> Result<Tensor> {
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
        let buffers = &self.buffers;
        let keep = self.kept.mlp.as_ref().map(host_values).transpose()?;
        let branch = self.ffn(keep.as_deref())?;
        branch.backward(&mut g, &middle, ffn, gradients, buffers)?;
        drop(middle);
        let keep = self.kept.attn.as_ref().map(host_values).transpose()?;
        {
            let x = Host::of(&self.x)?;
            let branch = self.attention(keep.as_deref())?;
            branch.backward(&mut g, x.values(), attention, false, gradients, buffers)?;
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
