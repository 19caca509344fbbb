//! What the weights of a run start from.

use std::path::PathBuf;
use std::sync::Arc;

use evaluate::models::{self, Source};
use merge::convert::{Conversion, Expansion};
use merge::execute::{RunOptions, in_memory};
use merge::layouts::{self, CatalogSpec, Form, GivenSizes, Heads, Sizes};
use merge::plan::PlanBuilder;
use merge::recipe::OutputDType;
use merge::synth::{Spread, Synthesis};
use merge::{Checkpoint, Layout, MergePlan, MergeRecipe, Progress};
use serde::{Deserialize, Serialize};

use super::ModelSettings;
use crate::{Error, Result};

/// A checkpoint, a merge in memory, or fresh weights; just one of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Init {
    /// A checkpoint file or folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<PathBuf>,
    /// A merge recipe, whose result is never written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipe: Option<PathBuf>,
    /// Fresh weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub synth: Option<Synth>,
    /// Fresh weights for what the checkpoint or merge lacks: BEiT has no text embeddings and no heads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fill: Option<Synth>,
    /// Give each modality its own copy of some parts, as `vlmerge expand` does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expand: Option<ExpertForm>,
}

/// Which parts of a block have a copy per modality.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExpertForm {
    /// None.
    Agnostic,
    /// Attention, FFN and norms.
    AllSpecific,
    /// Attention and its norm.
    AttnSpecific,
    /// The FFN and its norm.
    FfnSpecific,
    /// The norms.
    LnSpecific,
}

impl From<ExpertForm> for Form {
    fn from(form: ExpertForm) -> Self {
        match form {
            ExpertForm::Agnostic => Self::Agnostic,
            ExpertForm::AllSpecific => Self::AllSpecific,
            ExpertForm::AttnSpecific => Self::AttnSpecific,
            ExpertForm::FfnSpecific => Self::FfnSpecific,
            ExpertForm::LnSpecific => Self::LnSpecific,
        }
    }
}

/// Weights that a run starts from.
pub struct Initial {
    /// The weights, in the sizes of the run.
    pub checkpoint: Arc<Checkpoint>,
    /// Side of the images that they saw before, in pixels.
    pub image_side: Option<usize>,
}

/// A published size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SynthSize {
    /// 12 blocks of width 768.
    #[default]
    Base,
    /// 24 blocks of width 544.
    BasePlus,
    /// 24 blocks of width 1024.
    Large,
    /// 12 blocks of width 192.
    Tiny,
}

/// Fresh weights, drawn as published training from scratch does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Synth {
    /// A published size; single sizes below change it.
    pub size: SynthSize,
    /// What the draws are keyed by.
    pub seed: u64,
    /// Standard deviation of linear weights and embeddings; 0.02 unless given.
    pub deviation: Option<f32>,
    /// LayerScale; 0.1 unless given.
    pub layer_scale: Option<f32>,
    /// Number of blocks.
    pub blocks: Option<usize>,
    /// Hidden size; the FFN is four times as wide unless it is given.
    pub width: Option<usize>,
    /// Attention heads of each block.
    pub attention_heads: Option<usize>,
    /// Inner size of the feed-forward network.
    pub ffn_width: Option<usize>,
    /// First block with a vision-language expert.
    pub fusion_start: Option<usize>,
    /// Side of a patch in pixels.
    pub patch_size: Option<usize>,
    /// Side of the image in pixels.
    pub image_size: Option<usize>,
    /// Text positions.
    pub text_len: Option<usize>,
    /// Text positions that the bias table has room for.
    pub text_table_len: Option<usize>,
    /// Word pieces.
    pub vocabulary: Option<usize>,
}

impl Synth {
    fn sizes(&self) -> Sizes {
        let sizes = match self.size {
            SynthSize::Base => Sizes::base(),
            SynthSize::BasePlus => Sizes::base_plus(),
            SynthSize::Large => Sizes::large(),
            SynthSize::Tiny => Sizes::tiny(),
        };
        sizes.with(&GivenSizes {
            n_blocks: self.blocks,
            width: self.width,
            n_heads: self.attention_heads,
            ffn_width: self.ffn_width,
            fusion_start: self.fusion_start,
            patch_size: self.patch_size,
            image_size: self.image_size,
            text_len: self.text_len,
            text_table_len: self.text_table_len,
            vocabulary: self.vocabulary,
            n_answers: None,
        })
    }

    fn plan(&self, form: Form) -> Result<MergePlan> {
        let synthesis = Synthesis {
            spec: CatalogSpec {
                form,
                sizes: self.sizes(),
                heads: Heads::Pretrain,
                with_buffers: false,
                original_spelling: false,
            },
            seed: self.seed,
            spread: Spread::given(self.deviation, self.layer_scale),
            dtype: OutputDType::F32,
            is_fresh: true,
        };
        Ok(synthesis.plan()?)
    }
}

/// Nothing is written here, so nothing need be hashed.
const IN_MEMORY: RunOptions = RunOptions {
    allow_non_finite: false,
    check_copies: true,
    hash: false,
};

impl Init {
    /// From a checkpoint.
    #[must_use]
    pub fn from_checkpoint(path: impl Into<PathBuf>) -> Self {
        Self {
            checkpoint: Some(path.into()),
            ..Self::default()
        }
    }

    /// Checks that just one start is given.
    ///
    /// # Errors
    /// [`Error::BadSetting`].
    pub fn check(&self) -> Result<()> {
        if self.fill.is_some() && self.synth.is_some() {
            return Err(Error::BadSetting {
                key: "init.fill".into(),
                reason: "fresh weights lack nothing".into(),
            });
        }
        let given = [
            self.checkpoint.is_some(),
            self.recipe.is_some(),
            self.synth.is_some(),
        ];
        match given.into_iter().filter(|given| *given).count() {
            1 => Ok(()),
            n => Err(Error::BadSetting {
                key: "init".into(),
                reason: format!("{n} of checkpoint, recipe and synth are given; it must be one"),
            }),
        }
    }

    /// Opens, merges or draws the weights, gives experts their copies, and brings position tables
    /// to the wanted size.
    ///
    /// # Errors
    /// When a file cannot be read, a recipe is wrong, or weights cannot be brought to that form.
    pub fn open(
        &self,
        model: &ModelSettings,
        third_token_type: bool,
        progress: &dyn Progress,
    ) -> Result<Initial> {
        let mut checkpoint = Arc::new(self.source()?.checkpoint(progress)?);
        if let Some(form) = self.expand {
            let layout = layouts::detect(&checkpoint)?;
            let fill = self.fill.as_ref();
            let of_fill = |size: fn(&Synth) -> Option<usize>| fill.and_then(size);
            let expansion = Expansion {
                fusion_start: model.fusion_start.or(of_fill(|fill| fill.fusion_start)),
                image_size: of_fill(|fill| fill.image_size),
                text_table_len: (model.text_table_len).or(of_fill(|fill| fill.text_table_len)),
                ..Expansion::to(form.into())
            };
            let plan = expansion.plan(checkpoint, layout.as_ref())?;
            checkpoint = Arc::new(in_memory(&plan, &IN_MEMORY, progress)?);
        }
        if let Some(fill) = &self.fill {
            let form = form(layouts::detect(&checkpoint)?.as_ref())?;
            let fresh = in_memory(&fill.plan(form)?, &IN_MEMORY, progress)?;
            let plan = filled(checkpoint, Arc::new(fresh))?;
            checkpoint = Arc::new(in_memory(&plan, &IN_MEMORY, progress)?);
        }
        let conversion = Conversion {
            image_size: model.image_size,
            text_len: model.text_len,
            third_token_type,
            text_table_len: model.text_table_len,
            ..Conversion::default()
        };
        Ok(Initial {
            image_side: image_side(&checkpoint, model),
            checkpoint: conversion.in_memory(checkpoint, &IN_MEMORY, progress)?,
        })
    }

    /// Where the weights come from.
    fn source(&self) -> Result<Source> {
        Ok(match (&self.checkpoint, &self.recipe, &self.synth) {
            (Some(path), _, _) => Source::file(path)?,
            (None, Some(path), _) => Source::merge(&MergeRecipe::open(path)?)?,
            (None, None, synth) => {
                let synth = synth.clone().unwrap_or_default();
                Source::Plan(Box::new(synth.plan(Form::Agnostic)?))
            }
        })
    }
}

/// The side of the images that a model sees before it is resized, where the weights and settings tell.
fn image_side(checkpoint: &Checkpoint, model: &ModelSettings) -> Option<usize> {
    let layout = layouts::detect(checkpoint).ok()?;
    let blueprint = models::blueprint(checkpoint, layout.as_ref(), &model.overrides()).ok()?;
    Some(blueprint.input().image.side)
}

/// The form that fresh weights must have to go with those of a layout.
fn form(layout: &dyn Layout) -> Result<Form> {
    match layout.name() {
        "vl_merging/agnostic" => Ok(Form::Agnostic),
        "vl_merging/all_specific" => Ok(Form::AllSpecific),
        "vl_merging/attn_specific" => Ok(Form::AttnSpecific),
        "vl_merging/ffn_specific" => Ok(Form::FfnSpecific),
        "vl_merging/ln_specific" => Ok(Form::LnSpecific),
        "vlmo/base_plus" => Ok(Form::VlmoAbsolute),
        name if name.starts_with("vlmo/") => Ok(Form::Vlmo),
        name => Err(Error::BadSetting {
            key: "init.fill".into(),
            reason: format!("{name} cannot be filled; BEiT needs `expand` first"),
        }),
    }
}

/// The tensors of `checkpoint`, and of `fresh` those that it lacks.
fn filled(checkpoint: Arc<Checkpoint>, fresh: Arc<Checkpoint>) -> Result<MergePlan> {
    let mut plan = PlanBuilder::new("fill: fresh weights".into());
    let own = plan.source(Arc::clone(&checkpoint));
    let side = plan.side_source(Arc::clone(&fresh));
    for (key, _) in checkpoint.tensors() {
        plan.copy(own, key, "copied")?;
    }
    for (key, info) in fresh.tensors() {
        match checkpoint.get(key) {
            None => plan.copy(side, key, "fresh")?,
            Some(found) if found.shape == info.shape => {}
            Some(found) => {
                return Err(merge::Error::ShapeMismatch {
                    slot: "init.fill".into(),
                    key: key.to_owned(),
                    found: found.shape.clone(),
                    expected: info.shape.clone(),
                }
                .into());
            }
        }
    }
    Ok(plan.finish()?)
}
