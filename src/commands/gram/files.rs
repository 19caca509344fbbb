//! `vlmerge gram add` and `vlmerge gram export`: gram files alone, without a model.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use merge::gram::{GramStore, add, write};
use merge::io::{OpenOptions, WriteOptions};

use super::report;
use crate::output::Output;

/// Verbs on gram files.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Add up the files of the parts of one data set
    Add {
        /// The files
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// The file to write
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Replace an existing target
        #[arg(long)]
        force: bool,
    },
    /// Convert a file: packed triangles or whole matrices, safetensors or .pth
    Export {
        /// The file
        file: PathBuf,
        /// The file to write: .safetensors, or .pth for published programs
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Whole symmetric matrices instead of their lower triangles
        #[arg(long)]
        full: bool,
        /// Replace an existing target
        #[arg(long)]
        force: bool,
    },
}

/// Runs the verb.
pub fn run(verb: Verb, output: &Output) -> Result<ExitCode> {
    let is_adding = matches!(verb, Verb::Add { .. });
    let (files, out, is_full, force) = match verb {
        Verb::Add { files, out, force } => (files, out, false, force),
        Verb::Export {
            file,
            out,
            full,
            force,
        } => (vec![file], out, full, force),
    };
    let open = |path: &PathBuf| {
        let file = merge::io::open(path, &OpenOptions::default())?;
        GramStore::new(file.into())
    };
    let stores: Vec<GramStore> = files.iter().map(open).collect::<merge::Result<_>>()?;
    let (grams, record) = add(&stores)?;
    let is_bare = |store: &&GramStore| store.record().is_some_and(|record| record.is_bare_part());
    if is_adding && let Some(store) = stores.iter().find(is_bare) {
        output.note(format!(
            "note: {}: an earlier build wrote it without the settings of its run, so only checkpoint, task and data were \
             compared with those of the other parts",
            store.checkpoint().path().display()
        ));
    }
    let options = WriteOptions {
        force,
        ..WriteOptions::new(&out)
    };
    write(&grams, &record, is_full, &options, output)?;
    report(&out, &record, &grams, None, output)?;
    Ok(ExitCode::SUCCESS)
}
