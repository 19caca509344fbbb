//! Gram matrices of a model's layers over a split.

use std::collections::BTreeMap;

use merge::gram::Gram;

use super::{Runner, Task};
use crate::batch::Texts;
use crate::capture::Capture;
use crate::ranks::Collective;
use crate::text::Encoded;
use crate::{Error, RanksFault, Result};

/// Passes that are run together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Batch {
    /// Images alone, each counted `times` times.
    Images {
        /// Images of the split.
        examples: Vec<usize>,
        /// The number of times that each counts.
        times: u32,
    },
    /// Texts: alone, or with the image they are about.
    Texts(Vec<usize>),
}

impl Batch {
    /// The number of examples in it.
    #[must_use]
    pub fn n_examples(&self) -> usize {
        match self {
            Self::Images { examples, .. } | Self::Texts(examples) => examples.len(),
        }
    }
}

/// Images, each counted `times` times, in order.
pub(super) fn images_in_batches(images: &[usize], times: u32, size: usize) -> Vec<Batch> {
    let batches = images.chunks(size).map(|examples| Batch::Images {
        examples: examples.to_vec(),
        times,
    });
    batches.collect()
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
    pub(super) fn texts(&self, runner: &Runner<'_>, encoded: &[Encoded]) -> Result<Texts> {
        let texts: Vec<&Encoded> = encoded.iter().collect();
        match self.counts_padding() {
            true => runner.padded_texts(&texts, runner.model().input().text.len),
            false => runner.texts(&texts),
        }
    }
}

/// The sums of all processes, put together by the first one in their order; the others get none.
///
/// # Errors
/// When a process is gone or does something else.
pub fn summed(
    ranks: &dyn Collective,
    own: BTreeMap<String, Gram>,
) -> Result<Option<BTreeMap<String, Gram>>> {
    if ranks.size() == 1 {
        return Ok(Some(own));
    }
    // A process whose batches were images alone knows no layer of texts.
    let names: Vec<(&String, u64)> = own.iter().map(|(key, gram)| (key, gram.rows())).collect();
    // Names and numbers always have a JSON form.
    let names = serde_json::to_vec(&names).unwrap_or_default();
    let mut rows: BTreeMap<String, Vec<Option<u64>>> = BTreeMap::new();
    let bad = |rank: usize| {
        Error::from(RanksFault::UnevenResults {
            rank,
            n_values: 0,
            n_examples: 0,
        })
    };
    for (rank, names) in ranks.gather(&names)?.iter().enumerate() {
        let names: Vec<(String, u64)> = serde_json::from_slice(names).map_err(|_| bad(rank))?;
        for (key, n) in names {
            rows.entry(key).or_insert_with(|| vec![None; ranks.size()])[rank] = Some(n);
        }
    }
    let mut sums = BTreeMap::new();
    for (key, rows) in rows {
        let packed = own.get(&key).map_or(&[][..], Gram::packed);
        let parts = ranks.gather(bytemuck::cast_slice(packed))?;
        if ranks.rank() > 0 {
            continue;
        }
        let mut sum: Option<Gram> = None;
        for (rank, (bytes, rows)) in parts.iter().zip(rows).enumerate() {
            let Some(rows) = rows else {
                continue;
            };
            let part = Gram::from_packed(bytemuck::pod_collect_to_vec(bytes), rows);
            let part = part.ok_or_else(|| bad(rank))?;
            match &mut sum {
                None => sum = Some(part),
                Some(sum) => {
                    if !sum.add(&part) {
                        return Err(bad(rank));
                    }
                }
            }
        }
        if let Some(sum) = sum {
            sums.insert(key, sum);
        }
    }
    Ok((ranks.rank() == 0).then_some(sums))
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
