//! Plans the merge of the experts of one checkpoint: every key gets its place, or the merge is refused.

mod base;
mod choice;
mod group;
mod statistics;

use std::collections::BTreeMap;
use std::sync::Arc;

use self::base::{base_slots, open_base};
use self::choice::{is_routed, resolved_recipe};
use self::statistics::open_grams;
use super::builder::PlanBuilder;
use super::opener::Opener;
use super::settings::Settings;
use super::{Action, Entry, MergePlan, TensorRef, companions, mixtures};
use crate::beside::config::Changes;
use crate::layouts::{self, Layout};
use crate::methods::MergeMethod;
use crate::recipe::{MergeRecipe, OnMissingGram, Place, UnknownKeys};
use crate::{Checkpoint, DType, Error, Expert, MergeFault, Result, Role, Slot, TensorInfo};

/// The merged checkpoint is the first source of a plan, the base the second.
const INPUT: usize = 0;
const BASE: usize = 1;

/// Plans the merge of the experts of one checkpoint, and returns the recipe with every choice written out.
pub(super) fn resolve(
    recipe: &MergeRecipe,
    method: &dyn MergeMethod,
    opener: &Opener,
) -> Result<(MergePlan, MergeRecipe)> {
    if recipe.align.is_some() {
        let why = "it is for several checkpoints, and this merges the experts of one";
        let setting = "align";
        return Err(MergeFault::CannotAlign { setting, why }.into());
    }
    if recipe.align_experts.is_some() || recipe.align_units || recipe.align_layers.is_some() {
        let (setting, why) = match recipe.align_experts {
            None if recipe.align_layers.is_some() => (
                "align_layers",
                "it is for several checkpoints, and this merges the experts of one",
            ),
            Some(_) => (
                "align_experts",
                "it is for experts of several checkpoints, and this merges those of one",
            ),
            None => (
                "align_units",
                "it is for several checkpoints, and this merges the experts of one unit by unit",
            ),
        };
        return Err(MergeFault::CannotAlign { setting, why }.into());
    }
    mixtures::refuse_unused(recipe)?;
    if recipe.on_missing_gram != OnMissingGram::Error && !method.needs().grams {
        return Err(MergeFault::NoEffect {
            key: "on_missing_gram".to_owned(),
            why: format!("{} reads no gram matrices", method.name()),
            place: Place::default(),
        }
        .into());
    }
    let [model] = recipe.models.as_slice() else {
        return Err(Error::ModelCount {
            found: recipe.models.len(),
        });
    };
    let input = opener.open(model)?;
    let layout = match &recipe.layout {
        Some(name) => layouts::by_name(name, &input)?,
        None => layouts::detect(&input)?,
    };
    let resolved = resolved_recipe(recipe, method, layout.as_ref())?;
    let base = open_base(method, recipe, opener)?;
    let mut plan = PlanBuilder::new(resolved.without_folders().to_yaml()?);
    let gram_store = open_grams(method, recipe, &input, &mut plan)?;
    plan.source(Arc::clone(&input));
    let base = match base {
        Some(base) => {
            plan.side_source(Arc::clone(&base));
            Some((base_slots(&base)?, base))
        }
        None => None,
    };
    let mut builder = Builder {
        recipe: &resolved,
        method,
        layout: layout.as_ref(),
        input,
        base,
        gram_store,
        settings: Settings::new(method),
        paired: BTreeMap::new(),
        plan,
    };
    if !builder.reads_itself() {
        opener.note(&builder.settings.check_names(&recipe.parameters)?);
        builder.settings.check_cases(&recipe.parameters)?;
    }
    builder.place_all()?;
    if !builder.reads_itself() {
        let all = std::iter::once(&recipe.parameters);
        opener.note(&builder.settings.idle_cases(all));
    }
    let plan = builder.plan;
    let beside = companions::beside(recipe, opener, &plan.entries(), Changes::default(), None)?;
    Ok((plan.beside(beside).finish()?, resolved))
}

/// A plan under construction.
struct Builder<'a> {
    recipe: &'a MergeRecipe,
    method: &'a dyn MergeMethod,
    layout: &'a dyn Layout,
    /// The merged checkpoint.
    input: Arc<Checkpoint>,
    /// Slot key → key in the base, and the base, for methods that have one.
    base: Option<(BTreeMap<String, String>, Arc<Checkpoint>)>,
    /// The gram file among the plan's, for methods that need one.
    gram_store: Option<usize>,
    settings: Settings,
    /// Files beside the checkpoint, with their sources in the plan, by path.
    paired: BTreeMap<String, (usize, Arc<Checkpoint>)>,
    plan: PlanBuilder,
}

impl Builder<'_> {
    /// Gives each key its place: copied, dropped, or merged with the other experts' copies of its slot.
    fn place_all(&mut self) -> Result<()> {
        let input = Arc::clone(&self.input);
        let mut groups: BTreeMap<Slot, BTreeMap<Expert, String>> = BTreeMap::new();
        for (key, info) in input.tensors() {
            match self.layout.role(key) {
                Ok(Role::Shared(slot)) => self.copy(slot.key, key, info, "shared")?,
                Ok(Role::Expert { expert, .. }) if is_routed(expert) => {
                    let name = layouts::without_module(key).to_owned();
                    self.copy(
                        name,
                        key,
                        info,
                        "a routed expert, which stays with its router",
                    )?;
                }
                Ok(Role::Expert { expert, slot }) => {
                    groups
                        .entry(slot)
                        .or_default()
                        .insert(expert, key.to_owned());
                }
                Ok(Role::Derived) if self.recipe.as_published => {
                    self.copy(key.to_owned(), key, info, "derived, kept as published")?;
                }
                Ok(Role::Derived) => self.drop_key(key, "derived: a loader rebuilds it"),
                Ok(Role::Alias { of }) => {
                    self.drop_key(key, &format!("the same tensor as `{of}`, which stays"));
                }
                Ok(Role::Routing(slot)) => {
                    self.copy(
                        slot.key,
                        key,
                        info,
                        "a router, which stays with its experts",
                    )?;
                }
                Err(_) if self.recipe.unknown_keys == UnknownKeys::Copy => {
                    self.copy(key.to_owned(), key, info, "unknown to the layout")?;
                }
                Err(error) => return Err(error),
            }
        }
        if groups.is_empty() {
            return Err(Error::NothingToMerge {
                path: input.path().into(),
                layout: self.layout.name().to_owned(),
            });
        }
        for (slot, copies) in groups {
            self.merge_group(&slot, &copies)?;
        }
        Ok(())
    }

    fn copy(&mut self, name: String, key: &str, info: &TensorInfo, why: &str) -> Result<()> {
        let info = TensorInfo {
            dtype: self.recipe.stored_dtype().apply(self.stored(key)?),
            shape: info.shape.clone(),
        };
        let action = Action::Copy(TensorRef {
            source: INPUT,
            key: key.to_owned(),
        });
        self.insert(name, info, action, why.to_owned(), key)
    }

    fn insert(
        &mut self,
        name: String,
        info: TensorInfo,
        action: Action,
        why: String,
        key: &str,
    ) -> Result<()> {
        if self.plan.has(&name) {
            return Err(Error::AmbiguousSlot {
                slot: name,
                key: key.to_owned(),
            });
        }
        self.plan.add(Entry {
            name,
            info,
            action,
            why,
        })
    }

    fn drop_key(&mut self, key: &str, why: &str) {
        let tensor = TensorRef {
            source: INPUT,
            key: key.to_owned(),
        };
        self.plan.drop_tensor(tensor, why);
    }

    /// Whether the method reads its parameters once for the whole merge.
    fn reads_itself(&self) -> bool {
        self.method.is_for_experts() || self.method.needs().grams
    }

    /// The dtype in which the merged checkpoint stores a tensor.
    fn stored(&self, key: &str) -> Result<DType> {
        let info = self.input.require(key)?;
        Ok(self.input.stored_dtype(key).unwrap_or(info.dtype))
    }
}
