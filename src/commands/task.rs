//! `vlmerge task`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use merge::io::OpenOptions;
use merge::recipe::OutputDType;
use merge::restore::Restore;

use crate::args::write::WriteArgs;
use crate::output::Output;
use crate::plan_view;

const EXAMPLES: &str = "\
Examples:
  vlmerge merge emr.yaml --out merged.safetensors --masks masks.safetensors
  vlmerge task merged.safetensors --masks masks.safetensors --base base.safetensors --task cars \\
      --out cars.safetensors";

/// Flags of `vlmerge task`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A file that `vlmerge merge` made by `emr` or `tall_masks`
    merged: PathBuf,
    /// The masks that it wrote beside it
    #[arg(long, value_name = "FILE")]
    masks: PathBuf,
    /// The base of that merge
    #[arg(long, value_name = "FILE")]
    base: PathBuf,
    /// The task: the file of its model, with or without ending, or its number from 0
    #[arg(long, value_name = "NAME")]
    task: String,
    /// The checkpoint to write
    #[arg(long, value_name = "FILE", required_unless_present = "dry_run")]
    out: Option<PathBuf>,
    #[command(flatten)]
    write: WriteArgs,
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    let open = |path| merge::io::open(path, &OpenOptions::default()).map(Arc::new);
    let restore = Restore {
        merged: open(&args.merged)?,
        masks: open(&args.masks)?,
        base: open(&args.base)?,
        task: args.task,
    };
    let dtype: OutputDType = args.write.dtype.into();
    let plan = restore.plan(|stored| dtype.apply(stored), output)?;
    plan_view::carry_out(&plan, args.out, &args.write, true, output)
}
