//! `vlmerge interpolate`.

use std::process::ExitCode;

use anyhow::Result;
use merge::recipe::{Parameter, Parameters};

use super::merge::run_recipe;
use crate::args::merge::Source;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  vlmerge interpolate specific.ckpt --ratio 0.5 --out merged.safetensors
  vlmerge interpolate specific.ckpt --for vqa --out merged.ckpt --dry-run
  vlmerge interpolate specific.ckpt --ratio 0.75 --print-recipe";

/// Flags of `vlmerge interpolate`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Share of vision against language, from 0 to 1
    #[arg(long, value_name = "R", default_value_t = 0.5)]
    ratio: f64,
    #[command(flatten)]
    source: Source,
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    let mut parameters = Parameters::default();
    parameters.set("ratio", Parameter::Number(args.ratio));
    let recipe = args.source.recipe("interpolate", None, parameters);
    run_recipe(&recipe, &args.source.target, output)
}
