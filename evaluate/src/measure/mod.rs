//! Measures models on one split, one after the other, and keeps finished results.
//!
//! [`Measuring`] runs a task for each [`Candidate`], takes from a [`Journal`] what an earlier run has
//! measured, and makes the report of all. [`grams`] sums gram matrices over a split, and keeps those of a run that is
//! stopped. [`activations`] samples what layers read.

pub mod activations;
pub mod grams;
pub mod journal;
pub mod layerwise;
mod sums;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};

pub use journal::{Finished, Journal, key_of};
pub use sums::Unfinished;

use crate::metrics::bootstrap::Bootstrap;
use crate::ranks::{Collective, seen_by_first};
use crate::reports::{self, CheckpointRecord, FailedPoint, Report, SweepPoint, TaskResult};
use crate::tasks::{FeatureCache, Outcome, Task};
use crate::{Error, Result};

/// The settings that all candidates share.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    /// The data set, as reports call it.
    pub dataset: String,
    /// Its split.
    pub split: String,
    /// The device, in words.
    pub device: String,
    /// The settings of measuring, as reports show them.
    pub settings: BTreeMap<String, Value>,
    /// Everything that the numbers depend on but the weights: a result that was measured under the same
    /// identity is taken as it is.
    pub identity: Value,
    /// The report.
    pub out: Option<PathBuf>,
    /// The folder of predictions.
    pub predictions: Option<PathBuf>,
    /// Whether files of predictions that are there may be replaced.
    pub may_replace: bool,
    /// The folder of features; without it that of the journal.
    pub features: Option<PathBuf>,
}

/// Weights that are measured.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Their name in results.
    pub name: String,
    /// The first part of the name of their file of predictions; no other candidate has the same.
    pub file: String,
    /// Their place in a sweep.
    pub at: Option<SweepPoint>,
    /// Distinguishes them from other weights.
    pub identity: Value,
}

/// A result, and how it came about.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The result.
    pub finished: Finished,
    /// Whether an earlier run had measured it.
    pub was_kept: bool,
    /// The file of predictions that was written.
    pub predictions: Option<PathBuf>,
}

/// Everything that measuring needs but the weights.
pub struct Measuring<'a> {
    task: Box<dyn Task>,
    bootstrap: Bootstrap,
    journal: Option<Journal>,
    /// The processes that share the passes; the first one writes.
    ranks: &'a dyn Collective,
    frame: Frame,
    /// Files of predictions that this process has written.
    written: Mutex<BTreeSet<PathBuf>>,
}

impl<'a> Measuring<'a> {
    /// A task on an opened split. The journal beside the report must be there.
    ///
    /// # Errors
    /// [`Error::NoPredictions`] when predictions are asked for and the task writes none, and what
    /// [`Task::check_predictions`] returns.
    pub fn new(
        task: Box<dyn Task>,
        bootstrap: Bootstrap,
        ranks: &'a dyn Collective,
        frame: Frame,
    ) -> Result<Self> {
        if frame.predictions.is_some() {
            if task.spec().prediction_ending.is_none() {
                let task = task.spec().name;
                return Err(Error::NoPredictions { task });
            }
            task.check_predictions()?;
        }
        Ok(Self {
            task,
            bootstrap,
            journal: frame.out.as_deref().map(Journal::beside),
            ranks,
            frame,
            written: Mutex::default(),
        })
    }

    /// The result of a candidate: that of an earlier run if the journal holds one, else that of `run`,
    /// which receives the task and a place for features. Only the first of several ranks gets it.
    ///
    /// # Errors
    /// The errors of `run`, those of [`check_predictions`](Self::check_predictions), and when the journal or the
    /// predictions cannot be read or written.
    pub fn measure<E: From<Error>>(
        &self,
        of: &Candidate,
        run: impl FnOnce(&dyn Task, Option<FeatureCache>) -> Result<(Outcome, CheckpointRecord), E>,
    ) -> Result<Option<Measured>, E> {
        let key = key_of(&json!({
            "weights": of.identity,
            "frame": self.frame.identity,
            "settings": self.frame.settings,
        }));
        let (is_kept, kept) = self.kept(&key, &of.file)?;
        if is_kept && kept.is_none() {
            return Ok(None);
        }
        if let Some(mut finished) = kept {
            finished.result.name.clone_from(&of.name);
            finished.result.point.clone_from(&of.at);
            return Ok(Some(Measured {
                finished,
                was_kept: true,
                predictions: None,
            }));
        }
        self.check_predictions(&of.file)?;
        let folder = self.frame.features.as_deref();
        let folder = folder.or(self.journal.as_ref().map(Journal::folder));
        let cache = folder.map(|folder| FeatureCache::new(folder, &key));
        let started = Instant::now();
        let (outcome, checkpoint) = run(self.task.as_ref(), cache)?;
        let seconds = started.elapsed().as_secs_f64();
        if !self.ranks.is_first() {
            return Ok(None);
        }
        let predictions = self.write_predictions(&of.file, &outcome)?;
        let finished = Finished {
            result: TaskResult {
                name: of.name.clone(),
                task: self.task.spec().name.to_owned(),
                dataset: Some(self.frame.dataset.clone()),
                split: Some(self.frame.split.clone()),
                counts: outcome.counts,
                left_out: self.task.left_out()?,
                settings: self.frame.settings.clone(),
                checkpoint: Some(checkpoint),
                point: of.at.clone(),
                seconds: Some(seconds),
                device: Some(self.frame.device.clone()),
                examples: outcome.examples,
                ..TaskResult::default()
            },
            sample: outcome.sample,
        };
        if let Some(journal) = &self.journal {
            journal.put(&key, &finished)?;
        }
        Ok(Some(Measured {
            finished,
            was_kept: false,
            predictions,
        }))
    }

    /// Whether the first rank finds a result in the journal, and on that rank the result. A result without the predictions
    /// that are asked for is none: the same weights may come under another name.
    fn kept(&self, key: &str, file: &str) -> Result<(bool, Option<Finished>)> {
        let is_first = self.ranks.is_first();
        let has_predictions = self.predictions_of(file).is_none_or(|path| path.exists());
        let kept = match &self.journal {
            Some(journal) if is_first && has_predictions => journal.get(key)?,
            _ => None,
        };
        Ok((seen_by_first(self.ranks, kept.is_some())?, kept))
    }

    /// The headline number of the task, by which candidates are compared.
    #[must_use]
    pub fn worth(&self, finished: &Finished) -> Option<f64> {
        self.task.spec().worth(&finished.sample)
    }

    /// The report of all that is finished, with intervals and tests.
    ///
    /// # Errors
    /// As [`reports::measure`]'s.
    pub fn report(&self, finished: &[Finished]) -> Result<Report> {
        let samples = finished.iter().map(|finished| finished.sample.clone());
        let samples: Vec<_> = samples.collect();
        let (measured, comparisons) = reports::measure(&samples, &self.bootstrap)?;
        let results = finished.iter().zip(measured);
        let results = results.map(|(finished, measurements)| TaskResult {
            measurements,
            ..finished.result.clone()
        });
        let mut report = Report::new(results.collect(), comparisons);
        report.mark_best();
        Ok(report)
    }

    /// Writes the report, if the caller wants one.
    ///
    /// # Errors
    /// As [`report`](Self::report)'s, and when the file cannot be written.
    pub fn write(&self, finished: &[Finished]) -> Result<()> {
        match &self.frame.out {
            Some(out) => reports::file::write(out, &self.report(finished)?),
            None => Ok(()),
        }
    }

    /// Writes the last report, with the points that failed, after which nothing is left to go on with.
    ///
    /// # Errors
    /// As [`write`](Self::write)'s.
    pub fn close(&self, finished: &[Finished], failed: &[FailedPoint]) -> Result<()> {
        if let Some(out) = &self.frame.out {
            let report = Report {
                failed: failed.to_vec(),
                ..self.report(finished)?
            };
            reports::file::write(out, &report)?;
        }
        match &self.journal {
            Some(journal) => journal.remove(),
            None => Ok(()),
        }
    }

    /// Refuses a file of predictions that is there, unless this process has written it or it may be replaced. `file` is
    /// the first part of its name.
    ///
    /// # Errors
    /// As [`merge::io::check_file_target`].
    pub fn check_predictions(&self, file: &str) -> Result<()> {
        let Some(path) = self.predictions_of(file).filter(|path| path.exists()) else {
            return Ok(());
        };
        let may_replace = self.frame.may_replace || self.written().contains(&path);
        Ok(merge::io::check_file_target(&path, may_replace)?)
    }

    fn written(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file for the predictions of a candidate, if the caller wants them and the task has any.
    fn predictions_of(&self, file: &str) -> Option<PathBuf> {
        let folder = self.frame.predictions.as_ref()?;
        let ending = self.task.spec().prediction_ending?;
        Some(folder.join(format!("{file}.{}.{ending}", self.frame.split)))
    }

    fn write_predictions(&self, file: &str, outcome: &Outcome) -> Result<Option<PathBuf>> {
        let (Some(folder), Some(path)) = (&self.frame.predictions, self.predictions_of(file))
        else {
            return Ok(None);
        };
        let created = std::fs::create_dir_all(folder);
        created.map_err(|source| Error::io("create", folder, source))?;
        let is_written = outcome.predictions.write(&path)?;
        self.written().insert(path.clone());
        Ok(is_written.then_some(path))
    }
}
