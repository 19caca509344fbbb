//! Flags of verbs that run models on data, and opening what they name.

use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use candle_core::Device;
use clap::{Args, ValueEnum};
use evaluate::device::{DeviceName, Precision};
use evaluate::models::{self, Model, Overrides, ShallowAttention, Source};
use evaluate::reports::CheckpointRecord;
use evaluate::tasks::Runner;
use evaluate::text::Tokenizer;
use merge::convert::Conversion;
use merge::execute::RunOptions;
use merge::provenance::{Hashes, InputFile, Provenance};
use merge::{Checkpoint, MergeRecipe, layouts};

use crate::args::number::parse_positive;
use crate::output::Output;

/// How a model is run on data.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    #[command(flatten)]
    load: LoadArgs,
    /// Examples that are computed together
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = parse_positive)]
    pub batch_size: usize,
}

/// How a model is loaded.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub struct LoadArgs {
    /// cpu, cuda or cuda:N
    #[arg(long, value_name = "NAME", default_value_t)]
    pub device: DeviceName,
    /// f32; on cards also bf16 and f16
    #[arg(long, value_name = "TYPE", default_value_t)]
    pub precision: Precision,
    /// Side of the image in pixels; position tables are resized [default: the checkpoint's]
    #[arg(long, value_name = "PIXELS", value_parser = parse_positive)]
    pub image_size: Option<usize>,
    /// Attention heads, where the checkpoint does not tell
    #[arg(long, value_name = "N")]
    pub heads: Option<usize>,
    /// Attention heads of the image tower, where the checkpoint does not tell
    #[arg(long, value_name = "N")]
    pub image_heads: Option<usize>,
    /// Attention heads of the text tower, where the checkpoint does not tell
    #[arg(long, value_name = "N")]
    pub text_heads: Option<usize>,
    /// What similarities are divided by, of a model that does not learn it
    #[arg(long, value_name = "NUMBER")]
    pub temperature: Option<f64>,
    /// First block in which text and image are one sequence, where the checkpoint does not tell
    #[arg(long, value_name = "BLOCK")]
    pub fusion_start: Option<usize>,
    /// Text positions that the bias table has room for, where the checkpoint does not tell
    #[arg(long, value_name = "N")]
    pub text_table_len: Option<usize>,
    /// Whether text and image see each other before the fusion start [default: as the family does]
    #[arg(long, value_enum, value_name = "HOW")]
    pub shallow_attention: Option<AttentionArg>,
}

/// Who attends to whom before the fusion start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AttentionArg {
    /// Text and image apart, as in vl-merging
    PerModality,
    /// All to all, as in VLMo
    Joint,
}

/// Weights to run: a file, or a recipe that is merged in memory.
#[derive(Clone, Debug)]
pub enum Target {
    /// A checkpoint, called as its file is.
    File(PathBuf),
    /// A checkpoint, and what it is called.
    Named(String, PathBuf),
    /// A merge, and what it is called.
    Merge(String, Box<MergeRecipe>),
}

impl Target {
    /// What it is called in results.
    pub fn name(&self) -> String {
        match self {
            Self::File(path) => {
                let name = path.file_name().unwrap_or(path.as_os_str());
                name.to_string_lossy().into_owned()
            }
            Self::Named(name, _) | Self::Merge(name, _) => name.clone(),
        }
    }

    /// Reads headers and hashes, and plans the merge: enough to tell the weights from others.
    pub fn find(&self, hashes: &Hashes, output: &Output) -> Result<Found> {
        let source = match self {
            Self::File(path) | Self::Named(_, path) => Source::file(path)?,
            Self::Merge(_, recipe) => Source::merge(recipe)?,
        };
        let (files, recipe) = (source.files(), source.recipe());
        let inputs = Provenance::new(String::new(), &files);
        let inputs = inputs.with_hashes(hashes.of(&files, output)?);
        Ok(Found {
            source,
            files: inputs.inputs,
            recipe,
        })
    }
}

/// Weights that can be told from others, but are not there yet.
pub struct Found {
    source: Source,
    /// The files they come from, with hashes.
    pub files: Vec<InputFile>,
    /// The recipe that makes or made them.
    pub recipe: Option<String>,
}

/// Weights that are open, and where they come from.
pub struct Opened {
    /// The weights, resized if that was asked for.
    pub checkpoint: Arc<Checkpoint>,
    /// Where they come from.
    pub record: CheckpointRecord,
}

impl Deref for ModelArgs {
    type Target = LoadArgs;

    fn deref(&self) -> &LoadArgs {
        &self.load
    }
}

impl LoadArgs {
    /// Merges if that is what makes the weights, says where they come from, and resizes their
    /// position tables if asked to.
    pub fn open(&self, found: Found, output: &Output) -> Result<Opened> {
        // What they come from is known already.
        let run = RunOptions {
            hash: false,
            ..RunOptions::default()
        };
        let checkpoint = Arc::new(found.source.checkpoint(output)?);
        let layout = layouts::detect(&checkpoint)?;
        let record = CheckpointRecord {
            files: found.files,
            layout: layout.name().to_owned(),
            recipe: found.recipe,
        };
        let conversion = Conversion {
            image_size: self.image_size,
            text_table_len: self.text_table_len,
            ..Conversion::default()
        };
        let checkpoint = conversion.in_memory(checkpoint, &run, output)?;
        Ok(Opened { checkpoint, record })
    }

    /// What the numbers of a model depend on beside its weights, for recognizing results that were
    /// made before.
    pub fn identity(&self) -> serde_json::Value {
        serde_json::json!({
            "precision": self.precision.to_string(),
            "image_size": self.image_size,
            "heads": self.heads,
            "fusion_start": self.fusion_start,
            "text_table_len": self.text_table_len,
            "shallow_attention": self.shallow_attention.map(|how| format!("{how:?}")),
            "image_heads": self.image_heads,
            "text_heads": self.text_heads,
            "temperature": self.temperature,
        })
    }

    /// The device.
    pub fn device(&self) -> Result<Device> {
        Ok(self.device.open(self.precision)?)
    }

    /// What the checkpoint does not tell of the model.
    pub fn overrides(&self) -> Overrides {
        Overrides {
            n_heads: self.heads,
            fusion_start: self.fusion_start,
            shallow_attention: self.shallow_attention.map(|how| match how {
                AttentionArg::PerModality => ShallowAttention::PerModality,
                AttentionArg::Joint => ShallowAttention::Joint,
            }),
            text_table_len: self.text_table_len,
            image_heads: self.image_heads,
            text_heads: self.text_heads,
            temperature: self.temperature,
        }
    }

    /// Loads the model, and notes keys that no part of it reads.
    pub fn load(
        &self,
        opened: &Opened,
        device: &Device,
        output: &Output,
    ) -> Result<Box<dyn Model>> {
        let checkpoint = Arc::clone(&opened.checkpoint);
        let dtype = self.precision.dtype();
        let opened = models::open(checkpoint, &self.overrides(), device, dtype)?;
        let unused: Vec<String> = opened.weights.report().unused;
        let unread = |name: &&String| !opened.blueprint.leaves_out(name);
        if let Some(first) = unused.iter().find(unread) {
            let n = unused.iter().filter(unread).count();
            output.note(format!(
                "{n} tensors are no part of the model; the first is `{first}`"
            ));
        }
        Ok(opened.model)
    }
}

impl ModelArgs {
    /// A runner of a model.
    pub fn runner<'a>(
        &self,
        model: &'a dyn Model,
        tokenizer: &'a Tokenizer,
        device: &'a Device,
        output: &'a Output,
    ) -> Result<Runner<'a>> {
        let dtype = self.precision.dtype();
        Ok(Runner::new(
            model,
            tokenizer,
            device,
            dtype,
            self.batch_size,
            output,
        )?)
    }
}
