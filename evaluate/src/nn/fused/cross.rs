//! The half of a block that looks at another sequence, norm after its residual sum.

use candle_core::Result;
use faer::Accum;

use super::post_norm::Tail;
use super::sees::Sees;
use super::{norm_into, output, weight_gradient};
use crate::nn::cpu::attention::{self, Asked};
use crate::nn::cpu::gemm::{Matrix, product};
use crate::nn::cpu::host::Host;
use crate::nn::cpu::sequences::Sizes;
use crate::nn::{Buffer, Buffers, Gradients, LayerNorm, Linear};

/// `norm(x + drop(output(attention(query(x), keys and values))))`.
pub(crate) struct CrossHalf<'a> {
    pub query: &'a Linear,
    pub output: &'a Linear,
    pub heads: usize,
    pub norm: &'a LayerNorm,
    /// Keys and values of the other sequence side by side, `(b, m, 2 d)`.
    pub kv: &'a [f32],
    /// The mask over it.
    pub sees: &'a Sees,
    /// Dropout's factors of the shares, `(b, h, n, m)`, or nothing.
    pub keep_shares: &'a [f32],
    /// Dropout's factors of the output, `(b, n, d)`, or nothing.
    pub keep_output: &'a [f32],
}

/// The values that the backward pass of a cross half needs.
pub(crate) struct KeptCrossHalf {
    /// Queries, `(b, n, d)`.
    q: Buffer,
    /// Before the norm, `(b, n, d)`.
    sum: Buffer,
}

impl<'a> CrossHalf<'a> {
    fn tail(&self) -> Tail<'a> {
        Tail {
            linear: self.output,
            norm: self.norm,
            keep: self.keep_output,
        }
    }

    fn sizes(&self) -> Result<Sizes<'a>> {
        Ok(self.sees.sizes(self.heads, self.query.weight().dim(0)?))
    }

    /// `x: (b, n, d)` to `out: (b, n, d)`.
    pub fn forward(&self, out: &mut [f32], x: &[f32], buffers: &Buffers) -> Result<KeptCrossHalf> {
        let q = output(self.query, x, buffers)?;
        let mixed = self.mixed(&q, buffers)?;
        let sum = self.tail().forward(out, &mixed, x, buffers)?;
        Ok(KeptCrossHalf { q, sum })
    }

    /// Attention's output, `(b, n, d)`, from its queries.
    fn mixed(&self, q: &[f32], buffers: &Buffers) -> Result<Buffer> {
        let mut mixed = buffers.take(q.len());
        let (hidden, sizes) = (self.sees.hidden()?, self.sizes()?);
        let asked = Asked::apart(q, self.kv, sizes);
        attention::forward_into(&mut mixed, asked, hidden.added(self.keep_shares), sizes);
        Ok(mixed)
    }

    /// The output once more, into `out`: the norm of the sum that is kept.
    pub fn output_again(&self, out: &mut [f32], kept: &KeptCrossHalf) -> Result<()> {
        norm_into(out, &kept.sum, self.norm)
    }

    /// Turns `g: (b, n, d)`, the gradient by the output, into the one by `x`, and writes the one by keys and
    /// values into `by_kv: (b, m, 2 d)`.
    pub fn backward(
        &self,
        g: &mut [f32],
        by_kv: &mut [f32],
        x: &[f32],
        kept: KeptCrossHalf,
        gradients: &mut Gradients,
        buffers: &Buffers,
    ) -> Result<()> {
        if self.sees.shares_keys() {
            candle_core::bail!("no gradient of a sequence that stands for several");
        }
        let KeptCrossHalf { q, sum } = kept;
        let (hidden, sizes) = (self.sees.hidden()?, self.sizes()?);
        let mixed = self.mixed(&q, buffers)?;
        let [by_sum, by_mixed] = self.tail().backward(g, &mixed, &sum, gradients, buffers)?;
        drop((mixed, sum));
        let mut by_q = buffers.take(q.len()); // (b, n, d)
        let by = [&mut by_q[..], by_kv];
        let (qkv, added) = ([&q[..], self.kv], hidden.added(self.keep_shares));
        attention::gradients_apart_into(by, &by_mixed, qkv, added, sizes);
        drop((q, by_mixed));
        let by_bias = weight_gradient(self.query.weight(), &by_q, x, gradients, buffers)?;
        gradients.add_values(self.query.bias(), &by_bias);
        g.copy_from_slice(&by_sum);
        let (n, k) = self.query.weight().dims2()?;
        let weight = Host::of(self.query.weight())?;
        let weight = Matrix::packed(weight.values(), n, k).view();
        let by_q = Matrix::packed(&by_q, x.len() / k, n);
        product(g, by_q.view(), weight, Accum::Add);
        Ok(())
    }
}
