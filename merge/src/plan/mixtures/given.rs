//! Files that a recipe gives beside a model for the matching of its parts: files of outputs and of activations.

use std::sync::Arc;

use super::super::checkpoints::Models;
use super::super::grams::{GramFiles, check_activation_sizes};
use crate::activations::ActivationStore;
use crate::io::{self, OpenOptions};
use crate::mixtures::Observed;
use crate::permutations::Activations;
use crate::recipe::{Align, AlignBy, AlignExperts, ForeignGrams, ModelRef};
use crate::{ActivationFault, MergeFault, MergeRecipe, Result};

/// The models as the recipe writes them, those of slices apart.
fn written(recipe: &MergeRecipe) -> impl Iterator<Item = &ModelRef> {
    let parts = recipe.parts().into_iter();
    parts.flat_map(|part| part.models).chain(&recipe.base_model)
}

/// Those of them that are `of`: the base may be named without its files where a model of the same name has them.
fn written_of<'a>(recipe: &'a MergeRecipe, of: &'a ModelRef) -> impl Iterator<Item = &'a ModelRef> {
    written(recipe).filter(move |model| model.is_same_model(of))
}

/// Refuses files beside models that nothing reads.
///
/// # Errors
/// [`MergeFault::OutputsUnused`], [`ActivationFault::Unused`].
pub(in crate::plan) fn refuse_unused(recipe: &MergeRecipe) -> Result<()> {
    if recipe.align_experts != Some(AlignExperts::Outputs)
        && let Some(model) = written(recipe).find(|model| model.outputs.is_some())
    {
        return Err(MergeFault::OutputsUnused { place: model.place }.into());
    }
    let reads = |align: &Align| align.by == AlignBy::Activations;
    if !recipe.align.as_ref().is_some_and(reads)
        && let Some(model) = written(recipe).find(|model| !model.activations.is_empty())
    {
        return Err(ActivationFault::Unused { place: model.place }.into());
    }
    Ok(())
}

/// The inputs of a model's layers, by its activation files.
pub(super) fn activations(
    recipe: &MergeRecipe,
    models: &Models,
    source: usize,
) -> Result<Activations> {
    let of = &models.refs()[source];
    let mut same = written_of(recipe, of);
    let paths = same.find(|model| !model.activations.is_empty());
    let paths = paths.ok_or_else(|| ActivationFault::NotGiven {
        model: models.name(source),
        place: models.place(source),
    })?;
    let stores = paths.activations.iter().map(|path| {
        let file = io::open(path, &OpenOptions::default())?;
        let store = ActivationStore::new(Arc::new(file))?;
        if recipe.foreign_grams == ForeignGrams::Error {
            check_activation_sizes(&store, &models.sources[source])?;
        }
        Ok(Arc::new(store))
    });
    Ok(Activations::new(stores.collect::<Result<_>>()?))
}

/// The outputs of a model's experts on data, by its gram file.
pub(super) fn observe(
    recipe: &MergeRecipe,
    grams: &mut GramFiles,
    models: &Models,
    source: usize,
) -> Result<Observed> {
    let of = &models.refs()[source];
    let path = written_of(recipe, of)
        .find_map(|model| model.outputs.as_ref())
        .ok_or_else(|| MergeFault::OutputsNotGiven {
            model: models.name(source),
            place: models.place(source),
        })?;
    let model = Arc::clone(&models.sources[source]);
    let store = grams.open(&path.to_string_lossy(), (source, &model), recipe)?;
    Observed::new(grams.store(store), &model)
}

/// Checks that the activations of two models are of the same tokens, file by file.
pub(super) fn require_same_rows(
    (own, reference): (&Activations, usize),
    (theirs, source): (&Activations, usize),
    models: &Models,
) -> Result<()> {
    let (expected, found) = (own.stores().len(), theirs.stores().len());
    if found != expected {
        return Err(ActivationFault::Counts {
            model: models.name(source),
            found,
            first: models.name(reference),
            expected,
            place: models.place(source),
        }
        .into());
    }
    let mut files = theirs.stores().iter().zip(own.stores());
    files.try_for_each(|(theirs, own)| theirs.require_same_rows(own))
}
