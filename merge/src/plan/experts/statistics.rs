//! Tensors of other files that a method reads beside the experts: gram matrices and paired files.

use std::sync::Arc;

use super::{Builder, INPUT};
use crate::methods::{GramRef, Member, MergeMethod, Setting, Values};
use crate::plan::TensorRef;
use crate::plan::builder::PlanBuilder;
use crate::plan::grams::Due;
use crate::plan::opener;
use crate::recipe::{MergeRecipe, ModelRef, Place};
use crate::{Checkpoint, Error, Expert, MergeFault, Result, Slot};

/// The gram file of the one checkpoint, for methods that need it.
pub(super) fn open_grams(
    method: &dyn MergeMethod,
    recipe: &MergeRecipe,
    input: &Checkpoint,
    plan: &mut PlanBuilder,
) -> Result<Option<usize>> {
    if !method.needs().grams {
        return Ok(None);
    }
    let path = recipe.parameters.text("grams")?.ok_or(Error::MethodNeeds {
        method: method.name(),
        what: "the parameter `grams`",
    })?;
    (plan.grams).open(path, (INPUT, input), recipe).map(Some)
}

impl Builder<'_> {
    /// The gram matrices of a linear weight's members, for methods that need them.
    pub(super) fn grams_of(
        &self,
        slot: &Slot,
        experts: &[Expert],
        shape: &[usize],
    ) -> Result<Vec<Option<GramRef>>> {
        let Some(store) = self.gram_store else {
            return Ok(Vec::new());
        };
        let due = experts.iter().map(|&expert| Due {
            member: Member::Expert(expert),
            store,
            key: self.layout.gram_key(slot, Some(expert)),
        });
        let due: Vec<Due> = due.collect();
        let on_missing = self.recipe.on_missing_gram;
        let skips = self.recipe.as_published;
        (self.plan.grams).of_group(&slot.key, shape, &due, on_missing, skips)
    }

    /// The tensors that the method pairs with the experts: those of the same names in the paired files.
    pub(super) fn paired_of(
        &mut self,
        keys: &[&String],
        values: &Values,
        shape: &[usize],
    ) -> Result<Vec<TensorRef>> {
        let Some(parameter) = self.method.needs().paired else {
            return Ok(Vec::new());
        };
        let mut refs = Vec::with_capacity(keys.len());
        for (key, values) in keys.iter().zip(&values.members) {
            let Some((Setting::Text(path), _)) = values.get(parameter) else {
                continue;
            };
            let (source, file) = match self.paired.get(path) {
                Some((source, file)) => (*source, Arc::clone(file)),
                None => {
                    let file = opener::open(&ModelRef::new(path))?;
                    let source = self.plan.side_source(Arc::clone(&file));
                    let model = (INPUT, self.input.as_ref());
                    self.plan.paired((source, &file), model, self.recipe)?;
                    self.paired
                        .insert(path.clone(), (source, Arc::clone(&file)));
                    (source, file)
                }
            };
            let info = file.require(key)?;
            if info.shape != shape {
                return Err(MergeFault::Shapes {
                    key: (*key).clone(),
                    model: path.clone(),
                    found: info.shape.clone(),
                    first: self.input.path().display().to_string(),
                    expected: shape.to_vec(),
                    place: Place::default(),
                }
                .into());
            }
            refs.push(TensorRef {
                source,
                key: (*key).clone(),
            });
        }
        Ok(refs)
    }
}
