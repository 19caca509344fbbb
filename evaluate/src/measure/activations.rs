//! Samples of what a model's layers read over a split, the same tokens for every model.

use std::collections::BTreeMap;

use merge::Checkpoint;
use merge::activations::{ActivationRecord, RowSample};
use merge::layouts::GramNames;
use merge::provenance::InputFile;

use crate::Result;
use crate::capture::Capture;
use crate::tasks::grams::collect;
use crate::tasks::{Runner, Task};

/// The layers and rows that are sampled.
pub struct ActivationJob<'a> {
    /// The task, whose passes are run.
    pub task: &'a dyn Task,
    /// The model.
    pub runner: Runner<'a>,
    /// The checkpoint whose layers are recorded.
    pub checkpoint: &'a Checkpoint,
    /// The files that the checkpoint comes from.
    pub files: Vec<InputFile>,
    /// The data, as the file calls them.
    pub data: String,
    /// Most rows that are kept of a layer.
    pub n_rows: usize,
    /// Whatever else decides which rows go by, and in which order.
    pub settings: BTreeMap<String, String>,
}

/// Runs all passes of the task, and returns the samples by the names of their layers, and what they are of. Padding is
/// left out.
///
/// # Errors
/// When the family of the checkpoint is unknown, and as [`Task::run`].
pub fn sample(job: ActivationJob<'_>) -> Result<(BTreeMap<String, RowSample>, ActivationRecord)> {
    let runner = &job.runner;
    let batches = (job.task).gram_batches(runner.model(), runner.batch_size());
    let layout = merge::layouts::detect(job.checkpoint)?;
    let names = GramNames::of(job.checkpoint, layout.as_ref());
    let capture = Capture::new(names).with_shared(true).sampling(job.n_rows);
    collect(job.task, runner, &capture, &batches, 0, |_| Ok(()))?;
    let samples = capture.into_samples();
    let mut settings = job.settings;
    let side = runner.model().input().image.side;
    settings.insert("image size".to_owned(), side.to_string());
    settings.insert("batch size".to_owned(), runner.batch_size().to_string());
    let record = ActivationRecord {
        data: job.data,
        task: job.task.spec().name.to_owned(),
        checkpoint: job.files,
        n_examples: batches.iter().map(|batch| batch.n_examples() as u64).sum(),
        n_rows: job.n_rows as u64,
        seen: (samples.iter())
            .map(|(key, sample)| (key.clone(), sample.seen()))
            .collect(),
        settings,
    };
    Ok((samples, record))
}
