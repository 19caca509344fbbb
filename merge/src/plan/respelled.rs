//! A plan whose output has other keys than the merge that makes it.

use std::sync::Arc;

use super::{MergePlan, PlanBuilder, stages};
use crate::Result;
use crate::layouts::Packing;

/// The name of the merge before its tensors get their spelling.
const NAME: &str = "merge";

/// The plan that gives the output of `plan` the keys of another spelling: the merge is a stage of it.
///
/// # Errors
/// As [`Packing::packed`] and [`PlanBuilder::finish`].
pub(super) fn respelled(mut plan: MergePlan, to: Packing) -> Result<MergePlan> {
    let mut beside = std::mem::take(&mut plan.beside);
    beside.weights = to.stem().or(beside.weights);
    let stages = std::mem::take(&mut plan.stages);
    let (recipe, sources) = (plan.recipe.clone(), plan.sources.clone());
    let (grams, gram_uses) = (plan.grams.clone(), plan.gram_uses.clone());
    let paired_uses = plan.paired_uses.clone();
    let (stage, made) = stages::stage(NAME, plan)?;
    let view = to.packed(made)?;
    let mut builder = PlanBuilder::new(recipe);
    for source in sources {
        // For the hashes of what went in.
        builder.side_source(source);
    }
    let index = builder.source(Arc::clone(&view));
    for (key, _) in view.tensors() {
        let names = to.apart_names(key);
        let entries = stage.plan.entries.iter();
        let mut whys: Vec<&str> = entries
            .filter(|entry| names.contains(&entry.name) || entry.name == key)
            .map(|entry| entry.why.as_str())
            .collect();
        whys.dedup();
        builder.copy(index, key, &whys.join("; "))?;
    }
    let mut spelled = builder.beside(beside).finish()?;
    (spelled.grams, spelled.gram_uses) = (grams, gram_uses);
    spelled.paired_uses = paired_uses;
    spelled.is_respelled = true;
    spelled.stages = stages;
    spelled.stages.push(stage);
    Ok(spelled)
}
