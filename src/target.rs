//! Weights that a verb runs: finding, opening and loading them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use candle_core::Device;
use evaluate::datasets::facts::hash_of_all;
use evaluate::measure::key_of;
use evaluate::models::{self, Model, Source};
use evaluate::reports::CheckpointRecord;
use merge::beside::text_beside;
use merge::execute::RunOptions;
use merge::io::SourceFile;
use merge::layouts::ModelRecord;
use merge::provenance::{HashKind, Hashes, InputFile, Provenance};
use merge::remote::address::is_address;
use merge::{Checkpoint, MergeRecipe, layouts};
use serde_json::{Value, json};

use crate::args::model::LoadArgs;
use crate::output::Output;

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
    /// Its name in results.
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
        output.say_notes(&source.notes());
        let (files, recipe) = (source.files(), source.recipe());
        let inputs = Provenance::new(String::new(), &files);
        let inputs = inputs.with_hashes(hashes.of(&files, HashKind::default(), output)?);
        // It is merged without hashes.
        source.check(&inputs, hashes, output)?;
        Ok(Found {
            source,
            settings: settings_beside(&files)?,
            files: inputs.inputs,
            recipe,
        })
    }
}

/// Weights that can be known from others, but are not there yet.
pub struct Found {
    source: Source,
    /// The files they come from, with hashes.
    pub files: Vec<InputFile>,
    /// Files of settings beside them, with hashes: heads, activations and colors may be there alone.
    pub settings: Vec<(String, String)>,
    /// The recipe that makes or made them.
    pub recipe: Option<String>,
}

/// Files of settings that models, adapters and readers of codes take facts from.
const SETTINGS: [&str; 8] = [
    "adapter_config.json",
    "config.json",
    "hf_quant_config.json",
    "open_clip_config.json",
    "preprocessor_config.json",
    "quant_config.json",
    "quantization_config.json",
    "quantize_config.json",
];

/// Names and hashes of files of settings in the folders of weights, and below and above them, where trainers keep them.
fn settings_beside(files: &[SourceFile]) -> Result<Vec<(String, String)>> {
    let mut folders = BTreeSet::new();
    let mut found = Vec::new();
    for file in files {
        if is_address(&file.path) {
            for name in SETTINGS {
                let text = text_beside(&file.path, name)?;
                found.extend(text.map(|text| (name.to_owned(), key_of(&text))));
            }
        } else if let Some(folder) = std::path::absolute(&file.path)?.parent() {
            folders.insert(folder.to_owned());
            folders.insert(folder.join("huggingface"));
            folders.extend(folder.parent().map(Path::to_owned));
        }
    }
    for folder in folders {
        for name in SETTINGS {
            let path = folder.join(name);
            if path.is_file() {
                found.push((name.to_owned(), hash_of_all(&path)?));
            }
        }
    }
    Ok(found)
}

/// Weights that are open, and where they come from.
pub struct Opened {
    /// The weights, resized if that was asked for.
    pub checkpoint: Arc<Checkpoint>,
    /// The origin of the weights.
    pub record: CheckpointRecord,
    /// Files of settings beside them, with hashes.
    pub settings: Vec<(String, String)>,
}

impl Found {
    /// Everything that tells the weights and their settings from others.
    pub fn identity(&self) -> Value {
        json!({ "files": self.files, "settings": self.settings, "recipe": self.recipe })
    }

    /// Merges if that is what makes the weights, says where they come from, and resizes their
    /// position tables if `args` asks for it.
    pub fn open(self, args: &LoadArgs, output: &Output) -> Result<Opened> {
        // Their origin is known already.
        let run = RunOptions {
            hash: None,
            ..RunOptions::default()
        };
        let checkpoint = self.source.checkpoint(output)?;
        let layout = layouts::detect(&checkpoint)?;
        let record = CheckpointRecord {
            files: self.files,
            layout: layout.name().to_owned(),
            recipe: self.recipe,
        };
        let checkpoint = args.conversion().in_memory(checkpoint, &run, output)?;
        Ok(Opened {
            checkpoint,
            record,
            settings: self.settings,
        })
    }
}

impl Opened {
    /// Loads the model, and notes keys that no part of it reads. Its files must still be those that were hashed:
    /// results name them.
    pub fn load(
        &self,
        args: &LoadArgs,
        device: &Device,
        output: &Output,
    ) -> Result<Box<dyn Model>> {
        Ok(self.load_with_record(args, device, output)?.0)
    }

    /// As [`load`](Self::load), with the facts about the model that its weights do not tell, wherever they come from.
    pub fn load_with_record(
        &self,
        args: &LoadArgs,
        device: &Device,
        output: &Output,
    ) -> Result<(Box<dyn Model>, ModelRecord)> {
        let checkpoint = Arc::clone(&self.checkpoint);
        let dtype = args.precision.dtype();
        let files = checkpoint.info().files.clone();
        let opened = models::open(checkpoint, &args.overrides(), device, dtype)?;
        files.iter().try_for_each(SourceFile::require_unchanged)?;
        let unused: Vec<String> = opened.weights.report().unused;
        let unread = |name: &&String| !opened.blueprint.leaves_out(name);
        if let Some(first) = unused.iter().find(unread) {
            let n = unused.iter().filter(unread).count();
            output.note(format!(
                "{n} tensors are no part of the model; the first is `{first}`"
            ));
        }
        Ok((opened.model, opened.blueprint.record()))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::global::Global;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        load: LoadArgs,
        #[command(flatten)]
        global: Global,
    }

    #[test]
    fn a_checkpoint_that_changes_before_it_is_loaded_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.safetensors");
        std::fs::copy("fixtures/zerovl/ckpt/model.safetensors", &path).expect("copied");
        let config = fixtures::json("zerovl/config.json");
        let heads = |tower: &str| config[tower]["heads"].to_string();
        let line = Line::parse_from([
            "vlmerge",
            "--quiet",
            "--image-heads",
            &heads("vision"),
            "--text-heads",
            &heads("text"),
        ]);
        let output = Output::new(&line.global).expect("an output");
        let found = Target::File(path.clone()).find(&Hashes::default(), &output);
        let opened = found.expect("found").open(&line.load, &output);
        let opened = opened.expect("opened");
        let load = || opened.load(&line.load, &Device::Cpu, &output).map(drop);
        load().expect("it is as it was");
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
        let file = std::fs::File::options().write(true).open(&path);
        file.expect("opened").set_modified(later).expect("set");
        let said = load().expect_err("refused").to_string();
        assert!(
            said.contains("model.safetensors: changed while it was read"),
            "{said}"
        );
    }
}
