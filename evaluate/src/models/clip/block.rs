//! A block of either tower: attention and FFN with residual branches, norms before each.

use candle_core::{D, Result, Tensor};

use super::config::Tower;
use crate::Weights;
use crate::nn::{
    Bias, Buffers, LayerNorm, Linear, Mask, Mlp, Network, Packed, Pass, Picked, PreNormBlock,
    Projections, Residual, attend_packed, attention_shares, is_on_host, side_by_side, unpack,
};

/// A block.
#[derive(Clone, Debug)]
pub(super) struct Block {
    norm1: LayerNorm,
    /// To queries, keys and values.
    projections: Box<[Linear; 3]>,
    out: Linear,
    norm2: LayerNorm,
    mlp: Mlp,
    n_heads: usize,
    index: usize,
    /// The names of its layers for a tap.
    names: [String; 2],
}

impl Block {
    /// Loads the block `{name}`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, name: &str, index: usize, of: &Tower) -> crate::Result<Self> {
        let d = of.width;
        let part = |part: &str| format!("{name}.{part}");
        let linear = |which: &str| Linear::load(weights, &part(which), d, d);
        let mlp = ["mlp.fc1", "mlp.fc2"].map(part);
        Ok(Self {
            norm1: LayerNorm::load(weights, &part("layer_norm1"), d, of.epsilon)?,
            projections: Box::new([
                linear("self_attn.q_proj")?,
                linear("self_attn.k_proj")?,
                linear("self_attn.v_proj")?,
            ]),
            out: linear("self_attn.out_proj")?,
            norm2: LayerNorm::load(weights, &part("layer_norm2"), d, of.epsilon)?,
            mlp: Mlp::load_named(weights, mlp, d, of.ffn_width)?.with_activation(of.activation),
            n_heads: of.n_heads,
            index,
            names: [part("self_attn.qkv"), part("self_attn.out_proj")],
        })
    }

    /// `(b, n, d) -> (b, n, d)`. `seen` is what tokens see, `real` which of them are no padding, for those who look on.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn forward(
        &self,
        x: &Tensor,
        seen: Option<&Mask>,
        real: Option<&Mask>,
        pass: &Pass<'_>,
        buffers: &Buffers,
    ) -> Result<Tensor> {
        let x = match pass.is_tapped() && pass.tape().is_none() {
            true => self.compute(x, None, seen, real, pass)?,
            false => self.run(x, None, seen, pass, buffers)?,
        };
        pass.show_named_block(&format!("layer{}", self.index), std::slice::from_ref(&x))?;
        Ok(x)
    }

    /// The block on slices, for `n` tokens.
    fn on_slices(&self, n: usize, seen: Option<&Mask>) -> PreNormBlock {
        let network = Network {
            norm: self.norm2.clone(),
            mlp: self.mlp.clone(),
            len: n,
            keep: None,
        };
        PreNormBlock {
            norms: vec![(self.norm1.clone(), n)],
            attention: Packed {
                qkv: Projections::Apart(self.projections.clone()),
                proj: self.out.clone(),
                heads: self.n_heads,
            },
            scale: None,
            keep: None,
            networks: vec![network],
            network_scale: None,
            pairs: None,
            mask: seen.cloned(),
            picked: None,
        }
    }

    /// The block for one token of each sequence: `(b, n, d) -> (b, 1, d)`. Nobody looks on.
    ///
    /// # Errors
    /// As [`Block::forward`].
    pub fn forward_picked(
        &self,
        x: &Tensor,
        picked: &Picked,
        seen: Option<&Mask>,
        pass: &Pass<'_>,
        buffers: &Buffers,
    ) -> Result<Tensor> {
        self.run(x, Some(picked), seen, pass, buffers)
    }

    /// The block where nobody looks into it, on slices if it can.
    fn run(
        &self,
        x: &Tensor,
        picked: Option<&Picked>,
        seen: Option<&Mask>,
        pass: &Pass<'_>,
        buffers: &Buffers,
    ) -> Result<Tensor> {
        let all = self.on_slices(x.dim(1)?, seen);
        let on_slices = match picked {
            None => Some(all),
            Some(picked) => all.picking(picked.clone()),
        };
        match (on_slices, pass.tape()) {
            (Some(block), Some(tape)) if block.is_fusible(tape, x) => block.record(tape, x),
            (Some(block), None) if block.runs_alone(x) => block.run(x, buffers),
            (_, None) => self.compute(x, picked, seen, None, pass),
            (_, Some(tape)) => {
                let (block, seen, picked) = (self.clone(), seen.cloned(), picked.cloned());
                tape.segment(vec![x.clone()], move |inputs| {
                    let (seen, picked) = (seen.as_ref(), picked.as_ref());
                    block.compute(&inputs[0], picked, seen, None, &Pass::new())
                })
            }
        }
    }

    /// The block for all tokens or for the picked ones: `(b, n, d) -> (b, n, d)` or `(b, 1, d)`.
    fn compute(
        &self,
        x: &Tensor,
        picked: Option<&Picked>,
        seen: Option<&Mask>,
        real: Option<&Mask>,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        let normed = self.norm1.forward(x)?;
        pass.show(|| self.names[0].clone(), &normed, real)?;
        let qkv = self.project(&normed)?; // (b, n, 3 d)
        let bias = Bias {
            pairs: None,
            mask: seen,
        };
        pass.show_output(format_args!("attn{}", self.index), || {
            let [q, k, _] = unpack(&qkv)?;
            attention_shares(&q, &k, bias, self.n_heads)
        })?;
        let mixed = attend_packed(&qkv, self.n_heads, usize::MAX, bias)?; // (b, n, d)
        pass.show(|| self.names[1].clone(), &mixed, real)?;
        let [mixed, x] = match picked {
            None => [mixed, x.clone()],
            Some(picked) => picked.of([&mixed, x])?, // (b, 1, d)
        };
        let x = self.out.forward_add(&mixed, Residual::plain(&x))?;
        let normed = self.norm2.forward(&x)?;
        self.mlp.forward(&normed, Residual::plain(&x), real, pass)
    }

    /// `(b, n, d) -> (b, n, 3 d)`.
    fn project(&self, x: &Tensor) -> Result<Tensor> {
        let layers = self.projections.each_ref();
        let mut weights = layers.into_iter().flat_map(Linear::weights);
        if is_on_host(x) && !x.track_op() && !weights.any(Tensor::track_op) {
            return side_by_side(x, layers);
        }
        let [q, k, v] = layers.map(|layer| layer.forward(x));
        Tensor::cat(&[q?, k?, v?], D::Minus1)
    }
}
