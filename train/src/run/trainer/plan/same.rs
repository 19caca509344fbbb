//! Whether a kept state belongs to the run that a recipe describes.

use crate::recipe::{TrainRecipe, differences};
use crate::run::{KeptState, TrainState};
use crate::{Result, data};

/// Checks that a kept state is one of the run that begins with `state`.
pub(super) fn require_same_run(kept: &KeptState, state: &TrainState) -> Result<()> {
    let found = &kept.state;
    if found.recipe != state.recipe {
        let differences = differences(&found.recipe, &state.recipe).join("; ");
        return Err(kept.refused(format!(
            "it is the state of another recipe ({differences}); give another --out"
        )));
    }
    // States of older versions do not say what the data were.
    let other = data::difference(&found.data, &state.data);
    match other.filter(|_| !found.data.is_empty()) {
        Some(other) => Err(kept.refused(format!(
            "it is the state of a run on other data ({other}); give another --out"
        ))),
        None => Ok(()),
    }
}

/// The settings that two recipes must share for one to go on with the state of the other, as YAML.
pub(super) fn fingerprint(recipe: &TrainRecipe) -> Result<String> {
    let mut recipe = recipe.clone();
    recipe.save.every = None;
    recipe.save.keep = 1;
    // Like the number of ranks, it is a way of computing the run.
    recipe.share_experts = false;
    recipe.to_yaml()
}
