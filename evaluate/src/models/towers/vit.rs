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
    Activation, Bias, Buffers, LayerNorm, LayerScale, Linear, Mlp, Network, Packed, PackedBias,
    Pass, PatchEmbed, Picked, PreNormBlock, Projections, Residual, attend_packed, attention_shares,
    unpack,
};
use crate::weights::Init;
use crate::{Error, ModelFault, Result, Weights};

/// Sizes of a vision transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The form, which decides names and constants.
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
    /// Whether a class token comes first.
    pub has_class: bool,
    /// Tokens between it and the patches, of which nothing is read.
    pub n_registers: usize,
    /// Whether the tokens before the patches have positions.
    pub places_first: bool,
    /// Whether the projection to patches has a bias.
    pub has_patch_bias: bool,
    /// Whether queries, keys and values have a bias.
    pub has_qkv_bias: bool,
    /// Whether a norm comes before the first block.
    pub has_pre_norm: bool,
    /// Whether a norm comes after the last block.
    pub has_norm: bool,
    /// The number that every norm adds to the variance.
    pub epsilon: f64,
    /// The function between the two layers of an FFN.
    pub activation: Activation,
}

impl Config {
    /// The sizes of a tower under `prefix`. Heads are 64 wide unless `n_heads` says otherwise:
    /// weights do not tell.
    ///
    /// # Errors
    /// [`ModelFault::UnknownSize`] and
    /// [`ModelFault::BadSize`].
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
        let (config, n_tokens) = Self::of_blocks(shapes, prefix, n_heads, form)?;
        let side = n_tokens.saturating_sub(1).isqrt();
        if side == 0 || side * side + 1 != n_tokens {
            let fault = format!("{n_tokens} positions are not a square and a class token");
            return Err(sizes::bad(shapes, &fault));
        }
        Ok(Self {
            image_size: side * config.patch_size,
            ..config
        })
    }

    /// The sizes of a classifier of timm for images of `side` pixels: its keys tell which parts it has.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn read_timm(shapes: &dyn Shapes, n_heads: usize, side: Option<usize>) -> Result<Self> {
        let (config, rows) = Self::of_blocks(shapes, "", Some(n_heads), Form::Timm)?;
        let has = |name: &str| shapes.shape(name).is_some();
        let n_registers = match shapes.shape("reg_token") {
            None => 0,
            Some(&[1, n, _]) => n,
            Some(shape) => {
                let fault = format!("`reg_token` is {shape:?}, no tokens of one sequence");
                return Err(sizes::bad(shapes, &fault));
            }
        };
        let unknown = || {
            Error::Model(ModelFault::UnknownSize {
                path: shapes.path().into(),
                what: "the image size",
            })
        };
        let config = Self {
            image_size: side.ok_or_else(unknown)?,
            has_class: has("cls_token"),
            n_registers,
            has_patch_bias: has("patch_embed.proj.bias"),
            has_qkv_bias: has("blocks.0.attn.qkv.bias"),
            has_pre_norm: has("norm_pre.weight"),
            has_norm: has("norm.weight"),
            ..config
        };
        Ok(Self {
            places_first: rows != config.n_patches(),
            ..config
        })
    }

    /// The sizes of a tower with a class token, of an image without a size yet, and the rows of its positions.
    fn of_blocks(
        shapes: &dyn Shapes,
        prefix: &str,
        n_heads: Option<usize>,
        form: Form,
    ) -> Result<(Self, usize)> {
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
        let inner = format!("{prefix}{}0.{}.bias", names.block, names.fc[0]);
        let norm = |block| format!("{prefix}{}{block}.{}.weight", names.block, names.norms[0]);
        let config = Self {
            form,
            n_blocks: sizes::count(shapes, norm),
            width,
            n_heads: sizes::heads(shapes, width, n_heads)?,
            ffn_width: sizes::length(shapes, "the width of the FFN", &inner)?,
            patch_size,
            image_size: 0,
            has_layer_scale: shape("blocks.0.ls1.gamma").is_some(),
            has_class: true,
            n_registers: 0,
            places_first: true,
            has_patch_bias: form.has_patch_bias(),
            has_qkv_bias: true,
            has_pre_norm: form == Form::Clip,
            has_norm: true,
            epsilon: form.epsilon(),
            activation: form.activation(),
        };
        Ok((config, n_tokens))
    }

    /// Tokens of an image: its patches and those before them.
    #[must_use]
    pub fn n_tokens(&self) -> usize {
        self.n_patches() + self.n_first()
    }

    /// Tokens before the patches.
    #[must_use]
    pub fn n_first(&self) -> usize {
        usize::from(self.has_class) + self.n_registers
    }

    /// Patches of an image.
    #[must_use]
    pub fn n_patches(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }
}

/// Multi-head self-attention.
#[derive(Clone, Debug)]
struct Attention {
    qkv: Linear,
    proj: Linear,
    n_heads: usize,
    /// The names of its layers for a tap.
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
    /// Class token and registers: `(1, n, d)` each.
    first: Vec<Tensor>,
    pos_embed: Tensor,
    pre_norm: Option<LayerNorm>,
    blocks: Vec<Block>,
    norm: Option<LayerNorm>,
}

impl Attention {
    fn load(weights: &Weights, name: &str, config: &Config) -> Result<Self> {
        let (d, names) = (config.width, config.form.names());
        let [weight, bias] = names.qkv.map(|part| format!("{name}.{part}"));
        let proj = format!("{name}.{}", names.proj);
        let bias = match config.has_qkv_bias {
            true => weights.get(&bias, &[3 * d], Init::Zeros)?,
            false => weights.nothing()?,
        };
        let qkv = Linear::new(weights.get(&weight, &[3 * d, d], Linear::INIT)?, bias);
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
        let (d, names) = (config.width, config.form.names());
        let part = |part: &str| format!("{name}.{part}");
        let norm =
            |nth: usize| LayerNorm::load(weights, &part(names.norms[nth]), d, config.epsilon);
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
            mlp: mlp.with_activation(config.activation),
            ls2: scale(&part("ls2.gamma"))?,
            index,
            n_blocks: config.n_blocks,
        })
    }

    /// `(b, n, d) -> (b, n, d)`.
    fn forward(
        &self,
        x: &Tensor,
        pass: &Pass<'_>,
        buffers: &Buffers,
    ) -> candle_core::Result<Tensor> {
        let kept = self.kept(x, pass)?;
        let on_slices = self.on_slices(x.dim(1)?, &kept);
        let Some(tape) = pass.tape() else {
            return match !pass.is_tapped() && self.has_bias() && on_slices.runs_alone(x) {
                true => on_slices.run(x, buffers),
                false => self.compute(x, usize::MAX, &kept, pass),
            };
        };
        if self.has_bias() && on_slices.is_fusible(tape, x) {
            return on_slices.record(tape, x);
        }
        let block = self.clone();
        tape.segment(vec![x.clone()], move |inputs| {
            block.compute(&inputs[0], usize::MAX, &kept, &Pass::new())
        })
    }

    /// Branches on slices add a bias always.
    fn has_bias(&self) -> bool {
        self.attn.qkv.bias().elem_count() > 0
    }

    /// The block for the first token alone, or for all in a pass that goes back through a graph: `(b, n, d)` to
    /// `(b, 1, d)` or `(b, n, d)`. Nobody looks on.
    fn forward_first(
        &self,
        x: &Tensor,
        pass: &Pass<'_>,
        buffers: &Buffers,
    ) -> candle_core::Result<Tensor> {
        let (b, n, _) = x.dims3()?;
        let kept = self.kept(x, pass)?;
        let is_trained = x.track_op() || self.attn.qkv.weight().track_op();
        let block = self.on_slices(n, &kept).picking(Picked::first(b));
        match (block.filter(|_| self.has_bias()), pass.tape()) {
            (Some(block), Some(tape)) if block.is_fusible(tape, x) => block.record(tape, x),
            (Some(block), None) if block.runs_alone(x) => block.run(x, buffers),
            (_, None) if !is_trained => self.compute(x, 1, &kept, pass),
            _ => self.forward(x, pass, buffers),
        }
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
            picked: None,
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
        let (d, form) = (config.width, config.form);
        let names = form.names();
        let n_positions = match config.places_first {
            true => config.n_tokens(),
            false => config.n_patches(),
        };
        let name = |part: &str| format!("{prefix}{part}");
        let block = |i| {
            let name = name(&format!("{}{i}", names.block));
            Block::load(weights, &name, i, &config)
        };
        let norm = |part: &str| LayerNorm::load(weights, &name(part), d, config.epsilon);
        let patches = name(names.patches);
        let patch_embed = match config.has_patch_bias {
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
        let mut first = Vec::new();
        if config.has_class {
            first.push(table(names.class, [1, 1, d], Init::Zeros)?);
        }
        if config.n_registers > 0 {
            let shape = [1, config.n_registers, d];
            first.push(weights.get(&name("reg_token"), &shape, Linear::INIT)?);
        }
        let pre_norm = || norm(names.pre_norm);
        Ok(Self {
            patch_embed,
            first,
            pos_embed: table(names.positions, [1, n_positions, d], Linear::INIT)?,
            pre_norm: config.has_pre_norm.then(pre_norm).transpose()?,
            blocks: (0..config.n_blocks).map(block).collect::<Result<_>>()?,
            norm: config.has_norm.then(|| norm(names.norm)).transpose()?,
            config,
        })
    }

    /// Its sizes.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Tokens before the first block, class token first where there is one: `(b, 3, s, s) -> (b, n, d)`.
    fn embed(&self, image: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let side = self.config.image_size;
        let &[b, 3, height, width] = image.dims() else {
            return Err(self.wrong_size(image));
        };
        if (height, width) != (side, side) {
            return Err(self.wrong_size(image));
        }
        let patches = self.patch_embed.forward(image)?; // (b, p, d)
        let patches = match self.config.places_first {
            true => patches,
            false => patches.broadcast_add(&self.pos_embed)?,
        };
        let first = self.first.iter().map(|tokens| {
            let (_, n, d) = tokens.dims3()?;
            tokens.expand((b, n, d))
        });
        let parts: Vec<Tensor> = first
            .chain([Ok(patches)])
            .collect::<candle_core::Result<_>>()?;
        let x = Tensor::cat(&parts, 1)?; // (b, n, d)
        let x = match self.config.places_first {
            true => x.broadcast_add(&self.pos_embed)?,
            false => x,
        };
        pass.show_output(format_args!("embed"), || Ok(x.clone()))?;
        let Some(norm) = &self.pre_norm else {
            return Ok(x);
        };
        let x = norm.forward(&x)?;
        pass.show_output(format_args!("ln_pre"), || Ok(x.clone()))?;
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
            x = block.forward(&x, pass, buffers)?;
            pass.show_block(block.index, std::slice::from_ref(&x))?;
        }
        Ok(x)
    }

    fn normed(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let normed = match &self.norm {
            Some(norm) => norm.forward(x)?,
            None => x.clone(),
        };
        pass.show_output(format_args!("norm"), || Ok(normed.clone()))?;
        Ok(normed)
    }

    /// Tokens after the last norm, class token first where there is one: `(b, 3, s, s) -> (b, n, d)`.
    ///
    /// # Errors
    /// [`Error::ImageSize`], or when the device fails.
    pub fn tokens(&self, image: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let x = self.embed(image, pass)?;
        let x = self.run(x, &self.blocks, pass, &Buffers::default())?;
        self.normed(&x, pass)
    }

    /// The class token after the last norm: `(b, 3, s, s) -> (b, d)`. Without a tap the last block computes that token
    /// alone, where it can.
    ///
    /// # Errors
    /// As [`Vit::tokens`].
    pub fn class(&self, image: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let x = self.embed(image, pass)?;
        let Some((last, others)) = self.blocks.split_last() else {
            return Ok(first(&self.normed(&x, pass)?)?);
        };
        let buffers = Buffers::default();
        let x = self.run(x, others, pass, &buffers)?;
        let x = match pass.is_tapped() {
            true => self.run(x, std::slice::from_ref(last), pass, &buffers)?,
            false => last.forward_first(&x, pass, &buffers)?,
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
