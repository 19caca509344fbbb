//! `vlmerge data texts`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use evaluate::datasets::class_texts::ClassTexts;
use evaluate::datasets::published_texts;
use serde_json::json;

use crate::output::{Output, UsageError};

const EXAMPLES: &str = "\
Example:
  pip download --no-deps clip_benchmark==1.6.2 && unzip clip_benchmark-*.whl
  cd clip_benchmark/datasets
  vlmerge data texts eurosat --names en_classnames.json \\
      --templates en_zeroshot_classification_templates.json --out data/eurosat
  vlmerge evaluate clip/ --task zero_shot_classes --data data --dataset eurosat --split test \\
      --tokenizer clip/

The names of classes go by their numbers: the first is that of the first folder in byte order, or of
label 0 of shards and parquet files. classes.tsv and templates.txt in the same folder go first.";

/// Flags of `vlmerge data texts`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The name of the set in the JSON files
    #[arg(value_name = "SET")]
    set: String,
    /// Names of classes by sets: a JSON file as clip_benchmark's en_classnames.json
    #[arg(long, value_name = "FILE")]
    names: Option<PathBuf>,
    /// Templates by sets: a JSON file as clip_benchmark's en_zeroshot_classification_templates.json
    #[arg(long, value_name = "FILE", required_unless_present = "names")]
    templates: Option<PathBuf>,
    /// The folder of the data set, for classnames.txt and zeroshot_classification_templates.txt
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Replace files that hold other texts
    #[arg(long)]
    force: bool,
}

/// Runs the verb.
pub fn run(args: &Args, output: &Output) -> Result<ExitCode> {
    let [.., names, templates] = ClassTexts::FILES;
    let wanted = [(&args.names, names), (&args.templates, templates)];
    let mut files = Vec::new();
    for (from, name) in wanted {
        let Some(from) = from else {
            continue;
        };
        let texts = published_texts::read(from, &args.set)?;
        if name == templates
            && let Some(other) = texts.iter().find(|text| !text.contains("{c}"))
        {
            let path = from.display();
            let what =
                format!("{path}: the template {other:?} has no {{c}} for the name of the class");
            return Err(UsageError(what).into());
        }
        files.push((args.out.join(name), texts));
    }
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("{}: cannot create", args.out.display()))?;
    let mut told = Vec::new();
    for (path, texts) in files {
        write(&path, &texts, args.force)?;
        match output.json {
            true => told.push(json!({ "path": path, "n": texts.len() })),
            false => output.line(format!("{}: {} lines", path.display(), texts.len()))?,
        }
    }
    if output.json {
        output.json(&json!({ "files": told }))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, texts: &[String], force: bool) -> Result<()> {
    let text = texts.iter().map(|text| format!("{text}\n"));
    let text: String = text.collect();
    let found = std::fs::read(path).ok();
    if found.is_some_and(|found| found != text.as_bytes()) && !force {
        let path = path.display();
        return Err(UsageError(format!(
            "{path}: holds other texts; replace them with --force"
        ))
        .into());
    }
    merge::io::write_file(path, text.as_bytes(), true)
        .with_context(|| format!("{}: cannot write", path.display()))?;
    Ok(())
}
