//! Gram matrices of a model's layers over a split.

use candle_core::Tensor;

use super::{Runner, Task};
use crate::Result;
use crate::capture::Capture;
use crate::nn::Mask;
use crate::text::Encoded;

/// Passes that are run together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Batch {
    /// Images alone, each counted `times` times.
    Images {
        /// Images of the split.
        examples: Vec<usize>,
        /// How often each counts.
        times: u32,
    },
    /// Texts: alone, or with the image they are about.
    Texts(Vec<usize>),
}

impl Batch {
    /// How many examples it holds.
    #[must_use]
    pub fn n_examples(&self) -> usize {
        match self {
            Self::Images { examples, .. } | Self::Texts(examples) => examples.len(),
        }
    }
}

/// All texts of a split in order.
pub(super) fn texts_in_batches(n: usize, size: usize) -> Vec<Batch> {
    let all: Vec<usize> = (0..n).collect();
    all.chunks(size)
        .map(|texts| Batch::Texts(texts.to_vec()))
        .collect()
}

impl Capture {
    /// Texts of a batch: cut to the longest where padding does not count, else padded to the
    /// model's length, for published code counts that padding too.
    pub(super) fn texts(&self, runner: &Runner<'_>, encoded: &[Encoded]) -> Result<(Tensor, Mask)> {
        let texts: Vec<&Encoded> = encoded.iter().collect();
        match self.counts_padding() {
            true => runner.padded_texts(&texts, runner.model().config().text_len),
            false => runner.texts(&texts),
        }
    }
}

/// Runs batches `from..` of a task and calls `after` with the number of batches done, after each.
///
/// # Errors
/// As [`Task::run`], and what `after` returns.
pub fn collect(
    task: &dyn Task,
    runner: &Runner<'_>,
    capture: &Capture,
    batches: &[Batch],
    from: usize,
    mut after: impl FnMut(usize) -> Result<()>,
) -> Result<()> {
    runner
        .progress()
        .start_items("batches", (batches.len() - from.min(batches.len())) as u64);
    let mut run = || {
        for (index, batch) in batches.iter().enumerate().skip(from) {
            task.run_gram_batch(runner, batch, capture)?;
            after(index + 1)?;
            runner.advance(1)?;
        }
        Ok(())
    };
    let done = run();
    runner.progress().finish();
    done
}
