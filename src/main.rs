//! vlmerge: merges, trains and evaluates vision-language checkpoints.

#![forbid(unsafe_code)]

mod args;
mod cli;
mod commands;
mod groups;
mod key_tree;
#[cfg(feature = "models")]
mod measuring;
#[cfg(feature = "models")]
mod names;
mod output;
mod plan_view;
#[cfg(feature = "models")]
mod processes;
mod prompts;
#[cfg(feature = "models")]
mod ranks;
#[cfg(feature = "models")]
mod result_table;
#[cfg(feature = "models")]
mod search;
#[cfg(feature = "models")]
mod study;
mod table;
#[cfg(feature = "models")]
mod target;
#[cfg(feature = "models")]
mod training;
mod transplant_view;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

/// The system's allocator keeps gaps between large arrays that come and go: a spectral merge of eight models held 1.5 GB
/// with it, and 0.2 GB with this one.
#[global_allocator]
static MEMORY: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    #[cfg(feature = "models")]
    study::end_with_parent();
    let mut command = groups::grouped(cli::Cli::command());
    let matches = match command.try_get_matches_from_mut(std::env::args_os()) {
        Ok(matches) => matches,
        Err(error) => match groups::left_out(&command, &error) {
            Some(missing) => return output::report(&missing.into()),
            None => error.exit(),
        },
    };
    let cli = cli::Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let output = match output::Output::new(&cli.global) {
        Ok(output) => output,
        Err(error) => return output::report(&error),
    };
    let done = cli.command.run(&output);
    #[cfg(feature = "models")]
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
