//! The tensors of the output, and the inputs that make each of them.

use std::collections::{BTreeMap, BTreeSet};

use super::super::settings::{Layer, Own};
use super::super::stacks::Stacks;
use super::{Models, Modules, NOTHING, layer};
use crate::plan::TensorRef;
use crate::recipe::{
    Located, ModelRef, OnMissing, OutputSlice, Parameters, Part, Place, SliceSource,
};
use crate::{MergeFault, MergeRecipe, Result, SliceFault};

/// An output tensor and its inputs, which may or may not be there.
pub(in crate::plan) struct Wanted<'a> {
    pub(super) name: String,
    pub(super) layer: Option<Layer>,
    pub(super) members: Vec<Input<'a>>,
    pub(super) base: Option<TensorRef>,
    /// Parameters of the group, the nearest first.
    pub(super) shared: Vec<&'a Parameters>,
}

/// A member's tensor, and the member's own parameters.
pub(in crate::plan) struct Input<'a> {
    pub(super) tensor: TensorRef,
    pub(super) own: Own<'a>,
}

impl Models {
    /// The output tensors, in the order of their names.
    pub(super) fn wanted<'a>(
        &self,
        recipe: &'a MergeRecipe,
        modules: Option<&Modules>,
    ) -> Result<Vec<Wanted<'a>>> {
        let mut wanted = BTreeMap::new();
        for part in recipe.parts() {
            let scope = Scope { part, modules };
            wanted.extend(match part.slices {
                [] => self.by_name(scope)?,
                slices => self.by_slice(scope, slices, recipe.on_missing)?,
            });
        }
        Ok(wanted.into_values().collect())
    }

    /// Every name that any of the models has.
    fn by_name<'a>(&self, scope: Scope<'a, '_>) -> Result<BTreeMap<String, Wanted<'a>>> {
        let members: Vec<(usize, &ModelRef)> = (scope.part.models.iter())
            .filter(|model| !self.is_base(model))
            .filter_map(|model| Some((self.find(model)?, model)))
            .collect();
        let sources: BTreeSet<usize> = members
            .iter()
            .map(|(source, _)| *source)
            .chain(self.base)
            .collect();
        let names: BTreeSet<&str> = (sources.iter())
            .flat_map(|&source| scope.names(self, source))
            .collect();
        within_budget(names.len().saturating_mul(members.len()))?;
        let stacks = one_or_more_layers(|| names.iter().copied());
        let place = |name: &str| {
            let tensor = |source| TensorRef {
                source,
                key: name.to_owned(),
            };
            let wanted = Wanted {
                name: name.to_owned(),
                layer: stacks
                    .layer(name)
                    .and_then(|(place, n_layers)| layer(place.layer, n_layers)),
                members: (members.iter())
                    .map(|&(source, model)| Input {
                        tensor: tensor(source),
                        own: (&model.parameters, model.place),
                    })
                    .collect(),
                base: self.base.map(tensor),
                shared: scope.part.parameters().collect(),
            };
            (name.to_owned(), wanted)
        };
        Ok(names.into_iter().map(place).collect())
    }

    /// The layers of each slice one after the other, and the tensors outside the layers: those before
    /// them from the first slice, all else from the last.
    fn by_slice<'a>(
        &self,
        scope: Scope<'a, '_>,
        slices: &'a [OutputSlice],
        on_missing: OnMissing,
    ) -> Result<BTreeMap<String, Wanted<'a>>> {
        let cuts = (slices.iter())
            .map(|slice| Cut::new(self, scope, slice, on_missing))
            .collect::<Result<Vec<_>>>()?;
        let prefix = cuts[0].prefix.clone();
        let mut wanted = BTreeMap::new();
        let (mut offset, mut n_inputs) = (0, 0);
        for cut in &cuts {
            for index in 0..cut.n_layers {
                for rest in cut.rests(self, index) {
                    n_inputs += cut.parts.len();
                    within_budget(n_inputs)?;
                    let name = format!("{prefix}.{}.{rest}", offset + index);
                    let tensor = cut.wanted(&name, layer(index, cut.n_layers), |part| {
                        format!("{}.{}.{rest}", part.prefix, part.first + index)
                    });
                    wanted.insert(name, tensor);
                }
            }
            offset += cut.n_layers;
        }
        let ends = [cuts.first(), cuts.last()];
        for (cut, takes_first) in ends.into_iter().flatten().zip([true, false]) {
            for name in cut.outside(self, scope) {
                if is_before_layers(&name) == takes_first {
                    let tensor = cut.wanted(&name, None, |_| name.clone());
                    wanted.insert(name.clone(), tensor);
                }
            }
        }
        Ok(wanted)
    }

    /// The stack of layers that the slices of a part cut in a model, and how many layers it has; `None` for a
    /// module without layers.
    pub(in crate::plan) fn stack(
        &self,
        scope: Scope<'_, '_>,
        model: &ModelRef,
    ) -> Result<Option<(String, usize)>> {
        let place = model.place;
        // Every model was opened before.
        let source = self.find(model).unwrap_or_default();
        let mut stacks = one_or_more_layers(|| scope.names(self, source)).0;
        let found = match scope.part.layers {
            Some(prefix) => stacks.remove_entry(prefix),
            None if stacks.len() > 1 => {
                let named = stacks.iter();
                return Err(SliceFault::SeveralStacks {
                    model: model.name(),
                    stacks: named.map(|(name, n)| format!("{name} ({n})")).collect(),
                    place,
                }
                .into());
            }
            None => stacks.pop_first(),
        };
        if found.is_none() && (scope.modules.is_none() || scope.part.layers.is_some()) {
            return Err(SliceFault::NoLayers {
                model: model.name(),
                place,
            }
            .into());
        }
        Ok(found)
    }
}

/// A part of the output, and which tensors belong to it.
#[derive(Clone, Copy)]
pub(in crate::plan) struct Scope<'a, 'b> {
    pub(in crate::plan) part: Part<'a>,
    /// The modules of the output, if it has any.
    pub(in crate::plan) modules: Option<&'b Modules>,
}

impl Scope<'_, '_> {
    fn has(self, name: &str) -> bool {
        self.modules
            .is_none_or(|modules| modules.has(self.part, name))
    }

    /// Names of the part's tensors in a source.
    fn names(self, models: &Models, source: usize) -> impl Iterator<Item = &str> {
        let names = models.sources[source].tensors().map(|(name, _)| name);
        names.filter(move |name| self.has(name))
    }
}

/// The stacks of layers, and if there are none those of one layer.
fn one_or_more_layers<'a, I: Iterator<Item = &'a str>>(names: impl Fn() -> I) -> Stacks {
    let stacks = Stacks::of(names());
    match stacks.0.is_empty() {
        true => Stacks::of_one_or_more(names()),
        false => stacks,
    }
}

/// Inputs of all output tensors together: the largest published models have a hundred thousand tensors.
const MAX_INPUTS: usize = 10_000_000;

/// Refuses recipes whose plan would be out of proportion to any model.
fn within_budget(n_inputs: usize) -> Result<()> {
    match n_inputs > MAX_INPUTS {
        true => Err(MergeFault::TooManyInputs { limit: MAX_INPUTS }.into()),
        false => Ok(()),
    }
}

/// Whether a tensor outside the layers stands before them: embeddings of any kind, by its name.
fn is_before_layers(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let parts = ["embed", "wte", "wpe", "patch", "cls_token", "tokenizer"];
    let is_head = name.contains("lm_head") || name.contains("embed_out");
    !is_head && parts.iter().any(|part| name.contains(part))
}

/// One model's part in a slice.
struct Share<'a> {
    source: usize,
    /// The stack that is cut.
    prefix: String,
    /// The first layer.
    first: usize,
    own: Own<'a>,
    is_base: bool,
}

/// A slice, with its layers found.
struct Cut<'a> {
    prefix: String,
    n_layers: usize,
    parts: Vec<Share<'a>>,
    shared: Vec<&'a Parameters>,
}

impl<'a> Cut<'a> {
    fn new(
        models: &Models,
        scope: Scope<'a, '_>,
        slice: &'a OutputSlice,
        on_missing: OnMissing,
    ) -> Result<Self> {
        let base = models.base_of(slice);
        let mut parts: Vec<Share<'a>> = Vec::new();
        let mut n_layers = None;
        for source in &slice.sources {
            let (length, share) = share(models, scope, source, base)?;
            match n_layers {
                None => n_layers = Some(length),
                Some(expected) if expected != length => {
                    return Err(SliceFault::Lengths {
                        first: expected,
                        other: length,
                        place: source.place,
                    }
                    .into());
                }
                Some(_) => {}
            }
            parts.push(share);
        }
        if let (Some(base), Some(first)) = (base, parts.first())
            && parts.iter().all(|part| !part.is_base)
        {
            // A base that a slice does not name gives the layers that its sources give.
            let mut others = parts.iter().zip(&slice.sources);
            if let Some((other, source)) = others.find(|(part, _)| part.first != first.first) {
                return Err(SliceFault::BaseLayers {
                    model: models.name(base),
                    first: first.first,
                    other: other.first,
                    place: source.place,
                }
                .into());
            }
            let stacks = one_or_more_layers(|| scope.names(models, base)).0;
            let end = first.first + n_layers.unwrap_or(0);
            if let Some(&n_layers) = stacks.get(&first.prefix)
                && n_layers < end
                && on_missing == OnMissing::Error
            {
                return Err(SliceFault::ShortBase {
                    model: models.name(base),
                    first: first.first,
                    end,
                    n_layers,
                    place: slice.sources[0].place,
                }
                .into());
            }
            parts.push(Share {
                source: base,
                prefix: first.prefix.clone(),
                first: first.first,
                own: (&NOTHING, Place::default()),
                is_base: true,
            });
        }
        Ok(Self {
            prefix: parts
                .first()
                .map(|part| part.prefix.clone())
                .unwrap_or_default(),
            n_layers: n_layers.unwrap_or(0),
            parts,
            shared: (std::iter::once(&slice.parameters))
                .chain(scope.part.parameters())
                .collect(),
        })
    }

    fn wanted(
        &self,
        name: &str,
        layer: Option<Layer>,
        key: impl Fn(&Share<'a>) -> String,
    ) -> Wanted<'a> {
        let tensor = |part: &Share<'a>| TensorRef {
            source: part.source,
            key: key(part),
        };
        let (base, members): (Vec<_>, Vec<_>) = self.parts.iter().partition(|part| part.is_base);
        Wanted {
            name: name.to_owned(),
            layer,
            members: (members.into_iter())
                .map(|part| Input {
                    tensor: tensor(part),
                    own: part.own,
                })
                .collect(),
            base: base.first().map(|part| tensor(part)),
            shared: self.shared.clone(),
        }
    }

    /// The rests of the names after the layer, for layer `index` of the slice, in any of the models.
    fn rests(&self, models: &Models, index: usize) -> BTreeSet<String> {
        let mut rests = BTreeSet::new();
        for part in &self.parts {
            let start = format!("{}.{}.", part.prefix, part.first + index);
            let names = models.sources[part.source].tensors();
            rests
                .extend(names.filter_map(|(name, _)| name.strip_prefix(&start).map(str::to_owned)));
        }
        rests
    }

    /// Names outside the layers, in any of the models.
    fn outside(&self, models: &Models, scope: Scope<'_, '_>) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for part in &self.parts {
            let start = format!("{}.", part.prefix);
            let is_layer = |name: &str| {
                let rest = name
                    .strip_prefix(&start)
                    .and_then(|rest| rest.split('.').next());
                rest.is_some_and(|layer| layer.parse::<u16>().is_ok())
            };
            let all = scope.names(models, part.source);
            names.extend(all.filter(|name| !is_layer(name)).map(str::to_owned));
        }
        names
    }
}

/// Finds the layers that a source of a slice takes, and how many they are.
fn share<'a>(
    models: &Models,
    scope: Scope<'_, '_>,
    source: &'a Located<SliceSource>,
    base: Option<usize>,
) -> Result<(usize, Share<'a>)> {
    let model = source.model_ref();
    let place = source.place;
    // Every source was opened before.
    let index = models.find(&model).unwrap_or_default();
    let share = |prefix, first| Share {
        source: index,
        prefix,
        first,
        own: (&source.value.parameters, place),
        is_base: base == Some(index),
    };
    let [first, end] = source.value.layer_range;
    let (prefix, n_layers) = match models.stack(scope, &model)? {
        Some((_, 1)) if scope.modules.is_some() && end == 0 => {
            return Ok((0, share(String::new(), 0)));
        }
        // Of a module without layers all is outside them, whatever the range says.
        None => return Ok((0, share(String::new(), 0))),
        Some(found) => found,
    };
    if first >= end || end > n_layers {
        return Err(SliceFault::LayerRange {
            model: model.name(),
            first,
            end,
            n_layers,
            place,
        }
        .into());
    }
    Ok((end - first, share(prefix, first)))
}
