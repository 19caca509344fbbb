//! `vlmerge activations`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use evaluate::measure::activations::{ActivationJob, sample};
use evaluate::measure::key_of;
use merge::provenance::Hashes;
use serde_json::json;

use crate::args::data::DataArgs;
use crate::args::model::ModelArgs;
use crate::args::number::parse_positive;
use crate::args::results::checked_file;
use crate::output::Output;
use crate::target::Target;

const EXAMPLES: &str = "\
Examples:
  vlmerge activations --checkpoint a.safetensors --task retrieval --data arrow --split val \\
      --limit 500 --out a.activations.safetensors
  vlmerge activations --checkpoint b.safetensors --task retrieval --data arrow --split val \\
      --limit 500 --out b.activations.safetensors

Then, in a merge recipe: align: activations, and for each model `activations: FILE`, or a list of
files of several tasks.

Take the same flags for all models: row i of a layer is of the same token in every file.";

/// Flags of `vlmerge activations`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The checkpoint whose layers' inputs are sampled
    #[arg(long, value_name = "FILE")]
    checkpoint: PathBuf,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    model: ModelArgs,
    /// Rows to keep of each layer, drawn from all that go by
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = parse_positive)]
    rows: usize,
    /// Replace an existing target
    #[arg(long)]
    force: bool,
}

/// Runs the verb.
pub fn run(args: &Args, output: &Output) -> Result<ExitCode> {
    let write = checked_file(&args.out, args.force)?;
    let device = args.model.device()?;
    let task = args.data.open()?;
    let tokenizer = args.data.tokenizer()?;
    let found = Target::File(args.checkpoint.clone()).find(&Hashes::default(), output)?;
    let opened = found.open(&args.model, output)?;
    let model = opened.load(&args.model, &device, output)?;
    let mut settings = BTreeMap::from([
        ("files of data".to_owned(), key_of(&args.data.content()?)),
        (
            "captions without repeats".to_owned(),
            args.data.without_repeats.to_string(),
        ),
    ]);
    if let Some(tokenizer) = &tokenizer {
        let vocabulary = key_of(&std::fs::read(tokenizer.path())?);
        settings.insert("tokenizer".to_owned(), vocabulary);
    }
    let started = Instant::now();
    let (samples, record) = sample(ActivationJob {
        task: task.as_ref(),
        runner: (args.model).runner(model.as_ref(), tokenizer.as_ref(), &device, output)?,
        checkpoint: &opened.checkpoint,
        files: opened.record.files.clone(),
        data: format!("{} {}", args.data.dataset(), args.data.split()),
        n_rows: args.rows,
        settings,
    })?;
    let seconds = started.elapsed().as_secs_f64();
    merge::activations::write(&samples, &record, &write, output)?;
    if output.json {
        output.json(&json!({
            "file": args.out,
            "layers": samples.len(),
            "record": record,
            "seconds": seconds,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    output.line(args.out.display().to_string())?;
    output.line(format!(
        "at most {} rows of {} layers over {} examples of {} in {seconds:.1} s",
        args.rows,
        samples.len(),
        record.n_examples,
        record.data,
    ))?;
    Ok(ExitCode::SUCCESS)
}
