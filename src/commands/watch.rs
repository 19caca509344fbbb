//! `vlmerge watch`, which `vlmerge search --score` starts between itself and the program that scores.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;

use crate::search::watch;

/// Flags of `vlmerge watch`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<ExitCode> {
    watch(&args.command)?;
    Ok(ExitCode::SUCCESS)
}
