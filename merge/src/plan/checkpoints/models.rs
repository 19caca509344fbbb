//! The checkpoints of a recipe, opened, each once.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::methods::{Base, MergeMethod};
use crate::plan::opener::{Opener, merged};
use crate::recipe::{ModelRef, OutputSlice, Part, Place, adapters};
use crate::{Checkpoint, Error, MergeFault, MergeRecipe, Result, SliceFault};

/// The open checkpoints.
pub(in crate::plan) struct Models {
    /// Each once.
    pub(in crate::plan) sources: Vec<Arc<Checkpoint>>,
    /// The reference by which each was opened.
    refs: Vec<ModelRef>,
    /// Other references to sources that are open, with the index of each source.
    others: Vec<(ModelRef, usize)>,
    /// Whether the method measures from a base.
    takes_base: bool,
    /// The base among them, for methods that measure from one.
    pub(in crate::plan) base: Option<usize>,
}

impl Models {
    pub(super) fn open(
        recipe: &MergeRecipe,
        method: &dyn MergeMethod,
        opener: &Opener,
    ) -> Result<Self> {
        let needs = method.needs();
        let mut models = Self {
            sources: Vec::new(),
            refs: Vec::new(),
            others: Vec::new(),
            takes_base: needs.base != Base::None,
            base: None,
        };
        for model in merged(recipe) {
            models.add(&model, opener)?;
        }
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
        for part in &parts {
            models.check_bases(*part)?;
            for (found, has_base, place) in models.counts(*part) {
                if !needs.takes(found, has_base) {
                    return Err(MergeFault::InputCount {
                        method: method.name(),
                        wanted: needs.in_words(),
                        whole: match (part.slices, recipe.modules.is_empty()) {
                            ([], true) => "the recipe",
                            ([], false) => "the module",
                            _ => "the slice",
                        },
                        found: in_words(found, has_base && needs.two_ends),
                        place,
                    }
                    .into());
                }
            }
        }
        opener.note(&models.copies_of_base(opener)?);
        Ok(models)
    }

    /// Refuses slices that name their base more than once: one of the sources would be left out.
    fn check_bases(&self, part: Part<'_>) -> Result<()> {
        for slice in part.slices {
            let Some(base) = self.base_of(slice) else {
                continue;
            };
            let mut bases = (slice.sources.iter())
                .filter(|source| self.find(&source.model_ref()) == Some(base));
            if let Some(second) = bases.nth(1) {
                return Err(SliceFault::BaseTwice {
                    model: self.name(base),
                    place: second.place,
                }
                .into());
            }
        }
        Ok(())
    }

    /// Notes on models beside the base that hold its numbers. The beginnings of all tensors are compared, of files of one
    /// size alone.
    fn copies_of_base(&self, opener: &Opener) -> Result<Vec<String>> {
        let Some(base) = self.base else {
            return Ok(Vec::new());
        };
        let mut notes = Vec::new();
        for index in (0..self.refs.len()).filter(|index| *index != base) {
            let is_made = |index: usize| opener.is_document(&self.refs[index]);
            if !is_made(index)
                && !is_made(base)
                && begin_alike(&self.sources[base], &self.sources[index])?
            {
                notes.push(format!(
                    "{} begins as the base {} in every tensor: is it a copy of the base? It counts as a model beside it",
                    self.name(index),
                    self.name(base)
                ));
            }
        }
        Ok(notes)
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
        let opened = opener.open(model)?;
        let is_same = |(known, source): (&ModelRef, &Arc<Checkpoint>)| {
            !opener.is_document(known) && is_same_model((known, source), (model, &opened))
        };
        let known = (!opener.is_document(model))
            .then(|| self.refs.iter().zip(&self.sources).position(is_same))
            .flatten();
        if let Some(known) = known {
            self.others.push((model.clone(), known));
            return Ok(known);
        }
        self.sources.push(opened);
        self.refs.push(model.clone());
        Ok(self.sources.len() - 1)
    }

    /// The source that a model was opened as.
    pub(in crate::plan) fn find(&self, model: &ModelRef) -> Option<usize> {
        let known = self.refs.iter().enumerate();
        let known = known.map(|(index, known)| (known, index));
        let others = self.others.iter().map(|(known, index)| (known, *index));
        let mut all = known.chain(others);
        all.find_map(|(known, index)| known.is_same_model(model).then_some(index))
    }

    /// The reference by which each source was opened.
    pub(in crate::plan) fn refs(&self) -> &[ModelRef] {
        &self.refs
    }

    /// The base of a slice: its own, or the recipe's; `None` for methods that measure from none.
    pub(in crate::plan) fn base_of(&self, slice: &OutputSlice) -> Option<usize> {
        if !self.takes_base {
            return None;
        }
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

/// A number of models, for methods of two ends with the base that is none of them.
fn in_words(n_models: usize, has_base: bool) -> String {
    match (n_models, has_base) {
        (0, true) => "the base alone".to_owned(),
        (1, _) | (_, false) => n_models.to_string(),
        (n, true) => format!("{n} models and a base_model that is none of them"),
    }
}

/// Whether two references are to the same files, whatever the files are called, and to the same tensors of them.
fn is_same_model(
    (one, its): (&ModelRef, &Arc<Checkpoint>),
    (other, others): (&ModelRef, &Arc<Checkpoint>),
) -> bool {
    let weights = |model: &ModelRef| -> Vec<f64> {
        let all = model.adapter.iter().flat_map(|text| adapters(text));
        all.map(|(_, weight)| weight).collect()
    };
    let files = (&its.info().files, &others.info().files);
    let are_same = !files.0.is_empty()
        && files.0.len() == files.1.len()
        && (files.0.iter().zip(files.1)).all(|(one, other)| one.is_same_file(other));
    are_same
        && its.info().root == others.info().root
        && weights(one) == weights(other)
        && (&one.rename, &one.adapter_rename) == (&other.rename, &other.adapter_rename)
}

/// Elements at the beginning of each tensor that are compared.
const N_BEGINNING: usize = 256;

/// Whether all tensors of two models have the same names and shapes, and begin with the same bytes. Models on other
/// machines are not read for it, nor models with computed tensors.
fn begin_alike(one: &Checkpoint, other: &Checkpoint) -> Result<bool> {
    let size = |source: &Checkpoint| -> Option<u64> {
        let files = source.info().files.iter();
        let sizes = files.map(|file| file.stamp.is_some().then_some(file.n_bytes));
        sizes.sum()
    };
    let (Some(size_of_one), Some(size_of_other)) = (size(one), size(other)) else {
        return Ok(false);
    };
    if size_of_one == 0 || size_of_one != size_of_other || !one.tensors().eq(other.tensors()) {
        return Ok(false);
    }
    let mut n_read = 0;
    for (name, info) in one.tensors() {
        if one.is_computed(name) || other.is_computed(name) {
            return Ok(false);
        }
        let n = N_BEGINNING.min(info.n_elements());
        let read = |source: &Checkpoint| {
            let mut bytes = vec![0; info.dtype.bytes_of(n)];
            source.read(name, 0, &mut bytes).map(|()| bytes)
        };
        n_read += n;
        if read(one)? != read(other)? {
            return Ok(false);
        }
    }
    Ok(n_read > 0)
}
