//! The two halves of a block with norms after its residual sums, as BERT has them.

use candle_core::Result;
use faer::Accum;

use super::projections::{project, projections_backward};
use super::sees::Sees;
use super::{input_gradient, norm_backward, norm_into, output, weight_gradient};
use crate::nn::cpu::attention::{self, Asked};
use crate::nn::cpu::gemm::{Matrix, product};
use crate::nn::cpu::host::Host;
use crate::nn::cpu::slices::{self, Then};
use crate::nn::{Activation, Buffer, Buffers, Gradients, LayerNorm, Linear};

/// The weights of a self-attention with separate projections, and of the layer after it.
#[derive(Clone, Copy)]
pub(crate) struct Separate<'a> {
    /// Queries, keys, values: `(d, d)` each.
    pub projections: [&'a Linear; 3],
    pub output: &'a Linear,
    pub heads: usize,
}

/// `norm(x + drop(output(attention(x))))`.
pub(crate) struct AttentionHalf<'a> {
    pub attention: Separate<'a>,
    pub norm: &'a LayerNorm,
    /// The mask over tokens.
    pub sees: &'a Sees,
    /// Dropout's factors of the shares, `(b, h, n, n)`, or nothing.
    pub keep_shares: &'a [f32],
    /// Dropout's factors of the output, `(b, n, d)`, or nothing.
    pub keep_output: &'a [f32],
}

/// `norm(x + drop(output(activation(inner(x)))))`.
#[derive(Clone, Copy)]
pub(crate) struct FfnHalf<'a> {
    pub inner: &'a Linear,
    pub activation: Activation,
    pub output: &'a Linear,
    pub norm: &'a LayerNorm,
    /// Dropout's factors of the output, `(m, d)`, or nothing.
    pub keep_output: &'a [f32],
}

/// The values that the backward pass of an attention half needs.
pub(crate) struct KeptAttentionHalf {
    /// Queries, keys and values, `(b, n, 3 d)`.
    qkv: Buffer,
    /// Before the norm, `(b, n, d)`.
    sum: Buffer,
}

/// The values that the backward pass of an FFN half needs.
pub(crate) struct KeptFfnHalf {
    /// Before the activation, `(m, f)`.
    before: Buffer,
    /// Before the norm, `(m, d)`.
    sum: Buffer,
}

/// The end of a half: `norm(x + drop(y Wᵀ + b))`.
#[derive(Clone, Copy)]
pub(super) struct Tail<'a> {
    pub linear: &'a Linear,
    pub norm: &'a LayerNorm,
    pub keep: &'a [f32],
}

impl Tail<'_> {
    /// `y: (m, k)`, `x: (m, d)` to `out: (m, d)`. Gives what stands before the norm.
    pub fn forward(
        self,
        out: &mut [f32],
        y: &[f32],
        x: &[f32],
        buffers: &Buffers,
    ) -> Result<Buffer> {
        let k = self.linear.weight().dim(1)?;
        let mut sum = buffers.take(x.len());
        {
            let weight = Host::of(self.linear.weight())?;
            let bias = Host::of(self.linear.bias())?;
            let then = match self.keep.is_empty() {
                true => Then::Add {
                    residual: x,
                    scale: None,
                    keep: None,
                },
                false => Then::Nothing,
            };
            slices::linear_into(&mut sum, y, weight.values(), bias.values(), k, then);
        }
        if !self.keep.is_empty() {
            slices::scaled_onto(&mut sum, x, self.keep);
        }
        norm_into(out, &sum, self.norm)?;
        Ok(sum)
    }

    /// From `g: (m, d)`, the gradient by the output: those by the sum before the norm, which is also
    /// that by `x` through the sum, and by `y`.
    pub fn backward(
        self,
        g: &[f32],
        y: &[f32],
        sum: &[f32],
        gradients: &mut Gradients,
        buffers: &Buffers,
    ) -> Result<[Buffer; 2]> {
        let mut by_sum = buffers.take(g.len());
        by_sum.fill(0.0);
        norm_backward(&mut by_sum, g, sum, self.norm, gradients)?;
        let scaled = match self.keep.is_empty() {
            true => None,
            false => {
                let mut scaled = buffers.take(g.len());
                slices::scaled_into(&mut scaled, &by_sum, self.keep);
                Some(scaled)
            }
        };
        let by_linear = scaled.as_deref().unwrap_or(&by_sum);
        let by_bias = weight_gradient(self.linear.weight(), by_linear, y, gradients, buffers)?;
        gradients.add_values(self.linear.bias(), &by_bias);
        let by_y = input_gradient(self.linear, by_linear, buffers)?;
        drop(scaled);
        Ok([by_sum, by_y])
    }
}

impl<'a> AttentionHalf<'a> {
    fn tail(&self) -> Tail<'a> {
        Tail {
            linear: self.attention.output,
            norm: self.norm,
            keep: self.keep_output,
        }
    }

    /// `x: (b, n, d)` to `out: (b, n, d)`.
    pub fn forward(
        &self,
        out: &mut [f32],
        x: &[f32],
        buffers: &Buffers,
    ) -> Result<KeptAttentionHalf> {
        let width = self.attention.output.weight().dim(0)?;
        let mut qkv = buffers.take(3 * x.len());
        project(&mut qkv, x, self.attention.projections, width)?;
        let mixed = self.mixed(&qkv, width, buffers)?;
        let sum = self.tail().forward(out, &mixed, x, buffers)?;
        Ok(KeptAttentionHalf { qkv, sum })
    }

    /// Attention's output, `(b, n, d)`, from `qkv: (b, n, 3 d)`.
    fn mixed(&self, qkv: &[f32], width: usize, buffers: &Buffers) -> Result<Buffer> {
        let mut mixed = buffers.take(qkv.len() / 3);
        let hidden = self.sees.hidden()?;
        let sizes = self.sees.sizes(self.attention.heads, width);
        let added = hidden.added(self.keep_shares);
        attention::forward_into(&mut mixed, Asked::packed(qkv, sizes), added, sizes);
        Ok(mixed)
    }

    /// The output once more, into `out`: the norm of the sum that is kept.
    pub fn output_again(&self, out: &mut [f32], kept: &KeptAttentionHalf) -> Result<()> {
        norm_into(out, &kept.sum, self.norm)
    }

    /// Turns `g: (b, n, d)`, the gradient by the output, into the one by `x`.
    pub fn backward(
        &self,
        g: &mut [f32],
        x: &[f32],
        kept: KeptAttentionHalf,
        gradients: &mut Gradients,
        buffers: &Buffers,
    ) -> Result<()> {
        let width = self.attention.output.weight().dim(0)?;
        let KeptAttentionHalf { qkv, sum } = kept;
        let (tail, hidden) = (self.tail(), self.sees.hidden()?);
        let mixed = self.mixed(&qkv, width, buffers)?;
        let [by_sum, by_mixed] = tail.backward(g, &mixed, &sum, gradients, buffers)?;
        drop((mixed, sum));
        let mut by_qkv = buffers.take(qkv.len()); // (b, n, 3 d)
        let added = hidden.added(self.keep_shares);
        let sizes = self.sees.sizes(self.attention.heads, width);
        attention::gradients_into(&mut by_qkv, &by_mixed, &qkv, added, sizes, false);
        drop((qkv, by_mixed));
        g.copy_from_slice(&by_sum);
        projections_backward(
            Some(g),
            &by_qkv,
            x,
            self.attention.projections,
            gradients,
            buffers,
        )
    }
}

impl<'a> FfnHalf<'a> {
    fn tail(&self) -> Tail<'a> {
        Tail {
            linear: self.output,
            norm: self.norm,
            keep: self.keep_output,
        }
    }

    /// `x: (m, d)` to `out: (m, d)`.
    pub fn forward(&self, out: &mut [f32], x: &[f32], buffers: &Buffers) -> Result<KeptFfnHalf> {
        let before = output(self.inner, x, buffers)?; // (m, f)
        let mut after = buffers.take(before.len());
        slices::activate_into(&mut after, &before, self.activation);
        let sum = self.tail().forward(out, &after, x, buffers)?;
        Ok(KeptFfnHalf { before, sum })
    }

    /// [`FfnHalf::forward`] where nobody goes back.
    pub fn forward_alone(&self, out: &mut [f32], x: &[f32], buffers: &Buffers) -> Result<()> {
        let (inner, width) = self.inner.weight().dims2()?;
        let mut after = buffers.take(x.len() / width * inner); // (m, f)
        let (weight, bias) = (Host::of(self.inner.weight())?, Host::of(self.inner.bias())?);
        let then = Then::Activate(self.activation);
        slices::linear_into(&mut after, x, weight.values(), bias.values(), width, then);
        self.tail().forward(out, &after, x, buffers).map(drop)
    }

    /// Turns `g: (m, d)`, the gradient by the output, into the one by `x`.
    pub fn backward(
        &self,
        g: &mut [f32],
        x: &[f32],
        kept: KeptFfnHalf,
        gradients: &mut Gradients,
        buffers: &Buffers,
    ) -> Result<()> {
        let KeptFfnHalf { mut before, sum } = kept;
        let mut after = buffers.take(before.len());
        slices::activate_into(&mut after, &before, self.activation);
        let tail = self.tail();
        let [by_sum, mut by_inner] = tail.backward(g, &after, &sum, gradients, buffers)?;
        drop((after, sum));
        slices::activate_backward_in_place(&mut by_inner, &mut before, self.activation);
        drop(before);
        let by_bias = weight_gradient(self.inner.weight(), &by_inner, x, gradients, buffers)?;
        gradients.add_values(self.inner.bias(), &by_bias);
        g.copy_from_slice(&by_sum);
        let (inner, width) = self.inner.weight().dims2()?;
        let weight = Host::of(self.inner.weight())?;
        let weight = Matrix::packed(weight.values(), inner, width).view();
        let rows = by_inner.len() / inner;
        let by_inner = Matrix::packed(&by_inner, rows, inner);
        product(g, by_inner.view(), weight, Accum::Add);
        Ok(())
    }
}
