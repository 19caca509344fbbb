//! Measuring several weights on one split, and keeping what is finished.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::Device;
use clap::Args;
use evaluate::metrics::bootstrap::Bootstrap;
use evaluate::metrics::retrieval::Ties;
use evaluate::reports::journal::{Finished, Journal, key_of};
use evaluate::reports::{self, Report, SweepPoint, TaskResult};
use evaluate::tasks::answers_of;
use evaluate::tasks::{FeatureCache, Outcome, Task, TaskOption};
use evaluate::text::Tokenizer;
use merge::provenance::Hashes;
use serde_json::{Value, json};
use train::collective::Collective;

use crate::args::data::DataArgs;
use crate::locks;
use crate::output::{Output, UsageError};
use crate::result_table;
use crate::running::{ModelArgs, Opened, Target};

/// Results that fit beside each other, with intervals and tests, in a terminal.
const MAX_SIDE_BY_SIDE: usize = 3;

/// How numbers are drawn and where they go; the same in every verb that measures.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Results")]
pub struct ResultArgs {
    /// The report to write, as JSON; what is finished is kept, so a stopped run can be taken up
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Replace an existing report
    #[arg(long)]
    pub force: bool,
    /// How equal scores count in retrieval: expected (the default), pessimistic, optimistic, first
    #[arg(long, value_name = "HOW")]
    pub ties: Option<Ties>,
    /// Bootstrap draws for the intervals and tests
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub resamples: usize,
    /// Seed of the draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Keep features in this folder, and take those that are there
    #[arg(long, value_name = "DIR")]
    pub cache_features: Option<PathBuf>,
    /// Write predictions in the task's official form to this folder
    #[arg(long, value_name = "DIR")]
    pub predictions: Option<PathBuf>,
}

/// Weights to measure, and where they stand in a sweep.
pub struct Point {
    /// The weights.
    pub target: Target,
    /// The parameter and its value.
    pub at: Option<SweepPoint>,
}

/// Everything that measuring needs but the weights.
pub struct Study<'a> {
    data: &'a DataArgs,
    model: &'a ModelArgs,
    results: &'a ResultArgs,
    task: Box<dyn Task>,
    tokenizer: Tokenizer,
    /// Stands for the tokenizer's file.
    tokenizer_key: String,
    device: Device,
    bootstrap: Bootstrap,
    journal: Option<Journal>,
    /// Keeps other processes from the same report.
    _lock: Option<File>,
    /// Of the inputs of points, most of which share them.
    hashes: Hashes,
    /// Those who share the passes; the first one writes.
    ranks: &'a dyn Collective,
    output: &'a Output,
}

impl<'a> Study<'a> {
    /// Opens data and device and checks the target, before any work.
    pub fn open(
        data: &'a DataArgs,
        model: &'a ModelArgs,
        results: &'a ResultArgs,
        (device, ranks): (Device, &'a dyn Collective),
        output: &'a Output,
    ) -> Result<Self> {
        let journal = results.out.as_deref().map(Journal::beside);
        if let (Some(out), Some(journal)) = (&results.out, &journal) {
            if out.exists() && !results.force && !journal.is_there() {
                let what = format!("{} exists; give --force to replace it", out.display());
                return Err(UsageError(what).into());
            }
            merge::io::check_file_target(out, true)?;
            if ranks.is_first() {
                journal.create()?;
            }
        }
        let first = journal.as_ref().filter(|_| ranks.is_first());
        let lock = first.map(locked).transpose()?;
        let task = data.open(results.ties)?;
        if results.predictions.is_some() {
            if task.spec().prediction_ending.is_none() {
                let what = format!("--predictions: {} has no such file", task.spec().name);
                return Err(UsageError(what).into());
            }
            task.check_predictions()?;
        }
        let tokenizer = Tokenizer::open(&data.tokenizer)?;
        Ok(Self {
            task,
            tokenizer_key: tokenizer_identity(&tokenizer)?,
            tokenizer,
            device,
            ranks,
            bootstrap: Bootstrap::new(results.resamples, results.seed)?,
            data,
            model,
            results,
            journal,
            _lock: lock,
            hashes: Hashes::default(),
            output,
        })
    }

    /// Measures all points, writing the report after each. Of several ranks the first one has it.
    pub fn measure(&self, points: &[Point]) -> Result<Option<Report>> {
        let mut finished: Vec<Finished> = Vec::new();
        for point in points {
            let Some(measured) = self.shared(point)? else {
                continue;
            };
            finished.push(measured);
            self.write(&finished)?;
        }
        if !self.ranks.is_first() {
            return Ok(None);
        }
        let report = self.report(&finished)?;
        self.forget()?;
        Ok(Some(report))
    }

    /// Measures one point, or takes what was measured before.
    pub fn finish(&self, point: &Point) -> Result<Finished> {
        let measured = self.shared(point)?;
        measured.context("the first of several ranks has what is measured")
    }

    /// The same on several ranks, the first of which has it.
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

    /// What points are compared by: the headline number of the task.
    pub fn worth(&self, finished: &Finished) -> Option<f64> {
        self.task.spec().worth(&finished.sample)
    }

    /// Writes the report of all points, after which nothing is left to go on with.
    pub fn close(&self, finished: &[Finished]) -> Result<()> {
        self.write(finished)?;
        self.forget()
    }

    fn write(&self, finished: &[Finished]) -> Result<()> {
        match &self.results.out {
            Some(out) => Ok(reports::file::write(out, &self.report(finished)?)?),
            None => Ok(()),
        }
    }

    fn forget(&self) -> Result<()> {
        match &self.journal {
            Some(journal) => Ok(journal.remove()?),
            None => Ok(()),
        }
    }

    /// What was kept of a point, if it is finished: all ranks go by what the first one finds.
    fn kept(&self, key: &str) -> Result<(bool, Option<Finished>)> {
        let is_first = self.ranks.is_first();
        let kept = match &self.journal {
            Some(journal) if is_first => journal.get(key)?,
            _ => None,
        };
        let seen = self.ranks.gather(&[u8::from(kept.is_some())])?;
        Ok((seen.first().map(Vec::as_slice) == Some(&[1]), kept))
    }

    fn point(&self, point: &Point) -> Result<Option<Finished>> {
        let found = point.target.find(&self.hashes, self.output)?;
        let settings = self.settings();
        let key = key_of(&json!({
            "weights": { "files": found.files, "recipe": found.recipe },
            "task": self.task.spec().name,
            "dataset": self.data.dataset(),
            "split": self.data.split(),
            "data": self.data.identity()?,
            "limit": self.data.limit,
            "without_repeats": self.data.without_repeats,
            "allow_other_answers": self.data.allow_other_answers,
            "tokenizer": self.tokenizer_key,
            "model": self.model.identity(),
            "settings": settings,
        }));
        let (is_kept, kept) = self.kept(&key)?;
        if is_kept && kept.is_none() {
            return Ok(None);
        }
        if let Some(mut finished) = kept {
            self.output.note(format!(
                "{}: was measured before the run was stopped",
                point.target.name()
            ));
            finished.result.name = point.target.name();
            finished.result.point.clone_from(&point.at);
            return Ok(Some(finished));
        }
        let opened = self.model.open(found, self.output)?;
        let started = Instant::now();
        let outcome = self.run(&opened, &key)?;
        let seconds = started.elapsed().as_secs_f64();
        if !self.ranks.is_first() {
            return Ok(None);
        }
        self.write_predictions(&point.target.name(), &outcome)?;
        let finished = Finished {
            result: TaskResult {
                name: point.target.name(),
                task: self.task.spec().name.to_owned(),
                dataset: Some(self.data.dataset().to_owned()),
                split: Some(self.data.split().to_owned()),
                counts: outcome.counts,
                left_out: self.task.left_out()?,
                settings,
                checkpoint: Some(opened.record),
                point: point.at.clone(),
                seconds: Some(seconds),
                device: Some(self.model.device.to_string()),
                examples: outcome.examples,
                ..TaskResult::default()
            },
            sample: outcome.sample,
        };
        if let Some(journal) = &self.journal {
            journal.put(&key, &finished)?;
        }
        Ok(Some(finished))
    }

    fn run(&self, opened: &Opened, key: &str) -> Result<Outcome> {
        let model = self.model.load(opened, &self.device, self.output)?;
        let runner = self
            .model
            .runner(model.as_ref(), &self.tokenizer, &self.device, self.output)?
            .shared(self.ranks)
            .with_answers(answers_of(&opened.checkpoint)?);
        let folder = self.results.cache_features.as_deref();
        let folder = folder.or(self.journal.as_ref().map(Journal::folder));
        let runner = match folder {
            Some(folder) => runner.with_cache(FeatureCache::new(folder, key)),
            None => runner,
        };
        Ok(self.task.run(&runner)?)
    }

    /// How it is measured, as it goes into the report.
    fn settings(&self) -> BTreeMap<String, Value> {
        let mut settings = BTreeMap::from([
            (
                "precision".to_owned(),
                json!(self.model.precision.to_string()),
            ),
            ("resamples".to_owned(), json!(self.results.resamples)),
            ("resampling_seed".to_owned(), json!(self.results.seed)),
        ]);
        if let Some(size) = self.model.image_size {
            settings.insert("image_size".into(), json!(size));
        }
        if self.task.spec().takes(TaskOption::Ties) {
            let ties = self.results.ties.unwrap_or_default();
            settings.insert("ties".into(), json!(ties.to_string()));
        }
        if let Some(limit) = self.data.limit {
            settings.insert("limit".into(), json!(limit));
        }
        settings
    }

    fn report(&self, finished: &[Finished]) -> Result<Report> {
        let samples: Vec<_> = finished
            .iter()
            .map(|finished| finished.sample.clone())
            .collect();
        let (measured, comparisons) = reports::measure(&samples, &self.bootstrap)?;
        let results = finished
            .iter()
            .zip(measured)
            .map(|(finished, measurements)| TaskResult {
                measurements,
                ..finished.result.clone()
            });
        let mut report = Report::new(results.collect(), comparisons);
        mark_best(&mut report);
        Ok(report)
    }

    fn write_predictions(&self, name: &str, outcome: &Outcome) -> Result<()> {
        let ending = self.task.spec().prediction_ending;
        let (Some(folder), Some(ending)) = (&self.results.predictions, ending) else {
            return Ok(());
        };
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let stem = Path::new(name)
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy();
        let path = folder.join(format!("{stem}.{}.{ending}", self.data.split()));
        if outcome.predictions.write(&path)? {
            self.output.note(format!("predictions: {}", path.display()));
        }
        Ok(())
    }
}

/// The journal as this process's own, until it ends.
fn locked(journal: &Journal) -> Result<File> {
    let folder = journal.folder();
    locks::own(&folder.join("lock"))?.ok_or_else(|| {
        let what = format!("another process is at work in {}", folder.display());
        UsageError(what).into()
    })
}

/// A name for the content of the tokenizer's file.
fn tokenizer_identity(tokenizer: &Tokenizer) -> Result<String> {
    let path = tokenizer.path();
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(key_of(&bytes))
}

/// Marks the point of a sweep with the best headline number.
fn mark_best(report: &mut Report) {
    let of_sweep = report
        .results
        .iter()
        .enumerate()
        .filter(|(_, result)| result.point.is_some());
    let best = of_sweep.filter_map(|(index, result)| Some((index, result.worth()?)));
    // Of several equal ones the first.
    let best = best.reduce(|best, next| if next.1 > best.1 { next } else { best });
    for (index, result) in report.results.iter_mut().enumerate() {
        if let Some(point) = &mut result.point {
            point.is_best = best.is_some_and(|(best, _)| best == index);
        }
    }
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
