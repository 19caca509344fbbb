//! Whether a kept state belongs to the run that a recipe describes.

use crate::recipe::{TrainRecipe, differences};
use crate::run::{KeptState, TrainState};
use crate::{Result, data};

/// Checks that a kept state is one of the run that begins with `state`; a note where it is too old to tell.
pub(super) fn require_same_run(kept: &KeptState, state: &TrainState) -> Result<Option<String>> {
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
        None => Ok(untold(found, state)),
    }
}

/// A note on the facts that the state of an older version lacks.
fn untold(found: &TrainState, state: &TrainState) -> Option<String> {
    let what = match found.data.is_empty() {
        true => "data and tokenizer",
        false if data::lacks_tokenizers(&found.data, &state.data) => "the tokenizer",
        false => return None,
    };
    Some(format!(
        "an earlier version of vlmerge kept the state, which says nothing of {what}: nothing checks that this run has the same"
    ))
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
