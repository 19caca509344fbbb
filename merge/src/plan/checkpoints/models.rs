//! The checkpoints of a recipe, opened, each once.

use std::sync::Arc;

use crate::methods::{Base, MergeMethod};
use crate::plan::opener::{Opener, merged};
use crate::recipe::{ModelRef, OutputSlice, Place};
use crate::{Checkpoint, Error, MergeFault, MergeRecipe, Result};

/// The open checkpoints.
pub(in crate::plan) struct Models {
    /// Each once.
    pub(in crate::plan) sources: Vec<Arc<Checkpoint>>,
    /// What each was opened as.
    refs: Vec<ModelRef>,
    /// The base among them, for methods that measure from one.
    pub(in crate::plan) base: Option<usize>,
}

impl Models {
    pub(super) fn open(
        recipe: &MergeRecipe,
        method: &dyn MergeMethod,
        opener: &Opener,
    ) -> Result<Self> {
        let mut models = Self {
            sources: Vec::new(),
            refs: Vec::new(),
            base: None,
        };
        for model in merged(recipe) {
            models.add(&model, opener)?;
        }
        let needs = method.needs();
        let all_sliced_have_one = !recipe.slices.is_empty()
            && (recipe.slices.iter()).all(|slice| slice.base_model.is_some());
        let has_base = recipe.base_model.is_some() || all_sliced_have_one;
        if needs.base == Base::Required && !has_base {
            return Err(Error::MethodNeeds {
                method: method.name(),
                what: "a base_model",
            });
        }
        let sliced = recipe.slices.iter().flat_map(|slice| &slice.base_model);
        for base in recipe.base_model.iter().chain(sliced) {
            if needs.base != Base::None {
                models.add(base, opener)?;
            } else if models.find(base).is_none() {
                // Named for its tokenizer alone; else it would be averaged in unnoticed.
                return Err(Error::MethodHasNoUse {
                    method: method.name(),
                    what: "a base_model that is none of its models",
                });
            }
        }
        if needs.base != Base::None {
            let base = recipe.base_model.as_ref();
            models.base = base.and_then(|base| models.find(base));
        }
        let counts: Vec<(usize, bool, Place)> = match recipe.slices.as_slice() {
            [] => {
                let members = (recipe.models.iter()).filter(|model| !models.is_base(model));
                let place = recipe.models.first().map(|model| model.place);
                let has_base = models.base.is_some();
                vec![(members.count(), has_base, place.unwrap_or_default())]
            }
            slices => (slices.iter())
                .map(|slice| {
                    let base = models.base_of(slice);
                    let members = slice.sources.iter();
                    let members = members.filter(|source| {
                        base.is_none() || models.find(&source.model_ref()) != base
                    });
                    let place = slice.sources.first().map(|source| source.place);
                    (members.count(), base.is_some(), place.unwrap_or_default())
                })
                .collect(),
        };
        for (found, has_base, place) in counts {
            if !needs.takes(found, has_base) {
                return Err(MergeFault::InputCount {
                    method: method.name(),
                    wanted: needs.in_words(),
                    found,
                    place,
                }
                .into());
            }
        }
        Ok(models)
    }

    fn add(&mut self, model: &ModelRef, opener: &Opener) -> Result<usize> {
        if let Some(known) = self.find(model) {
            return Ok(known);
        }
        self.sources.push(opener.open(model)?);
        self.refs.push(model.clone());
        Ok(self.sources.len() - 1)
    }

    /// The source that a model was opened as.
    pub(in crate::plan) fn find(&self, model: &ModelRef) -> Option<usize> {
        self.refs
            .iter()
            .position(|known| known.is_same_model(model))
    }

    /// What each source was opened as.
    pub(in crate::plan) fn refs(&self) -> &[ModelRef] {
        &self.refs
    }

    /// The base of a slice: its own, or the recipe's.
    pub(in crate::plan) fn base_of(&self, slice: &OutputSlice) -> Option<usize> {
        let own = slice.base_model.as_ref().and_then(|base| self.find(base));
        own.or(self.base)
    }

    pub(in crate::plan) fn is_base(&self, model: &ModelRef) -> bool {
        self.base.is_some() && self.find(model) == self.base
    }

    /// Where a source stands in the recipe.
    pub(in crate::plan) fn place(&self, source: usize) -> Place {
        let model = self.refs.get(source);
        model.map_or_else(Place::default, |model| model.place)
    }

    /// What a source is called.
    pub(in crate::plan) fn name(&self, source: usize) -> String {
        // Files opened for parameters come after the models.
        self.refs.get(source).map_or_else(
            || self.sources[source].path().display().to_string(),
            ModelRef::name,
        )
    }
}
