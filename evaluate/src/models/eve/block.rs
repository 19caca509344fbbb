//! A block: attention that all tokens share, then what belongs to a modality or to a router's choice.

use candle_core::{Result, Tensor};

use super::mixture::{Ask, Mixture, Modality};
use super::{Config, EPSILON};
use crate::Weights;
use crate::nn::{
    Activation, Attention, Bias, LayerNorm, LayerScale, Mask, Mlp, Network, Pass, PreNormBlock,
    Residual, Routing, Tape,
};

/// A feed-forward network with the norm before it.
#[derive(Clone, Debug)]
struct Ffn {
    norm: LayerNorm,
    mlp: Mlp,
}

impl Ffn {
    /// Of block `block`: its `mlp` and `norm2`, with this ending.
    fn load(weights: &Weights, block: &str, ending: &str, config: &Config) -> crate::Result<Self> {
        let (width, inner) = (config.width, config.ffn_width);
        let mlp = Mlp::load(weights, &format!("{block}.mlp{ending}"), width, inner)?;
        Ok(Self {
            norm: LayerNorm::load(weights, &format!("{block}.norm2{ending}"), width, EPSILON)?,
            mlp: mlp.with_activation(Activation::QuickGelu),
        })
    }

    fn forward(
        &self,
        residual: Residual<'_>,
        mask: Option<&Mask>,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        let normed = self.norm.forward(residual.x)?;
        self.mlp.forward(&normed, residual, mask, pass)
    }
}

/// The part of a block after attention.
#[derive(Clone, Debug)]
enum Second {
    /// One network for all tokens.
    One(Box<Ffn>),
    /// One for image tokens and one for text tokens, in some blocks a third for both together.
    OfModality {
        image: Box<Ffn>,
        text: Box<Ffn>,
        joint: Option<Box<Ffn>>,
    },
    /// A mixture of experts. `is_untold` is one that the published program does not tell of the modality.
    Mixture {
        norm: LayerNorm,
        mixture: Mixture,
        is_untold: bool,
    },
}

/// The facts about the sequence that a pass gives to its blocks.
pub(super) struct Sequence<'a> {
    /// The modality of the tokens.
    pub modality: Modality,
    /// The place at which blocks without a router divide it: tokens before it go to the network of images.
    pub division: usize,
    /// Image tokens of a whole picture, whatever is in the sequence.
    pub n_image: usize,
    /// Bias of pairs of tokens, and padding.
    pub attended: Bias<'a>,
    /// The choice of routers.
    pub routing: &'a Routing,
}

/// A block.
#[derive(Clone, Debug)]
pub(super) struct Block {
    norm1: LayerNorm,
    attn: Attention,
    gamma_1: LayerScale,
    gamma_2: LayerScale,
    second: Second,
    index: usize,
    n_blocks: usize,
    /// Whether the routers that do not see the modality in the published program do not see it here.
    is_as_published: bool,
}

impl Block {
    /// Loads block `index`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub(super) fn load(weights: &Weights, index: usize, config: &Config) -> crate::Result<Self> {
        let block = format!("backbone.encoder.layers.{index}");
        let part = |part: &str| format!("{block}.{part}");
        let (width, has) = (config.width, |name: &str| weights.has(&part(name)));
        let network =
            |of: &str| Ffn::load(weights, &block, &format!("_{of}"), config).map(Box::new);
        let second = match config.experts.get(index).copied().flatten() {
            Some(n_experts) => {
                let is_untold = !has("norm2_vl.");
                let norm = if is_untold { "norm2_imag" } else { "norm2_vl" };
                let sizes = [width, config.ffn_width, n_experts];
                Second::Mixture {
                    norm: LayerNorm::load(weights, &part(norm), width, EPSILON)?,
                    mixture: Mixture::load(weights, &part("mlp_moe.moe"), sizes)?,
                    is_untold,
                }
            }
            None if has("mlp_text.") => Second::OfModality {
                image: network("imag")?,
                text: network("text")?,
                joint: has("mlp_vl.").then(|| network("vl")).transpose()?,
            },
            None => Second::One(network("imag")?),
        };
        Self::with(weights, &block, second, [index, config.n_blocks], config)
    }

    /// Loads `{name}`, block `index` of `n_blocks`, with one network for all tokens.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub(super) fn load_plain(
        weights: &Weights,
        name: &str,
        place: [usize; 2],
        config: &Config,
    ) -> crate::Result<Self> {
        let second = Second::One(Box::new(Ffn::load(weights, name, "", config)?));
        Self::with(weights, name, second, place, config)
    }

    fn with(
        weights: &Weights,
        name: &str,
        second: Second,
        [index, n_blocks]: [usize; 2],
        config: &Config,
    ) -> crate::Result<Self> {
        let (part, width) = (|part: &str| format!("{name}.{part}"), config.width);
        Ok(Self {
            norm1: LayerNorm::load(weights, &part("norm1"), width, EPSILON)?,
            attn: Attention::load(weights, &part("attn"), width, config.n_heads)?,
            gamma_1: LayerScale::load(weights, &part("gamma_1"), width)?,
            gamma_2: LayerScale::load(weights, &part("gamma_2"), width)?,
            second,
            index,
            n_blocks,
            is_as_published: config.as_published,
        })
    }

    /// Whether it has a router.
    pub(super) fn has_router(&self) -> bool {
        matches!(self.second, Second::Mixture { .. })
    }

    /// `(b, n, d) -> (b, n, d)`.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub(super) fn forward(&self, x: &Tensor, of: &Sequence<'_>, pass: &Pass<'_>) -> Result<Tensor> {
        let kept = self.kept(x, pass)?;
        let Some(tape) = pass.tape() else {
            let x = self.attend(x, of, &kept, pass)?;
            let x = self.second(&x, of, &kept, pass)?;
            pass.show_output(format_args!("block{}.out", self.index), || Ok(x.clone()))?;
            return Ok(x);
        };
        let block = self.on_slices(x.dim(1)?, of, &kept);
        let x = match block.is_fusible(tape, x) {
            true => block.record(tape, x)?,
            false => self.record(tape, x, of, &kept)?,
        };
        // A mixture asks for a loss of its own, so its router stands outside of segments.
        match self.has_router() {
            true => self.second(&x, of, &kept, pass),
            false => Ok(x),
        }
    }

    /// The branches' rows that drop path keeps.
    fn kept(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Kept> {
        let Some(omission) = pass.omission() else {
            return Ok(Kept::default());
        };
        let draw = |branch: &str| {
            omission.branch(self.index, self.n_blocks, branch, x.dim(0)?, x.device())
        };
        Ok(Kept {
            attention: draw("attn")?,
            second: draw("mlp")?,
        })
    }

    /// The branch of attention.
    fn attend(
        &self,
        x: &Tensor,
        of: &Sequence<'_>,
        kept: &Kept,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        let index = self.index;
        let normed = self.norm1.forward(x)?;
        pass.show_output(format_args!("block{index}.attn"), || {
            let nothing = normed.zeros_like()?;
            let residual = Residual::plain(&nothing);
            let silent = Pass::new();
            self.attn
                .forward(&normed, residual, of.attended, index, &silent)
        })?;
        let residual = Residual {
            x,
            scale: self.gamma_1.factors(),
            keep: kept.attention.as_ref(),
        };
        self.attn
            .forward(&normed, residual, of.attended, index, pass)
    }

    /// The networks that serve a sequence of `n` tokens, one after the other, and how many tokens each serves; none
    /// where there is a mixture.
    fn networks(&self, of: &Sequence<'_>, n: usize) -> Vec<(&Ffn, usize)> {
        let networks = match &self.second {
            Second::One(network) => vec![(&**network, n)],
            Second::OfModality { image, text, joint } => match (of.modality, joint) {
                (Modality::Image, _) => vec![(&**image, n)],
                (Modality::Text, _) => vec![(&**text, n)],
                (Modality::Both(_), Some(joint)) => vec![(&**joint, n)],
                (Modality::Both(_), None) => {
                    let at = of.division.min(n);
                    vec![(&**image, at), (&**text, n - at)]
                }
            },
            Second::Mixture { .. } => Vec::new(),
        };
        networks.into_iter().filter(|(_, len)| *len > 0).collect()
    }

    /// The part after attention.
    fn second(
        &self,
        x: &Tensor,
        of: &Sequence<'_>,
        kept: &Kept,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        let mask = of.attended.mask;
        let residual = Residual {
            x,
            scale: self.gamma_2.factors(),
            keep: kept.second.as_ref(),
        };
        if let Second::Mixture {
            norm,
            mixture,
            is_untold,
        } = &self.second
        {
            let modality = match *is_untold && self.is_as_published {
                true => Modality::Both(of.n_image),
                false => of.modality,
            };
            let ask = Ask {
                routing: of.routing,
                modality,
                mask,
                block: self.index,
            };
            return residual.add(mixture.forward(&norm.forward(x)?, &ask, pass)?);
        }
        let networks = self.networks(of, x.dim(1)?);
        if let [(network, _)] = networks[..] {
            return network.forward(residual, mask, pass);
        }
        let mut from = 0;
        let parts = networks.into_iter().map(|(network, len)| {
            let x = x.narrow(1, from, len)?.contiguous()?;
            let mask = mask.map(|mask| mask.narrow(from, len)).transpose()?;
            from += len;
            network.forward(Residual { x: &x, ..residual }, mask.as_ref(), pass)
        });
        Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 1)
    }

    /// The block on slices, for sequences of `n` tokens; of one with a mixture the branch of attention alone.
    fn on_slices(&self, n: usize, of: &Sequence<'_>, kept: &Kept) -> PreNormBlock {
        let networks = self.networks(of, n).into_iter();
        let networks = networks.map(|(network, len)| Network {
            norm: network.norm.clone(),
            mlp: network.mlp.clone(),
            len,
            keep: kept.second.clone(),
        });
        PreNormBlock {
            norms: vec![(self.norm1.clone(), n)],
            attention: self.attn.packed(),
            scale: self.gamma_1.factors().cloned(),
            keep: kept.attention.clone(),
            networks: networks.collect(),
            network_scale: self.gamma_2.factors().cloned(),
            pairs: of.attended.pairs.cloned(),
            mask: of.attended.mask.cloned(),
            picked: None,
        }
    }

    /// The same on a tape as a graph of candle's operations.
    fn record(&self, tape: &Tape, x: &Tensor, of: &Sequence<'_>, kept: &Kept) -> Result<Tensor> {
        let mut inputs = vec![x.clone()];
        inputs.extend(of.attended.pairs.cloned());
        let (block, kept, routing) = (self.clone(), kept.clone(), of.routing.clone());
        let (modality, division, n_image) = (of.modality, of.division, of.n_image);
        let mask = of.attended.mask.cloned();
        tape.segment(inputs, move |inputs| {
            let of = Sequence {
                modality,
                division,
                n_image,
                attended: Bias {
                    pairs: inputs.get(1),
                    mask: mask.as_ref(),
                },
                routing: &routing,
            };
            let x = block.attend(&inputs[0], &of, &kept, &Pass::new())?;
            match block.has_router() {
                true => Ok(x),
                false => block.second(&x, &of, &kept, &Pass::new()),
            }
        })
    }
}

/// Factors per sequence, `(b)`, of both branches.
#[derive(Clone, Debug, Default)]
struct Kept {
    attention: Option<Tensor>,
    second: Option<Tensor>,
}
