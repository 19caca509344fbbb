//! `vlmerge report`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::ValueEnum;
use evaluate::reports::file::{self, Source};
use evaluate::reports::published::Published;
use evaluate::reports::{Course, Document, Input, Report, csv, html, latex, markdown};
use train::log::LINES_FILE;

use crate::output::{Output, UsageError};

const EXAMPLES: &str = "\
Examples:
  vlmerge report coco.json vqa.json --out report.html
  vlmerge report sweep.json distances.json --title 'Ratio of interpolation' --out report.html
  vlmerge report coco.json --format markdown
  vlmerge report coco.json --out results.csv
  vlmerge report run --out run.html

It takes what `evaluate`, `sweep`, `score` and `distance` print with --json. Results of the same
task, data set, split and size share a table. The page needs no other file and no network. For the
folder of a training run it draws losses, rates, validation and speed (HTML only). Published figures
appear beside results on the same data; --published adds more, in the form of
evaluate/data/published.yaml.";

/// Flags of `vlmerge report`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Results as JSON, or folders of training runs
    #[arg(required = true, value_name = "FILE|RUN_DIR")]
    files: Vec<PathBuf>,
    /// File to write [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Form of the report [default: by the extension of --out, or markdown]
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<Format>,
    /// The heading
    #[arg(long, default_value = "Evaluation report")]
    title: String,
    /// YAML file of further published figures
    #[arg(long, value_name = "FILE")]
    published: Option<PathBuf>,
    /// Replace an existing file
    #[arg(long, requires = "out")]
    force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One page with tables, curves, heat maps and pictures
    Html,
    /// Tables for README files and issues
    #[value(alias = "md")]
    Markdown,
    /// One line per number
    Csv,
    /// Tables for papers, with booktabs
    #[value(alias = "tex")]
    Latex,
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    if output.json && (args.out.is_some() || args.format.is_some()) {
        return Err(UsageError(
            "--json prints the files joined to one; it goes with neither --out nor --format".into(),
        )
        .into());
    }
    let format = args.format()?;
    if let Some(out) = &args.out {
        merge::io::check_file_target(out, args.force)?;
    }
    let inputs = args.inputs()?;
    if output.json {
        output.json(&joined(inputs)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut published = Published::ours()?;
    if let Some(path) = &args.published {
        published.extend(Published::open(path)?);
    }
    let document = Document::new(&args.title, &inputs, &published);
    if !document.courses.is_empty() && format != Format::Html {
        let what = "runs are shown as curves: end --out in .html, or give --format html";
        return Err(UsageError(what.into()).into());
    }
    let text = match format {
        Format::Html => html::html(&document)?,
        Format::Markdown => markdown::markdown(&document)?,
        Format::Csv => csv::csv(&document)?,
        Format::Latex => latex::latex(&document)?,
    };
    match &args.out {
        None => output.text(&text)?,
        Some(out) => {
            merge::io::write_file(out, text.as_bytes(), args.force)?;
            output.note(format!("report in {}", out.display()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn format(&self) -> Result<Format> {
        let Some(out) = &self.out else {
            return Ok(self.format.unwrap_or(Format::Markdown));
        };
        let extension = out.extension().and_then(|extension| extension.to_str());
        let by_extension = match extension {
            Some("html" | "htm") => Some(Format::Html),
            Some("md" | "markdown") => Some(Format::Markdown),
            Some("csv") => Some(Format::Csv),
            Some("tex") => Some(Format::Latex),
            _ => None,
        };
        self.format.or(by_extension).ok_or_else(|| {
            let out = out.display();
            let formats = "end it in .html, .md, .csv or .tex, or name a --format";
            UsageError(format!("{out}: the kind of report is not clear; {formats}")).into()
        })
    }

    /// The files, called by their names, or by their paths where names are the same.
    fn inputs(&self) -> Result<Vec<Input>> {
        let name = |path: &Path| {
            let name = path.file_name().unwrap_or(path.as_os_str());
            name.to_string_lossy().into_owned()
        };
        let mut inputs = Vec::new();
        for path in &self.files {
            let n_same = self.files.iter().filter(|other| name(other) == name(path));
            let label = match n_same.count() {
                1 => name(path),
                _ => path.display().to_string(),
            };
            let source = match path.join(LINES_FILE).exists() {
                true => Source::Course(course(path, &label)?),
                false => file::read_source(path)?,
            };
            if let Source::Report(report) = &source
                && report.results.is_empty()
            {
                return Err(evaluate::Error::Empty {
                    path: path.clone(),
                    what: "results",
                }
                .into());
            }
            inputs.push(Input { label, source });
        }
        Ok(inputs)
    }
}

/// The course of a training run.
fn course(folder: &Path, label: &str) -> Result<Course> {
    let mut series: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for record in train::log::read(&folder.join(LINES_FILE))? {
        for (name, value) in record.values {
            let points = series.entry(name).or_default();
            points.push((record.step as f64, value));
        }
    }
    if series.is_empty() {
        return Err(evaluate::Error::Empty {
            path: folder.into(),
            what: "steps",
        }
        .into());
    }
    let mut facts = Vec::new();
    for (name, file) in [("Recipe", "recipe.yaml"), ("Best", "best.json")] {
        let path = folder.join(file);
        if path.exists() {
            let text = std::fs::read_to_string(&path);
            let text = text.with_context(|| format!("cannot read {}", path.display()))?;
            facts.push((name.to_owned(), text.trim_end().to_owned()));
        }
    }
    Ok(Course {
        label: label.to_owned(),
        series,
        facts,
    })
}

/// All results as one report.
fn joined(inputs: Vec<Input>) -> Result<Report> {
    let mut whole = Report::new(Vec::new(), Vec::new());
    for input in inputs {
        let Source::Report(report) = input.source else {
            let fault = "only results can be joined in one JSON file";
            return Err(UsageError(format!("{}: {fault}", input.label)).into());
        };
        let first = whole.results.len();
        whole.results.extend(report.results);
        whole.failed.extend(report.failed);
        whole
            .comparisons
            .extend(report.comparisons.into_iter().map(|mut comparison| {
                comparison.result += first;
                comparison.against += first;
                comparison
            }));
    }
    Ok(whole)
}
