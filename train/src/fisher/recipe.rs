//! The settings of a training recipe that the Fisher information uses.

use super::{CLASSES, Labels};
use crate::objectives::Objective;
use crate::optim::OptimSettings;
use crate::recipe::{Augmentation, CheckedRecipe, SaveSettings, Span};
use crate::{Error, Result};

/// The recipe with pictures as in evaluation, nothing left out at random and nothing trained, `n` examples a step.
pub(super) fn without_chance(recipe: &CheckedRecipe, n: usize) -> Result<CheckedRecipe> {
    let mut recipe = recipe.clone().into_inner();
    recipe.augmentation = Augmentation::Square;
    recipe.data.caption_corruption = false;
    (recipe.drop_path, recipe.dropout) = (0.0, 0.0);
    recipe.optim = OptimSettings::default();
    recipe.length = Span::Steps(1);
    recipe.batch_size = n;
    recipe.per_device_batch = None;
    recipe.save = SaveSettings::default();
    recipe.validation = None;
    recipe.balance = None;
    recipe.share_experts = false;
    recipe.checked()
}

/// Refuses objectives that compare the examples of a batch where each example is one, and those without classes where
/// labels are expected.
pub(super) fn check_objectives(
    objectives: &[(Box<dyn Objective>, f64)],
    at_once: usize,
    labels: Labels,
) -> Result<()> {
    let bad = |name: &str, reason: &str| Error::BadSetting {
        key: format!("objectives: {name}"),
        reason: reason.to_owned(),
    };
    for (objective, _) in objectives {
        let compares = objective.of_features().is_some() || objective.negatives().is_some();
        if compares && at_once == 1 {
            let reason = "it compares the examples of a batch, so that one alone has no gradient; --at-once N squares \
                          the mean gradient of N examples";
            return Err(bad(objective.name(), reason));
        }
        let heads = objective.spec().heads;
        let has_classes = heads.iter().any(|head| CLASSES.contains(head));
        if labels == Labels::Expected && !has_classes {
            let reason = "it has no classes of which each example is one; --labels given takes the labels of the data";
            return Err(bad(objective.name(), reason));
        }
    }
    let reason = match (labels, objectives.len(), at_once) {
        (Labels::Expected, 2.., _) => "expected labels are those of one objective",
        (Labels::Expected, _, 2..) => "expected labels are those of one example at once",
        _ => return Ok(()),
    };
    Err(bad(objectives[0].0.name(), reason))
}
