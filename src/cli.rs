//! The command line: global flags, one subcommand per verb, and which file runs it.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::args::global::Global;
use crate::commands;
use crate::output::Output;

/// Columns of the help.
const WIDTH: usize = 100;

/// Merges, trains and evaluates vision-language checkpoints.
///
/// Reads and writes safetensors, PyTorch files and GGUF, and never runs code that a file holds.
#[derive(Debug, Parser)]
#[command(version, max_term_width = WIDTH)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// One verb, one file under `commands/`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the contents of a checkpoint: layout, sizes, dtypes and everything else in the file
    Inspect(commands::inspect::Args),
    /// Compare two checkpoints: keys, shapes, dtypes, values
    Diff(commands::diff::Args),
    /// Change container, dtype, key spelling, image window or text length
    Convert(commands::convert::Args),
    /// Start a model from another: a seed from BEiT, a modality-specific model from a seed
    Expand(commands::expand::Args),
    /// Write a checkpoint of random weights in a published shape
    Synth(commands::synth::Args),
    /// Measure distances between two checkpoints, or between the experts of one
    Distance(commands::distance::Args),
    /// Compare fine-tuned models with their base, and rank merge methods by the measurements
    Advise(commands::advise::Args),
    /// Merge experts by ratio
    Interpolate(commands::interpolate::Args),
    /// Merge experts by modality arithmetic around a seed
    Arithmetic(commands::arithmetic::Args),
    /// Merge experts by RegMean from gram matrices
    Regmean(commands::regmean::Args),
    /// Print the recipe of a merged checkpoint
    Recipe(commands::recipe::Args),
    /// Run a merge recipe
    Merge(commands::merge::Args),
    /// Make a mixture of experts of dense models
    Moe(commands::moe::Args),
    /// Give a model another model's tokenizer
    Transplant(commands::transplant::Args),
    /// Make one task's model again from a merged file and its masks
    Task(commands::task::Args),
    /// Check that a merged checkpoint matches its recipe and that loaders can read it
    Verify(commands::verify::Args),
    /// Make a low-rank adapter from a model and its fine-tuned version
    ExtractLora(commands::extract_lora::Args),
    /// Print the completion of verbs and flags for a shell
    Completions(commands::completions::Args),
    /// Write manual pages
    Man(commands::man::Args),
    #[cfg(feature = "models")]
    #[command(flatten)]
    OfModels(Box<OfModels>),
}

/// The verbs that a build without models leaves out.
#[cfg(feature = "models")]
#[derive(Debug, Subcommand)]
pub enum OfModels {
    /// Learn the coefficients of task vectors from pictures without labels: AdaMerging
    Adamerging(commands::adamerging::Args),
    /// Sum gram matrices block after block, above blocks that are merged already: RegMean++
    #[command(alias = "regmean++")]
    Regmeanpp(commands::regmeanpp::Args),
    /// Build arrow files from public downloads, and count their contents
    Data(commands::data::Args),
    /// Run a model on given tensors and write every output, to compare it with another program
    Forward(commands::forward::Args),
    /// Sum the gram matrices of a model's layers over data, for RegMean
    Gram(commands::gram::Args),
    /// Sample the inputs of a model's layers over data, to bring models into one order
    Activations(commands::activations::Args),
    /// Sum the squared gradients of a model over data, for merges by Fisher information
    Fisher(commands::fisher::Args),
    /// Measure checkpoints and merges on a task
    Evaluate(commands::evaluate::Args),
    /// Write embeddings of pictures and texts
    Encode(commands::encode::Args),
    /// Give a CLIP a classifier of images made of texts of the classes
    Classifier(commands::classifier::Args),
    /// Take the statistics of batch norms again over pictures, as after a merge
    Recalibrate(commands::recalibrate::Args),
    /// Merge and measure along a grid of a parameter
    Sweep(commands::sweep::Args),
    /// Search the numbers of a merge recipe that do best on validation data
    Search(commands::search::Args),
    /// Average the checkpoints that do best together: a greedy soup
    Soup(commands::soup::Args),
    /// Pre-train a model on images with captions
    Pretrain(commands::pretrain::Args),
    /// Fine-tune a model or a merge for a task
    Finetune(commands::finetune::Args),
    /// Run a whole study: pre-training, merging, fine-tuning, measuring, one report
    Study(commands::study::Args),
    /// Judge predictions in files, without a model: retrieval, VQA, NLVR2, captions
    Score(commands::score::Args),
    /// Write results into the card of a model, as the hub reads them
    Card(commands::card::Args),
    /// Show results as a page or table: HTML, Markdown, CSV or LaTeX
    Report(commands::report::Args),
    /// Run a program for a search, and end it when the search is gone
    #[command(hide = true)]
    Watch(commands::watch::Args),
}

impl Command {
    /// Runs the verb.
    pub fn run(self, output: &Output) -> Result<ExitCode> {
        match self {
            Self::Inspect(args) => commands::inspect::run(args, output),
            Self::Diff(args) => commands::diff::run(args, output),
            Self::Convert(args) => commands::convert::run(args, output),
            Self::Expand(args) => commands::expand::run(args, output),
            Self::Synth(args) => commands::synth::run(args, output),
            Self::Distance(args) => commands::distance::run(args, output),
            Self::Advise(args) => commands::advise::run(args, output),
            Self::Interpolate(args) => commands::interpolate::run(args, output),
            Self::Arithmetic(args) => commands::arithmetic::run(args, output),
            Self::Regmean(args) => commands::regmean::run(args, output),
            Self::Recipe(args) => commands::recipe::run(&args, output),
            Self::Merge(args) => commands::merge::run(args, output),
            Self::Moe(args) => commands::moe::run(args, output),
            Self::Transplant(args) => commands::transplant::run(args, output),
            Self::Task(args) => commands::task::run(args, output),
            Self::ExtractLora(args) => commands::extract_lora::run(&args, output),
            Self::Verify(args) => commands::verify::run(&args, output),
            Self::Completions(args) => commands::completions::run(&args, output),
            Self::Man(args) => commands::man::run(&args, output),
            #[cfg(feature = "models")]
            Self::OfModels(verb) => (*verb).run(output),
        }
    }
}

#[cfg(feature = "models")]
impl OfModels {
    fn run(self, output: &Output) -> Result<ExitCode> {
        match self {
            Self::Adamerging(args) => commands::adamerging::run(args, output),
            Self::Regmeanpp(args) => commands::regmeanpp::run(args, output),
            Self::Data(args) => commands::data::run(args, output),
            Self::Forward(args) => commands::forward::run(args, output),
            Self::Gram(args) => commands::gram::run(args, output),
            Self::Activations(args) => commands::activations::run(&args, output),
            Self::Fisher(args) => commands::fisher::run(args, output),
            Self::Evaluate(args) => commands::evaluate::run(args, output),
            Self::Encode(args) => commands::encode::run(&args, output),
            Self::Classifier(args) => commands::classifier::run(args, output),
            Self::Recalibrate(args) => commands::recalibrate::run(args, output),
            Self::Soup(args) => commands::soup::run(args, output),
            Self::Sweep(args) => commands::sweep::run(args, output),
            Self::Pretrain(args) => commands::pretrain::run(args, output),
            Self::Finetune(args) => commands::finetune::run(args, output),
            Self::Search(args) => commands::search::run(args, output),
            Self::Study(args) => commands::study::run(args, output),
            Self::Score(args) => commands::score::run(args, output),
            Self::Report(args) => commands::report::run(args, output),
            Self::Card(args) => commands::card::run(&args, output),
            Self::Watch(args) => commands::watch::run(&args),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    /// Names of verbs, and the texts below their flags.
    fn endings(command: &clap::Command, found: &mut Vec<(String, String)>) {
        if let Some(text) = command.get_after_help() {
            found.push((command.get_name().to_owned(), text.to_string()));
        }
        command
            .get_subcommands()
            .for_each(|verb| endings(verb, found));
    }

    #[test]
    fn lines_below_the_flags_are_not_broken_by_the_width_of_the_help() {
        use clap::CommandFactory;
        let mut found = Vec::new();
        endings(&Cli::command(), &mut found);
        assert!(found.len() > 20);
        for (verb, text) in found {
            for line in text.lines() {
                assert!(line.len() <= WIDTH, "{verb}: {line}");
            }
        }
    }
}
