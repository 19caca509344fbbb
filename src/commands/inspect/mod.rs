//! `vlmerge inspect`.

mod text;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use merge::inspection::{InspectOptions, Inspection, called};
use merge::io::{OpenOptions, TensorEntry, open};

use crate::key_tree;
use crate::output::Output;
use text::Printed;

const EXAMPLES: &str = "\
Examples:
  vlmerge inspect model.ckpt
  vlmerge inspect model.safetensors --stats --keys '*.norm?.*'
  vlmerge inspect model.ckpt --root ema
  vlmerge inspect model.pt --json --hash
  vlmerge inspect step-1000/            a checkpoint of torch.distributed, or one file per rank

Without --stats and --hash it reads headers only, whatever the size of the file. It never runs code
of the file: it lists Python objects with the functions that Python would call to load them.";

/// Flags of `vlmerge inspect`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A checkpoint: a file, an index.json, or a folder that holds one
    file: PathBuf,
    /// Name of the dictionary in the file that holds the weights [default: found by rule]
    #[arg(long)]
    root: Option<String>,
    /// Show the tensors of a GGUF file under their own names, instead of those that Hugging Face gives them
    #[arg(long)]
    raw: bool,
    /// Show minimum, maximum, mean, deviation, zeros and non-finite elements of each tensor
    #[arg(long)]
    stats: bool,
    /// Show the SHA-256 of each tensor's row-major little-endian bytes
    #[arg(long)]
    hash: bool,
    /// List only tensors whose name matches; `*` stands for anything, `?` for one character
    #[arg(long, value_name = "PATTERN")]
    keys: Option<String>,
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    let options = OpenOptions {
        root: args.root,
        raw: args.raw,
    };
    let checkpoint = open(&args.file, &options)?;
    output.notes_of(&checkpoint);
    let aliases = checkpoint.aliases().clone();
    let is_alias = |entry: &TensorEntry| {
        let name = entry.name.as_ref();
        name.is_some_and(|name| aliases.contains_key(name))
    };
    let is_listed = |entry: &TensorEntry| match &args.keys {
        // Programs get every name of a tensor, with the one that it stands under.
        _ if is_alias(entry) && !output.json => false,
        None => true,
        Some(pattern) => key_tree::matches(pattern, &called(entry)),
    };
    let options = InspectOptions {
        statistics: args.stats,
        hashes: args.hash,
        is_listed: &is_listed,
    };
    let inspection = Inspection::new(checkpoint, &options, output)?;
    if output.json {
        output.json(&inspection.to_json())?;
    } else {
        Printed(&inspection).print(output)?;
    }
    Ok(ExitCode::SUCCESS)
}
