//! The first half of a block.

use candle_core::{Result, Tensor};

use super::outlet::Outlet;
use super::projections::{project, projections_backward};
use super::{hidden, input_gradient, norm_backward, norm_into, self_attention, weight_gradient};
use crate::nn::cpu::attention::{self, Added, Asked};
use crate::nn::cpu::host::Host;
use crate::nn::cpu::sequences::Sizes;
use crate::nn::cpu::slices::{self, Keep, Then};
use crate::nn::{Bias, Buffer, Buffers, Gradients, LayerNorm, Linear, Picked};

/// The weights of a self-attention.
#[derive(Clone, Debug)]
pub(crate) struct Packed {
    pub qkv: Projections,
    pub proj: Linear,
    pub heads: usize,
}

/// The projections to queries, keys and values.
#[derive(Clone, Debug)]
pub(crate) enum Projections {
    /// One weight, `(3 d, d)`, and its bias.
    Packed(Linear, PackedBias),
    /// A layer each, `d -> d`.
    Apart(Box<[Linear; 3]>),
}

impl Projections {
    fn width(&self) -> Result<usize> {
        match self {
            Self::Packed(qkv, _) => qkv.weight().dim(1),
            Self::Apart(layers) => layers[0].weight().dim(1),
        }
    }

    /// `x: (m, d)` to `out: (m, 3 d)`.
    fn forward(&self, out: &mut [f32], x: &[f32], width: usize) -> Result<()> {
        match self {
            Self::Packed(qkv, bias) => {
                let weight = Host::of(qkv.weight())?;
                let bias = bias.values(width)?;
                slices::linear_into(out, x, weight.values(), &bias, width, Then::Nothing);
                Ok(())
            }
            Self::Apart(layers) => project(out, x, layers.each_ref(), width),
        }
    }

    /// Adds the gradients of the weights, and gives the one by `x`.
    fn backward(
        &self,
        by_out: &[f32],
        x: &[f32],
        width: usize,
        gradients: &mut Gradients,
        buffers: &Buffers,
    ) -> Result<Buffer> {
        match self {
            Self::Packed(qkv, bias) => {
                let sums = weight_gradient(qkv.weight(), by_out, x, gradients, buffers)?;
                bias.add_gradient(&sums, width, gradients);
                input_gradient(qkv, by_out, buffers)
            }
            Self::Apart(layers) => {
                let mut by_x = buffers.take(x.len());
                by_x.fill(0.0);
                let layers = layers.each_ref();
                projections_backward(Some(&mut by_x), by_out, x, layers, gradients, buffers)?;
                Ok(by_x)
            }
        }
    }
}

/// The bias of packed projections.
#[derive(Clone, Debug)]
pub(crate) enum PackedBias {
    /// `(3 d)`.
    Whole(Tensor),
    /// `(d)` each; keys have none.
    WithoutKeys { q: Tensor, v: Tensor },
}

impl Packed {
    /// All weights.
    pub fn weights(&self) -> Vec<&Tensor> {
        let [weight, bias] = self.proj.weights();
        let mut weights = vec![weight, bias];
        match &self.qkv {
            Projections::Packed(qkv, PackedBias::Whole(bias)) => {
                weights.extend([qkv.weight(), bias]);
            }
            Projections::Packed(qkv, PackedBias::WithoutKeys { q, v }) => {
                weights.extend([qkv.weight(), q, v]);
            }
            Projections::Apart(layers) => {
                weights.extend(layers.iter().flat_map(Linear::weights));
            }
        }
        weights
    }
}

impl PackedBias {
    fn values(&self, width: usize) -> Result<Vec<f32>> {
        match self {
            Self::Whole(bias) => Ok(Host::of(bias)?.values().to_vec()),
            Self::WithoutKeys { q, v } => {
                let mut bias = vec![0.0; 3 * width];
                bias[..width].copy_from_slice(Host::of(q)?.values());
                bias[2 * width..].copy_from_slice(Host::of(v)?.values());
                Ok(bias)
            }
        }
    }

    fn add_gradient(&self, sums: &[f32], width: usize, gradients: &mut Gradients) {
        match self {
            Self::Whole(bias) => gradients.add_values(bias, sums),
            Self::WithoutKeys { q, v } => {
                gradients.add_values(q, &sums[..width]);
                gradients.add_values(v, &sums[2 * width..]);
            }
        }
    }
}

/// `x + keep scale ∘ proj(attention(norm(x)))`, the norm being that of each token's expert.
pub(crate) struct AttentionBranch<'a> {
    /// Norms and how many tokens of a sequence each serves, one after the other.
    pub norms: Vec<(&'a LayerNorm, usize)>,
    pub attention: &'a Packed,
    /// LayerScale's factors per channel.
    pub scale: Option<&'a Tensor>,
    /// Drop path's factors per sequence.
    pub keep: Option<Keep<'a>>,
    /// Position bias and padding.
    pub attended: Bias<'a>,
    /// Sequences.
    pub batch: usize,
    /// Tokens of a sequence.
    pub tokens: usize,
    /// The only token of each sequence that is computed after attention, if not all are.
    pub picked: Option<&'a Picked>,
}

/// The values that the backward pass needs.
pub(crate) struct KeptAttention {
    /// Queries, keys and values: `(b, n, 3 d)`.
    qkv: Buffer,
}

/// Position bias and padding as slices.
struct HostAdded<'a> {
    bias: Option<Host<'a>>,
    mask: Option<Host<'a>>,
}

impl<'a> HostAdded<'a> {
    fn of(attended: Bias<'a>) -> Result<Self> {
        Ok(Self {
            bias: attended.pairs.map(Host::of).transpose()?,
            mask: hidden(attended.mask)?,
        })
    }

    fn added(&self) -> Added<'_> {
        Added {
            bias: self.bias.as_ref().map_or(&[], Host::values),
            mask: self.mask.as_ref().map_or(&[], Host::values),
            keep: &[],
        }
    }
}

impl<'a> AttentionBranch<'a> {
    fn outlet(&self) -> Outlet<'a> {
        Outlet {
            linear: &self.attention.proj,
            scale: self.scale,
            keep: self.keep,
        }
    }

    fn sizes(&self, width: usize) -> Sizes<'static> {
        self_attention(self.batch, self.tokens, self.attention.heads, width)
    }

    /// The places of each norm's tokens in `(b, n, d)`.
    fn stretches(&self, width: usize) -> Vec<(&'a LayerNorm, std::ops::Range<usize>)> {
        if let [(norm, _)] = self.norms[..] {
            return vec![(norm, 0..self.batch * self.tokens * width)];
        }
        let mut from = 0;
        let mut stretches = Vec::new();
        for _ in 0..self.batch {
            for &(norm, n) in &self.norms {
                stretches.push((norm, from..from + n * width));
                from += n * width;
            }
        }
        stretches
    }

    fn normed(&self, x: &[f32], width: usize, buffers: &Buffers) -> Result<Buffer> {
        let mut normed = buffers.take(x.len());
        for (norm, stretch) in self.stretches(width) {
            norm_into(&mut normed[stretch.clone()], &x[stretch], norm)?;
        }
        Ok(normed)
    }

    /// `x: (b, n, d)` to `out: (b, n, d)`, or `(b, d)` of the picked tokens.
    pub fn forward(&self, out: &mut [f32], x: &[f32], buffers: &Buffers) -> Result<KeptAttention> {
        let width = self.attention.qkv.width()?;
        let mut qkv = buffers.take(3 * x.len());
        {
            let normed = self.normed(x, width, buffers)?;
            self.attention.qkv.forward(&mut qkv, &normed, width)?;
        }
        let mixed = self.mixed(&qkv, width, buffers)?;
        match self.picked {
            None => self.outlet().forward(out, &mixed, x)?,
            Some(picked) => {
                let residual = picked.gather(x, width, buffers);
                self.outlet().forward(out, &mixed, &residual)?;
            }
        }
        Ok(KeptAttention { qkv })
    }

    /// The mixed values before the projection, `(b, n, d)`, or `(b, d)` of the picked tokens, from `qkv: (b, n, 3 d)`.
    fn mixed(&self, qkv: &[f32], width: usize, buffers: &Buffers) -> Result<Buffer> {
        let mut mixed = buffers.take(qkv.len() / 3);
        let (added, sizes) = (HostAdded::of(self.attended)?, self.sizes(width));
        let asked = Asked::packed(qkv, sizes);
        attention::forward_into(&mut mixed, asked, added.added(), sizes);
        Ok(match self.picked {
            None => mixed,
            Some(picked) => picked.gather(&mixed, width, buffers),
        })
    }

    /// Turns `g`, the gradient by the output, into the one by `x: (b, n, d)`; gives the one by the
    /// position bias, empty unless `wants_bias`.
    pub fn backward(
        &self,
        g: &mut Vec<f32>,
        x: &[f32],
        kept: KeptAttention,
        wants_bias: bool,
        gradients: &mut Gradients,
        buffers: &Buffers,
    ) -> Result<Vec<f32>> {
        let width = self.attention.qkv.width()?;
        let outlet = self.outlet();
        {
            let mixed = self.mixed(&kept.qkv, width, buffers)?;
            outlet.parameter_gradients(g, &mixed, gradients, buffers)?;
        }
        let mut by_qkv = buffers.take(kept.qkv.len()); // (b, n, 3 d)
        let by_bias = {
            let by_mixed = outlet.input_gradient(g, buffers)?;
            let by_mixed = match self.picked {
                None => by_mixed,
                Some(picked) => {
                    let mut by_all = buffers.take(x.len()); // (b, n, d)
                    picked.scatter(&by_mixed, &mut by_all, width);
                    by_all
                }
            };
            let (added, sizes) = (HostAdded::of(self.attended)?, self.sizes(width));
            let added = added.added();
            attention::gradients_into(&mut by_qkv, &by_mixed, &kept.qkv, added, sizes, wants_bias)
        };
        drop(kept);
        let by_normed = {
            let normed = self.normed(x, width, buffers)?;
            let qkv = &self.attention.qkv;
            qkv.backward(&by_qkv, &normed, width, gradients, buffers)?
        };
        if let Some(picked) = self.picked {
            let rows = std::mem::replace(g, vec![0.0; x.len()]);
            picked.scatter(&rows, g, width);
        }
        for (norm, stretch) in self.stretches(width) {
            let (g, by_normed) = (&mut g[stretch.clone()], &by_normed[stretch.clone()]);
            norm_backward(g, by_normed, &x[stretch], norm, gradients)?;
        }
        Ok(by_bias)
    }
}
