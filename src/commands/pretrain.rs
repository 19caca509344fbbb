//! `vlmerge pretrain`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use train::recipe::TrainRecipe;

use crate::args::run::RunArgs;
use crate::output::Output;
use crate::training;

const EXAMPLES: &str = "\
Examples:
  vlmerge pretrain docs/recipes/train/pretrain_seed_base.yaml --set data.folder=arrow --out seed
  vlmerge pretrain seed.yaml --out seed --resume
  mpirun -n 2 vlmerge pretrain seed.yaml --out seed              (built with --features mpi)";

/// Flags of `vlmerge pretrain`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The recipe
    recipe: PathBuf,
    #[command(flatten)]
    run: RunArgs,
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    let recipe = TrainRecipe::open(&args.recipe, &args.run.settings)?;
    training::carry_out(recipe, &args.run, output)
}
