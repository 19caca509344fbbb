//! `vlmerge data`.

mod build;
mod stats;
mod texts;

use std::process::ExitCode;

use anyhow::Result;

use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  vlmerge data build coco --raw downloads/coco --out arrow
  vlmerge data stats arrow --sheet samples.html";

/// Flags of `vlmerge data`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Write the arrow files that ViLT, METER and VLMo read, from the public downloads, packed files or plain texts
    Build(build::Args),
    /// Count rows and texts, measure lengths and pictures, make a sample sheet
    Stats(stats::Args),
    /// Write names of classes and templates of a set, from the files of clip_benchmark
    Texts(texts::Args),
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    match args.action {
        Action::Build(args) => build::run(&args, output),
        Action::Stats(args) => stats::run(&args, output),
        Action::Texts(args) => texts::run(&args, output),
    }
}
