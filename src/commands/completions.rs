//! `vlmerge completions`.

use std::process::ExitCode;

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::{Shell, generate};

use crate::cli::Cli;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  vlmerge completions bash > ~/.local/share/bash-completion/completions/vlmerge
  vlmerge completions zsh > ~/.zfunc/_vlmerge
  vlmerge completions fish > ~/.config/fish/completions/vlmerge.fish";

/// Flags of `vlmerge completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The shell that reads them
    #[arg(value_enum)]
    shell: Shell,
}

/// Runs the verb.
pub fn run(args: &Args, output: &Output) -> Result<ExitCode> {
    let mut text = Vec::new();
    generate(args.shell, &mut Cli::command(), "vlmerge", &mut text);
    output.text(&String::from_utf8(text)?)?;
    Ok(ExitCode::SUCCESS)
}
