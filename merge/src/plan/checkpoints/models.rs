//! The checkpoints of a recipe, opened, each once.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::methods::{Base, MergeMethod};
use crate::plan::opener::{Opener, merged};
use crate::recipe::{ModelRef, OutputSlice, Part, Place};
use crate::{Checkpoint, Error, MergeFault, MergeRecipe, Result};

/// The open checkpoints.
pub(in crate::plan) struct Models {
    /// Each once.
    pub(in crate::plan) sources: Vec<Arc<Checkpoint>>,
    /// The reference by which each was opened.
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
        let parts = recipe.parts();
        let all_sliced_have_one = parts.iter().all(|part| {
            !part.slices.is_empty() && part.slices.iter().all(|slice| slice.base_model.is_some())
        });
        let has_base = recipe.base_model.is_some() || all_sliced_have_one;
        if needs.base == Base::Required && !has_base {
            return Err(Error::MethodNeeds {
                method: method.name(),
                what: "a base_model",
            });
        }
        for base in recipe.base_model.iter().chain(recipe.slice_bases()) {
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
        let counts = parts.iter().flat_map(|part| models.counts(*part));
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

    /// The number of models merged in a part of the output, or in each slice of it, whether they have a base, and the
    /// place of the first.
    fn counts(&self, part: Part<'_>) -> Vec<(usize, bool, Place)> {
        if part.slices.is_empty() {
            let members = part.models.iter().filter(|model| !self.is_base(model));
            let place = part.models.first().map(|model| model.place);
            return vec![(
                members.count(),
                self.base.is_some(),
                place.unwrap_or_default(),
            )];
        }
        let slices = part.slices.iter().map(|slice| {
            let base = self.base_of(slice);
            let members = (slice.sources.iter())
                .filter(|source| base.is_none() || self.find(&source.model_ref()) != base);
            let place = slice.sources.first().map(|source| source.place);
            (members.count(), base.is_some(), place.unwrap_or_default())
        });
        slices.collect()
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

    /// The reference by which each source was opened.
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

    /// Every name that a tensor of any of the models has.
    pub(super) fn names(&self) -> BTreeSet<&str> {
        // Files opened for parameters come after the models.
        let models = self.sources.iter().take(self.refs.len());
        models
            .flat_map(|source| source.tensors().map(|(name, _)| name))
            .collect()
    }

    /// The place of a source in the recipe.
    pub(in crate::plan) fn place(&self, source: usize) -> Place {
        let model = self.refs.get(source);
        model.map_or_else(Place::default, |model| model.place)
    }

    /// The name of a source.
    pub(in crate::plan) fn name(&self, source: usize) -> String {
        // Files opened for parameters come after the models.
        self.refs.get(source).map_or_else(
            || self.sources[source].path().display().to_string(),
            ModelRef::name,
        )
    }
}
