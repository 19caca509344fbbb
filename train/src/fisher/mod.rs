//! Diagonals of the Fisher information of a model, summed example by example. A run that was stopped goes on.

mod recipe;
mod squared;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{DType, Device};
use evaluate::datasets::prefetch;
use evaluate::measure::{Unfinished, key_of};
use evaluate::models::Head;
use merge::Progress;
use merge::fisher::{FisherRecord, Sums};
use merge::io::{OpenOptions, WriteOptions};
use merge::progress::Silent;
use merge::provenance::InputFile;
use serde_json::json;
use squared::Squared;

use crate::collective::Collective;
use crate::data::Loaded;
use crate::recipe::CheckedRecipe;
use crate::run::{Prepared, TrainPlan, Where};
use crate::{Error, Result};

/// Groups of examples that are loaded ahead.
const AHEAD: usize = 16;

/// Key of the number of groups in an unfinished file.
const GROUPS_DONE: &str = "groups_done";

/// Key of everything that the sums depend on.
const OF: &str = "of";

/// The labels of the log-likelihood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Labels {
    /// Those of the data: the empirical Fisher information.
    #[default]
    Given,
    /// All classes, each by the model's own probability of it: the Fisher information.
    Expected,
}

impl Labels {
    /// As files name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Given => "given",
            Self::Expected => "expected",
        }
    }
}

/// The examples to sum over, and the file of the sums.
pub struct FisherJob<'a> {
    /// The data, the objectives and the model. Settings that change pictures or texts at random, and those of training, are left out of
    /// it.
    pub recipe: CheckedRecipe,
    /// The files that the model comes from.
    pub files: Vec<InputFile>,
    /// The labels of the log-likelihood.
    pub labels: Labels,
    /// Examples whose gradients are averaged before they are squared.
    pub at_once: usize,
    /// The number of examples, spread evenly over the data; all unless given.
    pub limit: Option<usize>,
    /// The file to write; sums that are not complete lie beside it.
    pub out: PathBuf,
    /// Time between two saves of sums that are not complete.
    pub save_every: Duration,
    /// The device.
    pub device: Device,
    /// The processes that share the examples.
    pub collective: &'a dyn Collective,
    /// Receives the progress.
    pub progress: &'a dyn Progress,
}

/// Sums that grow.
pub struct FisherSums<'a> {
    job: FisherJob<'a>,
    prepared: Prepared,
    dtype: DType,
    squared: Squared,
    record: FisherRecord,
    /// Groups of examples of this rank.
    own: Vec<(usize, Vec<usize>)>,
    unfinished: Unfinished,
    n_kept: usize,
}

impl<'a> FisherSums<'a> {
    /// Opens model and data, and goes on with the sums of an earlier run.
    ///
    /// # Errors
    /// When a file is missing or wrong; [`Error::FreshHead`] for a head that the model lacks; [`Error::BadSetting`] for
    /// objectives that have no log-likelihood of a single example, or no classes where labels are expected.
    pub fn open(job: FisherJob<'a>) -> Result<Self> {
        let recipe = recipe::without_chance(&job.recipe, job.at_once * job.collective.size())?;
        let place = Where {
            folder: &job.out,
            device: job.device.clone(),
            collective: job.collective,
            experts: None,
            progress: job.progress,
        };
        let prepared = TrainPlan::fresh(recipe.clone(), &place)?.prepared();
        if let Some(name) = prepared.start.weights.report().fresh.first() {
            return Err(Error::FreshHead { name: name.clone() });
        }
        recipe::check_objectives(&prepared.objectives, job.at_once, job.labels)?;
        let n_all = prepared.loader.examples.len();
        let examples = spread(n_all, job.limit.unwrap_or(n_all));
        let record = FisherRecord {
            data: (recipe.data.train.iter())
                .map(|of| format!("{} {}", of.dataset, of.split))
                .collect(),
            objectives: (prepared.objectives.iter())
                .map(|(objective, _)| objective.name().to_owned())
                .collect(),
            checkpoint: job.files.clone(),
            n_examples: examples.len() as u64,
            examples_at_once: job.at_once as u64,
            labels: job.labels.name().to_owned(),
            settings: [("precision".to_owned(), recipe.precision.clone())].into(),
        };
        let ranks = job.collective;
        let of = key_of(&json!({
            "record": record,
            "recipe": recipe.to_yaml()?,
            "data": prepared.data,
            "limit": job.limit,
            "ranks": (ranks.size() > 1).then(|| [ranks.rank(), ranks.size()]),
        }));
        let groups = examples.chunks(job.at_once).map(<[usize]>::to_vec);
        let own = (groups.enumerate())
            .skip(ranks.rank())
            .step_by(ranks.size())
            .map(|(number, group)| (number * job.at_once, group))
            .collect();
        let squared = Squared::new(&prepared.start, job.labels)?;
        let mut sums = Self {
            unfinished: Unfinished::beside(&job.out, of, ranks),
            dtype: prepared.dtype,
            job,
            prepared,
            squared,
            record,
            own,
            n_kept: 0,
        };
        sums.take_up()?;
        Ok(sums)
    }

    /// Groups of examples of this rank.
    #[must_use]
    pub fn n_own(&self) -> usize {
        self.own.len()
    }

    /// Groups of this rank whose sums are kept on disk.
    #[must_use]
    pub fn n_kept(&self) -> usize {
        self.n_kept
    }

    /// Notes for users on the way in which the files of the weights were found and read.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.prepared.notes
    }

    fn take_up(&mut self) -> Result<()> {
        let path = self.unfinished.path();
        if !path.exists() {
            return Ok(());
        }
        let file = merge::io::open(path, &OpenOptions::default())?;
        let metadata = &file.info().metadata;
        let is_ours = metadata.get(OF).map(String::as_str) == Some(self.unfinished.of());
        let done = metadata.get(GROUPS_DONE).and_then(|done| done.parse().ok());
        if let (true, Some(done)) = (is_ours, done) {
            self.squared.resume(merge::fisher::read(&file)?)?;
            self.n_kept = done;
        }
        Ok(())
    }

    fn keep(&mut self, n_done: usize) -> Result<()> {
        let mut metadata = self.record.to_metadata();
        metadata.insert(OF.to_owned(), self.unfinished.of().to_owned());
        metadata.insert(GROUPS_DONE.to_owned(), n_done.to_string());
        let options = WriteOptions {
            force: true,
            ..WriteOptions::new(self.unfinished.path())
        };
        let (sums, dtype) = (self.squared.sums(), merge::DType::F64);
        merge::fisher::write(sums, 1.0, dtype, &metadata, &options, &Silent)?;
        self.n_kept = n_done;
        Ok(())
    }

    /// Goes through the examples that are left. When it fails, it keeps the sums of those that are done.
    ///
    /// # Errors
    /// When an example cannot be read, a gradient is not finite, the device fails, or the sums cannot be kept.
    pub fn collect(&mut self) -> Result<()> {
        let progress = self.job.progress;
        progress.start_items("groups of examples", (self.own.len() - self.n_kept) as u64);
        let mut done = self.n_kept;
        let collected = self.collect_groups(&mut done);
        progress.finish();
        if collected.is_err() && done > self.n_kept {
            self.keep(done)?;
        }
        collected
    }

    fn collect_groups(&mut self, done: &mut usize) -> Result<()> {
        let left: Vec<(usize, Vec<usize>)> = self.own[self.n_kept..].to_vec();
        let loader = Arc::clone(&self.prepared.loader);
        let n_workers = rayon::current_num_threads();
        let place = crate::data::Place::default();
        let loaded = prefetch(left, n_workers, AHEAD, move |(first, examples)| {
            loader.load(place, first, &examples)
        });
        let mut saved = Instant::now();
        for loaded in loaded {
            let loaded: Loaded = loaded?;
            let batch = loaded.batch(&self.job.device, self.dtype)?;
            self.squared
                .add(&batch, &self.prepared.start, &self.prepared.objectives)?;
            *done += 1;
            if *done < self.own.len() && saved.elapsed() >= self.job.save_every {
                self.keep(*done)?;
                saved = Instant::now();
            }
            self.job.progress.advance(1);
            if self.job.progress.is_cancelled() {
                return Err(merge::Error::Cancelled.into());
            }
        }
        Ok(())
    }

    /// Adds up the sums of all ranks and writes their mean over the groups. Only the first rank writes and gets what the
    /// file says of itself, and how many tensors no gradient has reached.
    ///
    /// # Errors
    /// When a rank is gone, or the file cannot be written.
    pub fn finish(self, write: &WriteOptions) -> Result<Option<(FisherRecord, usize)>> {
        let Self {
            job,
            squared,
            record,
            unfinished,
            ..
        } = self;
        let n_groups = (record.n_examples as usize).div_ceil(job.at_once);
        let (mut sums, names): (Sums, _) = squared.into_sums();
        for squares in sums.values_mut() {
            job.collective.sum_f64(squares.values_mut())?;
        }
        let is_first = job.collective.is_first();
        if is_first {
            let factor = 1.0 / n_groups.max(1) as f64;
            let (metadata, dtype) = (record.to_metadata(), merge::DType::F32);
            merge::fisher::write(&sums, factor, dtype, &metadata, write, job.progress)?;
        }
        // The files of each rank must stay until the sum is written.
        job.collective.barrier()?;
        unfinished.remove()?;
        let is_zero = |name: &String| {
            let values = sums.get(name).map_or(&[][..], |squares| squares.values());
            values.iter().all(|value| *value == 0.0)
        };
        let n_zero = names.iter().filter(|name| is_zero(name)).count();
        Ok(is_first.then_some((record, n_zero)))
    }
}

/// `n` of `n_all` numbers, spread evenly.
fn spread(n_all: usize, n: usize) -> Vec<usize> {
    let n = n.min(n_all);
    (0..n).map(|index| index * n_all / n).collect()
}

/// Heads whose scores are of classes that exclude each other.
const CLASSES: [Head; 2] = [Head::ImageClasses, Head::Nlvr2];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_examples_are_spread_over_all() {
        assert_eq!(spread(10, 4), [0, 2, 5, 7]);
        assert_eq!(spread(3, 5), [0, 1, 2]);
        assert!(spread(0, 5).is_empty());
    }
}
