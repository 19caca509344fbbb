//! vlmerge: merges, trains and evaluates vision-language checkpoints.

#![forbid(unsafe_code)]

mod args;
mod cli;
mod commands;
mod key_tree;
mod measuring;
mod output;
mod plan_view;
mod ranks;
mod result_table;
mod search;
mod study;
mod table;
mod target;
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
    let done = cli.command.run(&output);
    study::note_cost();
    let fetched = output::fetched_bytes();
    if fetched > 0 {
        output.note(format!(
            "{} fetched over the network",
            output::bytes(fetched)
        ));
    }
    match done {
        Ok(code) => code,
        Err(error) => output::report(&error),
    }
}
