//! The command line: global flags and one subcommand per verb.

use clap::{Parser, Subcommand};

use crate::args::global::Global;
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
    /// Print the recipe that a merged checkpoint was made by
    Recipe(commands::recipe::Args),
    /// Run a merge recipe
    Merge(commands::merge::Args),
    /// Check that a merged checkpoint is what its recipe says, and that loaders can use it
    Verify(commands::verify::Args),
    /// Make a low-rank adapter of what fine-tuning changed
    ExtractLora(commands::extract_lora::Args),
    /// Build arrow files from public downloads, and look at what is in them
    Data(commands::data::Args),
    /// Run a model on given tensors and write every output by name, to compare it with another program
    Forward(commands::forward::Args),
    /// Sum the gram matrices of a model's layers over data, for RegMean
    Gram(commands::gram::Args),
    /// Measure checkpoints and merges on a task
    Evaluate(commands::evaluate::Args),
    /// Write embeddings of pictures and texts
    Encode(commands::encode::Args),
    /// Merge and measure along a grid of a parameter
    Sweep(commands::sweep::Args),
    /// Search numbers of a merge recipe for the best result on validation data
    Search(commands::search::Args),
    /// Average those checkpoints that together do best: a greedy soup
    Soup(commands::soup::Args),
    /// Train a model on images with captions: seeds and modality-specific models
    Pretrain(commands::pretrain::Args),
    /// Train weights, merged or not, for retrieval, VQA or NLVR2
    Finetune(commands::finetune::Args),
    /// Run a whole study: pre-training, merges, fine-tuning, measuring, one report
    Study(commands::study::Args),
    /// Judge predictions: retrieval, VQA or NLVR2 from files, without a model
    Score(commands::score::Args),
    /// Show results as a page or table: HTML, Markdown, CSV or LaTeX
    Report(commands::report::Args),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
