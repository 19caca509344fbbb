//! `vlmerge recalibrate`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use evaluate::datasets::classes::ClassSet;
use evaluate::tasks::batch_statistics;
use merge::plan::{Action, Entry, PlanBuilder, TensorRef};
use merge::provenance::Hashes;

use super::classifier::Values;
use crate::args::model::ModelArgs;
use crate::args::write::WriteArgs;
use crate::output::Output;
use crate::plan_view;
use crate::target::Target;

const EXAMPLES: &str = "\
Examples:
  vlmerge merge resnets.yaml --out merged.safetensors
  vlmerge recalibrate merged.safetensors out.safetensors --data data --dataset pets --split train

The output is the model with other running means and variances of its batch norms: those of the
pictures, a mean over batches that all count alike. Everything else stays as it is.";

/// Flags of `vlmerge recalibrate`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A model with batch norms
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: PathBuf,
    /// The checkpoint to write
    #[arg(required_unless_present = "dry_run")]
    out: Option<PathBuf>,
    /// Folder of data sets with folders of classes
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Data set in that folder
    #[arg(long, value_name = "NAME", default_value = "imagenet1k")]
    dataset: String,
    /// Split whose pictures count
    #[arg(long, value_name = "NAME", default_value = "train")]
    split: String,
    /// Use only N pictures, as even over the classes as can be
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Draws the order of the pictures
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    write: WriteArgs,
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    let set = ClassSet::open(&args.data, &args.dataset, &args.split)?;
    let set = set.evenly(args.limit.unwrap_or(usize::MAX));
    let device = args.model.device()?;
    let found = Target::File(args.checkpoint.clone()).find(&Hashes::default(), output)?;
    let opened = found.open(&args.model, output)?;
    let model = opened.load(&args.model, &device, output)?;
    let runner = args.model.runner(model.as_ref(), None, &device, output)?;
    let statistics = batch_statistics(&runner, &set, args.seed)?;
    let mut made: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for (name, [mean, variance]) in statistics.means() {
        made.insert(format!("{name}.running_mean"), mean);
        made.insert(format!("{name}.running_var"), variance);
    }
    let recipe = format!(
        "recalibrate: {{ dataset: {}, split: {}, images: {}, batch_size: {}, seed: {} }}",
        args.dataset,
        args.split,
        set.len(),
        runner.batch_size(),
        args.seed
    );
    let source = Arc::clone(&opened.checkpoint);
    let mut plan = PlanBuilder::new(recipe);
    let index = plan.source(Arc::clone(&source));
    for (key, info) in source.tensors() {
        let Some(values) = made.remove(merge::layouts::without_module(key)) else {
            plan.copy(index, key, "copied")?;
            continue;
        };
        let replaced = TensorRef {
            source: index,
            key: key.to_owned(),
        };
        plan.drop_tensor(replaced, "replaced");
        plan.add(Entry {
            name: key.to_owned(),
            info: info.clone(),
            action: Action::Generate(Arc::new(Values(values))),
            why: "statistics of the pictures".to_owned(),
        })?;
    }
    plan_view::carry_out(&plan.finish()?, args.out, &args.write, false, output)
}
