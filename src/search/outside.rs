//! Trials that an outside program scores: each is merged to a folder of its own, which the program gets.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use evaluate::measure::{Finished, Journal, key_of};
use evaluate::outside::json;
use evaluate::reports::{self, CheckpointRecord, FailedPoint, Measurement, Report, TaskResult};
use evaluate::{Sample, Unit};
use merge::execute::{RunOptions, execute};
use merge::io::{SourceFile, WriteOptions};
use merge::provenance::{HashKind, Hashes};
use merge::{MergePlan, MergeRecipe, Progress};
use serde_json::{Value, json};

use super::command::{CommandLine, Places, ProgramFault};
use super::failures::{Candidate, Failures, Outcome};
use crate::measuring::{Point, check_report, locked};
use crate::output::{Output, UsageError, message};

/// The name of the task in reports.
const TASK: &str = "outside";

/// The beginning of the names of the folders of trials.
const TRIAL: &str = "trial-";

/// The largest file with a number that is read.
const MAX_RESULT_BYTES: u64 = 256 << 20;

/// Folders below the one that a program fills in which results are looked for: lm-evaluation-harness makes one for the
/// model.
const MAX_DEPTH: usize = 4;

/// The flags of scoring by an outside program.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Score")]
pub struct ScoreArgs {
    /// Score each trial with a program. `{model}` is the folder of the merged model, `{out}` a file or folder for the
    /// program's results, `{job}` the number of the job, from 0. The line is split into words as a shell does, but no
    /// shell runs
    #[arg(
        long,
        value_name = "COMMAND",
        conflicts_with_all = ["DataArgs", "JudgingArgs", "ModelArgs", "LoadArgs", "ties", "resamples", "seed",
                              "cache_features", "predictions"]
    )]
    pub score: Option<String>,
    /// Path of the number in the program's JSON, e.g. results.arc_easy.acc,none [default: its only number]
    #[arg(long, value_name = "KEY", requires = "score")]
    pub score_key: Option<String>,
    /// Search for the least number instead of the greatest
    #[arg(long, requires = "score")]
    pub minimize: bool,
    /// Seconds after which the program is ended and the trial has failed
    #[arg(long, value_name = "SECONDS", requires = "score", value_parser = crate::args::number::parse_positive)]
    pub score_timeout: Option<usize>,
    /// Programs at once; trials of one generation, or of a grid, do not depend on each other
    #[arg(long, value_name = "N", requires = "score", default_value_t = 1, value_parser = crate::args::number::parse_positive)]
    pub jobs: usize,
    /// Folder for the merged models, each of which is removed when it is scored [default: beside the report]
    #[arg(long, value_name = "DIR", requires = "score")]
    pub scratch: Option<PathBuf>,
}

/// Everything that scoring needs but the weights.
pub struct Scorer<'a> {
    line: CommandLine,
    args: &'a ScoreArgs,
    out: &'a Path,
    scratch: PathBuf,
    journal: Journal,
    /// Keeps other processes from the same report.
    _lock: File,
    hashes: Hashes,
    /// Everything that a number depends on but the weights.
    identity: Value,
    /// A merge uses all cores by itself.
    merging: Mutex<()>,
    /// This program, which watches over the other one.
    own: PathBuf,
    output: &'a Output,
}

impl<'a> Scorer<'a> {
    /// Checks the command and the report before any work.
    pub fn open(
        line: &str,
        args: &'a ScoreArgs,
        (out, may_replace): (&'a Path, bool),
        output: &'a Output,
    ) -> Result<Self> {
        let line = CommandLine::parse(line)?;
        let journal = Journal::beside(out);
        check_report(out, &journal, may_replace)?;
        journal.create()?;
        let lock = locked(&journal)?;
        let scratch = match &args.scratch {
            Some(scratch) => scratch.clone(),
            None => journal.folder().to_owned(),
        };
        let scratch = std::path::absolute(&scratch)?;
        if !scratch.is_dir() {
            let what = format!("--scratch {}: is no folder", scratch.display());
            return Err(UsageError(what).into());
        }
        // Of a search that was killed. Nobody else writes into the journal.
        if args.scratch.is_none() {
            remove_trials(&scratch)?;
        }
        let hashes = Hashes::default();
        let identity = json!({
            "command": line.words(),
            "files": named_files(&line, &hashes, output)?,
            "key": args.score_key,
        });
        Ok(Self {
            line,
            args,
            out,
            scratch,
            journal,
            _lock: lock,
            hashes,
            identity,
            merging: Mutex::new(()),
            own: std::env::current_exe().context("cannot find this program")?,
            output,
        })
    }

    /// Everything that a number depends on but the weights.
    pub fn identity(&self) -> &Value {
        &self.identity
    }

    /// The number by which trials are compared: the greatest is the best.
    pub fn worth(&self, finished: &Finished) -> Option<f64> {
        let value = finished.result.measurements.first()?.value?;
        Some(if self.args.minimize { -value } else { value })
    }

    /// Scores all candidates, several at once if the user wants that, in their order. `said` hears of the number of each one, or
    /// of its failure.
    pub fn finish(
        &self,
        candidates: &[Candidate],
        failures: &Failures<'_>,
        said: &(dyn Fn(usize, Result<f64, &FailedPoint>) + Sync),
    ) -> Result<Vec<Outcome>> {
        let next = AtomicUsize::new(0);
        let finished = Mutex::new(BTreeMap::new());
        let work = |job: usize| -> Result<()> {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(candidate) = candidates.get(index) else {
                    return Ok(());
                };
                let tried = failures.tried(candidate, || {
                    self.point(&candidate.point, &candidate.recipe, job)
                });
                let outcome = tried.inspect_err(|_| {
                    // Candidates that nobody has begun are left.
                    next.store(candidates.len(), Ordering::Relaxed);
                })?;
                match &outcome {
                    Ok(scored) => self
                        .worth(scored)
                        .into_iter()
                        .for_each(|worth| said(index, Ok(worth))),
                    Err(failed) => said(index, Err(failed)),
                }
                if let Ok(mut finished) = finished.lock() {
                    finished.insert(index, outcome);
                }
            }
        };
        let work = &work;
        std::thread::scope(|scope| {
            let jobs = 0..self.args.jobs.min(candidates.len());
            let jobs: Vec<_> = jobs.map(|job| scope.spawn(move || work(job))).collect();
            let ended = jobs.into_iter().map(|job| {
                let panicked = |_| Err(anyhow!("a job ended before its program"));
                job.join().unwrap_or_else(panicked)
            });
            // The first fault, when all have ended.
            ended
                .collect::<Vec<_>>()
                .into_iter()
                .collect::<Result<()>>()
        })?;
        let finished = finished.into_inner().unwrap_or_default();
        Ok(finished.into_values().collect())
    }

    /// Scores a point, or takes the score of an earlier run.
    fn point(&self, point: &Point, recipe: &MergeRecipe, job: usize) -> Result<Finished> {
        let quiet = Output::silent();
        let progress = match self.args.jobs {
            1 => self.output,
            _ => &quiet,
        };
        let found = point.target.find(&self.hashes, progress)?;
        let key = key_of(&json!({
            "weights": found.identity(),
            "frame": self.identity,
        }));
        if let Some(mut kept) = self.journal.get::<Finished>(&key)? {
            kept.result.name = point.target.name();
            kept.result.point.clone_from(&point.at);
            for measurement in &mut kept.result.measurements {
                measurement.higher_is_better = !self.args.minimize;
            }
            return Ok(kept);
        }
        if progress.is_cancelled() {
            return Err(merge::Error::Cancelled.into());
        }
        let begun = Instant::now();
        let folder = tempfile::Builder::new()
            .prefix(TRIAL)
            .tempdir_in(&self.scratch)
            .with_context(|| format!("cannot make a folder in {}", self.scratch.display()))?;
        let value = self.score(recipe, folder.path(), job, progress)?;
        folder.close().context("cannot remove the merged model")?;
        let finished = Finished {
            result: TaskResult {
                name: point.target.name(),
                task: TASK.to_owned(),
                measurements: vec![Measurement {
                    name: self
                        .args
                        .score_key
                        .clone()
                        .unwrap_or_else(|| "score".to_owned()),
                    value: Some(value),
                    unit: Unit::Plain,
                    higher_is_better: !self.args.minimize,
                    n: 1,
                    interval: None,
                }],
                settings: BTreeMap::from([("command".to_owned(), json!(self.line.words()))]),
                checkpoint: Some(CheckpointRecord {
                    files: found.files,
                    layout: String::new(),
                    recipe: found.recipe,
                }),
                point: point.at.clone(),
                seconds: Some(begun.elapsed().as_secs_f64()),
                ..TaskResult::default()
            },
            sample: Sample::new(0),
        };
        self.journal.put(&key, &finished)?;
        Ok(finished)
    }

    /// The number of a merge.
    fn score(
        &self,
        recipe: &MergeRecipe,
        folder: &Path,
        job: usize,
        progress: &Output,
    ) -> Result<f64> {
        let (model, out) = (folder.join("model"), folder.join("out"));
        {
            let _one_at_a_time = self.merging.lock();
            let (plan, _) = MergePlan::resolve(recipe)?;
            // The folder is not kept, so it need not outlive a power cut, and its hashes are in the report.
            let options = WriteOptions {
                sync: false,
                ..WriteOptions::in_folder(&model, None)
            };
            let options = options.called_like(&plan.files());
            let options = options.called(plan.beside().weights);
            let run = RunOptions {
                hash: None,
                ..RunOptions::default()
            };
            execute(&plan, &options, &run, progress)?;
        }
        let places = Places {
            model: &model,
            out: &out,
            job,
        };
        let limit = self.args.score_timeout;
        let limit = limit.map(|seconds| Duration::from_secs(seconds as u64));
        let ran = self.line.run(&self.own, places, limit, progress)?;
        // Its output on stderr may say why there is no number.
        self.number(&ran.stdout, &out).map_err(|error| {
            let how = message(&error);
            ProgramFault::new(how, ran.stderr).into()
        })
    }

    /// The number that a program printed, or wrote to its file.
    fn number(&self, stdout: &str, out: &Path) -> Result<f64> {
        let (value, origin) = match self.line.has_out() {
            true => results_in(out)?,
            false => (said_json(stdout)?, "the program's stdout".to_owned()),
        };
        let number = json::number(&value, self.args.score_key.as_deref(), &origin);
        Ok(number.map_err(evaluate::Error::from)?)
    }

    /// Writes the report, after which nothing is left to go on with.
    pub fn close(&self, finished: &[Finished], failed: &[FailedPoint]) -> Result<()> {
        let results = finished.iter().map(|finished| finished.result.clone());
        let mut report = Report::new(results.collect(), Vec::new());
        report.failed = failed.to_vec();
        report.mark_best();
        reports::file::write(self.out, &report)?;
        Ok(self.journal.remove()?)
    }
}

/// Removes the folders of trials that a killed search left.
fn remove_trials(scratch: &Path) -> Result<()> {
    let failed = || format!("{}: cannot list", scratch.display());
    for entry in std::fs::read_dir(scratch).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        let is_trial = entry.file_name().to_string_lossy().starts_with(TRIAL);
        if is_trial && entry.file_type().with_context(failed)?.is_dir() {
            let path = entry.path();
            std::fs::remove_dir_all(&path)
                .with_context(|| format!("{}: cannot remove", path.display()))?;
        }
    }
    Ok(())
}

/// The files that words of the command name, such as a script, with their hashes: a number of another script is another
/// number.
fn named_files(
    line: &CommandLine,
    hashes: &Hashes,
    output: &Output,
) -> Result<Vec<(String, Option<String>)>> {
    let mut files = Vec::new();
    for word in line.words() {
        if let Ok(metadata) = std::fs::metadata(word)
            && metadata.is_file()
        {
            files.push(SourceFile::named(word, metadata.len()));
        }
    }
    let known = hashes.of(&files, HashKind::default(), output)?;
    let names = files.iter().map(|file| file.path.display().to_string());
    let known = known
        .into_iter()
        .map(|hash| hash.map(|hash| hash.to_string()));
    Ok(names.zip(known).collect())
}

/// JSON on stdout: all of it, or its last line.
fn said_json(stdout: &str) -> Result<Value> {
    if let Ok(value) = json::parse(stdout) {
        return Ok(value);
    }
    let last = stdout.lines().rev().find(|line| !line.trim().is_empty());
    let last = last.context("the program wrote nothing to stdout, where its number is looked for; with `{out}` in the command it is read from a file")?;
    json::parse(last).with_context(|| {
        let shown: String = last.chars().take(200).collect();
        format!("the last line of the program's stdout is no JSON: {shown}")
    })
}

/// JSON that the program wrote to its file, or to a folder: the only file of results there, or the only one of JSON.
fn results_in(out: &Path) -> Result<(Value, String)> {
    let mut found = Vec::new();
    if out.is_dir() {
        collect(out, 0, &mut found)?;
    } else if out.is_file() {
        found.push(out.to_owned());
    }
    let name = |path: &Path| {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    let is_results = |path: &&PathBuf| name(path).contains("results");
    let results: Vec<&PathBuf> = found.iter().filter(is_results).collect();
    let path = match (&results[..], &found[..]) {
        ([one], _) => *one,
        ([], [one]) => one,
        ([], []) => anyhow::bail!("the program left no JSON at {{out}}"),
        (several, all) => {
            let several = match several {
                [] => all.iter().collect::<Vec<_>>(),
                several => several.to_vec(),
            };
            let names: Vec<String> = several.iter().take(8).map(|path| name(path)).collect();
            anyhow::bail!(
                "the program left {} files of JSON at {{out}}, so none of them is meant: {}",
                several.len(),
                names.join(", ")
            );
        }
    };
    let n_bytes = std::fs::metadata(path)?.len();
    if n_bytes > MAX_RESULT_BYTES {
        anyhow::bail!(
            "{}: has {n_bytes} bytes; at most {MAX_RESULT_BYTES} are read",
            name(path)
        );
    }
    let text = std::fs::read_to_string(path).with_context(|| name(path))?;
    let value = match json::parse(&text) {
        Ok(value) => value,
        // A program that also logs there.
        Err(_) if path == out => said_json(&text)?,
        Err(fault) => return Err(fault).with_context(|| format!("{}: is no JSON", name(path))),
    };
    Ok((value, name(path)))
}

/// Files of JSON in a folder and those below. No link is followed.
fn collect(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    let failed = || format!("{}: cannot list", folder.display());
    for entry in std::fs::read_dir(folder).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        let (path, kind) = (entry.path(), entry.file_type().with_context(failed)?);
        if kind.is_dir() && depth < MAX_DEPTH {
            collect(&path, depth + 1, found)?;
        } else if kind.is_file() && path.extension().is_some_and(|ending| ending == "json") {
            found.push(path);
        }
    }
    found.sort();
    Ok(())
}
