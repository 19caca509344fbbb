//! From a recipe to a plan: every key gets its place, or the merge is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::grams::{Due, GramFiles};
use super::settings::{Layer, Settings};
use super::{Action, Dropped, Entry, MergePlan, TensorRef, companions, stages};
use crate::beside::config::Changes;
use crate::io::{self, OpenOptions};
use crate::layouts::{self, Layout, ModelRecord};
use crate::methods::{self, Base, DrawKey, GramRef, GroupShape, Member, MergeMethod};
use crate::methods::{Operation, StepRounding, Values};
use crate::recipe::UnknownKeys;
use crate::recipe::{ExpertChoice, MergeRecipe, ModelRef, OutputDType, Parameters};
use crate::{Checkpoint, DType, Error, Expert, MergeFault, Result, Role, Slot, TensorInfo};

/// The merged checkpoint is the first source of a plan, the base the second.
const INPUT: usize = 0;
const BASE: usize = 1;

impl MergePlan {
    /// Checks a recipe against its files' headers and says what happens to every key. Returns the
    /// recipe as well, with everything that was left open filled in.
    ///
    /// # Errors
    /// When a file cannot be opened, or anything in the recipe, the keys, shapes or dtypes does
    /// not fit. No tensor data is read.
    pub fn resolve(recipe: &MergeRecipe) -> Result<(Self, MergeRecipe)> {
        stages::resolve(recipe)
    }

    /// A plan for the experts of one checkpoint.
    pub(super) fn of_experts(
        recipe: &MergeRecipe,
        opener: &stages::Opener,
    ) -> Result<(Self, MergeRecipe)> {
        let method = methods::by_name(
            &recipe.merge_method,
            &recipe.parameters,
            recipe.as_published,
        )?;
        if method.needs().paired.is_some() {
            return Err(MergeFault::CheckpointsOnly {
                method: method.name(),
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
        let resolved = resolved_recipe(recipe, method.as_ref(), layout.as_ref())?;
        let base = open_base(method.as_ref(), recipe, opener)?;
        let mut grams = GramFiles::default();
        let gram_store = open_grams(method.as_ref(), recipe, &input, &mut grams)?;
        let mut builder = Builder {
            recipe: &resolved,
            method: method.as_ref(),
            layout: layout.as_ref(),
            base: base.as_ref().map(|base| base_slots(base)).transpose()?,
            sources: std::iter::once(input).chain(base).collect(),
            grams,
            gram_store,
            settings: Settings::new(method.as_ref()),
            entries: BTreeMap::new(),
            dropped: Vec::new(),
        };
        builder.place_all()?;
        let entries: Vec<Entry> = builder.entries.into_values().collect();
        let (grams, gram_uses) = builder.grams.into_parts();
        let beside = companions::beside(recipe, opener, &entries, Changes::default(), None)?;
        let plan = Self {
            recipe: resolved.without_folders().to_yaml()?,
            entries,
            beside,
            dropped: builder.dropped,
            sources: builder.sources,
            stages: Vec::new(),
            grams,
            gram_uses,
            model: ModelRecord::default(),
        };
        Ok((plan, resolved))
    }
}

pub(super) fn open(model: &ModelRef) -> Result<Arc<Checkpoint>> {
    let options = OpenOptions {
        root: model.root.clone(),
    };
    let checkpoint = io::open(&model.model, &options)?;
    checkpoint.require_unique_names()?;
    Ok(Arc::new(checkpoint))
}

fn open_base(
    method: &dyn MergeMethod,
    recipe: &MergeRecipe,
    opener: &stages::Opener,
) -> Result<Option<Arc<Checkpoint>>> {
    match (&recipe.base_model, method.needs().base) {
        (Some(base), Base::Optional | Base::Required) => Ok(Some(opener.open(base)?)),
        (None, Base::None | Base::Optional) => Ok(None),
        (None, Base::Required) => Err(Error::MethodNeeds {
            method: method.name(),
            what: "a base_model",
        }),
        (Some(_), Base::None) => Err(Error::MethodHasNoUse {
            method: method.name(),
            what: "a base_model",
        }),
    }
}

/// The gram file of the one checkpoint, for methods that need it.
fn open_grams(
    method: &dyn MergeMethod,
    recipe: &MergeRecipe,
    input: &Checkpoint,
    grams: &mut GramFiles,
) -> Result<Option<usize>> {
    if !method.needs().grams {
        return Ok(None);
    }
    let path = recipe.parameters.text("grams")?.ok_or(Error::MethodNeeds {
        method: method.name(),
        what: "the parameter `grams`",
    })?;
    grams.open(path, (INPUT, input), recipe).map(Some)
}

/// The recipe with layout and experts said outright.
fn resolved_recipe(
    recipe: &MergeRecipe,
    method: &dyn MergeMethod,
    layout: &dyn Layout,
) -> Result<MergeRecipe> {
    let n_blocks = layout.dimensions().n_blocks;
    let experts = match (&recipe.experts, recipe.task) {
        (Some(_), Some(_)) => {
            return Err(Error::MethodHasNoUse {
                method: "a recipe with `experts`",
                what: "`for`",
            });
        }
        (Some(choice), None) => choice.clone(),
        (None, Some(task)) => {
            let all = present_experts(layout);
            let takes_all = method.takes_unused_experts(task);
            let choice = ExpertChoice::from_blocks(n_blocks, |block| match takes_all {
                true => all(block),
                false => layout.used_experts(task, block),
            });
            if choice.0.values().all(Vec::is_empty) {
                return Err(Error::NoPublishedChoice {
                    layout: layout.name().to_owned(),
                });
            }
            choice
        }
        (None, None) => ExpertChoice::from_blocks(n_blocks, present_experts(layout)),
    };
    if let Some((block, flaw)) = experts.flaw(n_blocks)
        && recipe.experts.is_some()
    {
        return Err(Error::BadExpertChoice {
            block,
            n_blocks,
            flaw,
        });
    }
    Ok(MergeRecipe {
        layout: Some(layout.name().to_owned()),
        task: None,
        experts: Some(experts),
        ..recipe.clone()
    })
}

/// Every expert that blocks on the same side of the fusion start own, so that a block that lacks
/// one is noticed.
fn present_experts(layout: &dyn Layout) -> impl Fn(usize) -> Vec<Expert> + use<> {
    let dimensions = layout.dimensions();
    let start = dimensions.fusion_start.unwrap_or(dimensions.n_blocks);
    let union = |blocks: std::ops::Range<usize>| -> Vec<Expert> {
        let all: BTreeSet<Expert> = blocks
            .flat_map(|block| layout.block_experts(block))
            .collect();
        all.into_iter().collect()
    };
    let (shallow, deep) = (union(0..start), union(start..dimensions.n_blocks));
    move |block| {
        if block < start {
            shallow.clone()
        } else {
            deep.clone()
        }
    }
}

/// Key of each slot in the base, which must be modality-agnostic.
fn base_slots(base: &Checkpoint) -> Result<BTreeMap<String, String>> {
    let layout = layouts::detect(base)?;
    let mut slots = BTreeMap::new();
    for (key, _) in base.tensors() {
        if let Ok(Role::Shared(slot)) = layout.role(key) {
            slots.insert(slot.key, key.to_owned());
        }
    }
    Ok(slots)
}

/// A plan under construction.
struct Builder<'a> {
    recipe: &'a MergeRecipe,
    method: &'a dyn MergeMethod,
    layout: &'a dyn Layout,
    /// Slot key → key in the base, for methods that have one.
    base: Option<BTreeMap<String, String>>,
    sources: Vec<Arc<Checkpoint>>,
    grams: GramFiles,
    /// The gram file among them, for methods that need one.
    gram_store: Option<usize>,
    settings: Settings,
    entries: BTreeMap<String, Entry>,
    dropped: Vec<Dropped>,
}

impl Builder<'_> {
    fn place_all(&mut self) -> Result<()> {
        let input = Arc::clone(&self.sources[INPUT]);
        let mut groups: BTreeMap<Slot, BTreeMap<Expert, String>> = BTreeMap::new();
        for (key, info) in input.tensors() {
            match self.layout.role(key) {
                Ok(Role::Shared(slot)) => self.copy(slot.key, key, info, "shared")?,
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
                Ok(Role::Routing) => self.drop_key(key, "routing: meaningless once merged"),
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
        self.dropped.sort_by(|a, b| a.tensor.cmp(&b.tensor));
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
        let entry = Entry {
            name: name.clone(),
            info,
            action,
            why,
        };
        match self.entries.insert(name.clone(), entry) {
            None => Ok(()),
            Some(_) => Err(Error::AmbiguousSlot {
                slot: name,
                key: key.to_owned(),
            }),
        }
    }

    fn drop_key(&mut self, key: &str, why: &str) {
        self.dropped.push(Dropped {
            tensor: TensorRef {
                source: INPUT,
                key: key.to_owned(),
            },
            why: why.to_owned(),
        });
    }

    /// Places the copies of one slot.
    fn merge_group(&mut self, slot: &Slot, copies: &BTreeMap<Expert, String>) -> Result<()> {
        let experts = self.experts_of(slot, copies)?;
        let keys: Vec<&String> = experts.iter().map(|expert| &copies[expert]).collect();
        for (expert, key) in copies
            .iter()
            .filter(|(expert, _)| !experts.contains(expert))
        {
            self.drop_key(
                key,
                &format!("the {expert} expert takes no part in this block"),
            );
        }
        let shape = self.common_shape(slot, &keys)?;
        let dtype = self.common_dtype(slot, &keys)?;
        let grams = self.grams_of(slot, &experts, &shape)?;
        let members: Vec<Member> = experts.iter().map(|&e| Member::Expert(e)).collect();
        let values = self.values_of(slot, &members)?;
        let draws = DrawKey {
            seed: self.recipe.seed,
            name: slot.key.clone(),
            tape: None,
        };
        let group = GroupShape {
            slot,
            members: &members,
            experts: &experts,
            has_base: self.base.is_some(),
            shape: &shape,
            dtype,
            grams: &grams,
            values: &values,
            draws: &draws,
        };
        // A lone expert is kept as it is, whatever the method.
        let operation = match experts.len() {
            1 if !self.reads_itself() => Operation::Take(0),
            found if !self.reads_itself() && !self.method.needs().takes(found, group.has_base) => {
                return Err(MergeFault::MemberCount {
                    slot: slot.key.clone(),
                    method: self.method.name(),
                    wanted: self.method.needs().in_words(),
                    found,
                }
                .into());
            }
            _ => self.method.operation(&group)?,
        };
        let why = self.method.describe(&group);
        let members: Vec<TensorRef> = keys
            .iter()
            .map(|key| TensorRef {
                source: INPUT,
                key: (*key).clone(),
            })
            .collect();
        let mut out_dtype = self.recipe.stored_dtype().apply(dtype);
        let action = match operation {
            Operation::TakeBase => {
                // Methods say so of groups without members only.
                Action::Copy(members[0].clone())
            }
            Operation::Survey(survey) => Action::Survey {
                base: self.base_of(slot, keys[0], &shape)?,
                members,
                survey,
                is_double: self.recipe.dtype == OutputDType::F64,
            },
            Operation::Take(index) => Action::Copy(members[index].clone()),
            Operation::Elementwise(kernel) => Action::Elementwise {
                base: self.base_of(slot, keys[0], &shape)?,
                members,
                paired: Vec::new(),
                kernel,
                step: match (self.recipe.as_published, dtype) {
                    (true, DType::BF16) => StepRounding::Bf16,
                    (true, DType::F16) => StepRounding::F16,
                    _ => StepRounding::None,
                },
                is_double: self.recipe.dtype == OutputDType::F64,
            },
            Operation::Whole(kernel) => {
                if self.recipe.as_published && self.recipe.out_dtype == OutputDType::Keep {
                    out_dtype = DType::F64;
                }
                Action::Whole {
                    base: self.base_of(slot, keys[0], &shape)?,
                    members,
                    grams,
                    kernel,
                }
            }
        };
        let info = TensorInfo {
            dtype: out_dtype,
            shape,
        };
        self.insert(slot.key.clone(), info, action, why, keys[0])
    }

    /// Whether the method reads its parameters once for the whole merge.
    fn reads_itself(&self) -> bool {
        self.method.is_for_experts() || self.method.needs().grams
    }

    /// The values of the method's parameters for one slot.
    fn values_of(&mut self, slot: &Slot, members: &[Member]) -> Result<Values> {
        if self.reads_itself() {
            return Ok(Values::default());
        }
        let none = Parameters::default();
        let own = vec![(&none, crate::recipe::Place::default()); members.len()];
        let layer = slot.block.map(|layer| Layer {
            layer,
            n_layers: self.layout.dimensions().n_blocks,
        });
        let shared = [&self.recipe.parameters];
        self.settings
            .resolve(&slot.key, layer, members, &own, &shared)
    }

    /// The experts that take part in the slot, each of which must have a copy.
    fn experts_of(&self, slot: &Slot, copies: &BTreeMap<Expert, String>) -> Result<Vec<Expert>> {
        let choice = self.recipe.experts.as_ref();
        let chosen = slot.block.and_then(|block| choice?.of_block(block));
        // Expert copies outside the blocks follow no range: all of them take part.
        let chosen = chosen.unwrap_or_else(|| copies.keys().copied().collect());
        match (
            chosen.iter().find(|expert| !copies.contains_key(expert)),
            copies.first_key_value(),
        ) {
            (Some(&expert), Some((&present, example))) => Err(Error::MissingExpert {
                slot: slot.key.clone(),
                expert,
                example: example.clone(),
                present,
            }),
            _ => Ok(chosen),
        }
    }

    fn info(&self, source: usize, key: &str) -> Result<TensorInfo> {
        self.sources[source].require(key).cloned()
    }

    fn common_shape(&self, slot: &Slot, keys: &[&String]) -> Result<Vec<usize>> {
        let expected = self.info(INPUT, keys[0])?.shape;
        for key in keys {
            let found = self.info(INPUT, key)?.shape;
            if found != expected {
                return Err(Error::ShapeMismatch {
                    slot: slot.key.clone(),
                    key: (*key).clone(),
                    found,
                    expected,
                });
            }
        }
        Ok(expected)
    }

    /// What a tensor of the merged checkpoint is kept in.
    fn stored(&self, key: &str) -> Result<DType> {
        let dtype = self.info(INPUT, key)?.dtype;
        Ok(self.sources[INPUT].stored_dtype(key).unwrap_or(dtype))
    }

    /// The members' dtype, or the smallest that holds all of theirs.
    fn common_dtype(&self, slot: &Slot, keys: &[&String]) -> Result<DType> {
        let mut common = self.stored(keys[0])?;
        for key in keys {
            let dtype = self.stored(key)?;
            if !dtype.is_float() {
                return Err(Error::NotFloat {
                    slot: slot.key.clone(),
                    key: (*key).clone(),
                    dtype,
                });
            }
            if dtype != common {
                let wide = dtype == DType::F64 || common == DType::F64;
                common = if wide { DType::F64 } else { DType::F32 };
            }
        }
        Ok(common)
    }

    /// The gram matrices of a linear weight's members, for methods that need them.
    fn grams_of(
        &self,
        slot: &Slot,
        experts: &[Expert],
        shape: &[usize],
    ) -> Result<Vec<Option<GramRef>>> {
        let Some(store) = self.gram_store else {
            return Ok(Vec::new());
        };
        let due = experts.iter().map(|&expert| Due {
            member: Member::Expert(expert),
            store,
            key: self.layout.gram_key(slot, Some(expert)),
        });
        let due: Vec<Due> = due.collect();
        let on_missing = self.recipe.on_missing_gram;
        let skips = self.recipe.as_published;
        (self.grams).of_group(&slot.key, shape, &due, on_missing, skips)
    }

    /// The slot's tensor in the base, of the members' shape.
    fn base_of(&self, slot: &Slot, member: &str, shape: &[usize]) -> Result<Option<TensorRef>> {
        let Some(slots) = &self.base else {
            return Ok(None);
        };
        let key = match slots.get(&slot.key) {
            Some(key) => key,
            // Names the nearest key of the base.
            None => {
                return Err(self.sources[BASE]
                    .require(&slot.key)
                    .err()
                    .unwrap_or_else(|| Error::AmbiguousSlot {
                        slot: slot.key.clone(),
                        key: member.to_owned(),
                    }));
            }
        };
        let found = self.info(BASE, key)?;
        if found.shape != shape {
            return Err(Error::ShapeMismatch {
                slot: slot.key.clone(),
                key: key.clone(),
                found: found.shape,
                expected: shape.to_vec(),
            });
        }
        Ok(Some(TensorRef {
            source: BASE,
            key: key.clone(),
        }))
    }
}
