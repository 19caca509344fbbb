//! Settings of measuring, and the place of results: flags of every verb that measures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use evaluate::metrics::retrieval::Ties;
use merge::io::{Aliases, Contents, WriteOptions, check_target};

/// Draws of numbers and the files for them; the same in every verb that measures.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Results")]
pub struct ResultArgs {
    /// The report to write, as JSON. Each finished result is kept: a stopped run goes on
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Replace an existing report, and existing predictions
    #[arg(long)]
    pub force: bool,
    /// Ranks of equal scores in retrieval: expected (the default), pessimistic, optimistic, first
    #[arg(long, value_name = "HOW")]
    pub ties: Option<Ties>,
    /// Bootstrap draws for the intervals and tests
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub resamples: usize,
    /// Seed of the draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Keep features in this folder and reuse them
    #[arg(long, value_name = "DIR")]
    pub cache_features: Option<PathBuf>,
    /// Write predictions to this folder, in the task's official form
    #[arg(long, value_name = "DIR")]
    pub predictions: Option<PathBuf>,
}

/// The settings to write one file to `path`. Checks the path before the long work that makes the file.
///
/// # Errors
/// If the file exists without `force`, its folder does not, or its ending names no kind of file.
pub fn checked_file(path: &Path, force: bool) -> merge::Result<WriteOptions> {
    let options = WriteOptions {
        force,
        ..WriteOptions::new(path)
    };
    let nothing = Contents {
        tensors: &[],
        aliases: &Aliases::new(),
    };
    check_target(nothing, &BTreeMap::new(), &options)?;
    Ok(options)
}
