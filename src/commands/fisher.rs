//! `vlmerge fisher`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use candle_core::Device;
use evaluate::device::{DeviceName, Precision};
use merge::provenance::Hashes;
use serde_json::json;
use train::collective::Collective;
use train::fisher::{FisherJob, FisherSums, Labels};
use train::recipe::{CheckedRecipe, TrainRecipe};

use crate::args::number::parse_positive;
use crate::args::results::checked_file;
use crate::output::{Output, UsageError};
use crate::ranks;
use crate::target::Target;

const EXAMPLES: &str = "\
Examples:
  vlmerge fisher --checkpoint vqa.safetensors --objective vqa --data arrow --dataset vqa \\
      --out vqa.fisher.safetensors --limit 4096
  vlmerge fisher --checkpoint pets.safetensors --objective image_classification --data data \\
      --dataset pets --format folders --labels expected --out pets.fisher.safetensors
  vlmerge fisher --checkpoint coco.safetensors --recipe finetune_coco.yaml --at-once 32 \\
      --out coco.fisher.safetensors
  mpirun -n 4 vlmerge fisher --checkpoint vqa.safetensors ...       (built with --features mpi)

Then, in a merge recipe: merge_method: fisher, and for each model `parameters: {fisher: FILE}`.

Of a recipe, the data, the objectives, the model's settings and the masking count; pictures are
seen as in evaluation, nothing is left out at random, and nothing is trained.

Start a stopped run again with the same flags, and it goes on.";

/// Flags of `vlmerge fisher`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The checkpoint whose gradients are squared
    #[arg(long, value_name = "FILE")]
    checkpoint: PathBuf,
    /// The Fisher file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Objective whose loss is minus the log-likelihood, by its name in training recipes; several are added up
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        required_unless_present = "recipe"
    )]
    objective: Vec<String>,
    /// A training recipe that says objectives, data and model
    #[arg(long, value_name = "FILE", conflicts_with = "objective")]
    recipe: Option<PathBuf>,
    /// Change a setting of the recipe, e.g. model.text_table_len=16; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Folder of arrow files, or of folders with CSV tables or folders of classes
    #[arg(long, value_name = "DIR", required_unless_present = "recipe")]
    data: Option<PathBuf>,
    /// Data set, as in `data.train` of training recipes
    #[arg(long, value_name = "NAME", required_unless_present = "recipe")]
    dataset: Option<String>,
    /// Part of the data set [default: train]
    #[arg(long, value_name = "NAME", conflicts_with = "recipe")]
    split: Option<String>,
    /// Format of the data: arrow, csv, folders [default: arrow]
    #[arg(long, value_name = "FORMAT", conflicts_with = "recipe")]
    format: Option<String>,
    /// Tokenizer: a vocab.txt or tokenizer.json, a folder with one, or a name on the hub
    /// [default: bert-base-uncased]
    #[arg(long, value_name = "NAME")]
    tokenizer: Option<String>,
    /// Labels of the log-likelihood: those of the data (the empirical Fisher information), or all classes, each by the
    /// model's own probability of it
    #[arg(long, value_enum, value_name = "WHOSE", default_value_t)]
    labels: LabelsArg,
    /// Square the mean gradient of N examples instead of the gradient of each; for objectives that compare
    /// the examples of a batch
    #[arg(long, value_name = "N", value_parser = parse_positive, default_value_t = 1)]
    at_once: usize,
    /// Use only N examples, spread evenly over the data
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    limit: Option<usize>,
    /// Seconds between two saves of an unfinished run
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    save_every: u64,
    /// Replace an existing target
    #[arg(long)]
    force: bool,
    /// cpu, cuda or cuda:N
    #[arg(long, value_name = "NAME", default_value_t)]
    device: DeviceName,
}

/// The labels of the log-likelihood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum LabelsArg {
    /// Those of the data
    #[default]
    Given,
    /// All classes, by their probability
    Expected,
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    let recipe = args.recipe()?;
    let precision: Precision = recipe.precision.parse().map_err(UsageError)?;
    let device = args.device.open(precision)?;
    ranks::among(&device.clone(), output, |ranks, output| {
        sum(&args, recipe, device, ranks.as_ref(), output)
    })
}

impl Args {
    /// The recipe of the run, with the checkpoint as its start.
    fn recipe(&self) -> Result<CheckedRecipe> {
        let quoted = |path: &Path| json!(path.display().to_string()).to_string();
        let mut settings = vec![format!("init={{checkpoint: {}}}", quoted(&self.checkpoint))];
        if let Some(name) = &self.tokenizer {
            settings.push(format!("data.tokenizer={}", quoted(Path::new(name))));
        }
        let Some(path) = &self.recipe else {
            let objectives = self.objective.iter();
            let objectives: Vec<_> = objectives.map(|name| json!({ "name": name })).collect();
            let document = json!({
                "data": {
                    "folder": self.data,
                    "format": self.format.as_deref().unwrap_or("arrow"),
                    "train": [{
                        "dataset": self.dataset,
                        "split": self.split.as_deref().unwrap_or("train"),
                    }],
                },
                "objectives": objectives,
                "length": { "steps": 1 },
                "batch_size": 1,
            });
            settings.extend(self.settings.iter().cloned());
            let name = Path::new("the flags");
            return Ok(TrainRecipe::parse(&document.to_string(), name, &settings)?);
        };
        if let Some(folder) = &self.data {
            settings.push(format!("data.folder={}", quoted(folder)));
        }
        if let Some(name) = &self.dataset {
            let what = format!(
                "--dataset {name}: the recipe names its data sets in `data.train`; --set changes them"
            );
            return Err(UsageError(what).into());
        }
        settings.extend(self.settings.iter().cloned());
        Ok(TrainRecipe::open(path, &settings)?)
    }
}

fn sum(
    args: &Args,
    recipe: CheckedRecipe,
    device: Device,
    ranks: &dyn Collective,
    output: &Output,
) -> Result<ExitCode> {
    let write = checked_file(&args.out, args.force)?;
    let found = Target::File(args.checkpoint.clone()).find(&Hashes::default(), output)?;
    let mut sums = FisherSums::open(FisherJob {
        recipe,
        files: found.files,
        labels: match args.labels {
            LabelsArg::Given => Labels::Given,
            LabelsArg::Expected => Labels::Expected,
        },
        at_once: args.at_once,
        limit: args.limit,
        out: args.out.clone(),
        save_every: Duration::from_secs(args.save_every),
        device,
        collective: ranks,
        progress: output,
    })?;
    let n_own = sums.n_own();
    if sums.n_kept() > 0 {
        output.note(format!(
            "going on after {} of {n_own} groups of examples",
            sums.n_kept()
        ));
    }
    let started = Instant::now();
    if let Err(error) = sums.collect() {
        if sums.n_kept() > 0 {
            let n_kept = sums.n_kept();
            output.note(format!(
                "{n_kept} of {n_own} groups of examples are kept for the next run"
            ));
        }
        return Err(error.into());
    }
    let seconds = started.elapsed().as_secs_f64();
    let Some((record, n_zero)) = sums.finish(&write)? else {
        return Ok(ExitCode::SUCCESS);
    };
    if output.json {
        let said = json!({
            "file": args.out,
            "record": record,
            "tensors_without_gradient": n_zero,
            "seconds": seconds,
        });
        output.json(&said)?;
        return Ok(ExitCode::SUCCESS);
    }
    output.line(args.out.display().to_string())?;
    let zero = match n_zero {
        0 => String::new(),
        n => format!("; {n} tensors have no gradient, and so no information"),
    };
    output.line(format!(
        "Fisher information of {} examples of {} by {}, labels {}, in {seconds:.1} s{zero}",
        record.n_examples,
        record.data.join(", "),
        record.objectives.join(" + "),
        record.labels,
    ))?;
    Ok(ExitCode::SUCCESS)
}
