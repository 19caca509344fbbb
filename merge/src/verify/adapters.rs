//! Checks that each adapter of a recipe is wholly applied, and changes its targets.

use std::sync::Arc;

use super::{Check, Outcome};
use crate::lora;
use crate::plan::{PIECE_ELEMENTS, views};
use crate::recipe::{ModelRef, adapters};
use crate::{Checkpoint, Error, MergeRecipe, Progress, Result, decode_f64};

/// The check; `None` of a recipe without adapters.
pub(super) fn check(recipe: &MergeRecipe, progress: &dyn Progress) -> Result<Option<Check>> {
    let recipe = &recipe.with_hub_names();
    let mut models: Vec<ModelRef> = Vec::new();
    for document in recipe.earlier.iter().chain([recipe]) {
        let sliced = document.slices.iter();
        let bases = sliced.clone().flat_map(|slice| slice.base_model.clone());
        let sources = sliced.flat_map(|slice| &slice.sources);
        let own = document.models.iter().chain(&document.base_model).cloned();
        let all = own
            .chain(bases)
            .chain(sources.map(|source| source.model_ref()));
        for model in all.filter(|model| model.adapter.is_some()) {
            if !models.iter().any(|known| known.is_same_model(&model)) {
                models.push(model);
            }
        }
    }
    if models.is_empty() {
        return Ok(None);
    }
    let names: Vec<&String> = (recipe.earlier.iter())
        .flat_map(|document| &document.name)
        .collect();
    let (mut misfits, mut notes) = (Vec::new(), Vec::new());
    let mut applied = Vec::new();
    for model in &models {
        if names.contains(&&model.document()) {
            notes.push(format!(
                "what adapters do to the result of `{}` was not looked at",
                model.document()
            ));
            continue;
        }
        match of_model(model, progress) {
            Ok(found) => {
                for found in found {
                    misfits.extend(found.misfit());
                    notes.extend(found.note());
                    applied.push(found.in_words());
                }
            }
            // These files are in question; a file that cannot be read is not.
            Err(fault @ (Error::Adapter(_) | Error::Several(_))) => misfits.push(fault.to_string()),
            Err(fault) => return Err(fault),
        }
    }
    Ok(Some(match (misfits.is_empty(), notes.is_empty()) {
        (false, _) => Check::failing("adapters", misfits),
        (true, false) => Check::new("adapters", Outcome::Note, notes),
        (true, true) => Check::new("adapters", Outcome::Passed, Vec::new()).with(applied),
    }))
}

/// The changes of an adapter.
struct Applied {
    name: String,
    n_tensors: usize,
    n_weights: usize,
    /// Weights that stay as they are.
    unchanged: Vec<String>,
    /// Tensors for other parts of a pipeline.
    others: Vec<String>,
    weight: f64,
}

impl Applied {
    fn misfit(&self) -> Option<String> {
        let is_idle = self.unchanged.len() == self.n_weights;
        let why = match self.weight == 0.0 {
            true => "its weight is 0",
            false => "its factors make zero: was it trained?",
        };
        is_idle.then(|| {
            format!(
                "{}: changes none of {} weights; {why}",
                self.name, self.n_weights
            )
        })
    }

    fn note(&self) -> Option<String> {
        if self.unchanged.len() == self.n_weights {
            return None;
        }
        if let Some(first) = self.others.first() {
            return Some(format!(
                "{}: {} tensors are for other parts of the pipeline, and left out: `{first}` …",
                self.name,
                self.others.len()
            ));
        }
        let first = self.unchanged.first()?;
        Some(format!(
            "{}: {} of {} weights stay as they are, `{first}` …",
            self.name,
            self.unchanged.len(),
            self.n_weights
        ))
    }

    fn in_words(&self) -> String {
        format!(
            "{}: {} tensors change {} weights",
            self.name, self.n_tensors, self.n_weights
        )
    }
}

/// The changes of a model's adapters, one after the other.
fn of_model(model: &ModelRef, progress: &dyn Progress) -> Result<Vec<Applied>> {
    let renames = views::compiled(&model.adapter_rename, model.place)?;
    let plain = ModelRef {
        adapter: None,
        ..model.clone()
    };
    let unmerged = crate::quantized::dequantized(crate::plan::opener::open(&plain)?)?;
    let mut below = Arc::clone(&unmerged);
    let mut found = Vec::new();
    for (folder, weight) in model.adapter.iter().flat_map(|text| adapters(text)) {
        let changes = lora::targets(&below, &folder, &renames, model.place)?;
        let stack = (folder.as_path(), weight);
        let merged = lora::adapted(&unmerged, &below, stack, &renames, model.place, false)?;
        let mut unchanged = Vec::new();
        for name in &changes.names {
            if progress.is_cancelled() {
                return Err(Error::Cancelled);
            }
            if is_same(&below, &merged, name)? {
                unchanged.push(name.clone());
            }
        }
        found.push(Applied {
            name: folder.display().to_string(),
            n_tensors: changes.n_tensors,
            n_weights: changes.names.len(),
            unchanged,
            others: changes.others,
            weight,
        });
        below = merged;
    }
    Ok(found)
}

/// Whether a tensor has the same values in both; one that only one has is another.
fn is_same(before: &Checkpoint, after: &Checkpoint, name: &str) -> Result<bool> {
    let (Some(old), Some(new)) = (before.get(name), after.get(name)) else {
        return Ok(false);
    };
    if old.shape != new.shape {
        return Ok(false);
    }
    let n_elements = old.n_elements();
    for first in (0..n_elements).step_by(PIECE_ELEMENTS) {
        let n = PIECE_ELEMENTS.min(n_elements - first);
        let read = |from: &Checkpoint, dtype: crate::DType| -> Result<Vec<f64>> {
            let (mut bytes, mut values) = (vec![0; dtype.bytes_of(n)], vec![0.0; n]);
            from.read(name, first, &mut bytes)?;
            decode_f64(name, dtype, &bytes, &mut values)?;
            Ok(values)
        };
        // Most differ in their first piece.
        if read(before, old.dtype)? != read(after, new.dtype)? {
            return Ok(false);
        }
    }
    Ok(true)
}
