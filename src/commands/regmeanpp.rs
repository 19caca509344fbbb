//! `vlmerge regmeanpp`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use candle_core::Device;
use clap::{Args as _, FromArgMatches};
use evaluate::measure::key_of;
use evaluate::measure::layerwise::{LayerwiseJob, LayerwiseModel};
use merge::provenance::Hashes;
use serde::Deserialize;
use serde_json::{Value, json};
use train::collective::Collective;

use crate::args::data::DataArgs;
use crate::args::model::ModelArgs;
use crate::output::{Output, UsageError};
use crate::ranks;
use crate::target::Target;

const EXAMPLES: &str = "\
Examples:
  vlmerge regmeanpp models.yaml --out grams
  vlmerge merge grams/recipe.yaml --out merged.safetensors

models.yaml names each model with its data, by the data flags of `vlmerge gram`:
  shrink: 0.95
  models:
  - model: cars.safetensors
    data: { task: zero_shot_classes, data: data, dataset: cars, split: train, limit: 256 }
  - model: pets.safetensors
    data: { task: zero_shot_classes, data: data, dataset: pets, split: train, limit: 256 }

RegMean++ merges block after block: the inputs of a block's layers are those above blocks that are
merged already. It writes a gram file for each model, and a recipe by which `regmean` merges.

Start a stopped run again with the same flags, and it goes on.";

/// Flags of `vlmerge regmeanpp`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The models with their data
    models: PathBuf,
    /// The folder to write: a gram file for each model, and a recipe
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    /// Count rows of padding too
    #[arg(long)]
    count_padding: bool,
    /// Seconds between two saves of an unfinished run
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    save_every: u64,
    /// Replace the recipe of an earlier run
    #[arg(long)]
    force: bool,
}

/// The models with their data, as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    models: Vec<WrittenModel>,
    #[serde(default = "published_shrink")]
    shrink: f64,
    #[serde(default)]
    ridge: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenModel {
    model: PathBuf,
    /// Data flags by their names.
    data: BTreeMap<String, Value>,
}

/// The published program's factor on off-diagonals.
fn published_shrink() -> f64 {
    0.95
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    let device = args.model.device()?;
    ranks::among(&device.clone(), output, |ranks, output| {
        merge_blocks(&args, device, ranks.as_ref(), output)
    })
}

fn merge_blocks(
    args: &Args,
    device: Device,
    ranks: &dyn Collective,
    output: &Output,
) -> Result<ExitCode> {
    let written = read(&args.models)?;
    let recipe = args.out.join("recipe.yaml");
    if recipe.exists() && !args.force {
        let what = format!("{} exists; give --force to replace it", recipe.display());
        return Err(UsageError(what).into());
    }
    let hashes = Hashes::default();
    let models = written
        .models
        .iter()
        .map(|model| opened(model, args, &hashes, output));
    let models: Vec<LayerwiseModel> = models.collect::<Result<_>>()?;
    if ranks.is_first() {
        std::fs::create_dir_all(&args.out)
            .with_context(|| format!("cannot make {}", args.out.display()))?;
    }
    ranks.barrier()?;
    let job = LayerwiseJob {
        models,
        out: args.out.clone(),
        shrink: written.shrink,
        ridge: written.ridge,
        counts_padding: args.count_padding,
        overrides: args.model.overrides(),
        device,
        dtype: args.model.precision.dtype(),
        batch_size: args.model.batch_size,
        ranks,
        progress: output,
        save_every: Duration::from_secs(args.save_every),
    };
    let done = job.run()?;
    if !ranks.is_first() {
        return Ok(ExitCode::SUCCESS);
    }
    if output.json {
        output.json(&json!({
            "grams": done.grams,
            "recipe": done.recipe,
            "matrices": done.n_grams,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    for path in &done.grams {
        output.line(path.display().to_string())?;
    }
    output.line(format!(
        "{} gram matrices each; vlmerge merge {} merges by them",
        done.n_grams,
        done.recipe.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> Result<Written> {
    let written: Written = train::recipe::open_document(path, &[])?;
    let bad = |what: String| Err(UsageError(format!("{}: {what}", path.display())).into());
    if written.models.len() < 2 {
        return bad("`models` names fewer than two models: one alone needs no merging".to_owned());
    }
    if !(0.0..=1.0).contains(&written.shrink) {
        return bad(format!(
            "`shrink` is {}, which is not from 0 to 1",
            written.shrink
        ));
    }
    if !(written.ridge >= 0.0 && written.ridge.is_finite()) {
        return bad(format!(
            "`ridge` is {}, which is not 0 or more",
            written.ridge
        ));
    }
    Ok(written)
}

/// The data flags of a model, as if they were given to `vlmerge gram`.
fn flags(of: &WrittenModel) -> Result<DataArgs> {
    let mut words = vec!["vlmerge".to_owned()];
    for (name, value) in &of.data {
        let flag = format!("--{}", name.replace('_', "-"));
        match value {
            Value::Bool(true) => words.push(flag),
            Value::Bool(false) | Value::Null => {}
            Value::String(text) => words.extend([flag, text.clone()]),
            other => words.extend([flag, other.to_string()]),
        }
    }
    let command = DataArgs::augment_args(clap::Command::new("data"));
    let parsed = command
        .try_get_matches_from(words)
        .and_then(|matches| DataArgs::from_arg_matches(&matches));
    parsed.map_err(|error| {
        let text = error.to_string();
        let line = text.lines().next().unwrap_or_default();
        let line = line.strip_prefix("error: ").unwrap_or(line);
        UsageError(format!("`data` of {}: {line}", of.model.display())).into()
    })
}

fn opened(
    of: &WrittenModel,
    args: &Args,
    hashes: &Hashes,
    output: &Output,
) -> Result<LayerwiseModel> {
    let data = flags(of)?;
    let task = data.open()?;
    let tokenizer = data.tokenizer()?;
    let vocabulary = (tokenizer.as_ref()).map(|tokenizer| std::fs::read(tokenizer.path()));
    let vocabulary = vocabulary.transpose()?;
    let found = Target::File(of.model.clone()).find(hashes, output)?;
    let files = found.files.clone();
    let opened = found.open(&args.model, output)?;
    Ok(LayerwiseModel {
        path: of.model.clone(),
        checkpoint: opened.checkpoint,
        files,
        task,
        tokenizer,
        data: format!("{} {}", data.dataset(), data.split()),
        identity: json!({
            "task": data.task.name,
            "data": data.identity()?,
            "limit": data.limit,
            "without_repeats": data.without_repeats,
            "model": args.model.identity(),
            "settings": opened.settings,
            "tokenizer": vocabulary.map(|bytes| key_of(&bytes)),
        }),
    })
}
