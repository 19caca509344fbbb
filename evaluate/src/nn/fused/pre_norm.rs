//! A block whose branches have their norms before them, both branches on slices.

use candle_core::{Result, Shape, Tensor};

use super::{
    AttentionBranch, FfnBranch, KeptAttention, OnSlices, Packed, fits_slices, record_on_slices,
    runs_on_slices,
};
use crate::nn::cpu::host::{Host, host_values};
use crate::nn::cpu::pool::in_pool;
use crate::nn::cpu::slices::Keep;
use crate::nn::{Bias, Buffer, Buffers, Gradients, LayerNorm, Mask, Mlp, Picked, Tape};

/// A block, and the settings of its pass.
pub(crate) struct PreNormBlock {
    /// Norms before attention, and how many tokens of a sequence each serves, one after the other.
    pub norms: Vec<(LayerNorm, usize)>,
    pub attention: Packed,
    /// LayerScale's factors per channel.
    pub scale: Option<Tensor>,
    /// Drop path's factors per sequence.
    pub keep: Option<Tensor>,
    /// The networks after attention, one after the other; none where something else follows.
    pub networks: Vec<Network>,
    /// LayerScale's factors per channel, of the networks.
    pub network_scale: Option<Tensor>,
    /// A number for each pair of tokens.
    pub pairs: Option<Tensor>,
    pub mask: Option<Mask>,
    /// The only token of each sequence that is computed after attention, if not all are.
    pub picked: Option<Picked>,
}

/// A feed-forward network with its norm, and the tokens of a sequence that it serves.
pub(crate) struct Network {
    pub norm: LayerNorm,
    pub mlp: Mlp,
    pub len: usize,
    /// Drop path's factors per sequence.
    pub keep: Option<Tensor>,
}

/// The values that would cost a product to compute again.
pub(crate) struct Inside {
    attention: KeptAttention,
    /// Between the two branches, `(b, n, d)`, or `(b, d)` of the picked tokens.
    middle: Buffer,
    /// Of each network.
    networks: Vec<Buffer>,
}

impl PreNormBlock {
    /// Whether it can run on slices and be recorded.
    pub fn is_fusible(&self, tape: &Tape, x: &Tensor) -> bool {
        fits_slices(tape, x, self.weights())
    }

    /// Whether it can run on slices, and nothing has a gradient.
    pub fn runs_alone(&self, x: &Tensor) -> bool {
        let is_learned = self.pairs.as_ref().is_some_and(Tensor::track_op);
        let is_spelled_out = (self.mask.as_ref()).is_none_or(|mask| mask.added().is_some());
        !is_learned && is_spelled_out && runs_on_slices(x, self.weights())
    }

    fn weights(&self) -> Vec<&Tensor> {
        let mut weights = self.attention.weights();
        weights.extend(self.norms.iter().flat_map(|(norm, _)| norm.weights()));
        for network in &self.networks {
            weights.extend(network.norm.weights());
            weights.extend(network.mlp.weights());
        }
        weights.extend(&self.scale);
        weights.extend(&self.network_scale);
        weights
    }

    /// The block for one token of each sequence, which one network serves: `(b, n, d) -> (b, 1, d)`. `None` where
    /// several networks share a sequence.
    pub fn picking(mut self, picked: Picked) -> Option<Self> {
        let [network] = &mut self.networks[..] else {
            return None;
        };
        network.len = 1;
        self.picked = Some(picked);
        Some(self)
    }

    /// Runs it and notes it on the tape.
    pub fn record(mut self, tape: &Tape, x: &Tensor) -> Result<Tensor> {
        let pairs = self.made_ready(x)?;
        record_on_slices(tape, self, x, pairs.as_ref())
    }

    /// Runs it where nobody goes back.
    pub fn run(mut self, x: &Tensor, buffers: &Buffers) -> Result<Tensor> {
        self.made_ready(x)?;
        let (x, shape) = (x.contiguous()?, self.shape(x));
        let mut out = vec![0.0; shape.elem_count()];
        in_pool(|| {
            self.forward_with(&x, &mut out, buffers, |branch, out, x| {
                branch.forward_alone(out, x, buffers)
            })
        })?;
        Tensor::from_vec(out, shape, x.device())
    }

    /// Checks the picked tokens and puts the numbers of pairs in order; gives these as they were.
    fn made_ready(&mut self, x: &Tensor) -> Result<Option<Tensor>> {
        if let Some(picked) = &self.picked {
            let (batch, tokens, _) = x.dims3()?;
            picked.check(batch, tokens)?;
        }
        let pairs = self.pairs.take();
        self.pairs = pairs.as_ref().map(Tensor::contiguous).transpose()?;
        Ok(pairs)
    }

    /// Both branches, of which `network` runs the networks: what the first one keeps, what stands between both, and what
    /// `network` gives.
    fn forward_with<T>(
        &self,
        x: &Tensor,
        out: &mut [f32],
        buffers: &Buffers,
        network: impl Fn(&FfnBranch<'_>, &mut [f32], &[f32]) -> Result<T>,
    ) -> Result<(KeptAttention, Buffer, Vec<T>)> {
        let keep = self.keep.as_ref().map(host_values).transpose()?;
        let branch = self.attention(x, keep.as_deref())?;
        if self.networks.is_empty() {
            let attention = branch.forward(out, Host::of(x)?.values(), buffers)?;
            return Ok((attention, buffers.take(0), Vec::new()));
        }
        let mut middle = buffers.take(out.len());
        let attention = branch.forward(&mut middle, Host::of(x)?.values(), buffers)?;
        let mut kept = Vec::with_capacity(self.networks.len());
        for (of, rows) in self.stretches(x)? {
            let keep = of.keep.as_ref().map(host_values).transpose()?;
            let branch = self.network(of, keep.as_deref());
            let Some(rows) = rows else {
                kept.push(network(&branch, out, &middle)?);
                continue;
            };
            let part = rows.gather(&middle, buffers);
            let mut result = buffers.take(part.len());
            kept.push(network(&branch, &mut result, &part)?);
            rows.scatter(&result, out);
        }
        Ok((attention, middle, kept))
    }

    fn attention<'a>(&'a self, x: &Tensor, keep: Option<&'a [f32]>) -> Result<AttentionBranch<'a>> {
        let (batch, tokens, _) = x.dims3()?;
        Ok(AttentionBranch {
            norms: self.norms.iter().map(|(norm, len)| (norm, *len)).collect(),
            attention: &self.attention,
            scale: self.scale.as_ref(),
            keep: keep.map(|factors| Keep {
                factors,
                rows: self.picked.as_ref().map_or(tokens, |_| 1),
            }),
            attended: Bias {
                pairs: self.pairs.as_ref(),
                mask: self.mask.as_ref(),
            },
            batch,
            tokens,
            picked: self.picked.as_ref(),
        })
    }

    fn network<'a>(&'a self, of: &'a Network, keep: Option<&'a [f32]>) -> FfnBranch<'a> {
        FfnBranch {
            norm: &of.norm,
            mlp: &of.mlp,
            scale: self.network_scale.as_ref(),
            keep: keep.map(|factors| Keep {
                factors,
                rows: of.len,
            }),
        }
    }

    /// Each network and, unless it is the only one, where its rows stand.
    fn stretches(&self, x: &Tensor) -> Result<Vec<(&Network, Option<Rows>)>> {
        let (_, tokens, width) = x.dims3()?;
        let mut from = 0;
        let mut stretches = Vec::with_capacity(self.networks.len());
        for network in &self.networks {
            let rows = Rows {
                from: from * width,
                len: network.len * width,
                sequence: tokens * width,
            };
            from += network.len;
            stretches.push((network, (self.networks.len() > 1).then_some(rows)));
        }
        Ok(stretches)
    }
}

impl OnSlices for PreNormBlock {
    type Inside = Inside;

    fn shape(&self, x: &Tensor) -> Shape {
        match (&self.picked, x.dims()) {
            (Some(_), &[batch, _, width]) => (batch, 1, width).into(),
            _ => x.shape().clone(),
        }
    }

    fn forward(&self, x: &Tensor, out: &mut [f32], buffers: &Buffers) -> Result<Inside> {
        let run =
            |branch: &FfnBranch<'_>, out: &mut [f32], x: &[f32]| branch.forward(out, x, buffers);
        let (attention, middle, networks) = self.forward_with(x, out, buffers, run)?;
        Ok(Inside {
            attention,
            middle,
            networks,
        })
    }

    fn backward(
        &self,
        x: &Tensor,
        g: &mut Vec<f32>,
        inside: Inside,
        gradients: &mut Gradients,
        buffers: &Buffers,
    ) -> Result<Vec<Option<Tensor>>> {
        let Inside {
            attention,
            middle,
            networks,
        } = inside;
        for ((network, rows), before) in self.stretches(x)?.into_iter().zip(networks) {
            let keep = network.keep.as_ref().map(host_values).transpose()?;
            let branch = self.network(network, keep.as_deref());
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
        let keep = self.keep.as_ref().map(host_values).transpose()?;
        let branch = self.attention(x, keep.as_deref())?;
        let wants_pairs = self.pairs.as_ref().is_some_and(Tensor::track_op);
        let x = Host::of(x)?;
        let by_pairs =
            branch.backward(g, x.values(), attention, wants_pairs, gradients, buffers)?;
        let Some(pairs) = &self.pairs else {
            return Ok(Vec::new());
        };
        Ok(vec![match by_pairs.is_empty() {
            true => None,
            false => Some(Tensor::from_vec(by_pairs, pairs.shape(), pairs.device())?),
        }])
    }
}

/// The places of a network's tokens in `(b, n, d)`.
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
    /// The network's rows without gaps.
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
