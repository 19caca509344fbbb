//! Flags for writing a checkpoint.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use merge::execute::RunOptions;
use merge::io::{OutputContainer, WriteOptions};
use merge::provenance::HashKind;
use merge::recipe::OutputDType;

/// Settings of writing a checkpoint; the same flags in every verb that writes one.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Output")]
pub struct WriteArgs {
    /// Element type of floating point tensors; each value is rounded once
    #[arg(long, value_enum, default_value_t, value_name = "TYPE")]
    pub dtype: DTypeArg,
    /// Split into files of at most this size, e.g. 2GB or 500MiB, with an index; GGUF files count
    /// themselves
    #[arg(long, visible_alias = "shard-size", value_name = "SIZE", value_parser = parse_size)]
    pub max_shard_size: Option<u64>,
    /// Kind of file [default: by its ending: .safetensors, .pt, .pth, .bin, .ckpt, .gguf]
    #[arg(long, value_enum, value_name = "KIND")]
    pub container: Option<ContainerArg>,
    /// Replace an existing target
    #[arg(long)]
    pub force: bool,
    /// Write infinities and NaNs instead of refusing them
    #[arg(long)]
    pub allow_non_finite: bool,
    /// Record this hash of each input: BLAKE3, which is fast, or SHA-256, as the hub prints it
    #[arg(long, value_enum, value_name = "KIND", default_value_t)]
    pub hash: HashArg,
    /// Do not record hashes of the inputs
    #[arg(long, conflicts_with = "hash")]
    pub no_hash: bool,
    /// Do not wait for the disk: faster, but after a power cut the file may be incomplete
    #[arg(long)]
    pub no_sync: bool,
    /// Check everything and print the plan, but write nothing
    #[arg(long)]
    pub dry_run: bool,
}

impl WriteArgs {
    /// The settings of writing to `path`. If it `may_be_folder`, a path without the extension of a file stands for a
    /// model folder.
    pub fn write_options(&self, path: PathBuf, may_be_folder: bool) -> WriteOptions {
        let container = self.container.map(Into::into);
        let options = match may_be_folder {
            true => WriteOptions::of_model(&path, container),
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

    /// Whether a target is a folder for a model, there or to be made.
    pub fn is_folder(&self, path: &Path) -> bool {
        WriteOptions::means_folder(path)
    }

    /// The settings of running the plan. Only verbs that compute something look for infinities in copies: a conversion
    /// must carry any bits along.
    pub fn run_options(&self, check_copies: bool) -> RunOptions {
        RunOptions {
            allow_non_finite: self.allow_non_finite,
            check_copies,
            hash: (!self.no_hash).then(|| self.hash.into()),
        }
    }
}

/// Hash function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum HashArg {
    /// Several times as fast as SHA-256
    #[default]
    Blake3,
    /// As `sha256sum` and the hub print it
    Sha256,
}

impl From<HashArg> for HashKind {
    fn from(arg: HashArg) -> Self {
        match arg {
            HashArg::Blake3 => Self::Blake3,
            HashArg::Sha256 => Self::Sha256,
        }
    }
}

/// Element type of floating point tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DTypeArg {
    /// As in the inputs
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
    /// PyTorch zip with the weights under `model`, as EVE's
    Model,
    /// GGUF, of a model folder of Hugging Face
    Gguf,
}

impl From<ContainerArg> for OutputContainer {
    fn from(arg: ContainerArg) -> Self {
        match arg {
            ContainerArg::Safetensors => Self::Safetensors,
            ContainerArg::Torch => Self::Torch,
            ContainerArg::Lightning => Self::TorchLightning,
            ContainerArg::Model => Self::TorchModel,
            ContainerArg::Gguf => Self::Gguf,
        }
    }
}

/// A number of bytes such as `2GB`, `500MiB` or `1000000`.
pub fn parse_size(text: &str) -> Result<u64, String> {
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
}
