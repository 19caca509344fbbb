//! Batches that worker threads load ahead of the step that reads them.

use std::sync::Arc;

use evaluate::datasets::{Prefetch, prefetch};

use super::{Loaded, Loader, Order, Place};

/// Batches that are loaded ahead.
pub(super) const BATCHES_AHEAD: usize = 4;

/// A rank's parts of the batches from `place` on, loaded ahead, without end: each whole batch comes
/// as `n_parts` parts in a row, `n_passes` times.
pub fn batches(
    loader: &Arc<Loader>,
    order: Order,
    place: Place,
    (rank, n_ranks): (usize, usize),
    (n_parts, n_passes): (usize, usize),
    n_workers: usize,
) -> Prefetch<Loaded> {
    let per_rank = order.batch_size() / n_ranks;
    let per_part = (per_rank / n_parts).max(1);
    let jobs = order.from(place).flat_map(move |(place, examples)| {
        let examples: Arc<[usize]> = examples.into();
        (0..n_parts * n_passes).map(move |job| {
            let first = rank * per_rank + job % n_parts * per_part;
            (place, first, per_part, Arc::clone(&examples))
        })
    });
    let loader = Arc::clone(loader);
    prefetch(jobs, n_workers, BATCHES_AHEAD, move |job| {
        let (place, first, n, examples): (Place, usize, usize, Arc<[usize]>) = job;
        let loaded = loader.load(place, first, &examples[first..first + n])?;
        Ok(Loaded {
            whole: examples,
            ..loaded
        })
    })
}
