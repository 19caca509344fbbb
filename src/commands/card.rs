//! `vlmerge card`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use evaluate::reports::model_index::{self, ModelIndex};

use crate::output::{Output, UsageError};

const EXAMPLES: &str = "\
Examples:
  vlmerge card merged/ --results report.json
  vlmerge card merged/ --results out/results_2024-05-01T12-00-00.json vqa.json --model merged
  vlmerge card merged/ --results report.json --dry-run

Writes the results into the head of README.md as the hub's `model-index`. They replace the results
that it has; all else stays as it is. Results are reports of `vlmerge evaluate`, `sweep` and
`score --json`, and results files of lm-evaluation-harness and lmms-eval.";

/// The largest card that is read.
const MAX_CARD_BYTES: u64 = 16 << 20;

/// Flags of `vlmerge card`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The folder of a model
    folder: PathBuf,
    /// Files of results
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    results: Vec<PathBuf>,
    /// The model whose results are meant, of reports on several
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// The name of the model in the card [default: that of the folder]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Print the card, but write nothing
    #[arg(long)]
    dry_run: bool,
}

/// Runs the verb.
pub fn run(args: &Args, output: &Output) -> Result<ExitCode> {
    if !args.folder.is_dir() {
        let what = format!("{}: is no folder", args.folder.display());
        return Err(UsageError(what).into());
    }
    let name = match &args.name {
        Some(name) => name.clone(),
        None => {
            let folder = std::path::absolute(&args.folder)?;
            let name = folder.file_name().unwrap_or_default();
            name.to_string_lossy().into_owned()
        }
    };
    let mut index = ModelIndex {
        name,
        results: Vec::new(),
    };
    for path in &args.results {
        index
            .results
            .extend(model_index::read(path, args.model.as_deref())?);
    }
    let path = args.folder.join("README.md");
    let failed = || format!("cannot read {}", path.display());
    let card = match std::fs::metadata(&path) {
        Ok(metadata) if !metadata.is_file() || metadata.len() > MAX_CARD_BYTES => {
            let what = format!("{}: is no file of at most 16 MiB", path.display());
            return Err(UsageError(what).into());
        }
        Ok(_) => std::fs::read_to_string(&path).with_context(failed)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(failed),
    };
    let card = model_index::in_card(&path, &card, &index)?;
    if output.json {
        output.json(&index)?;
    } else if args.dry_run {
        output.text(&crate::output::printable(&card))?;
    }
    if !args.dry_run {
        merge::io::write_file(&path, card.as_bytes(), true)?;
        if !output.json {
            output.line(path.display().to_string())?;
        }
    }
    let n = index
        .results
        .iter()
        .map(|result| result.metrics.len())
        .sum::<usize>();
    output.note(format!("{n} numbers of {} tasks", index.results.len()));
    Ok(ExitCode::SUCCESS)
}
