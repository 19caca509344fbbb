//! The vision transformer as an image tower, with LayerScale where the checkpoint has it.
//!
//! Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words", <https://arxiv.org/abs/2010.11929>,
//! section 3.1; Oquab et al. 2023, "DINOv2", <https://arxiv.org/abs/2304.07193>. Reference, whose
//! names these are: <https://github.com/huggingface/pytorch-image-models>.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use merge::Checkpoint;
use merge::layouts::Generic;

use super::tower;
use crate::nn::{Attended, LayerNorm, LayerScale, Linear, Mlp, Pass, PatchEmbed, Residual, attend};
use crate::weights::Init;
use crate::{Error, Result, Weights};

/// Every LayerNorm adds this to the variance.
const EPSILON: f64 = 1e-6;

/// Sizes of a vision transformer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Number of blocks.
    pub n_blocks: usize,
    /// Hidden size.
    pub width: usize,
    /// Attention heads of each block.
    pub n_heads: usize,
    /// Inner size of the feed-forward network.
    pub ffn_width: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Side of the image in pixels.
    pub image_size: usize,
    /// Whether residual branches have LayerScale.
    pub has_layer_scale: bool,
}

impl Config {
    /// The sizes of a checkpoint. Heads are 64 wide unless `n_heads` says otherwise: weights do not
    /// tell.
    ///
    /// # Errors
    /// [`Error::UnknownSize`] and [`Error::BadSize`].
    pub fn read(weights: &Weights, n_heads: Option<usize>) -> Result<Self> {
        let patches = weights.shape("patch_embed.proj.weight");
        let &[width, 3, patch_size, _] = tower::known(weights, "the patch size", patches)? else {
            return Err(tower::bad(weights, "patches are not those of an RGB image"));
        };
        let positions = weights.shape("pos_embed");
        let &[1, n_tokens, _] = tower::known(weights, "the image size", positions)? else {
            return Err(tower::bad(weights, "positions are not those of one image"));
        };
        let side = n_tokens.saturating_sub(1).isqrt();
        if side == 0 || side * side + 1 != n_tokens {
            let fault = format!("{n_tokens} positions are not a square and a class token");
            return Err(tower::bad(weights, &fault));
        }
        Ok(Self {
            n_blocks: tower::count(weights, |block| format!("blocks.{block}.norm1.weight")),
            width,
            n_heads: tower::heads(weights, width, n_heads)?,
            ffn_width: tower::length(weights, "the width of the FFN", "blocks.0.mlp.fc1.bias")?,
            patch_size,
            image_size: side * patch_size,
            has_layer_scale: weights.shape("blocks.0.ls1.gamma").is_some(),
        })
    }

    /// Tokens of an image: its patches and the class token.
    #[must_use]
    pub fn n_tokens(&self) -> usize {
        (self.image_size / self.patch_size).pow(2) + 1
    }
}

/// Multi-head self-attention whose projections all have a bias.
#[derive(Clone, Debug)]
struct Attention {
    qkv: Linear,
    proj: Linear,
    n_heads: usize,
    name: String,
}

/// Attention and FFN with residual branches, norms before each.
#[derive(Clone, Debug)]
struct Block {
    norm1: LayerNorm,
    attn: Attention,
    ls1: LayerScale,
    norm2: LayerNorm,
    mlp: Mlp,
    ls2: LayerScale,
}

/// A vision transformer without a classifier.
#[derive(Clone, Debug)]
pub struct Vit {
    config: Config,
    patch_embed: PatchEmbed,
    cls_token: Tensor,
    pos_embed: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

impl Attention {
    fn load(weights: &Weights, name: &str, config: &Config) -> Result<Self> {
        let d = config.width;
        Ok(Self {
            qkv: Linear::load(weights, &format!("{name}.qkv"), d, 3 * d)?,
            proj: Linear::load(weights, &format!("{name}.proj"), d, d)?,
            n_heads: config.n_heads,
            name: name.to_owned(),
        })
    }

    /// `residual + scale ∘ proj(attention(x))`: `(b, n, d) -> (b, n, d)`.
    fn forward(
        &self,
        x: &Tensor,
        residual: Residual<'_>,
        pass: &Pass<'_>,
    ) -> candle_core::Result<Tensor> {
        pass.show(|| format!("{}.qkv", self.name), x, None)?;
        let qkv = self.qkv.forward(x)?; // (b, n, 3 d)
        let mixed = attend(&qkv, self.n_heads, usize::MAX, Attended::default())?; // (b, n, d)
        pass.show(|| format!("{}.proj", self.name), &mixed, None)?;
        self.proj.forward_add(&mixed, residual)
    }
}

impl Block {
    fn load(weights: &Weights, name: &str, config: &Config) -> Result<Self> {
        let d = config.width;
        let part = |part: &str| format!("{name}.{part}");
        let scale = |name: &str| match config.has_layer_scale {
            true => LayerScale::load(weights, name, d),
            false => Ok(LayerScale::none()),
        };
        Ok(Self {
            norm1: LayerNorm::load(weights, &part("norm1"), d, EPSILON)?,
            attn: Attention::load(weights, &part("attn"), config)?,
            ls1: scale(&part("ls1.gamma"))?,
            norm2: LayerNorm::load(weights, &part("norm2"), d, EPSILON)?,
            mlp: Mlp::load(weights, &part("mlp"), d, config.ffn_width)?,
            ls2: scale(&part("ls2.gamma"))?,
        })
    }

    /// `(b, n, d) -> (b, n, d)`.
    fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> candle_core::Result<Tensor> {
        let normed = self.norm1.forward(x)?;
        let x = self
            .attn
            .forward(&normed, Residual::scaled(x, &self.ls1), pass)?; // (b, n, d)
        let normed = self.norm2.forward(&x)?;
        self.mlp
            .forward(&normed, Residual::scaled(&x, &self.ls2), None, pass)
    }
}

impl Vit {
    /// The tensors of a checkpoint under the names of this model, which are those in the file.
    ///
    /// # Errors
    /// As [`Weights::new`].
    pub fn weights(checkpoint: Arc<Checkpoint>, device: &Device, dtype: DType) -> Result<Weights> {
        let layout = Generic::read(&checkpoint);
        Weights::new(checkpoint, &layout, str::to_owned, device, dtype)
    }

    /// Loads every part.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, config: Config) -> Result<Self> {
        let d = config.width;
        let block = |i| Block::load(weights, &format!("blocks.{i}"), &config);
        Ok(Self {
            patch_embed: PatchEmbed::load(weights, "patch_embed.proj", d, config.patch_size)?,
            cls_token: weights.get("cls_token", &[1, 1, d], Init::Zeros)?,
            pos_embed: weights.get("pos_embed", &[1, config.n_tokens(), d], Linear::INIT)?,
            blocks: (0..config.n_blocks).map(block).collect::<Result<_>>()?,
            norm: LayerNorm::load(weights, "norm", d, EPSILON)?,
            config,
        })
    }

    /// Its sizes.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Tokens after the last norm, class token first: `(b, 3, s, s) -> (b, n, d)`.
    ///
    /// # Errors
    /// [`Error::ImageSize`], or when the device fails.
    pub fn tokens(&self, image: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let side = self.config.image_size;
        let &[b, 3, height, width] = image.dims() else {
            return Err(self.wrong_size(image));
        };
        if (height, width) != (side, side) {
            return Err(self.wrong_size(image));
        }
        let patches = self.patch_embed.forward(image)?; // (b, p, d)
        let class = self.cls_token.expand((b, 1, self.config.width))?;
        let mut x = Tensor::cat(&[&class, &patches], 1)?.broadcast_add(&self.pos_embed)?; // (b, n, d)
        for (index, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, pass)?;
            pass.show_block(index, std::slice::from_ref(&x))?;
        }
        Ok(self.norm.forward(&x)?)
    }

    /// The class token after the last norm: `(b, 3, s, s) -> (b, d)`.
    ///
    /// # Errors
    /// As [`Vit::tokens`].
    pub fn class(&self, image: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        Ok(self.tokens(image, pass)?.narrow(1, 0, 1)?.squeeze(1)?)
    }

    fn wrong_size(&self, image: &Tensor) -> Error {
        Error::ImageSize {
            found: image.dims().to_vec(),
            expected: self.config.image_size,
        }
    }
}
