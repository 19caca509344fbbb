//! The multiway transformer: one stack of blocks for images, text and both.
//!
//! Bao et al. 2021, "VLMo", <https://arxiv.org/abs/2111.02358>, section 3; Sung et al. 2023, "An
//! Empirical Study of Multimodal Model Merging", <https://arxiv.org/abs/2304.14933>, section 3.
//! Reference: <https://github.com/ylsung/vl-merging>, <https://github.com/microsoft/unilm>.
//!
//! Fields are called as in the checkpoints of vl-merging; a checkpoint in VLMo's spelling is
//! renamed as it is loaded. Which parts have experts is read off the keys.

mod block;
mod blueprint;
mod capabilities;
mod config;
mod experts;
mod fused;
mod heads;
mod named;
mod passes;
mod taped;
mod text_embeddings;

pub use block::{Block, Segment};
pub use blueprint::{FAMILY, GROUPING, MultiwayBlueprint};
pub use config::{Config, Positions};
pub use experts::Experts;
pub use heads::Heads;
pub use passes::Joint;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use merge::Checkpoint;
use merge::layouts::{self, vlmo};

use super::{ModelInput, Overrides};
use crate::nn::{Embedding, LayerNorm, Linear, PatchEmbed, RelativePosition};
use crate::weights::Init;
use crate::{Result, Weights};
use text_embeddings::TextEmbeddings;

/// The last LayerNorm.
const EPSILON: f64 = 1e-6;

/// A multiway transformer with its heads.
#[derive(Clone, Debug)]
pub struct Multiway {
    config: Config,
    text_embeddings: TextEmbeddings,
    patch_embed: PatchEmbed,
    cls_token: Tensor,
    mask_token: Option<Tensor>,
    pos_embed: Option<Tensor>,
    token_type_embeddings: Embedding,
    blocks: Vec<Block>,
    norm: LayerNorm,
    relative_position: Option<RelativePosition>,
    heads: Heads,
    input: ModelInput,
}

impl Multiway {
    /// Loads a checkpoint of the vl-merging or VLMo family for inference: every tensor of the
    /// model must be there; heads are those that are there. The [`Weights`] that come with it tell
    /// the used tensors.
    ///
    /// # Errors
    /// As [`Config::read`], [`Weights::new`] and [`Weights::get`].
    pub fn open(
        checkpoint: Arc<Checkpoint>,
        overrides: &Overrides,
        device: &Device,
        dtype: DType,
    ) -> Result<(Self, Weights)> {
        let (config, weights) = Self::prepare(checkpoint, overrides, device, dtype)?;
        Ok((Self::load(&weights, config)?, weights))
    }

    /// The configuration of a checkpoint, and its tensors under the names of this model.
    ///
    /// # Errors
    /// As [`Config::read`] and [`Weights::new`].
    pub fn prepare(
        checkpoint: Arc<Checkpoint>,
        overrides: &Overrides,
        device: &Device,
        dtype: DType,
    ) -> Result<(Config, Weights)> {
        let layout = layouts::detect(&checkpoint)?;
        let config = Config::read(&checkpoint, layout.as_ref(), overrides)?;
        let weights = Weights::new(
            checkpoint,
            layout.as_ref(),
            vlmo::to_vl_merging,
            device,
            dtype,
        )?;
        Ok((config, weights))
    }

    /// Loads the model from prepared weights.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, config: Config) -> Result<Self> {
        let d = config.width;
        let token = |name: &str| weights.get(name, &[1, 1, d], Linear::INIT);
        let blocks = (0..config.n_blocks).map(|index| {
            let name = format!("transformer.blocks.{index}");
            Block::load(weights, &name, index, &config)
        });
        let (relative_position, pos_embed) = match config.positions {
            Positions::Relative(window) => {
                let (blocks, heads) = (config.n_blocks, config.n_heads);
                let table = RelativePosition::load(weights, window, blocks, heads)?;
                (Some(table), None)
            }
            Positions::Absolute => {
                let shape = [1, config.n_patches() + 1, d];
                let table = weights.get("transformer.pos_embed", &shape, Init::Zeros)?;
                (None, Some(table))
            }
        };
        let mask_token = weights
            .has("transformer.mask_token")
            .then(|| token("transformer.mask_token"));
        let (patch, types) = (config.patch_size, config.n_token_types);
        Ok(Self {
            text_embeddings: TextEmbeddings::load(weights, &config)?,
            patch_embed: PatchEmbed::load(weights, "transformer.patch_embed.proj", d, patch)?,
            cls_token: token("transformer.cls_token")?,
            mask_token: mask_token.transpose()?,
            pos_embed,
            token_type_embeddings: Embedding::load(weights, "token_type_embeddings", types, d)?,
            blocks: blocks.collect::<Result<_>>()?,
            norm: LayerNorm::load(weights, "transformer.norm", d, EPSILON)?,
            relative_position,
            heads: Heads::load(weights, &config)?,
            input: config.input(),
            config,
        })
    }

    /// Sizes and form.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The heads.
    #[must_use]
    pub fn heads(&self) -> &Heads {
        &self.heads
    }
}
