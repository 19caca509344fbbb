//! Gram matrices of a model's layers, summed over a split batch by batch. A run that was stopped goes on.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use merge::Checkpoint;
use merge::gram::{Gram, GramRecord, Shard};
use merge::io::WriteOptions;
use merge::layouts::GramNames;
use merge::provenance::InputFile;
use serde_json::{Value, json};

use super::key_of;
use super::sums::{Unfinished, rows};
use crate::Result;
use crate::capture::Capture;
use crate::tasks::grams::{Batch, collect, summed};
use crate::tasks::{Runner, Task};

/// The examples to sum over, and the file of the sums.
pub struct GramJob<'a> {
    /// The task, whose passes are run.
    pub task: &'a dyn Task,
    /// The model, and the ranks that share its passes.
    pub runner: Runner<'a>,
    /// The checkpoint whose layers are recorded.
    pub checkpoint: &'a Checkpoint,
    /// The files that the checkpoint comes from.
    pub files: Vec<InputFile>,
    /// The data, as the file of sums calls them.
    pub data: String,
    /// The part of the data to sum over; all unless given.
    pub shard: Option<Shard>,
    /// Whether rows of padding count.
    pub counts_padding: bool,
    /// Whether layers that all experts share are recorded too.
    pub with_shared: bool,
    /// Further settings that the sums depend on. A run goes on only where the one before had the same.
    pub identity: Value,
    /// A hash of everything beside the weights that decides what the model makes of an example.
    pub reading: Option<String>,
    /// Settings that decide which examples go through the model, by the names that errors give them.
    pub chosen_by: BTreeMap<String, String>,
    /// The file to write; sums that are not complete lie beside it.
    pub out: PathBuf,
    /// Time between two saves of sums that are not complete.
    pub save_every: Duration,
}

/// Sums that grow.
pub struct GramSums<'a> {
    job: GramJob<'a>,
    /// Batches of the part of the data, on all ranks.
    n_batches: usize,
    /// Batches of this rank.
    own: Vec<Batch>,
    record: GramRecord,
    capture: Capture,
    unfinished: Unfinished,
    n_kept: usize,
}

/// Everything that decides which examples are in a part of the data, and which layers are recorded.
fn parted_by(job: &GramJob<'_>, n_batches: usize) -> BTreeMap<String, String> {
    let mut all = job.chosen_by.clone();
    all.extend([
        (
            "--batch-size".to_owned(),
            job.runner.batch_size().to_string(),
        ),
        ("--shared".to_owned(), job.with_shared.to_string()),
        ("the number of batches".to_owned(), n_batches.to_string()),
    ]);
    all
}

/// Sums of all ranks, by the names of their layers, and the record of their data.
pub type Summed = (BTreeMap<String, Gram>, GramRecord);

impl<'a> GramSums<'a> {
    /// Goes on with the sums of an earlier run.
    ///
    /// # Errors
    /// When the family of the checkpoint is unknown, or the sums that were left cannot be read.
    pub fn open(job: GramJob<'a>) -> Result<Self> {
        let mut batches = job
            .task
            .gram_batches(job.runner.model(), job.runner.batch_size());
        let shard = job.shard.filter(|shard| shard.of() > 1);
        let parted_by = match shard {
            Some(_) => parted_by(&job, batches.len()),
            None => BTreeMap::new(),
        };
        if let Some(shard) = shard {
            batches = shard.take(batches);
        }
        let n_batches = batches.len();
        let ranks = job.runner.ranks();
        let side = job.runner.model().input().image.side;
        let record = GramRecord {
            data: vec![job.data.clone()],
            task: job.task.spec().name.to_owned(),
            checkpoint: job.files.clone(),
            n_examples: batches.iter().map(|batch| batch.n_examples() as u64).sum(),
            counts_padding: job.counts_padding,
            rows: BTreeMap::new(),
            settings: BTreeMap::from([("image_size".to_owned(), side.to_string())]),
            reading: job.reading.clone(),
            shards: shard.into_iter().collect(),
            parted_by,
        };
        let of = key_of(&json!({
            "record": record,
            "identity": job.identity,
            "batch_size": job.runner.batch_size(),
            "shared": job.with_shared,
            "ranks": (ranks.size() > 1).then(|| [ranks.rank(), ranks.size()]),
        }));
        let unfinished = Unfinished::beside(&job.out, of, ranks);
        let (grams, n_kept) = unfinished.read()?;
        let layout = merge::layouts::detect(job.checkpoint)?;
        let names = GramNames::of(job.checkpoint, layout.as_ref());
        Ok(Self {
            n_batches,
            // Every rank sums some batches; the sums are put together at the end.
            own: job.runner.own(batches),
            record,
            capture: Capture::new(names)
                .counting_padding(job.counts_padding)
                .with_shared(job.with_shared)
                .resumed(grams),
            unfinished,
            n_kept,
            job,
        })
    }

    /// Batches of the part of the data, on all ranks.
    #[must_use]
    pub fn n_batches(&self) -> usize {
        self.n_batches
    }

    /// Batches of this rank.
    #[must_use]
    pub fn n_own(&self) -> usize {
        self.own.len()
    }

    /// Batches of this rank whose sums are kept on disk.
    #[must_use]
    pub fn n_kept(&self) -> usize {
        self.n_kept
    }

    /// Runs the batches that are left. When it fails, it keeps the sums of those that are done.
    ///
    /// # Errors
    /// As [`Task::run`], and when the sums cannot be kept.
    pub fn collect(&mut self) -> Result<()> {
        let Self { job, own, .. } = self;
        let mut saved = Instant::now();
        let (from, mut done) = (self.n_kept, self.n_kept);
        let after = |n_done: usize| {
            done = n_done;
            if n_done < own.len() && saved.elapsed() >= job.save_every {
                (self.unfinished).write(&self.capture.grams(), &self.record, n_done)?;
                self.n_kept = n_done;
                saved = Instant::now();
            }
            Ok(())
        };
        let collected = collect(job.task, &job.runner, &self.capture, own, from, after);
        if collected.is_err() && done > from {
            (self.unfinished).write(&self.capture.grams(), &self.record, done)?;
            self.n_kept = done;
        }
        collected
    }

    /// Puts the sums of all ranks together and writes them; without any, it writes no file. Only the first
    /// rank gets them.
    ///
    /// # Errors
    /// When a rank is gone, or the file cannot be written.
    pub fn finish(self, write: &WriteOptions) -> Result<Option<Summed>> {
        let ranks = self.job.runner.ranks();
        let grams = summed(ranks, self.capture.into_grams())?;
        if grams.as_ref().is_some_and(BTreeMap::is_empty) {
            return Ok(grams.map(|none| (none, self.record)));
        }
        let summed = match grams {
            Some(grams) => {
                let mut record = self.record;
                record.rows = rows(&grams);
                let progress = self.job.runner.progress();
                merge::gram::write(&grams, &record, false, write, progress)?;
                Some((grams, record))
            }
            None => None,
        };
        // The files of each rank must stay until the sum is written.
        ranks.barrier()?;
        self.unfinished.remove()?;
        Ok(summed)
    }
}
