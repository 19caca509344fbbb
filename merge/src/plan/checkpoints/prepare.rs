//! Checks that the inputs of an output tensor fit together, and finds the tensors read beside them.

use std::collections::BTreeSet;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use super::{Builder, Modules, Wanted};
use crate::layouts::{self, Layout};
use crate::methods::{GramRef, Member, Setting, Values};
use crate::plan::builder::common_dtype;
use crate::plan::grams::Due;
use crate::plan::settings::{Layer, Own};
use crate::plan::{self, Action, TensorRef, opener};
use crate::recipe::{ModelRef, OnMissing, Place};
use crate::{
    BlockId, DType, Error, MergeFault, ParamKind, Result, Role, Slot, TensorInfo, decode_f64,
};

/// An output tensor whose inputs fit together.
pub(super) struct Ready {
    pub(super) name: String,
    pub(super) slot: Slot,
    /// As [`crate::methods::GroupShape::depth`].
    pub(super) depth: Option<f64>,
    pub(super) members: Vec<Member>,
    pub(super) tensors: Vec<TensorRef>,
    pub(super) base: Option<TensorRef>,
    pub(super) shape: Vec<usize>,
    pub(super) dtype: DType,
    pub(super) values: Values,
    pub(super) grams: Vec<Option<GramRef>>,
    pub(super) paired: Vec<TensorRef>,
}

impl Builder<'_> {
    /// Checks that the inputs of an output tensor fit together. Tensors that are not merged get their
    /// entry here.
    pub(super) fn prepare(&mut self, wanted: &Wanted<'_>) -> Result<Option<Ready>> {
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
        if !faults.is_empty() && self.are_same_numbers(&all, &infos)? {
            self.plan.add(plan::Entry {
                name: wanted.name.clone(),
                info: first.clone(),
                action: Action::Copy(all[0].clone()),
                why: "the same whole numbers in all models".into(),
            })?;
            return Ok(None);
        }
        if !faults.is_empty() {
            for fault in faults {
                let _: Option<()> = self.note(Err(fault));
            }
            return Ok(None);
        }
        if !first.dtype.is_float() {
            let is_count = wanted.name.ends_with(".num_batches_tracked");
            let action = match all.as_slice() {
                [only] => Action::Copy((*only).clone()),
                [first, ..] if is_count => Action::Copy((*first).clone()),
                _ => Action::Agree(all.into_iter().cloned().collect()),
            };
            self.plan.add(plan::Entry {
                name: wanted.name.clone(),
                info: first.clone(),
                action,
                why: match is_count {
                    true => "batches that were counted: the first model's".into(),
                    false => "no floats: the same in all models".into(),
                },
            })?;
            return Ok(None);
        }
        let dtype = (all.iter())
            .filter_map(|tensor| self.models.sources[tensor.source].stored_dtype(&tensor.key))
            .reduce(common_dtype)
            .unwrap_or(first.dtype);
        // Nothing is rounded to eight bits, of which bf16 holds every value.
        let dtype = match dtype.bits() {
            8 => DType::BF16,
            _ => dtype,
        };
        let members: Vec<Member> = (wanted.members.iter())
            .map(|input| Member::Model(self.models.name(input.tensor.source)))
            .collect();
        let own: Vec<Own<'_>> = wanted.members.iter().map(|input| input.own).collect();
        let values =
            self.settings
                .resolve(&wanted.name, wanted.layer, &members, &own, &wanted.shared)?;
        let slot = self.slot(wanted, first.shape.len());
        let grams = self.gram_refs(&slot, &inputs, &members, &values, &first.shape)?;
        let paired = self.paired_refs(&inputs, &values, &first.shape)?;
        Ok(Some(Ready {
            name: wanted.name.clone(),
            slot,
            depth: wanted.layer.map(Layer::depth),
            members,
            tensors: inputs,
            base: wanted.base.clone(),
            shape: first.shape.clone(),
            dtype,
            values,
            grams,
            paired,
        }))
    }

    /// Whether small tensors of which some are integers and others floats hold the same numbers, as
    /// `position_ids` do that a tool has cast. Weights are no such tensors, whatever they hold.
    fn are_same_numbers(&self, all: &[&TensorRef], infos: &[TensorInfo]) -> Result<bool> {
        let (Some(first), is_mixed) = (
            infos.first(),
            infos.iter().any(|info| info.dtype.is_float())
                && infos.iter().any(|info| !info.dtype.is_float()),
        ) else {
            return Ok(false);
        };
        let is_small = first.n_elements() <= MAX_COMPARED;
        let is_weight =
            |tensor: &&TensorRef| tensor.key.ends_with(".weight") || tensor.key.ends_with(".bias");
        if all.iter().any(is_weight) {
            return Ok(false);
        }
        if !is_mixed || !is_small || infos.iter().any(|info| info.shape != first.shape) {
            return Ok(false);
        }
        let values = |tensor: &TensorRef, info: &TensorInfo| {
            let bytes = self.models.sources[tensor.source].read_all(&tensor.key)?;
            let mut values = vec![0.0; info.n_elements()];
            decode_f64(&tensor.key, info.dtype, &bytes, &mut values)?;
            Ok::<_, Error>(values)
        };
        let expected = values(all[0], first)?;
        for (tensor, info) in all.iter().zip(infos).skip(1) {
            if values(tensor, info)? != expected {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn slot(&self, wanted: &Wanted<'_>, rank: usize) -> Slot {
        match self.kinds.role(&wanted.name) {
            Ok(Role::Shared(slot)) => Slot {
                block: wanted.layer.map(|layer| BlockId::only(layer.layer)),
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
        self.n_partial += 1;
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
                let why = format!(
                    "missing in {}",
                    names(absent)
                        .into_iter()
                        .collect::<Vec<String>>()
                        .join(", ")
                );
                self.copy(&wanted.name, tensor, why)
            }
        }
    }

    /// Adds an output tensor with the values of an input.
    fn copy(&mut self, name: &str, tensor: &TensorRef, why: String) -> Result<()> {
        let source = &self.models.sources[tensor.source];
        let info = source.require(&tensor.key)?;
        let stored = source.stored_dtype(&tensor.key).unwrap_or(info.dtype);
        let info = TensorInfo {
            dtype: self.recipe.stored_dtype().apply(stored),
            shape: info.shape.clone(),
        };
        self.plan.add(plan::Entry {
            name: name.to_owned(),
            info,
            action: Action::Copy(tensor.clone()),
            why,
        })
    }

    /// Tensors of modules that the recipe does not name: copied or left out, if it says so.
    pub(super) fn place_left_over(&mut self, modules: &Modules) -> Result<()> {
        let (names, in_words) = modules.left_over(&self.models.names());
        if names.is_empty() {
            return Ok(());
        }
        let base = self.models.base.into_iter();
        let models: Vec<usize> = base.chain(0..self.models.refs().len()).collect();
        // The base first, or else the first model.
        let having = |name: &str| -> Vec<usize> {
            let has = |model: &usize| self.models.sources[*model].get(name).is_some();
            models.iter().copied().filter(has).collect()
        };
        let tensors: Vec<(String, Vec<usize>)> = (names.into_iter())
            .map(|name| (name.to_owned(), having(name)))
            .collect();
        const WHY: &str = "in no module of the recipe";
        match self.recipe.on_missing {
            OnMissing::Error => {
                return Err(MergeFault::UnnamedModules {
                    modules: in_words,
                    model: self.models.name(models[0]),
                }
                .into());
            }
            OnMissing::Skip => {
                for (name, having) in tensors {
                    let places = having.into_iter().map(|model| ((model, name.clone()), WHY));
                    self.left_out.extend(places);
                }
            }
            OnMissing::Copy => {
                for (key, having) in tensors {
                    if let Some(&source) = having.first() {
                        let tensor = TensorRef { source, key };
                        self.copy(&tensor.key, &tensor, WHY.to_owned())?;
                    }
                }
            }
        }
        Ok(())
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
        if !self.method.needs().grams {
            return Ok(Vec::new());
        }
        let mut due = Vec::with_capacity(inputs.len());
        for (index, input) in inputs.iter().enumerate() {
            // The method's parameter `grams` is required of each model.
            let Some((Setting::Text(path), _)) = values.members[index].get("grams") else {
                continue;
            };
            let model = Arc::clone(&self.models.sources[input.source]);
            due.push(Due {
                member: members[index].clone(),
                store: (self.plan.grams).open(path, (input.source, &model), self.recipe)?,
                key: self.gram_key(input)?,
            });
        }
        let (on_missing, skips) = (self.recipe.on_missing_gram, self.recipe.as_published);
        (self.plan.grams).of_group(&slot.key, shape, &due, on_missing, skips)
    }

    /// The name of the gram matrix of an input, as its own family has it.
    fn gram_key(&mut self, input: &TensorRef) -> Result<Option<String>> {
        let layout = match self.layouts.entry(input.source) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                place.insert(layouts::detect(&self.models.sources[input.source])?)
            }
        };
        Ok(match layout.role(&input.key) {
            Ok(Role::Shared(slot) | Role::Routing(slot)) => layout.gram_key(&slot, None),
            Ok(Role::Expert { expert, slot }) => layout.gram_key(&slot, Some(expert)),
            _ => None,
        })
    }

    /// The tensors beside the members that the method asks for.
    fn paired_refs(
        &mut self,
        inputs: &[TensorRef],
        values: &Values,
        shape: &[usize],
    ) -> Result<Vec<TensorRef>> {
        let Some(parameter) = self.method.needs().paired else {
            return Ok(Vec::new());
        };
        let mut refs = Vec::with_capacity(inputs.len());
        for (index, input) in inputs.iter().enumerate() {
            let Some((Setting::Text(path), _)) = values.members[index].get(parameter) else {
                continue;
            };
            let source = match self.paired.get(path) {
                Some(&source) => source,
                None => {
                    let source = opener::open(&ModelRef::new(path))?;
                    self.models.sources.push(source);
                    self.paired
                        .insert(path.clone(), self.models.sources.len() - 1);
                    self.models.sources.len() - 1
                }
            };
            let sources = &self.models.sources;
            let (file, model) = (&sources[source], &sources[input.source]);
            self.plan
                .paired((source, file), (input.source, model), self.recipe)?;
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
}

/// Elements of tensors that are looked at before the merge.
const MAX_COMPARED: usize = 1 << 16;
