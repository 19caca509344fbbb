//! `vlmerge adamerging`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use evaluate::device::{DeviceName, Precision};
use serde::Deserialize;
use serde_json::json;
use train::adamerging::{AdaJob, AdaMerging, AdaModel, Grain};
use train::recipe::TrainRecipe;

use crate::args::number::parse_positive;
use crate::output::{Output, UsageError};

const EXAMPLES: &str = "\
Examples:
  vlmerge adamerging models.yaml --base clip/model.safetensors --out ada
  vlmerge adamerging models.yaml --base clip/model.safetensors --out ada --per model --steps 200
  vlmerge merge ada/recipe.yaml --out merged.safetensors

models.yaml names each fine-tuned model with a folder of pictures, whose labels are not looked at:
  models:
  - { model: cars.safetensors, data: { folder: data, dataset: cars, split: test } }
  - { model: pets.safetensors, data: { folder: data, dataset: pets, split: test } }

AdaMerging finds the coefficients of task vectors with which the models' own classifiers are most
sure of their pictures. Each model has a classifier (`vlmerge classifier`), which stays as it is.
It writes a recipe of task_arithmetic with the coefficients; merges of it leave classifiers out.
All models are in memory, with their task vectors.";

/// Flags of `vlmerge adamerging`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The models with their pictures
    models: PathBuf,
    /// The model that they were fine-tuned from
    #[arg(long, value_name = "FILE")]
    base: PathBuf,
    /// The folder to write: recipe.yaml, and entropies.json with the entropy of each step
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Parts of a model that have a coefficient of their own
    #[arg(long, value_enum, value_name = "WHAT", default_value_t)]
    per: PerArg,
    /// First value of all coefficients
    #[arg(long, value_name = "NUMBER", default_value_t = 0.3)]
    start: f64,
    /// Adam's rate
    #[arg(long, value_name = "RATE", default_value_t = 1e-3)]
    rate: f64,
    /// Steps
    #[arg(long, value_name = "N", value_parser = parse_positive, default_value_t = 1000)]
    steps: usize,
    /// Pictures of each model in a step
    #[arg(long, value_name = "N", value_parser = parse_positive, default_value_t = 16)]
    batch_size: usize,
    /// Seed of the order of the pictures
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Change a setting that all models share, e.g. model.image_heads=12; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Replace the recipe of an earlier run
    #[arg(long)]
    force: bool,
    /// cpu, cuda or cuda:N
    #[arg(long, value_name = "NAME", default_value_t)]
    device: DeviceName,
}

/// The parts of a model that have a coefficient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum PerArg {
    /// Each model and tensor: layer-wise, as published
    #[default]
    Tensor,
    /// Each model: task-wise
    Model,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    models: Vec<WrittenModel>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenModel {
    model: PathBuf,
    data: WrittenData,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenData {
    folder: PathBuf,
    dataset: String,
    split: String,
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    let file = args.out.join("recipe.yaml");
    if file.exists() && !args.force {
        let what = format!("{} exists; give --force to replace it", file.display());
        return Err(UsageError(what).into());
    }
    for (flag, value) in [("--start", args.start), ("--rate", args.rate)] {
        if !value.is_finite() {
            return Err(UsageError(format!("{flag} {value} is no number")).into());
        }
    }
    let written: Written = train::recipe::open_document(&args.models, &[])?;
    let models = written.models.iter().map(|model| args.model(model));
    let models: Vec<AdaModel> = models.collect::<Result<_>>()?;
    let precision: Precision = "f32".parse().map_err(UsageError)?;
    let mut learning = AdaMerging::open(AdaJob {
        base: args.base.clone(),
        models,
        grain: match args.per {
            PerArg::Tensor => Grain::Tensor,
            PerArg::Model => Grain::Model,
        },
        start: args.start,
        rate: args.rate,
        n_steps: args.steps as u64,
        device: args.device.open(precision)?,
        progress: output,
    })?;
    let entropies = learning.learn()?;
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot make {}", args.out.display()))?;
    let recipe = learning.recipe();
    merge::io::write_file(&file, recipe.to_yaml()?.as_bytes(), true)?;
    let text = json!({ "entropies": entropies }).to_string();
    merge::io::write_file(&args.out.join("entropies.json"), text.as_bytes(), true)?;
    let [first, last] = [entropies.first(), entropies.last()].map(|of| of.copied().unwrap_or(0.0));
    let n_tensors = learning.names().len();
    let means = learning.coefficients().iter();
    let means: Vec<f64> = means
        .map(|own| own.iter().sum::<f64>() / n_tensors as f64)
        .collect();
    if output.json {
        output.json(&json!({
            "recipe": file,
            "first_entropy": first,
            "last_entropy": last,
            "mean_coefficients": means,
            "tensors": n_tensors,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    output.line(file.display().to_string())?;
    for (model, mean) in written.models.iter().zip(&means) {
        output.line(format!(
            "{}: {mean:.4} on average over {n_tensors} tensors",
            model.model.display()
        ))?;
    }
    output.line(format!(
        "entropy {first:.4} in the first step, {last:.4} in the last"
    ))?;
    Ok(ExitCode::SUCCESS)
}

impl Args {
    /// A model with its pictures, as a training recipe that learns nothing but entropy.
    fn model(&self, of: &WrittenModel) -> Result<AdaModel> {
        let document = json!({
            "init": { "checkpoint": of.model },
            "data": {
                "folder": of.data.folder,
                "format": "folders",
                "train": [{ "dataset": of.data.dataset, "split": of.data.split }],
            },
            "objectives": [{ "name": "entropy" }],
            "augmentation": "square",
            "length": { "steps": 1 },
            "batch_size": self.batch_size,
            "seed": self.seed,
        });
        let name = Path::new("the models' settings");
        let recipe = TrainRecipe::parse(&document.to_string(), name, &self.settings)?;
        Ok(AdaModel {
            path: of.model.clone(),
            recipe,
        })
    }
}
