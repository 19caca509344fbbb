//! vlmerge: merges, converts and compares vision-language checkpoints.

mod cli;
mod commands;
mod key_tree;
mod measuring;
mod output;
mod plan_view;
mod ranks;
mod result_table;
mod running;
mod search;
mod study;
mod table;
mod training;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    study::end_with_parent();
    let cli = cli::Cli::parse();
    let output = match output::Output::new(&cli.global) {
        Ok(output) => output,
        Err(error) => return output::report(&error),
    };
    match commands::run(cli.command, &output) {
        Ok(code) => code,
        Err(error) => output::report(&error),
    }
}
