//! The command line: global flags and one subcommand per verb.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use merge::execute::RunOptions;
use merge::io::{OutputContainer, WriteOptions};
use merge::recipe::OutputDType;

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
    /// Remote files only as far as they are in the cache
    #[arg(long, global = true, help_heading = "Remote files")]
    pub offline: bool,
    /// Folder for what was read of remote files [default: vlmerge in the user's cache folder]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "VLMERGE_CACHE",
        help_heading = "Remote files"
    )]
    pub cache_dir: Option<PathBuf>,
    /// Read remote files without encryption from other machines too
    #[arg(long, global = true, help_heading = "Remote files")]
    pub allow_http: bool,
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
    /// Make a low-rank adapter of what fine-tuning changed
    ExtractLora(commands::extract_lora::Args),
    /// Build arrow files from public downloads, and look at what is in them
    Data(commands::data::Args),
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

/// How to write a checkpoint; the same flags in every verb that writes one.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Output")]
pub struct WriteArgs {
    /// Element type of floating point tensors; each value is rounded once
    #[arg(long, value_enum, default_value_t, value_name = "TYPE")]
    pub dtype: DTypeArg,
    /// Split into files of at most this size, e.g. 2GB or 500MiB, with an index
    #[arg(long, visible_alias = "shard-size", value_name = "SIZE", value_parser = parse_size)]
    pub max_shard_size: Option<u64>,
    /// Kind of file [default: by the extension: .safetensors, .pt, .pth, .bin, .ckpt]
    #[arg(long, value_enum, value_name = "KIND")]
    pub container: Option<ContainerArg>,
    /// Replace an existing target
    #[arg(long)]
    pub force: bool,
    /// Write infinities and NaNs instead of refusing them
    #[arg(long)]
    pub allow_non_finite: bool,
    /// Do not record the SHA-256 of the inputs
    #[arg(long)]
    pub no_hash: bool,
    /// Do not wait for the disk: faster, but a power cut may leave half a file
    #[arg(long)]
    pub no_sync: bool,
    /// Check everything and print the plan, but write nothing
    #[arg(long)]
    pub dry_run: bool,
}

impl WriteArgs {
    /// Where and how to write to `path`; if it `may_be_folder`, a name that no file would have stands
    /// for a model folder.
    pub fn write_options(&self, path: PathBuf, may_be_folder: bool) -> WriteOptions {
        let container = self.container.map(Into::into);
        let ends = path.as_os_str().as_encoded_bytes().ends_with(b"/");
        let is_folder = ends || path.is_dir() || path.extension().is_none();
        let options = match may_be_folder && is_folder {
            true => WriteOptions::in_folder(&path, container),
            false => WriteOptions::new(path),
        };
        WriteOptions {
            container,
            max_shard_bytes: self.max_shard_size,
            force: self.force,
            sync: !self.no_sync,
            ..options
        }
    }

    /// How to run the plan. Copies are looked at for infinities only by verbs that compute
    /// something: a conversion must carry any bits along.
    pub fn run_options(&self, check_copies: bool) -> RunOptions {
        RunOptions {
            allow_non_finite: self.allow_non_finite,
            check_copies,
            hash: !self.no_hash,
        }
    }
}

/// Element type of floating point tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DTypeArg {
    /// That of the inputs
    #[default]
    Keep,
    /// 32-bit
    F32,
    /// 16-bit with the range of f32
    Bf16,
    /// IEEE 16-bit
    F16,
}

impl From<DTypeArg> for OutputDType {
    fn from(arg: DTypeArg) -> Self {
        match arg {
            DTypeArg::Keep => Self::Keep,
            DTypeArg::F32 => Self::F32,
            DTypeArg::Bf16 => Self::Bf16,
            DTypeArg::F16 => Self::F16,
        }
    }
}

/// Kind of an output file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ContainerArg {
    /// safetensors
    Safetensors,
    /// PyTorch zip with a flat dictionary of tensors
    Torch,
    /// PyTorch zip with the weights under `state_dict`
    Lightning,
}

impl From<ContainerArg> for OutputContainer {
    fn from(arg: ContainerArg) -> Self {
        match arg {
            ContainerArg::Safetensors => Self::Safetensors,
            ContainerArg::Torch => Self::Torch,
            ContainerArg::Lightning => Self::TorchLightning,
        }
    }
}

/// A number of bytes such as `2GB`, `500MiB` or `1000000`.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let factor = match unit.trim().to_ascii_uppercase().as_str() {
        "" | "B" => 1.0,
        "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "KIB" => 1024.0,
        "MIB" => 1024.0 * 1024.0,
        "GIB" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err("units are B, KB, MB, GB, KiB, MiB, GiB".into()),
    };
    match number.parse::<f64>() {
        Ok(number) if number * factor >= 1.0 => Ok((number * factor) as u64),
        _ => Err("write a size such as 2GB or 500MiB".into()),
    }
}

/// A number of at least 1.
pub fn parse_positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("must be a whole number of at least 1".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_decimal_and_binary_units() {
        assert_eq!(parse_size("2GB"), Ok(2_000_000_000));
        assert_eq!(parse_size("1.5 MiB"), Ok(1_572_864));
        assert_eq!(parse_size("17"), Ok(17));
        assert!(parse_size("0").is_err());
        assert!(parse_size("2TB").is_err());
        assert!(parse_size("GB").is_err());
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
