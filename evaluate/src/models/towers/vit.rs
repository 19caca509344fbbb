//! The vision transformer as an image tower, with LayerScale where the checkpoint has it.
//!
//! Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words", <https://arxiv.org/abs/2010.11929>,
//! section 3.1; Oquab et al. 2023, "DINOv2", <https://arxiv.org/abs/2304.07193>. Reference, whose
//! names these are: <https://github.com/huggingface/pytorch-image-models>. CLIP's, with a norm before the
//! first block: Radford et al. 2021, <https://arxiv.org/abs/2103.00020>, section 2.4; names of
//! <https://github.com/openai/CLIP>.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use merge::Checkpoint;
use merge::layouts::Generic;

use super::vit_form::Form;
use super::{Shapes, first, first_tokens, sizes};
use crate::nn::{
    Bias, LayerNorm, LayerScale, Linear, Mlp, Network, Packed, PackedBias, Pass, PatchEmbed,
    PreNormBlock, Projections, Residual, attend_packed, attention_shares, unpack,
};
use crate::weights::Init;
use crate::{Error, Result, Weights};

/// Sizes of a vision transformer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Whose names and constants.
    pub form: Form,
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
    /// The sizes of a tower under `prefix`. Heads are 64 wide unless `n_heads` says otherwise:
    /// weights do not tell.
    ///
    /// # Errors
    /// [`ModelFault::UnknownSize`](crate::ModelFault::UnknownSize) and
    /// [`ModelFault::BadSize`](crate::ModelFault::BadSize).
    pub fn read(shapes: &dyn Shapes, prefix: &str, n_heads: Option<usize>) -> Result<Self> {
        Self::read_form(shapes, prefix, n_heads, Form::Timm)
    }

    /// As [`Config::read`], of any form.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn read_form(
        shapes: &dyn Shapes,
        prefix: &str,
        n_heads: Option<usize>,
        form: Form,
    ) -> Result<Self> {
        let names = form.names();
        let shape = |part: &str| shapes.shape(&format!("{prefix}{part}"));
        let patches = shape(&format!("{}.weight", names.patches));
        let &[width, 3, patch_size, _] = sizes::known(shapes, "the patch size", patches)? else {
            return Err(sizes::bad(shapes, "patches are not those of an RGB image"));
        };
        let positions = sizes::known(shapes, "the image size", shape(names.positions))?;
        let n_tokens = match *positions {
            [1, n_tokens, _] if !form.has_bare_tables() => n_tokens,
            [n_tokens, _] if form.has_bare_tables() => n_tokens,
            _ => return Err(sizes::bad(shapes, "positions are not those of one image")),
        };
        let side = n_tokens.saturating_sub(1).isqrt();
        if side == 0 || side * side + 1 != n_tokens {
            let fault = format!("{n_tokens} positions are not a square and a class token");
            return Err(sizes::bad(shapes, &fault));
        }
        let inner = format!("{prefix}{}0.{}.bias", names.block, names.fc[0]);
        let norm = |block| format!("{prefix}{}{block}.{}.weight", names.block, names.norms[0]);
        Ok(Self {
            form,
            n_blocks: sizes::count(shapes, norm),
            width,
            n_heads: sizes::heads(shapes, width, n_heads)?,
            ffn_width: sizes::length(shapes, "the width of the FFN", &inner)?,
            patch_size,
            image_size: side * patch_size,
            has_layer_scale: shape("blocks.0.ls1.gamma").is_some(),
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
    /// What its layers are called where somebody looks on.
    names: [String; 2],
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
    index: usize,
    n_blocks: usize,
}

/// Drop path's factors per sequence, `(b)`, of the two branches.
#[derive(Clone, Debug, Default)]
struct Kept {
    attn: Option<Tensor>,
    mlp: Option<Tensor>,
}

/// A vision transformer without a classifier.
#[derive(Clone, Debug)]
pub struct Vit {
    config: Config,
    patch_embed: PatchEmbed,
    cls_token: Tensor,
    pos_embed: Tensor,
    pre_norm: Option<LayerNorm>,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

impl Attention {
    fn load(weights: &Weights, name: &str, config: &Config) -> Result<Self> {
        let (d, names) = (config.width, config.form.names());
        let [weight, bias] = names.qkv.map(|part| format!("{name}.{part}"));
        let proj = format!("{name}.{}", names.proj);
        let qkv = Linear::new(
            weights.get(&weight, &[3 * d, d], Linear::INIT)?,
            weights.get(&bias, &[3 * d], Init::Zeros)?,
        );
        Ok(Self {
            qkv,
            proj: Linear::load(weights, &proj, d, d)?,
            n_heads: config.n_heads,
            names: [format!("{name}.{}", names.qkv_gram), proj],
        })
    }

    /// `residual + keep scale ∘ proj(attention(x))` of the first `queries` tokens:
    /// `(b, n, d) -> (b, queries, d)`.
    fn forward(
        &self,
        x: &Tensor,
        residual: Residual<'_>,
        queries: usize,
        index: usize,
        pass: &Pass<'_>,
    ) -> candle_core::Result<Tensor> {
        pass.show(|| self.names[0].clone(), x, None)?;
        let qkv = self.qkv.forward(x)?; // (b, n, 3 d)
        pass.show_output(format_args!("attn{index}"), || {
            let [q, k, _] = unpack(&qkv)?;
            attention_shares(&q, &k, Bias::default(), self.n_heads)
        })?;
        let mixed = attend_packed(&qkv, self.n_heads, queries, Bias::default())?;
        pass.show(|| self.names[1].clone(), &mixed, None)?;
        self.proj.forward_add(&mixed, residual)
    }
}

impl Block {
    fn load(weights: &Weights, name: &str, index: usize, config: &Config) -> Result<Self> {
        let (d, form) = (config.width, config.form);
        let names = form.names();
        let part = |part: &str| format!("{name}.{part}");
        let norm =
            |nth: usize| LayerNorm::load(weights, &part(names.norms[nth]), d, form.epsilon());
        let mlp = Mlp::load_named(weights, names.fc.map(part), d, config.ffn_width)?;
        let scale = |name: &str| match config.has_layer_scale {
            true => LayerScale::load(weights, name, d),
            false => Ok(LayerScale::none()),
        };
        Ok(Self {
            norm1: norm(0)?,
            attn: Attention::load(weights, &part("attn"), config)?,
            ls1: scale(&part("ls1.gamma"))?,
            norm2: norm(1)?,
            mlp: mlp.with_activation(form.activation()),
            ls2: scale(&part("ls2.gamma"))?,
            index,
            n_blocks: config.n_blocks,
        })
    }

    /// `(b, n, d) -> (b, n, d)`.
    fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> candle_core::Result<Tensor> {
        let kept = self.kept(x, pass)?;
        let Some(tape) = pass.tape() else {
            return self.compute(x, usize::MAX, &kept, pass);
        };
        let on_slices = self.on_slices(x.dim(1)?, &kept);
        if on_slices.is_fusible(tape, x) {
            return on_slices.record(tape, x);
        }
        let block = self.clone();
        tape.segment(vec![x.clone()], move |inputs| {
            block.compute(&inputs[0], usize::MAX, &kept, &Pass::new())
        })
    }

    /// The block on slices, for `n` tokens.
    fn on_slices(&self, n: usize, kept: &Kept) -> PreNormBlock {
        let network = Network {
            norm: self.norm2.clone(),
            mlp: self.mlp.clone(),
            len: n,
            keep: kept.mlp.clone(),
        };
        PreNormBlock {
            norms: vec![(self.norm1.clone(), n)],
            attention: Packed {
                qkv: Projections::Packed(
                    self.attn.qkv.clone(),
                    PackedBias::Whole(self.attn.qkv.bias().clone()),
                ),
                proj: self.attn.proj.clone(),
                heads: self.attn.n_heads,
            },
            scale: self.ls1.factors().cloned(),
            keep: kept.attn.clone(),
            networks: vec![network],
            network_scale: self.ls2.factors().cloned(),
            pairs: None,
            mask: None,
        }
    }

    /// The block itself, for the first `queries` tokens: `(b, n, d) -> (b, queries, d)`.
    fn compute(
        &self,
        x: &Tensor,
        queries: usize,
        kept: &Kept,
        pass: &Pass<'_>,
    ) -> candle_core::Result<Tensor> {
        let normed = self.norm1.forward(x)?;
        let first = first_tokens(x, queries)?;
        let residual = Residual {
            x: &first,
            scale: self.ls1.factors(),
            keep: kept.attn.as_ref(),
        };
        let x = (self.attn).forward(&normed, residual, queries, self.index, pass)?; // (b, queries, d)
        let normed = self.norm2.forward(&x)?;
        let residual = Residual {
            x: &x,
            scale: self.ls2.factors(),
            keep: kept.mlp.as_ref(),
        };
        self.mlp.forward(&normed, residual, None, pass)
    }

    fn kept(&self, x: &Tensor, pass: &Pass<'_>) -> candle_core::Result<Kept> {
        let Some(omission) = pass.omission() else {
            return Ok(Kept::default());
        };
        let branch =
            |branch| omission.branch(self.index, self.n_blocks, branch, x.dim(0)?, x.device());
        Ok(Kept {
            attn: branch("attn")?,
            mlp: branch("mlp")?,
        })
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

    /// Loads every part of the tower under `prefix`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, prefix: &str, config: Config) -> Result<Self> {
        let (d, n_tokens, form) = (config.width, config.n_tokens(), config.form);
        let names = form.names();
        let name = |part: &str| format!("{prefix}{part}");
        let block = |i| {
            let name = name(&format!("{}{i}", names.block));
            Block::load(weights, &name, i, &config)
        };
        let norm = |part: &str| LayerNorm::load(weights, &name(part), d, form.epsilon());
        let patches = name(names.patches);
        let patch_embed = match form.has_patch_bias() {
            true => PatchEmbed::load(weights, &patches, d, config.patch_size)?,
            false => PatchEmbed::load_without_bias(weights, &patches, d, config.patch_size)?,
        };
        // Views of the same memory, so they follow the weights through training.
        let table = |part: &str, shape: [usize; 3], init: Init| {
            let [_, rows, _] = shape;
            let own: &[usize] = match (form.has_bare_tables(), rows) {
                (false, _) => &shape,
                (true, 1) => &shape[2..],
                (true, _) => &shape[1..],
            };
            Ok::<_, Error>(weights.get(&name(part), own, init)?.reshape(&shape)?)
        };
        Ok(Self {
            patch_embed,
            cls_token: table(names.class, [1, 1, d], Init::Zeros)?,
            pos_embed: table(names.positions, [1, n_tokens, d], Linear::INIT)?,
            pre_norm: names.pre_norm.map(norm).transpose()?,
            blocks: (0..config.n_blocks).map(block).collect::<Result<_>>()?,
            norm: norm(names.norm)?,
            config,
        })
    }

    /// Its sizes.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Tokens before the first block, class token first: `(b, 3, s, s) -> (b, n, d)`.
    fn embed(&self, image: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let side = self.config.image_size;
        let &[b, 3, height, width] = image.dims() else {
            return Err(self.wrong_size(image));
        };
        if (height, width) != (side, side) {
            return Err(self.wrong_size(image));
        }
        let patches = self.patch_embed.forward(image)?; // (b, p, d)
        let class = self.cls_token.expand((b, 1, self.config.width))?;
        let x = Tensor::cat(&[&class, &patches], 1)?.broadcast_add(&self.pos_embed)?; // (b, n, d)
        pass.show_output(format_args!("embed"), || Ok(x.clone()))?;
        let Some(norm) = &self.pre_norm else {
            return Ok(x);
        };
        let x = norm.forward(&x)?;
        pass.show_output(format_args!("ln_pre"), || Ok(x.clone()))?;
        Ok(x)
    }

    fn run(&self, mut x: Tensor, blocks: &[Block], pass: &Pass<'_>) -> Result<Tensor> {
        for block in blocks {
            x = block.forward(&x, pass)?;
            pass.show_block(block.index, std::slice::from_ref(&x))?;
        }
        Ok(x)
    }

    fn normed(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let normed = self.norm.forward(x)?;
        pass.show_output(format_args!("norm"), || Ok(normed.clone()))?;
        Ok(normed)
    }

    /// Tokens after the last norm, class token first: `(b, 3, s, s) -> (b, n, d)`.
    ///
    /// # Errors
    /// [`Error::ImageSize`], or when the device fails.
    pub fn tokens(&self, image: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let x = self.run(self.embed(image, pass)?, &self.blocks, pass)?;
        self.normed(&x, pass)
    }

    /// The class token after the last norm: `(b, 3, s, s) -> (b, d)`. Where nobody looks on and no
    /// gradient is asked for, the last block computes that token alone.
    ///
    /// # Errors
    /// As [`Vit::tokens`].
    pub fn class(&self, image: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let x = self.embed(image, pass)?;
        let Some((last, others)) = self.blocks.split_last() else {
            return Ok(first(&self.normed(&x, pass)?)?);
        };
        let x = self.run(x, others, pass)?;
        let is_trained = x.track_op() || last.attn.qkv.weight().track_op();
        let x = match pass.is_tapped() || is_trained || pass.tape().is_some() {
            true => self.run(x, std::slice::from_ref(last), pass)?,
            false => last.compute(&x, 1, &last.kept(&x, pass)?, pass)?, // (b, 1, d)
        };
        Ok(first(&self.normed(&x, pass)?)?)
    }

    fn wrong_size(&self, image: &Tensor) -> Error {
        Error::ImageSize {
            found: image.dims().to_vec(),
            expected: self.config.image_size,
        }
    }
}
