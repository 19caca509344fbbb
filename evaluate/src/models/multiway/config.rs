//! Sizes and forms of multiway models, read off a checkpoint.

use merge::layouts::{ModelRecord, RecordFamily, Window};
use merge::{Checkpoint, Expert, Layout, Role};
use serde::Serialize;

use crate::models::settings::agreed;
use crate::models::towers::sizes;
use crate::models::{Overrides, ShallowAttention};
use crate::{Error, ModelFault, Result};

/// The form of positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// A relative position bias table for text and image.
    Relative(#[serde(skip)] Window),
    /// Embeddings of absolute positions (VLMo base_plus).
    Absolute,
}

/// A multiway model. No size is a constant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Config {
    /// Family and form, e.g. `vl_merging/agnostic`.
    pub layout: String,
    /// Number of blocks, L.
    pub n_blocks: usize,
    /// Hidden size, D.
    pub width: usize,
    /// Attention heads of each block.
    pub n_heads: usize,
    /// Inner size of the feed-forward network.
    pub ffn_width: usize,
    /// First block in which text and image are one sequence for the vision-language expert.
    pub fusion_start: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Side of the image in pixels.
    pub image_size: usize,
    /// Text positions, T.
    pub text_len: usize,
    /// Size of the word-piece vocabulary.
    pub vocabulary: usize,
    /// Rows of the outer token type table: 2, or 3 for NLVR2.
    pub n_token_types: usize,
    /// The form of positions.
    pub positions: Positions,
    /// Whether residual branches have LayerScale.
    pub has_layer_scale: bool,
    /// The attention between text and image before the fusion start.
    pub shallow_attention: ShallowAttention,
}

impl Config {
    /// Whether checkpoints of this family and form can be run.
    pub(super) fn reads(layout: &str) -> bool {
        layout.starts_with("vl_merging/") || layout.starts_with("vlmo/")
    }

    /// The model that a checkpoint of the vl-merging or VLMo family holds.
    ///
    /// # Errors
    /// [`ModelFault::NotRunnable`] for another family, a [`merge::ConversionFault`] where the bias table
    /// has no room for the text positions given, [`ModelFault::UnknownSize`] for a size that neither
    /// the checkpoint nor `overrides` tells, [`ModelFault::BadSize`] for sizes that do not fit, and for `overrides` that
    /// contradict the file's record or its experts.
    pub fn read(
        checkpoint: &Checkpoint,
        layout: &dyn Layout,
        overrides: &Overrides,
    ) -> Result<Self> {
        let path = checkpoint.path();
        let name = layout.name();
        if !Self::reads(name) {
            return Err(Error::Model(ModelFault::NotRunnable {
                path: path.into(),
                layout: name.to_owned(),
            }));
        }
        let found = merge::convert::sizes_with_text(checkpoint, layout, overrides.text_table_len)?;
        let known = |what: &'static str, size: Option<usize>| match size {
            Some(0) => Err(sizes::bad(checkpoint, &format!("{what} is 0"))),
            Some(size) => Ok(size),
            None => Err(Error::Model(ModelFault::UnknownSize {
                path: path.into(),
                what,
            })),
        };
        let is_absolute = checkpoint
            .tensors()
            .any(|(key, _)| key.ends_with("transformer.pos_embed"));
        let record = ModelRecord::of(checkpoint)?;
        let (given, recorded) = (overrides.text_table_len, record.text_table_len);
        agreed(checkpoint, "text_table_len", given, recorded)?;
        let (given, recorded) = (overrides.shallow_attention, record.shallow_attention);
        let shallow_attention = agreed(checkpoint, "shallow_attention", given, recorded)?;
        let heads = agreed(checkpoint, "heads", overrides.n_heads, record.heads)?;
        let heads = heads.or(found.n_heads());
        let heads = heads.or((name == "vlmo/base_plus").then_some(BASE_PLUS_HEADS));
        let mut config = Self {
            layout: name.to_owned(),
            n_blocks: known("the number of blocks", Some(found.n_blocks()))?,
            width: known("the width", Some(found.width()))?,
            n_heads: known("the number of heads", heads)?,
            ffn_width: known("the width of the FFN", found.ffn_width())?,
            fusion_start: fusion_start(checkpoint, layout, overrides, &record)?,
            patch_size: known("the patch size", found.patch_size)?,
            image_size: known("the image size", found.image_size)?,
            text_len: known("the text length", found.text_len)?,
            vocabulary: known("the size of the vocabulary", found.vocabulary)?,
            n_token_types: known("the number of token types", found.n_token_types)?,
            positions: Positions::Absolute,
            has_layer_scale: checkpoint
                .tensors()
                .any(|(key, _)| key.ends_with(".gamma_1")),
            shallow_attention: shallow_attention.unwrap_or_else(|| usual_attention(name)),
        };
        sizes::heads(checkpoint, config.width, Some(config.n_heads))?;
        if !is_absolute {
            let room = known("the text length of the bias table", found.text_table_len)?;
            if room < config.text_len {
                let len = config.text_len;
                let fault = format!("{len} text positions, but the bias table has room for {room}");
                return Err(sizes::bad(checkpoint, &fault));
            }
            config.positions = Positions::Relative(Window {
                side: config.image_size / config.patch_size,
                text_len: config.text_len,
                fused_text_len: None,
                text_table_len: room,
            });
        }
        Ok(config)
    }

    /// Facts about this model that the weights do not tell, for the file that they go to.
    #[must_use]
    pub fn record(&self) -> ModelRecord {
        let is_usual = self.shallow_attention == usual_attention(&self.layout);
        ModelRecord {
            family: Some(RecordFamily::Multiway),
            heads: Some(self.n_heads),
            fusion_start: Some(self.fusion_start),
            text_table_len: match self.positions {
                Positions::Relative(window) => Some(window.text_table_len),
                Positions::Absolute => None,
            },
            shallow_attention: (!is_usual).then_some(self.shallow_attention),
            ..ModelRecord::default()
        }
    }

    /// Patches of an image.
    #[must_use]
    pub fn n_patches(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }
}

/// The first block in which text and image are one sequence. As many as there are blocks means that no block is.
fn fusion_start(
    checkpoint: &Checkpoint,
    layout: &dyn Layout,
    overrides: &Overrides,
    record: &ModelRecord,
) -> Result<usize> {
    let (found, given) = (layout.dimensions(), overrides.fusion_start);
    let said = agreed(checkpoint, "fusion_start", given, record.fusion_start)?;
    let is_joint = |key: &str| {
        let expert = match layout.role(key) {
            Ok(Role::Expert { expert, .. }) => Some(expert),
            _ => None,
        };
        expert == Some(Expert::VisionLanguage)
    };
    if let (Some(given), Some(first)) = (given, found.fusion_start)
        && given != first
        && checkpoint.tensors().any(|(key, _)| is_joint(key))
    {
        let fault = format!(
            "`fusion_start` is {first}, the first block with a vision_language expert, but {given} was asked for"
        );
        return Err(sizes::bad(checkpoint, &fault));
    }
    let n_blocks = found.n_blocks();
    if let Some(start) = said.filter(|start| *start > n_blocks) {
        let fault = format!(
            "`fusion_start` is {start}, but there are {n_blocks} blocks; {n_blocks} means that no block joins text and image"
        );
        return Err(sizes::bad(checkpoint, &fault));
    }
    said.or(found.fusion_start).ok_or_else(|| {
        Error::Model(ModelFault::UnknownSize {
            path: checkpoint.path().into(),
            what: "the fusion start",
        })
    })
}

/// Heads of VLMo base_plus: its tensors do not tell, because it has no bias table.
const BASE_PLUS_HEADS: usize = 16;

/// The attention in the published program of a family and form.
fn usual_attention(layout: &str) -> ShallowAttention {
    match layout == "vl_merging/ln_specific" || layout.starts_with("vlmo/") {
        true => ShallowAttention::Joint,
        false => ShallowAttention::PerModality,
    }
}
