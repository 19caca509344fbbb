//! Flags for writing GGUF files.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use merge::gguf::{AdapterExport, GgufExport, GgufType};
use merge::io::OutputContainer;
use merge::{MergePlan, quantized};

use super::convert::{note_others, open_source};
use super::write::{DTypeArg, WriteArgs};
use crate::output::{Output, UsageError};

/// The file that makes a folder an adapter's.
const ADAPTER_SETTINGS: &str = "adapter_config.json";

/// Settings of a GGUF file.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "GGUF files")]
pub struct GgufArgs {
    /// Type of matrices; norms and biases are f32 [default: as --dtype]
    #[arg(long, value_enum, value_name = "TYPE", conflicts_with = "dtype")]
    outtype: Option<OutTypeArg>,
    /// Write no tokenizer: programs that run the file need one from elsewhere
    #[arg(long)]
    no_tokenizer: bool,
    /// The base of an adapter: a folder, of which config.json is read
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
}

/// Type of matrices.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum OutTypeArg {
    /// 32-bit
    F32,
    /// IEEE 16-bit
    F16,
    /// 16-bit with the range of f32
    Bf16,
    /// Blocks of 32 codes of 8 bits with a scale
    #[value(name = "q8_0")]
    Q80,
    /// As the model has them
    Auto,
}

/// Whether the target is a GGUF file.
pub fn is_gguf(out: &Path, write: &WriteArgs) -> bool {
    let container = match write.container {
        Some(container) => Some(container.into()),
        None => OutputContainer::from_extension(out).ok(),
    };
    container == Some(OutputContainer::Gguf)
}

impl GgufArgs {
    /// One of these flags that is given.
    pub fn given(&self) -> Option<&'static str> {
        let flags = [
            (self.outtype.is_some(), "--outtype"),
            (self.no_tokenizer, "--no-tokenizer"),
            (self.base.is_some(), "--base"),
        ];
        let mut given = flags.into_iter().filter(|(is_given, _)| *is_given);
        given.next().map(|(_, flag)| flag)
    }

    /// The plan of the file for a model, or an adapter, in a folder.
    pub fn plan(
        &self,
        input: &Path,
        root: Option<String>,
        dequantize: bool,
        write: &WriteArgs,
        output: &Output,
    ) -> anyhow::Result<MergePlan> {
        let kind = match (self.outtype, write.dtype) {
            (Some(OutTypeArg::F32), _) | (None, DTypeArg::F32) => GgufType::F32,
            (Some(OutTypeArg::F16), _) | (None, DTypeArg::F16) => GgufType::F16,
            (Some(OutTypeArg::Bf16), _) | (None, DTypeArg::Bf16) => GgufType::Bf16,
            (Some(OutTypeArg::Q80), _) => GgufType::Q8_0,
            (Some(OutTypeArg::Auto), _) | (None, DTypeArg::Keep) => GgufType::Keep,
        };
        let is_adapter = input.join(ADAPTER_SETTINGS).is_file();
        match &self.base {
            Some(base) if is_adapter => {
                let base = base.clone();
                return Ok(AdapterExport { base, kind }.plan(input)?);
            }
            None if is_adapter => {
                return Err(
                    UsageError("name the folder of the adapter's base with --base".into()).into(),
                );
            }
            Some(_) => {
                let said = format!("--base is for adapters, and {} is none", input.display());
                return Err(UsageError(said).into());
            }
            None => {}
        }
        let mut source = open_source(input, root, output)?;
        note_others(input, &source, output);
        match dequantize {
            true => source = quantized::dequantized(source)?,
            false => quantized::check_castable(&source)?,
        }
        let export = GgufExport {
            kind,
            with_tokenizer: !self.no_tokenizer,
        };
        Ok(export.plan(source)?)
    }
}
