//! `vlmerge man`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
use clap_mangen::Man;

use crate::cli::Cli;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  vlmerge man ~/.local/share/man/man1
  man vlmerge-merge";

/// Flags of `vlmerge man`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The folder that gets a page for each verb; made if there is none
    folder: PathBuf,
    /// Replace existing pages
    #[arg(long)]
    force: bool,
}

/// Runs the verb.
pub fn run(args: &Args, output: &Output) -> Result<ExitCode> {
    let mut command = Cli::command();
    // It gives each verb the name of its page.
    command.build();
    let mut pages = Vec::new();
    collect(&command, &mut pages)?;
    let paths: Vec<PathBuf> = pages
        .iter()
        .map(|(name, _)| args.folder.join(format!("{name}.1")))
        .collect();
    let failed = || format!("{}: cannot make the folder", args.folder.display());
    std::fs::create_dir_all(&args.folder).with_context(failed)?;
    for path in &paths {
        merge::io::check_file_target(path, args.force)?;
    }
    for (path, (_, page)) in paths.iter().zip(&pages) {
        merge::io::write_file(path, page, args.force)?;
    }
    output.note(format!(
        "{} pages in {}",
        pages.len(),
        args.folder.display()
    ));
    Ok(ExitCode::SUCCESS)
}

/// The page of a command and those of its verbs.
fn collect(command: &Command, pages: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    let mut page = Vec::new();
    Man::new(command.clone()).render(&mut page)?;
    pages.push((name.to_owned(), page));
    let verbs = command.get_subcommands();
    verbs
        .filter(|verb| !verb.is_hide_set() && verb.get_name() != "help")
        .try_for_each(|verb| collect(verb, pages))
}
