//! The parts in which a rank computes its share of a batch.

use crate::data::Order;
use crate::recipe::TrainRecipe;
use crate::{Error, Result};

/// The number of examples that a rank computes at once.
pub(super) fn at_once(recipe: &TrainRecipe, share: usize) -> usize {
    recipe.per_device_batch.unwrap_or(share).min(share)
}

/// The number of parts of a rank's share.
pub(super) fn n_parts(recipe: &TrainRecipe, order: &Order, n_ranks: usize) -> Result<usize> {
    let bad = |reason: String| Error::BadSetting {
        key: "batch_size".into(),
        reason,
    };
    let batch = order.batch_size();
    if !batch.is_multiple_of(n_ranks) {
        return Err(bad(format!(
            "{batch} examples cannot be shared by {n_ranks} ranks"
        )));
    }
    let share = batch / n_ranks;
    let per_part = at_once(recipe, share);
    if !share.is_multiple_of(per_part) {
        return Err(bad(format!(
            "{share} examples of a rank are no multiple of {per_part}"
        )));
    }
    Ok(share / per_part)
}
