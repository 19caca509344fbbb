//! `vlmerge arithmetic`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use merge::recipe::{Parameter, Parameters};

use super::merge::run_recipe;
use crate::args::merge::Source;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  vlmerge arithmetic specific.ckpt --seed-checkpoint seed.ckpt --lambda 0.75 --out merged.ckpt
  vlmerge arithmetic specific.ckpt --seed-checkpoint seed.ckpt --as-published --out merged.ckpt";

/// Flags of `vlmerge arithmetic`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The modality-agnostic checkpoint that the experts started from
    #[arg(long, value_name = "FILE")]
    seed_checkpoint: PathBuf,
    /// Factor on the task vector of each expert
    #[arg(
        long,
        value_name = "L",
        default_value_t = 1.0,
        allow_negative_numbers = true
    )]
    lambda: f64,
    #[command(flatten)]
    source: Source,
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    let mut parameters = Parameters::default();
    parameters.set("lambda", Parameter::Number(args.lambda));
    let recipe = (args.source).recipe("arithmetic", Some(args.seed_checkpoint), parameters);
    run_recipe(&recipe, &args.source.target, output)
}
