//! From a recipe over several checkpoints to a plan: tensor by tensor, by name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use super::settings::{Layer, Own, Settings};
use super::stages::Opener;
use super::vocabularies::{self, Alignment};
use super::{Action, Dropped, Entry, MergePlan, TensorRef, companions, resolve};
use crate::TensorInfo;
use crate::beside::config::Changes;
use crate::gram::GramStore;
use crate::io::{self, OpenOptions};
use crate::layouts::{Generic, Layout, ModelRecord};
use crate::methods::{self, Base, DrawKey, GramRef, GroupShape, Member, MergeMethod, Operation};
use crate::methods::{Setting, StepRounding, Tape, Values};
use crate::recipe::{ModelRef, OnMissing, OutputDType, Parameters, Place, RandomSource};
use crate::{Checkpoint, DType, Error, MergeFault, MergeRecipe, ParamKind, Result, Role, Slot};

mod wanted;

pub(super) use wanted::Wanted;

/// Resolves a recipe that merges checkpoints. All faults of tensors are found before any is reported.
pub(super) fn resolve(recipe: &MergeRecipe, opener: &Opener) -> Result<(MergePlan, MergeRecipe)> {
    let method = methods::by_name(
        &recipe.merge_method,
        &recipe.parameters,
        recipe.as_published,
    )?;
    if method.is_for_experts() {
        return Err(MergeFault::ExpertsOnly {
            method: method.name(),
        }
        .into());
    }
    if recipe.models.is_empty() == recipe.slices.is_empty() {
        return Err(MergeFault::ModelsOrSlices.into());
    }
    let mut models = Models::open(recipe, method.as_ref(), opener)?;
    let alignment = vocabularies::align(recipe, &mut models, opener)?;
    let changes = changes(recipe, &models, alignment.as_ref());
    let wanted = models.wanted(recipe)?;
    let mut builder = Builder {
        recipe,
        method: method.as_ref(),
        settings: Settings::new(method.as_ref()),
        kinds: Generic::read(&models.sources[0]),
        models,
        aside: BTreeMap::new(),
        stores: BTreeMap::new(),
        grams: Vec::new(),
        faults: Vec::new(),
        entries: Vec::new(),
        left_out: BTreeMap::new(),
    };
    builder.check_names();
    builder.place_all(&wanted)?;
    if builder.faults.len() > 1 {
        return Err(Error::Several(builder.faults));
    }
    if let Some(fault) = builder.faults.pop() {
        return Err(fault);
    }
    let dropped = builder.dropped();
    let beside = companions::beside(
        recipe,
        opener,
        &builder.entries,
        changes,
        alignment.as_ref(),
    )?;
    let plan = MergePlan {
        recipe: recipe.without_folders().to_yaml()?,
        sources: builder.models.sources,
        stages: Vec::new(),
        grams: builder.grams,
        model: ModelRecord::default(),
        entries: builder.entries,
        dropped,
        beside,
    };
    Ok((plan, recipe.clone()))
}

/// How the output differs from the model whose configuration it gets.
fn changes(recipe: &MergeRecipe, models: &Models, alignment: Option<&Alignment>) -> Changes {
    let donor = companions::donor_source(recipe, models);
    let layers = donor.and_then(|donor| {
        let source = models.sources.get(donor)?;
        companions::sliced_layers(recipe, source)
    });
    let vocabulary = alignment.and_then(|alignment| {
        let before = alignment.n_rows_before.get(donor?).copied().flatten()?;
        Some((before, alignment.n_rows))
    });
    Changes {
        layers,
        vocabulary,
        ..Changes::default()
    }
}

/// The open checkpoints.
pub(super) struct Models {
    /// Each once.
    pub(super) sources: Vec<Arc<Checkpoint>>,
    /// What each was opened as.
    refs: Vec<ModelRef>,
    /// The base among them, for methods that measure from one.
    pub(super) base: Option<usize>,
}

impl Models {
    fn open(recipe: &MergeRecipe, method: &dyn MergeMethod, opener: &Opener) -> Result<Self> {
        let sliced = recipe.slices.iter().flat_map(|slice| &slice.sources);
        let listed: Vec<ModelRef> = (recipe.models.iter().cloned())
            .chain(sliced.map(|source| source.model_ref()))
            .collect();
        let mut models = Self {
            sources: Vec::new(),
            refs: Vec::new(),
            base: None,
        };
        for model in &listed {
            models.add(model, opener)?;
        }
        let needs = method.needs();
        match (&recipe.base_model, needs.base) {
            (Some(base), Base::None) => {
                // Named for its tokenizer alone; else it would be averaged in unnoticed.
                if models.find(base).is_none() {
                    return Err(Error::MethodHasNoUse {
                        method: method.name(),
                        what: "a base_model that is none of its models",
                    });
                }
            }
            (Some(base), _) => models.base = Some(models.add(base, opener)?),
            (None, Base::Required) => {
                return Err(Error::MethodNeeds {
                    method: method.name(),
                    what: "a base_model",
                });
            }
            (None, _) => {}
        }
        let counts: Vec<(usize, Place)> = match recipe.slices.as_slice() {
            [] => {
                let members = (recipe.models.iter()).filter(|model| !models.is_base(model));
                let place = recipe.models.first().map(|model| model.place);
                vec![(members.count(), place.unwrap_or_default())]
            }
            slices => (slices.iter())
                .map(|slice| {
                    let members = slice.sources.iter();
                    let members = members.filter(|source| !models.is_base(&source.model_ref()));
                    let place = slice.sources.first().map(|source| source.place);
                    (members.count(), place.unwrap_or_default())
                })
                .collect(),
        };
        for (found, place) in counts {
            if !needs.takes(found, models.base.is_some()) {
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
    pub(super) fn find(&self, model: &ModelRef) -> Option<usize> {
        self.refs
            .iter()
            .position(|known| known.is_same_model(model))
    }

    /// What each source was opened as.
    pub(super) fn refs(&self) -> &[ModelRef] {
        &self.refs
    }

    pub(super) fn is_base(&self, model: &ModelRef) -> bool {
        self.base.is_some() && self.find(model) == self.base
    }

    /// Where a source stands in the recipe.
    pub(super) fn place(&self, source: usize) -> Place {
        let model = self.refs.get(source);
        model.map_or_else(Place::default, |model| model.place)
    }

    /// What a source is called.
    pub(super) fn name(&self, source: usize) -> String {
        // Files opened for parameters come after the models.
        self.refs.get(source).map_or_else(
            || self.sources[source].path().display().to_string(),
            ModelRef::name,
        )
    }
}

/// A plan under construction.
struct Builder<'a> {
    recipe: &'a MergeRecipe,
    method: &'a dyn MergeMethod,
    settings: Settings,
    /// What parameters do, guessed by their names.
    kinds: Generic,
    models: Models,
    /// Sources of files beside models, by path.
    aside: BTreeMap<String, usize>,
    /// Gram files by path.
    stores: BTreeMap<String, usize>,
    grams: Vec<Arc<GramStore>>,
    faults: Vec<Error>,
    entries: Vec<Entry>,
    /// Why input tensors were left out, by source and key.
    left_out: BTreeMap<(usize, String), &'static str>,
}

/// An output tensor whose inputs fit together.
struct Ready {
    name: String,
    slot: Slot,
    members: Vec<Member>,
    tensors: Vec<TensorRef>,
    base: Option<TensorRef>,
    shape: Vec<usize>,
    dtype: DType,
    values: Values,
    grams: Vec<Option<GramRef>>,
    aside: Vec<TensorRef>,
}

impl Builder<'_> {
    /// Notes parameters that the method does not have.
    fn check_names(&mut self) {
        let recipe = self.recipe;
        let sources = recipe.slices.iter().flat_map(|slice| &slice.sources);
        let all = std::iter::once(&recipe.parameters)
            .chain(recipe.models.iter().map(|model| &model.parameters))
            .chain(recipe.slices.iter().map(|slice| &slice.parameters))
            .chain(sources.map(|source| &source.value.parameters));
        for parameters in all {
            let checked = self.settings.check_names(parameters);
            self.note(checked);
        }
    }

    fn note<T>(&mut self, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(fault) => {
                // What is wrong in the recipe comes back for every tensor.
                if self
                    .faults
                    .iter()
                    .all(|known| !is_same_cause(known, &fault))
                {
                    self.faults.push(fault);
                }
                None
            }
        }
    }

    fn place_all(&mut self, wanted: &[Wanted<'_>]) -> Result<()> {
        let mut ready = Vec::new();
        for wanted in wanted {
            let prepared = self.prepare(wanted);
            if let Some(Some(group)) = self.note(prepared) {
                ready.push(group);
            }
            // Parameters that are wrong for all tensors are named once or twice, not thousands of times.
            if self.faults.len() > MAX_FAULTS {
                return Ok(());
            }
        }
        let tape = self.tape(&ready);
        for (index, group) in ready.into_iter().enumerate() {
            let draws = DrawKey {
                seed: self.recipe.seed,
                name: group.name.clone(),
                tape: tape.as_ref().map(|tape| (Arc::clone(tape), index)),
            };
            let entry = self.entry(group, &draws);
            if let Some(entry) = self.note(entry) {
                self.entries.push(entry);
            }
        }
        self.entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(())
    }

    /// The row of draws that all groups share, if mergekit's are asked for.
    fn tape(&self, groups: &[Ready]) -> Option<Arc<Tape>> {
        if self.recipe.rng != RandomSource::Mergekit {
            return None;
        }
        let lengths = groups.iter().map(|group| {
            let n_elements: usize = group.shape.iter().product();
            (self.method.n_drawn(&group.values) * n_elements) as u64
        });
        Some(Arc::new(Tape::new(self.recipe.seed, lengths.collect())))
    }

    /// Checks that the inputs of an output tensor fit together. Tensors that are not merged get their
    /// entry here.
    fn prepare(&mut self, wanted: &Wanted<'_>) -> Result<Option<Ready>> {
        let inputs: Vec<TensorRef> = wanted
            .members
            .iter()
            .map(|input| input.tensor.clone())
            .collect();
        let all: Vec<&TensorRef> = inputs.iter().chain(&wanted.base).collect();
        let (present, absent): (Vec<&TensorRef>, Vec<&TensorRef>) = (all.iter().copied())
            .partition(|tensor| {
                self.models.sources[tensor.source]
                    .get(&tensor.key)
                    .is_some()
            });
        if !absent.is_empty() {
            return self.place_partial(wanted, &present, &absent).map(|()| None);
        }
        let infos: Vec<TensorInfo> = (all.iter())
            .map(|tensor| {
                self.models.sources[tensor.source]
                    .require(&tensor.key)
                    .cloned()
            })
            .collect::<Result<_>>()?;
        let first = &infos[0];
        let name = |index: usize| self.models.name(all[index].source);
        let mut faults = Vec::new();
        for (index, info) in infos.iter().enumerate() {
            if info.shape != first.shape {
                faults.push(Error::from(MergeFault::Shapes {
                    key: wanted.name.clone(),
                    model: name(index),
                    found: info.shape.clone(),
                    first: name(0),
                    expected: first.shape.clone(),
                    place: self.models.place(all[index].source),
                }));
            } else if !info.dtype.is_float() && info.dtype != first.dtype
                || info.dtype.is_float() != first.dtype.is_float()
            {
                faults.push(Error::from(MergeFault::DTypes {
                    key: wanted.name.clone(),
                    model: name(index),
                    found: info.dtype,
                    first: name(0),
                    expected: first.dtype,
                    place: self.models.place(all[index].source),
                }));
            }
        }
        if !faults.is_empty() {
            for fault in faults {
                let _: Option<()> = self.note(Err(fault));
            }
            return Ok(None);
        }
        if !first.dtype.is_float() {
            let action = match all.as_slice() {
                [only] => Action::Copy((*only).clone()),
                _ => Action::Agree(all.into_iter().cloned().collect()),
            };
            self.entries.push(Entry {
                name: wanted.name.clone(),
                info: first.clone(),
                action,
                why: "no floats: the same in all models".into(),
            });
            return Ok(None);
        }
        let dtype = infos
            .iter()
            .map(|info| info.dtype)
            .reduce(common)
            .unwrap_or(first.dtype);
        let members: Vec<Member> = (wanted.members.iter())
            .map(|input| Member::Model(self.models.name(input.tensor.source)))
            .collect();
        let own: Vec<Own<'_>> = wanted.members.iter().map(|input| input.own).collect();
        let values =
            self.settings
                .resolve(&wanted.name, wanted.layer, &members, &own, &wanted.shared)?;
        let slot = self.slot(wanted, first.shape.len());
        let grams = self.gram_refs(&slot, &inputs, &members, &values, &first.shape)?;
        let aside = self.aside_refs(&inputs, &values, &first.shape)?;
        Ok(Some(Ready {
            name: wanted.name.clone(),
            slot,
            members,
            tensors: inputs,
            base: wanted.base.clone(),
            shape: first.shape.clone(),
            dtype,
            values,
            grams,
            aside,
        }))
    }

    fn slot(&self, wanted: &Wanted<'_>, rank: usize) -> Slot {
        match self.kinds.role(&wanted.name) {
            Ok(Role::Shared(slot)) => Slot {
                block: wanted.layer.map(|layer| layer.layer),
                // The guess needs the rank, which the first model may not know.
                kind: match (slot.kind, rank) {
                    (ParamKind::Other, 2) if wanted.name.ends_with(".weight") => {
                        ParamKind::LinearWeight
                    }
                    (kind, _) => kind,
                },
                ..slot
            },
            _ => Slot {
                key: wanted.name.clone(),
                block: None,
                module: wanted.name.clone(),
                kind: ParamKind::Other,
            },
        }
    }

    /// A tensor that only some of the checkpoints have.
    fn place_partial(
        &mut self,
        wanted: &Wanted<'_>,
        present: &[&TensorRef],
        absent: &[&TensorRef],
    ) -> Result<()> {
        let names = |tensors: &[&TensorRef]| {
            let names: BTreeSet<String> = (tensors.iter())
                .map(|tensor| self.models.name(tensor.source))
                .collect();
            names.into_iter().collect()
        };
        match self.recipe.on_missing {
            OnMissing::Error => Err(MergeFault::OnlyInSome {
                key: wanted.name.clone(),
                present: names(present),
                absent: names(absent),
                place: (absent.first())
                    .map_or_else(Place::default, |tensor| self.models.place(tensor.source)),
            }
            .into()),
            OnMissing::Skip => {
                for tensor in present {
                    let place = (tensor.source, tensor.key.clone());
                    self.left_out
                        .insert(place, "only some of the models have it");
                }
                Ok(())
            }
            OnMissing::Copy => {
                let from_base =
                    (present.iter()).find(|tensor| wanted.base.as_ref() == Some(**tensor));
                let Some(tensor) = from_base.or(present.first()) else {
                    return Ok(());
                };
                let info = self.models.sources[tensor.source].require(&tensor.key)?;
                let info = TensorInfo {
                    dtype: self.recipe.stored_dtype().apply(info.dtype),
                    shape: info.shape.clone(),
                };
                let why = format!(
                    "missing in {}",
                    names(absent)
                        .into_iter()
                        .collect::<Vec<String>>()
                        .join(", ")
                );
                self.entries.push(Entry {
                    name: wanted.name.clone(),
                    info,
                    action: Action::Copy((*tensor).clone()),
                    why,
                });
                Ok(())
            }
        }
    }

    /// The gram matrices of a linear weight, from each member's file.
    fn gram_refs(
        &mut self,
        slot: &Slot,
        inputs: &[TensorRef],
        members: &[Member],
        values: &Values,
        shape: &[usize],
    ) -> Result<Vec<Option<GramRef>>> {
        let mut refs = vec![None; inputs.len()];
        if !self.method.needs().grams || slot.kind != ParamKind::LinearWeight {
            return Ok(refs);
        }
        for (index, input) in inputs.iter().enumerate() {
            let Some((Setting::Text(path), _)) = values.members[index].get("grams") else {
                continue;
            };
            let store = match self.stores.get(path) {
                Some(&store) => store,
                None => {
                    let file = io::open(Path::new(path), &OpenOptions::default())?;
                    self.grams.push(Arc::new(GramStore::new(Arc::new(file))?));
                    self.stores.insert(path.clone(), self.grams.len() - 1);
                    self.grams.len() - 1
                }
            };
            let key = input.key.strip_suffix(".weight").unwrap_or(&input.key);
            let Some(width) = self.grams[store].width(key) else {
                continue;
            };
            if shape.last() != Some(&width) {
                return Err(Error::GramShape {
                    slot: slot.key.clone(),
                    member: members[index].clone(),
                    weight: shape.to_vec(),
                    gram: vec![width, width],
                });
            }
            refs[index] = Some(GramRef {
                store,
                key: key.to_owned(),
            });
        }
        Ok(refs)
    }

    /// The tensors beside the members that the method asks for.
    fn aside_refs(
        &mut self,
        inputs: &[TensorRef],
        values: &Values,
        shape: &[usize],
    ) -> Result<Vec<TensorRef>> {
        let Some(parameter) = self.method.needs().aside else {
            return Ok(Vec::new());
        };
        let mut refs = Vec::with_capacity(inputs.len());
        for (index, input) in inputs.iter().enumerate() {
            let Some((Setting::Text(path), _)) = values.members[index].get(parameter) else {
                continue;
            };
            let source = match self.aside.get(path) {
                Some(&source) => source,
                None => {
                    let source = resolve::open(&ModelRef::new(path))?;
                    self.models.sources.push(source);
                    self.aside
                        .insert(path.clone(), self.models.sources.len() - 1);
                    self.models.sources.len() - 1
                }
            };
            let info = self.models.sources[source].require(&input.key)?;
            if info.shape != shape {
                return Err(MergeFault::Shapes {
                    key: input.key.clone(),
                    model: path.clone(),
                    found: info.shape.clone(),
                    first: self.models.name(input.source),
                    expected: shape.to_vec(),
                    place: self.models.place(input.source),
                }
                .into());
            }
            refs.push(TensorRef {
                source,
                key: input.key.clone(),
            });
        }
        Ok(refs)
    }

    /// Asks the method what makes the tensor.
    fn entry(&self, group: Ready, draws: &DrawKey) -> Result<Entry> {
        let shape = GroupShape {
            slot: &group.slot,
            members: &group.members,
            experts: &[],
            has_base: group.base.is_some(),
            shape: &group.shape,
            dtype: group.dtype,
            grams: &group.grams,
            values: &group.values,
            draws,
        };
        let why = self.method.describe(&shape);
        let is_double = self.recipe.dtype == OutputDType::F64;
        let operation = self.method.operation(&shape)?;
        let (members, base) = (group.tensors, group.base);
        let action = match operation {
            Operation::Take(index) => Action::Copy(members[index].clone()),
            Operation::TakeBase => match base {
                Some(base) => Action::Copy(base),
                None => {
                    return Err(Error::MethodNeeds {
                        method: self.method.name(),
                        what: "a base_model",
                    });
                }
            },
            Operation::Elementwise(kernel) => Action::Elementwise {
                members,
                base,
                aside: group.aside,
                kernel,
                step: StepRounding::None,
                is_double,
            },
            Operation::Survey(survey) => Action::Survey {
                members,
                base,
                survey,
                is_double,
            },
            Operation::Whole(kernel) => Action::Whole {
                members,
                base,
                grams: group.grams,
                kernel,
            },
        };
        Ok(Entry {
            name: group.name,
            info: TensorInfo {
                dtype: self.recipe.stored_dtype().apply(group.dtype),
                shape: group.shape,
            },
            action,
            why,
        })
    }

    /// Input tensors that no output is made of.
    fn dropped(&self) -> Vec<Dropped> {
        let used: BTreeSet<(usize, &str)> = (self.entries.iter())
            .flat_map(|entry| entry.action.tensors())
            .map(|tensor| (tensor.source, tensor.key.as_str()))
            .collect();
        let mut dropped = Vec::new();
        for (index, source) in self.models.sources.iter().enumerate() {
            for (key, _) in source.tensors() {
                if used.contains(&(index, key)) {
                    continue;
                }
                let known = self.left_out.get(&(index, key.to_owned()));
                let why = match known {
                    Some(why) => *why,
                    None if self.recipe.slices.is_empty() => {
                        "the method takes it from another model"
                    }
                    None => "in no slice",
                };
                dropped.push(Dropped {
                    tensor: TensorRef {
                        source: index,
                        key: key.to_owned(),
                    },
                    why: why.to_owned(),
                });
            }
        }
        dropped.sort_by(|a, b| a.tensor.key.cmp(&b.tensor.key));
        dropped
    }
}

/// Whether mending the recipe in one place mends both.
fn is_same_cause(a: &Error, b: &Error) -> bool {
    use MergeFault::{BadValue, MissingParameter, WeightsSumToZero};
    let (Error::Merge(one), Error::Merge(other)) = (a, b) else {
        return a.to_string() == b.to_string();
    };
    match (one.as_ref(), other.as_ref()) {
        (
            MissingParameter { name, member, .. },
            MissingParameter {
                name: other_name,
                member: other_member,
                ..
            },
        ) => name == other_name && member == other_member,
        (
            BadValue {
                name, place: one, ..
            },
            BadValue {
                name: other_name,
                place: other,
                ..
            },
        ) => name == other_name && (one.line, one.column) == (other.line, other.column),
        (WeightsSumToZero { place: one, .. }, WeightsSumToZero { place: other, .. }) => {
            one.line > 0 && (one.line, one.column) == (other.line, other.column)
        }
        (one, other) => one.to_string() == other.to_string(),
    }
}

/// Beyond so many faults the list is cut.
const MAX_FAULTS: usize = 1000;

/// The smallest dtype that holds the values of both.
fn common(a: DType, b: DType) -> DType {
    match (a, b) {
        (a, b) if a == b => a,
        (DType::F64, _) | (_, DType::F64) => DType::F64,
        _ => DType::F32,
    }
}

/// Nothing given.
pub(super) static NOTHING: Parameters = Parameters(BTreeMap::new());

/// A tensor's place among layers, for gradients.
pub(super) const fn layer(layer: usize, n_layers: usize) -> Option<Layer> {
    Some(Layer { layer, n_layers })
}
