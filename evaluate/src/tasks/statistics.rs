//! Estimates the statistics of batch norms again, over pictures.

use std::cell::RefCell;

use merge::random::Draws;

use super::Runner;
use crate::Result;
use crate::datasets::classes::ClassSet;
use crate::nn::BatchStatistics;

/// The statistics of all batch norms over the pictures of a split, in batches of any classes: their order is drawn under
/// `seed`. Each norm subtracts and divides by the statistics of its batch meanwhile.
///
/// # Errors
/// [`ModelFault::Incapable`](crate::ModelFault::Incapable) for a model without batch norms, and when a picture cannot be
/// read or the device fails.
pub fn batch_statistics(runner: &Runner<'_>, set: &ClassSet, seed: u64) -> Result<BatchStatistics> {
    let model = runner.model().batch_normed()?;
    let mut order: Vec<usize> = (0..set.len()).collect();
    Draws::new(seed, "pictures").sequence().shuffle(&mut order);
    let statistics = RefCell::new(BatchStatistics::default());
    runner.progress().start_items("images", order.len() as u64);
    let observe = || {
        for batch in order.chunks(runner.batch_size()) {
            let images = runner.picture_batch(batch, |&image| set.picture(image))?;
            model.observe(&images, &statistics)?;
            runner.advance(batch.len())?;
        }
        Ok(())
    };
    let observed = observe();
    runner.progress().finish();
    observed.map(|()| statistics.into_inner())
}
