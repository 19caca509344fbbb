//! `vlmerge interpolate`.

use std::process::ExitCode;

use anyhow::Result;

use crate::output::Output;

/// Flags of `vlmerge interpolate`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    let _ = (args, output);
    unreachable!("written with its part of the library")
}
