//! The image tower: a vision transformer. CLIP's has a class token and a norm before the first block; SigLIP's pools its
//! patches by attention.

use candle_core::{Result as DeviceResult, Tensor};

use super::block::Block;
use super::config::Config;
use crate::models::towers::first;
use crate::nn::{
    Bias, Buffers, LayerNorm, Linear, Mlp, Pass, PatchEmbed, Picked, Residual, attend_to,
};
use crate::weights::Init;
use crate::{Error, Result, Weights};

/// The first part of its keys.
pub(super) const PREFIX: &str = "vision_model.";

/// An image tower.
#[derive(Clone, Debug)]
pub(super) struct ImageTower {
    patches: PatchEmbed,
    /// The class token, `(d)`.
    class: Option<Tensor>,
    /// `(tokens, d)`.
    positions: Tensor,
    pre_norm: Option<LayerNorm>,
    blocks: Vec<Block>,
    norm: LayerNorm,
    pool: Option<Pool>,
    side: usize,
    width: usize,
}

/// The head of a SigLIP: a query that is learned looks at all patches.
#[derive(Clone, Debug)]
struct Pool {
    /// `(1, 1, d)`.
    probe: Tensor,
    /// `(3 d, d)` and `(3 d)`: queries, keys, values.
    projections: [Tensor; 2],
    out: Linear,
    norm: LayerNorm,
    mlp: Mlp,
    n_heads: usize,
}

impl ImageTower {
    /// Loads every part.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, config: &Config) -> Result<Self> {
        let (of, d) = (&config.image, config.image.width);
        let name = |part: &str| format!("{PREFIX}{part}");
        let norm = |part: &str| LayerNorm::load(weights, &name(part), d, of.epsilon);
        let is_clip = !config.is_siglip;
        let patches = name("embeddings.patch_embedding");
        let class = || weights.get(&name("embeddings.class_embedding"), &[d], Linear::INIT);
        let positions = name("embeddings.position_embedding.weight");
        let blocks = (0..of.n_blocks).map(|index| {
            let name = name(&format!("encoder.layers.{index}"));
            Block::load(weights, &name, index, of)
        });
        Ok(Self {
            patches: match is_clip {
                true => PatchEmbed::load_without_bias(weights, &patches, d, config.patch_size)?,
                false => PatchEmbed::load(weights, &patches, d, config.patch_size)?,
            },
            class: is_clip.then(class).transpose()?,
            positions: weights.get(&positions, &[config.n_image_tokens(), d], Linear::INIT)?,
            // So spelled.
            pre_norm: is_clip.then(|| norm("pre_layrnorm")).transpose()?,
            blocks: blocks.collect::<Result<_>>()?,
            norm: norm("post_layernorm")?,
            pool: match is_clip {
                true => None,
                false => Some(Pool::load(weights, config)?),
            },
            side: config.input.image.side,
            width: d,
        })
    }

    /// Tokens before the first block: `(b, 3, s, s) -> (b, n, d)`.
    fn embed(&self, image: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let side = self.side;
        let b = match *image.dims() {
            [b, 3, height, width] if (height, width) == (side, side) => b,
            _ => {
                return Err(Error::ImageSize {
                    found: image.dims().to_vec(),
                    expected: side,
                });
            }
        };
        let patches = self.patches.forward(image)?; // (b, p, d)
        let tokens = match &self.class {
            None => patches,
            Some(class) => {
                let class = class.reshape((1, 1, self.width))?;
                Tensor::cat(&[&class.expand((b, 1, self.width))?, &patches], 1)?
            }
        };
        let mut x = tokens.broadcast_add(&self.positions)?; // (b, n, d)
        if let Some(norm) = &self.pre_norm {
            x = norm.forward(&x)?;
        }
        pass.show_output(format_args!("embed"), || Ok(x.clone()))?;
        Ok(x)
    }

    fn run(
        &self,
        mut x: Tensor,
        blocks: &[Block],
        pass: &Pass<'_>,
        buffers: &Buffers,
    ) -> Result<Tensor> {
        for block in blocks {
            x = block.forward(&x, None, None, pass, buffers)?;
        }
        Ok(x)
    }

    /// All tokens after the last norm, the class token of a CLIP first: `(b, 3, s, s) -> (b, n, d)`.
    ///
    /// # Errors
    /// [`Error::ImageSize`], or when the device fails.
    pub fn tokens(&self, image: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let x = self.embed(image, pass)?;
        let x = self.run(x, &self.blocks, pass, &Buffers::default())?;
        Ok(self.norm.forward(&x)?)
    }

    /// The vector of an image before its projection: `(b, 3, s, s) -> (b, d)`.
    ///
    /// # Errors
    /// As [`ImageTower::tokens`].
    pub fn pooled(&self, image: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let pooled = match &self.pool {
            Some(pool) => {
                let tokens = self.tokens(image, pass)?;
                pass.show_output(format_args!("last"), || Ok(tokens.clone()))?;
                pool.forward(&tokens, pass)?
            }
            None => {
                let x = self.embed(image, pass)?;
                let x = self.last(x, pass)?;
                self.norm.forward(&first(&x)?)?
            }
        };
        pass.show_output(format_args!("pooled"), || Ok(pooled.clone()))?;
        Ok(pooled)
    }

    /// Tokens after the last block. Without a tap, that computes the first one alone.
    fn last(&self, x: Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let Some((last, others)) = self.blocks.split_last() else {
            return Ok(x);
        };
        let buffers = Buffers::default();
        let x = self.run(x, others, pass, &buffers)?;
        let picked = Picked::first(x.dim(0)?);
        match pass.is_tapped() {
            true => self.run(x, std::slice::from_ref(last), pass, &buffers),
            false => Ok(last.forward_picked(&x, &picked, None, pass, &buffers)?),
        }
    }
}

impl Pool {
    fn load(weights: &Weights, config: &Config) -> Result<Self> {
        let (of, d) = (&config.image, config.image.width);
        let name = |part: &str| format!("{PREFIX}head.{part}");
        let packed = |part: &str, shape: &[usize], init| {
            weights.get(&name(&format!("attention.in_proj_{part}")), shape, init)
        };
        let mlp = ["mlp.fc1", "mlp.fc2"].map(name);
        Ok(Self {
            probe: weights.get(&name("probe"), &[1, 1, d], Linear::INIT)?,
            projections: [
                packed("weight", &[3 * d, d], Linear::INIT)?,
                packed("bias", &[3 * d], Init::Zeros)?,
            ],
            out: Linear::load(weights, &name("attention.out_proj"), d, d)?,
            norm: LayerNorm::load(weights, &name("layernorm"), d, of.epsilon)?,
            mlp: Mlp::load_named(weights, mlp, d, of.ffn_width)?.with_activation(of.activation),
            n_heads: of.n_heads,
        })
    }

    /// Rows `from..from + n` of the packed projections as a layer.
    fn projection(&self, from: usize, n: usize) -> DeviceResult<Linear> {
        let rows = |packed: &Tensor| packed.narrow(0, from, n)?.contiguous();
        let [weight, bias] = &self.projections;
        Ok(Linear::new(rows(weight)?, rows(bias)?))
    }

    /// `(b, n, d) -> (b, d)`.
    fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> DeviceResult<Tensor> {
        let (b, _, d) = x.dims3()?;
        let queries = self.projection(0, d)?.forward(&self.probe)?;
        let queries = queries.expand((b, 1, d))?.contiguous()?;
        let kv = self.projection(d, 2 * d)?.forward(x)?; // (b, n, 2 d)
        pass.show(|| format!("{PREFIX}head.attention.kv"), x, None)?;
        let mixed = attend_to(&queries, &kv, Bias::default(), self.n_heads)?; // (b, 1, d)
        let out = format!("{PREFIX}head.attention.out_proj");
        pass.show(|| out, &mixed, None)?;
        let x = self.out.forward(&mixed)?;
        let normed = self.norm.forward(&x)?;
        first(&self.mlp.forward(&normed, Residual::plain(&x), None, pass)?)
    }
}
