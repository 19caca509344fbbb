//! From a recipe over several checkpoints to a plan: tensor by tensor, by name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::builder::{Operands, PlanBuilder};
use super::opener::Opener;
use super::settings::{Layer, Settings};
use super::{Entry, MergePlan, TensorRef, companions};
use super::{mixtures, vocabularies};
use crate::layouts::{Generic, Layout};
use crate::methods::{DrawKey, GroupShape, MergeMethod, StepRounding, Tape};
use crate::recipe::{OnMissingGram, OutputDType, Parameters, Place, RandomSource, UnknownKeys};
use crate::{Error, MergeFault, MergeRecipe, Result, TensorInfo, ties};

mod models;
mod modules;
mod prepare;
pub(crate) mod spelling;
mod tied;
mod wanted;

pub(super) use models::Models;
pub(super) use modules::Modules;
pub(super) use wanted::{Scope, Wanted};

use prepare::Ready;

/// Resolves a recipe that merges checkpoints. Reports all faults of tensors together.
pub(super) fn resolve(
    recipe: &MergeRecipe,
    method: &dyn MergeMethod,
    opener: &Opener,
) -> Result<(MergePlan, MergeRecipe)> {
    if method.is_for_experts() {
        return Err(MergeFault::ExpertsOnly {
            method: method.name(),
        }
        .into());
    }
    check_forms(recipe)?;
    check_uses(recipe, method)?;
    let mut models = Models::open(recipe, method, opener)?;
    ties::untie(&mut models.sources)?;
    ties::complete(&mut models.sources)?;
    let mut plan = PlanBuilder::new(recipe.without_folders().to_yaml()?);
    let experts = mixtures::prepare(recipe, method, &mut models, (opener, &mut plan.grams))?;
    let modules = Modules::of(recipe, &models, opener)?;
    let modules = modules.as_ref();
    let alignment = vocabularies::align(recipe, &mut models, modules, opener)?;
    let wanted = models.wanted(recipe, modules)?;
    let mut changes = companions::changes(recipe, opener, &models, modules, alignment.as_ref())?;
    let mut builder = Builder {
        recipe,
        method,
        settings: Settings::new(method),
        kinds: Generic::read(&models.sources[0]),
        models,
        paired: BTreeMap::new(),
        layouts: BTreeMap::new(),
        faults: Vec::new(),
        plan,
        left_out: BTreeMap::new(),
        n_partial: 0,
    };
    builder.check_names(opener);
    builder.check_ties(&wanted, opener);
    builder.place_all(&wanted)?;
    if let Some(modules) = modules {
        builder.place_left_over(modules)?;
        builder.plan.label_by(|key| modules.of_tensor(key));
    }
    if let Some(fault) = builder.spelling() {
        return Err(fault);
    }
    if builder.faults.len() > 1 {
        return Err(Error::Several(builder.faults));
    }
    if let Some(fault) = builder.faults.pop() {
        return Err(fault);
    }
    opener.note(builder.averaged_statistics().as_slice());
    opener.note(&builder.idle_cases());
    builder.drop_the_rest();
    let Builder {
        mut plan, models, ..
    } = builder;
    let entries = plan.entries();
    let known = companions::kept_layers(recipe, opener, &models, &entries, &mut changes)?;
    companions::check_configs(recipe, opener)?;
    let beside = companions::beside(recipe, opener, &entries, changes, alignment.as_ref())?;
    companions::check_layers(recipe, &beside, &entries, &known)?;
    let checks = experts.checks(recipe, &entries);
    for source in models.sources {
        plan.source(source);
    }
    let plan = plan.beside(beside).orders(experts.aligned, checks);
    Ok((plan.finish()?, recipe.clone()))
}

/// Refuses recipes that say in no way, or in two, what the output is made of.
fn check_forms(recipe: &MergeRecipe) -> Result<()> {
    let is_one = |forms: &[bool]| forms.iter().filter(|is_there| **is_there).count() == 1;
    let (models, slices) = (!recipe.models.is_empty(), !recipe.slices.is_empty());
    if !is_one(&[models, slices, !recipe.modules.is_empty()]) {
        return Err(MergeFault::ModelsOrSlices { module: None }.into());
    }
    if !recipe.modules.is_empty() && recipe.layers.is_some() {
        return Err(MergeFault::LayersOfModules.into());
    }
    for (name, module) in &recipe.modules {
        if !is_one(&[!module.models.is_empty(), !module.slices.is_empty()]) {
            let module = Some(name.clone());
            return Err(MergeFault::ModelsOrSlices { module }.into());
        }
    }
    if recipe.tokenizer.is_some() && recipe.tokenizer_source.is_some() {
        return Err(MergeFault::TwoKeys {
            one: "tokenizer_source",
            other: "tokenizer",
        }
        .into());
    }
    if (recipe.tokenizer.as_ref()).is_some_and(|settings| settings.pad_to_multiple_of == Some(0)) {
        return Err(MergeFault::TokenRule {
            token: String::new(),
            reason: "`pad_to_multiple_of` is a number of rows of 1 or more".to_owned(),
        }
        .into());
    }
    Ok(())
}

/// Refuses keys that change nothing in this recipe.
fn check_uses(recipe: &MergeRecipe, method: &dyn MergeMethod) -> Result<()> {
    let idle = |key: &str, why: String| {
        Err(MergeFault::NoEffect {
            key: key.to_owned(),
            why,
            place: Place::default(),
        }
        .into())
    };
    let mut parts = recipe.parts().into_iter();
    if let Some(layers) = parts.find_map(|part| part.layers.filter(|_| part.slices.is_empty())) {
        let why = "it names the layers that `slices` cut, and there are none";
        return idle(&format!("layers: {layers}"), why.to_owned());
    }
    if recipe.on_missing_gram != OnMissingGram::Error && !method.needs().grams {
        return idle(
            "on_missing_gram",
            format!("{} reads no gram matrices", method.name()),
        );
    }
    if recipe.unknown_keys != UnknownKeys::Error {
        let why = "merges of several checkpoints copy no keys; `on_missing: copy` copies tensors that only some have";
        return idle("unknown_keys", why.to_owned());
    }
    Ok(())
}

/// A plan under construction.
struct Builder<'a> {
    recipe: &'a MergeRecipe,
    method: &'a dyn MergeMethod,
    settings: Settings,
    /// The kinds of parameters, guessed by their names.
    kinds: Generic,
    models: Models,
    /// Sources of files beside models, by path.
    paired: BTreeMap<String, usize>,
    /// Families of the sources whose grams are needed.
    layouts: BTreeMap<usize, Box<dyn Layout>>,
    faults: Vec<Error>,
    plan: PlanBuilder,
    /// The reasons why input tensors were left out, by source and key.
    left_out: BTreeMap<(usize, String), &'static str>,
    /// Output tensors that only some of the models have, whatever becomes of them.
    n_partial: usize,
}

impl Builder<'_> {
    /// Notes parameters that the method does not have, and those that stand where nothing reads them.
    fn check_names(&mut self, opener: &Opener) {
        let (shared, own) = all_parameters(self.recipe);
        for parameters in shared.iter().chain(&own) {
            let checked = self.settings.check_names(parameters);
            if let Some(notes) = self.note(checked) {
                opener.note(&notes);
            }
            let checked = self.settings.check_cases(parameters);
            self.note(checked);
        }
        for parameters in own {
            opener.note(&self.settings.misplaced(parameters));
        }
    }

    /// Notes on cases that decide for no tensor.
    fn idle_cases(&self) -> Vec<String> {
        let (shared, own) = all_parameters(self.recipe);
        self.settings.idle_cases(shared.into_iter().chain(own))
    }

    /// The fault if most tensors are in some models only, so that the merge would combine next to nothing:
    /// another spelling of one model, where names show it.
    fn spelling(&self) -> Option<Error> {
        let is_missing = |fault: &&Error| matches!(fault, Error::Merge(fault) if matches!(**fault, MergeFault::OnlyInSome { .. }));
        let n_missing = self
            .faults
            .iter()
            .filter(is_missing)
            .count()
            .max(self.n_partial);
        let n_combined = (self.plan.entries().iter())
            .filter(|entry| entry.action.tensors().count() > 1)
            .count();
        let others = self.faults.len() - self.faults.iter().filter(is_missing).count();
        if n_missing == 0 || others > 0 {
            return None;
        }
        let names = |source: usize| self.models.sources[source].tensors().map(|(name, _)| name);
        let n_models = self.models.refs().len();
        let found = (1..n_models).find_map(|second| {
            let (one, other) = (self.models.name(second), self.models.name(0));
            let found = spelling::compare((&one, names(second)), (&other, names(0)))?;
            Some((second, found))
        });
        let is_nothing = NEARLY_NOTHING * n_combined < n_combined + n_missing;
        match found {
            Some((second, found)) if is_nothing || !self.faults.is_empty() => Some(
                MergeFault::OtherSpelling {
                    n_missing,
                    cause: found.cause,
                    advice: found.advice,
                    place: self.models.place(second),
                }
                .into(),
            ),
            None if n_combined == 0
                && self.faults.is_empty()
                && !self.recipe.is_cut()
                && n_models > 1 =>
            {
                Some(MergeFault::NothingCombined { n_missing }.into())
            }
            _ => None,
        }
    }

    /// A note for users on averaged statistics of batch norms, which are those of no merged model.
    fn averaged_statistics(&self) -> Option<String> {
        let mut entries = self.plan.entries().into_iter();
        let averaged = entries.find(|entry| {
            entry.name.ends_with(".running_var") && entry.action.tensors().count() > 1
        })?;
        Some(format!(
            "`{}` and other statistics of batch norms are merged like weights, which spoils the activations of the result; \
             `vlmerge recalibrate` takes them over pictures",
            averaged.name
        ))
    }

    fn note<T>(&mut self, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(fault) => {
                // A recipe fault repeats for every tensor; report it once.
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
                self.plan.add(entry)?;
            }
        }
        Ok(())
    }

    /// The row of draws that all groups share, with `rng: mergekit`.
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

    /// Asks the method what makes the tensor.
    fn entry(&self, group: Ready, draws: &DrawKey) -> Result<Entry> {
        let shape = GroupShape {
            slot: &group.slot,
            depth: group.depth,
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
        let operands = Operands {
            members: group.tensors,
            paired: group.paired,
            grams: group.grams,
            step: StepRounding::None,
            is_double,
        };
        let action = operands.action(operation, self.method.name(), || Ok(group.base))?;
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

    /// Says why input tensors that no output is made of are left out.
    fn drop_the_rest(&mut self) {
        let used: BTreeSet<(usize, String)> = (self.plan.entries().iter())
            .flat_map(|entry| entry.action.tensors())
            .map(|tensor| (tensor.source, tensor.key.clone()))
            .collect();
        for (index, source) in self.models.sources.iter().enumerate() {
            for (key, _) in source.tensors() {
                let place = (index, key.to_owned());
                if used.contains(&place) {
                    continue;
                }
                let why = match self.left_out.get(&place) {
                    Some(why) => *why,
                    None if !self.recipe.is_cut() => "the method takes it from another model",
                    None if self.recipe.modules.is_empty() => "in no slice",
                    None => "in no slice or model of its module",
                };
                let (source, key) = place;
                self.plan.drop_tensor(TensorRef { source, key }, why);
            }
        }
    }
}

/// The parameters of a recipe for several models, and those of one model each.
fn all_parameters(recipe: &MergeRecipe) -> (Vec<&Parameters>, Vec<&Parameters>) {
    let parts = recipe.parts();
    let slices: Vec<_> = parts.iter().flat_map(|part| part.slices).collect();
    let sources = slices.iter().flat_map(|slice| &slice.sources);
    let models = parts.iter().flat_map(|part| part.models);
    // Those of the recipe are parameters of each module, too.
    let of_recipe = std::iter::once(&recipe.parameters);
    let of_modules = recipe.modules.values().map(|module| &module.parameters);
    let of_slices = slices.iter().map(|slice| &slice.parameters);
    let of_models = models.map(|model| &model.parameters);
    let of_sources = sources.map(|source| &source.value.parameters);
    (
        of_recipe.chain(of_modules).chain(of_slices).collect(),
        of_models.chain(of_sources).collect(),
    )
}

/// Whether mending the recipe in one place mends both.
fn is_same_cause(a: &Error, b: &Error) -> bool {
    use MergeFault::{
        BadValue, MissingParameter, VariesByTensor, WeightsOverflow, WeightsSumToZero,
    };
    let is_one = |one: &Place, other: &Place| {
        one.line > 0 && (one.line, one.column) == (other.line, other.column)
    };
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
        (WeightsSumToZero { place: one, .. }, WeightsSumToZero { place: other, .. })
        | (WeightsOverflow { place: one, .. }, WeightsOverflow { place: other, .. }) => {
            is_one(one, other)
        }
        (
            VariesByTensor {
                name, place: one, ..
            },
            VariesByTensor {
                name: other_name,
                place: other,
                ..
            },
        ) => name == other_name && is_one(one, other),
        (one, other) => one.to_string() == other.to_string(),
    }
}

/// A merge that combines less than one tensor in this many merges nothing.
const NEARLY_NOTHING: usize = 20;

/// The list is cut beyond this many faults.
const MAX_FAULTS: usize = 1000;

/// Nothing given.
pub(super) static NOTHING: Parameters = Parameters(BTreeMap::new());

/// A tensor's place among layers, for gradients.
pub(super) const fn layer(layer: usize, n_layers: usize) -> Option<Layer> {
    Some(Layer { layer, n_layers })
}
