//! The weights that a run starts from.

use std::path::PathBuf;
use std::sync::Arc;

use evaluate::models::{self, Source};
use merge::convert::{Conversion, Expansion};
use merge::execute::{RunOptions, in_memory};
use merge::layouts::{self, Form};
use merge::{Checkpoint, Layout, MergeRecipe, Progress};
use serde::{Deserialize, Serialize};

use super::{Loading, ModelSettings, Synth, SynthFamily};
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
    /// The parts of the checkpoint to take, and their names, where `fill` has the rest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load: Option<Loading>,
    /// Give each modality its own copy of some parts, as `vlmerge expand` does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expand: Option<ExpertForm>,
}

/// The parts of a block that have a copy per modality.
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
    /// Notes for users on the way in which the files were found and read.
    pub notes: Vec<String>,
}

/// Nothing is written here, so nothing need be hashed.
pub(super) const IN_MEMORY: RunOptions = RunOptions {
    allow_non_finite: false,
    check_copies: true,
    hash: None,
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
        for synth in self.synth.iter().chain(&self.fill) {
            synth.check()?;
        }
        if self.load.is_some() && self.fill.is_none() {
            return Err(Error::BadSetting {
                key: "init.load".into(),
                reason: "it takes tensors into the model of `init.fill`; set that, too".into(),
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
        let source = self.source()?;
        let notes = source.notes();
        let mut checkpoint = source.checkpoint(progress)?;
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
            let form = match fill.family {
                SynthFamily::VlMerging => form(layouts::detect(&checkpoint)?.as_ref())?,
                // They have one form.
                SynthFamily::Zerovl
                | SynthFamily::Flm
                | SynthFamily::Eve
                | SynthFamily::Clip
                | SynthFamily::Siglip => Form::Agnostic,
            };
            let fresh = Arc::new(in_memory(&fill.plan(form)?, &IN_MEMORY, progress)?);
            let loading = self.load.clone().unwrap_or_default();
            let placed = loading.place(checkpoint, fresh, progress)?;
            checkpoint = Arc::new(in_memory(&placed.plan, &IN_MEMORY, progress)?);
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
            notes,
            checkpoint: conversion.in_memory(checkpoint, &IN_MEMORY, progress)?,
        })
    }

    /// The source of the weights.
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
