//! `vlmerge regmean`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use merge::recipe::{Parameter, Parameters};

use super::merge::run_recipe;
use crate::args::merge::Source;
use crate::output::{Output, UsageError};

const EXAMPLES: &str = "\
Examples:
  vlmerge regmean specific.ckpt --grams coco.gram.safetensors --for retrieval --out merged.ckpt
  vlmerge regmean specific.ckpt --grams coco.pth --shrink 0.9 --for retrieval --out merged.ckpt";

/// Flags of `vlmerge regmean`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Gram matrices of the layers' inputs: safetensors or .pth, full or packed
    #[arg(long, value_name = "FILE")]
    grams: PathBuf,
    /// Factor on the off-diagonal of the gram matrices, from 0 to 1
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    shrink: f64,
    /// Multiple of the mean diagonal added to every expert's diagonal
    #[arg(long, value_name = "RHO", default_value_t = 0.0)]
    ridge: f64,
    #[command(flatten)]
    source: Source,
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    let Some(grams) = args.grams.to_str() else {
        return Err(
            UsageError("--grams must be a UTF-8 path: it goes into the recipe".into()).into(),
        );
    };
    let mut parameters = Parameters::default();
    parameters.set("grams", Parameter::Text(grams.to_owned()));
    parameters.set("shrink", Parameter::Number(args.shrink));
    if args.ridge != 0.0 {
        parameters.set("ridge", Parameter::Number(args.ridge));
    }
    let recipe = args.source.recipe("regmean", None, parameters);
    run_recipe(&recipe, &args.source.target, output)
}
