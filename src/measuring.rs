//! Opens what the flags of measuring verbs name, measures it and prints the results.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use candle_core::Device;
use clap::ValueEnum;
use evaluate::datasets::facts::hash_of_all;
use evaluate::measure::{Candidate, Finished, Frame, Journal, Measuring, key_of};
use evaluate::metrics::bootstrap::Bootstrap;
use evaluate::ranks::Collective;
use evaluate::reports::{FailedPoint, Report, SweepPoint};
use evaluate::tasks::{TaskOption, answers_of, classes_of};
use evaluate::text::Tokenizer;
use merge::provenance::Hashes;
use serde_json::{Value, json};

use crate::args::data::DataArgs;
use crate::args::judging::JudgingArgs;
use crate::args::model::{ModelArgs, StreamsArg};
use crate::args::results::ResultArgs;
use crate::names::file_name;
use crate::output::{Output, UsageError};
use crate::result_table;
use crate::target::Target;

/// Results that fit beside each other, with intervals and tests, in a terminal.
const MAX_SIDE_BY_SIDE: usize = 3;

/// Weights to measure, and where they stand in a sweep.
pub struct Point {
    /// The weights.
    pub target: Target,
    /// The parameter and its value.
    pub at: Option<SweepPoint>,
    /// The first part of the name of its file of predictions.
    pub file: String,
}

impl Point {
    /// A point whose file of predictions is called as the weights are.
    pub fn new(target: Target, at: Option<SweepPoint>) -> Self {
        let file = file_name(&target.name());
        Self { target, at, file }
    }
}

/// Flags, opened: what measures, and on which device.
pub struct Study<'a> {
    model: &'a ModelArgs,
    measuring: Measuring<'a>,
    tokenizer: Option<Tokenizer>,
    device: Device,
    /// Keeps other processes from the same report.
    _lock: Option<File>,
    /// Hashes of the inputs; most points share theirs.
    hashes: Hashes,
    ranks: &'a dyn Collective,
    output: &'a Output,
}

impl<'a> Study<'a> {
    /// Opens data and device and checks the target, before any work.
    pub fn open(
        (data, judging): (&'a DataArgs, &'a JudgingArgs),
        model: &'a ModelArgs,
        results: &'a ResultArgs,
        (device, ranks): (Device, &'a dyn Collective),
        output: &'a Output,
    ) -> Result<Self> {
        let journal = results.out.as_deref().map(Journal::beside);
        let is_resumed = journal.as_ref().is_some_and(Journal::is_there);
        if let (Some(out), Some(journal)) = (&results.out, &journal) {
            check_report(out, journal, results.force)?;
            if ranks.is_first() {
                journal.create()?;
            }
        }
        let first = journal.as_ref().filter(|_| ranks.is_first());
        let lock = first.map(locked).transpose()?;
        check_streams(data, model)?;
        let task = data.open_to_judge(judging, results.ties)?;
        let tokenizer = data.tokenizer()?;
        let frame = Frame {
            dataset: data.dataset().to_owned(),
            split: data.split().to_owned(),
            device: model.device.to_string(),
            settings: settings((data, judging), model, results)?,
            identity: json!({
                "task": data.task,
                "dataset": data.dataset(),
                "split": data.split(),
                "data": data.identity()?,
                "limit": data.limit,
                "without_repeats": data.without_repeats,
                "allow_other_answers": data.allow_other_answers,
                "tokenizer": tokenizer.as_ref().map(tokenizer_identity).transpose()?,
                "model": model.identity(),
            }),
            out: results.out.clone(),
            predictions: results.predictions.clone(),
            // Those of a stopped run may lack their result.
            may_replace: results.force || is_resumed,
            features: results.cache_features.clone(),
        };
        let bootstrap = Bootstrap::new(results.resamples, results.seed)?;
        Ok(Self {
            measuring: Measuring::new(task, bootstrap, ranks, frame)?,
            tokenizer,
            device,
            ranks,
            model,
            _lock: lock,
            hashes: Hashes::default(),
            output,
        })
    }

    /// Measures all points and writes the report after each. Only the first of several ranks gets it.
    pub fn measure(&self, points: &[Point]) -> Result<Option<Report>> {
        let mut finished: Vec<Finished> = Vec::new();
        for point in points {
            self.measuring.check_predictions(&point.file)?;
        }
        for point in points {
            let Some(measured) = self.shared(point)? else {
                continue;
            };
            finished.push(measured);
            self.measuring.write(&finished)?;
        }
        if !self.ranks.is_first() {
            return Ok(None);
        }
        let report = self.measuring.report(&finished)?;
        self.measuring.close(&finished, &[])?;
        Ok(Some(report))
    }

    /// Measures one point, or takes its earlier measurement.
    pub fn finish(&self, point: &Point) -> Result<Finished> {
        let measured = self.shared(point)?;
        measured.context("only the first of several ranks holds the measurements")
    }

    /// Measures one point on all ranks; only the first one gets the result.
    fn shared(&self, point: &Point) -> Result<Option<Finished>> {
        let name = point.target.name();
        self.point(point).map_err(|error| {
            // Most faults name the file already.
            match format!("{error:#}").contains(&name) {
                true => error,
                false => error.context(name),
            }
        })
    }

    /// The headline number of the task, by which points are compared.
    pub fn worth(&self, finished: &Finished) -> Option<f64> {
        self.measuring.worth(finished)
    }

    /// Writes the report of all points, after which nothing is left to go on with.
    pub fn close(&self, finished: &[Finished], failed: &[FailedPoint]) -> Result<()> {
        Ok(self.measuring.close(finished, failed)?)
    }

    fn point(&self, point: &Point) -> Result<Option<Finished>> {
        let found = point.target.find(&self.hashes, self.output)?;
        let candidate = Candidate {
            name: point.target.name(),
            at: point.at.clone(),
            file: point.file.clone(),
            identity: found.identity(),
        };
        let measured = self.measuring.measure(&candidate, |task, features| {
            let opened = found.open(self.model, self.output)?;
            let model = opened.load(self.model, &self.device, self.output)?;
            let runner = self
                .model
                .runner(
                    model.as_ref(),
                    self.tokenizer.as_ref(),
                    &self.device,
                    self.output,
                )?
                .shared(self.ranks)
                .with_answers(answers_of(&opened.checkpoint)?)
                .with_classes(classes_of(&opened.checkpoint)?);
            let runner = match features {
                Some(features) => runner.with_cache(features),
                None => runner,
            };
            Ok::<_, anyhow::Error>((task.run(&runner)?, opened.record))
        })?;
        let Some(measured) = measured else {
            return Ok(None);
        };
        if measured.was_kept {
            let name = &candidate.name;
            self.output
                .note(format!("{name}: was measured before the run was stopped"));
        }
        if let Some(path) = &measured.predictions {
            self.output.note(format!("predictions: {}", path.display()));
        }
        Ok(Some(measured.finished))
    }
}

/// The settings of measuring, as they go into the report.
fn settings(
    (data, judging): (&DataArgs, &JudgingArgs),
    model: &ModelArgs,
    results: &ResultArgs,
) -> Result<BTreeMap<String, Value>> {
    let mut settings = BTreeMap::from([
        ("precision".to_owned(), json!(model.precision.to_string())),
        ("resamples".to_owned(), json!(results.resamples)),
        ("resampling_seed".to_owned(), json!(results.seed)),
    ]);
    let given = model.given().into_iter();
    settings.extend(given.map(|(name, value)| (name.to_owned(), value)));
    if data.task.takes(TaskOption::Ties) {
        let ties = results.ties.unwrap_or_default();
        settings.insert("ties".into(), json!(ties.to_string()));
    }
    if data.task.takes(TaskOption::Writing) {
        let writing = judging.writing()?;
        settings.insert("beams".into(), json!(writing.beams));
        settings.insert("length_penalty".into(), json!(writing.length_penalty));
        settings.insert("max_tokens".into(), json!(writing.max_tokens));
    }
    if let (Some(n), Some(path)) = (judging.candidates, &judging.candidates_from) {
        settings.insert("candidates".into(), json!(n));
        settings.insert("candidates_from".into(), json!(path.display().to_string()));
        settings.insert("candidates_hash".into(), json!(hash_of_all(path)?));
    }
    if let Some((k, rest)) = judging.rerank() {
        settings.insert("rerank".into(), json!(k));
        settings.insert("rerank_rest".into(), json!(rest.to_string()));
    }
    if let Some(limit) = data.limit {
        settings.insert("limit".into(), json!(limit));
    }
    for (name, is_given) in [
        ("without_repeats", data.without_repeats),
        ("allow_other_answers", data.allow_other_answers),
    ] {
        if is_given {
            settings.insert(name.into(), json!(true));
        }
    }
    Ok(settings)
}

/// Refuses a way of reading texts for captions, which are written from left to right whatever it says.
fn check_streams(data: &DataArgs, model: &ModelArgs) -> Result<()> {
    let reads_otherwise = |how: &StreamsArg| *how != StreamsArg::Causal;
    if data.task.takes(TaskOption::Writing)
        && let Some(how) = model.streams.filter(reads_otherwise)
        && let Some(how) = how.to_possible_value()
    {
        let (how, task) = (how.get_name(), data.task.name);
        let what =
            format!("--streams {how}: the task {task} writes from left to right; leave it out");
        return Err(UsageError(what).into());
    }
    Ok(())
}

/// Refuses a report that is there, unless a stopped run left its journal beside it or it may be replaced.
pub fn check_report(out: &Path, journal: &Journal, may_replace: bool) -> Result<()> {
    if out.exists() && !may_replace && !journal.is_there() {
        let what = format!("{} exists; give --force to replace it", out.display());
        return Err(UsageError(what).into());
    }
    Ok(merge::io::check_file_target(out, true)?)
}

/// The journal as this process's own, until it ends.
pub fn locked(journal: &Journal) -> Result<File> {
    let folder = journal.folder();
    merge::io::lock_file(&folder.join("lock"))?.ok_or_else(|| {
        let what = format!("another process is at work in {}", folder.display());
        UsageError(what).into()
    })
}

/// A name for the content of the tokenizer's files.
fn tokenizer_identity(tokenizer: &Tokenizer) -> Result<String> {
    let read = |path: &std::path::PathBuf| {
        std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let files: Vec<Vec<u8>> = tokenizer.files().iter().map(read).collect::<Result<_>>()?;
    Ok(match files.as_slice() {
        [file] => key_of(file),
        files => key_of(&files),
    })
}

/// Prints a report: a table, or JSON.
pub fn print(report: &Report, results: &ResultArgs, output: &Output) -> Result<()> {
    if output.json {
        return output.json(report);
    }
    if let Some(first) = report.results.first() {
        let counts = first.counts.iter().map(|(what, n)| format!("{n} {what}"));
        let data = [first.dataset.as_deref(), first.split.as_deref()];
        let data: Vec<&str> = data.into_iter().flatten().collect();
        output.line(format!(
            "{}: {}",
            data.join(" "),
            counts.collect::<Vec<_>>().join(", ")
        ))?;
        for omission in &first.left_out {
            output.line(format!("  {}: {omission}", omission.file))?;
        }
        output.line("")?;
    }
    if report
        .results
        .iter()
        .all(|result| result.measurements.is_empty())
    {
        output.line("no ground truth in this split: nothing to measure")?;
        if results.predictions.is_none() {
            output.note("--predictions DIR writes what the evaluation server takes");
        }
        return Ok(());
    }
    if report.results.len() > MAX_SIDE_BY_SIDE {
        output.text(&result_table::by_result(report).to_string())?;
    } else {
        output.text(&result_table::table(report).to_string())?;
        for line in result_table::legend(report) {
            output.line(line)?;
        }
    }
    if let Some(out) = &results.out {
        output.note(format!(
            "report: {} (vlmerge report {0} --out report.html)",
            out.display()
        ));
    }
    Ok(())
}
