//! The command line: global flags and one subcommand per verb.

use clap::{Args, Parser, Subcommand};

use crate::commands;

/// Merges, converts and compares vision-language checkpoints.
///
/// Reads safetensors and PyTorch files (no code of theirs is ever run) and writes either.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that mean the same in every verb.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// Threads to use [default: all cores]
    #[arg(long, global = true, value_name = "N")]
    pub threads: Option<usize>,
    /// No progress bars and no notes, only results and errors
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Results as JSON on standard output
    #[arg(long, global = true)]
    pub json: bool,
}

/// One verb, one file under `commands/`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what a checkpoint holds: layout, sizes, dtypes, everything else in the file
    Inspect(commands::inspect::Args),
    /// Compare two checkpoints: keys, shapes, dtypes, values
    Diff(commands::diff::Args),
    /// Change container, dtype, key spelling, image window or text length
    Convert(commands::convert::Args),
    /// Start a model from another: BEiT to seed, seed to modality-specific
    Expand(commands::expand::Args),
    /// Write a random checkpoint of published shape
    Synth(commands::synth::Args),
    /// Measure how far apart the experts of one checkpoint, or two checkpoints, are
    Distance(commands::distance::Args),
    /// Merge experts by ratio
    Interpolate(commands::interpolate::Args),
    /// Merge experts by modality arithmetic around a seed
    Arithmetic(commands::arithmetic::Args),
    /// Merge experts by RegMean from gram matrices
    Regmean(commands::regmean::Args),
    /// Run a merge recipe
    Merge(commands::merge::Args),
}
