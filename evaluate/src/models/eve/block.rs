//! A block: attention that all tokens share, then what belongs to a modality or to a router's choice.

use candle_core::{Result, Tensor};

use super::mixture::{Ask, Mixture, Modality};
use super::{Config, EPSILON};
use crate::Weights;
use crate::nn::{
    Activation, Attention, Bias, LayerNorm, LayerScale, Mask, Mlp, Pass, Residual, Routing,
};

/// A feed-forward network with the norm before it.
#[derive(Clone, Debug)]
struct Network {
    norm: LayerNorm,
    mlp: Mlp,
}

impl Network {
    fn load(weights: &Weights, block: &str, of: &str, config: &Config) -> crate::Result<Self> {
        let (width, inner) = (config.width, config.ffn_width);
        let mlp = Mlp::load(weights, &format!("{block}.mlp_{of}"), width, inner)?;
        Ok(Self {
            norm: LayerNorm::load(weights, &format!("{block}.norm2_{of}"), width, EPSILON)?,
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

/// What follows attention in a block.
#[derive(Clone, Debug)]
enum Second {
    /// One network for all tokens.
    One(Box<Network>),
    /// One for image tokens and one for text tokens, in some blocks a third for both together.
    OfModality {
        image: Box<Network>,
        text: Box<Network>,
        joint: Option<Box<Network>>,
    },
    /// A mixture of experts. `is_untold` is one that the published program does not tell of the modality.
    Mixture {
        norm: LayerNorm,
        mixture: Mixture,
        is_untold: bool,
    },
}

/// What a pass tells its blocks of the sequence.
pub(super) struct Sequence<'a> {
    /// Whose tokens there are.
    pub modality: Modality,
    /// Where blocks without a router divide it: tokens before this place go to the network of images.
    pub division: usize,
    /// Image tokens of a whole picture, whatever is in the sequence.
    pub n_image: usize,
    /// Bias of pairs of tokens, and padding.
    pub attended: Bias<'a>,
    /// How routers choose.
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
        let network = |of: &str| Network::load(weights, &block, of, config).map(Box::new);
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
        Ok(Self {
            norm1: LayerNorm::load(weights, &part("norm1"), width, EPSILON)?,
            attn: Attention::load(weights, &part("attn"), width, config.n_heads)?,
            gamma_1: LayerScale::load(weights, &part("gamma_1"), width)?,
            gamma_2: LayerScale::load(weights, &part("gamma_2"), width)?,
            second,
            index,
            n_blocks: config.n_blocks,
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
        let kept = |branch: &str| match pass.omission() {
            Some(omission) => {
                omission.branch(self.index, self.n_blocks, branch, x.dim(0)?, x.device())
            }
            None => Ok(None),
        };
        let (of_attention, of_second) = (kept("attn")?, kept("mlp")?);
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
            keep: of_attention.as_ref(),
        };
        let x = self
            .attn
            .forward(&normed, residual, of.attended, index, pass)?;
        let residual = Residual {
            x: &x,
            scale: self.gamma_2.factors(),
            keep: of_second.as_ref(),
        };
        let x = self.second(residual, of, pass)?;
        pass.show_output(format_args!("block{index}.out"), || Ok(x.clone()))?;
        Ok(x)
    }

    fn second(&self, of: Residual<'_>, sequence: &Sequence<'_>, pass: &Pass<'_>) -> Result<Tensor> {
        let mask = sequence.attended.mask;
        match &self.second {
            Second::One(network) => network.forward(of, mask, pass),
            Second::OfModality { image, text, joint } => match (sequence.modality, joint) {
                (Modality::Image, _) => image.forward(of, mask, pass),
                (Modality::Text, _) => text.forward(of, mask, pass),
                (Modality::Both(_), Some(joint)) => joint.forward(of, mask, pass),
                (Modality::Both(_), None) => {
                    let (n, at) = (of.x.dim(1)?, sequence.division);
                    let parts = [(image, 0, at), (text, at, n - at)];
                    let parts = parts.into_iter().map(|(network, from, len)| {
                        let x = of.x.narrow(1, from, len)?.contiguous()?;
                        let mask = mask.map(|mask| mask.narrow(from, len)).transpose()?;
                        let residual = Residual { x: &x, ..of };
                        network.forward(residual, mask.as_ref(), pass)
                    });
                    Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 1)
                }
            },
            Second::Mixture {
                norm,
                mixture,
                is_untold,
            } => {
                let modality = match *is_untold && self.is_as_published {
                    true => Modality::Both(sequence.n_image),
                    false => sequence.modality,
                };
                let ask = Ask {
                    routing: sequence.routing,
                    modality,
                    mask,
                    block: self.index,
                };
                of.add(mixture.forward(&norm.forward(of.x)?, &ask, pass)?)
            }
        }
    }
}
