//! From a recipe to a plan: every key gets its place, or the merge is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::builder::{Operands, PlanBuilder, common_dtype};
use super::checkpoints::NOTHING;
use super::grams::Due;
use super::opener::{self, Opener};
use super::settings::{Layer, Settings};
use super::{Action, Entry, MergePlan, TensorRef, companions, mixtures};
use crate::beside::config::Changes;
use crate::layouts::{self, Layout};
use crate::methods::{Base, DrawKey, GramRef, GroupShape, Member, MergeMethod};
use crate::methods::{Operation, Setting, StepRounding, Values};
use crate::recipe::{ExpertChoice, MergeRecipe, ModelRef, OutputDType, Place, UnknownKeys};
use crate::{
    BlockId, Checkpoint, DType, Error, Expert, MergeFault, Result, Role, Slot, TensorInfo,
};

/// The merged checkpoint is the first source of a plan, the base the second.
const INPUT: usize = 0;
const BASE: usize = 1;

/// A plan for the experts of one checkpoint.
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
    }
    builder.place_all()?;
    let plan = builder.plan;
    let beside = companions::beside(recipe, opener, &plan.entries(), Changes::default(), None)?;
    Ok((plan.beside(beside).finish()?, resolved))
}

fn open_base(
    method: &dyn MergeMethod,
    recipe: &MergeRecipe,
    opener: &Opener,
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
    plan: &mut PlanBuilder,
) -> Result<Option<usize>> {
    if !method.needs().grams {
        return Ok(None);
    }
    let path = recipe.parameters.text("grams")?.ok_or(Error::MethodNeeds {
        method: method.name(),
        what: "the parameter `grams`",
    })?;
    (plan.grams).open(path, (INPUT, input), recipe).map(Some)
}

/// The recipe with layout and experts said outright.
fn resolved_recipe(
    recipe: &MergeRecipe,
    method: &dyn MergeMethod,
    layout: &dyn Layout,
) -> Result<MergeRecipe> {
    let n_blocks = layout.dimensions().n_blocks();
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
                false => layout.used_experts(task, BlockId::only(block)),
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
    let owns_some = |block: &usize| is_chosen_in(layout, *block);
    let of_router = (0..n_blocks).filter(|block| !owns_some(block));
    let mut chosen = of_router.filter(|&block| {
        let experts = experts.of_block(block);
        experts.is_some_and(|experts| !experts.is_empty())
    });
    if let Some(block) = chosen.next() {
        return Err(Error::BadExpertChoice {
            block,
            n_blocks,
            flaw: "is served by a router, whose experts stay as they are",
        });
    }
    if let Some((block, flaw)) = experts.flaw((0..n_blocks).filter(owns_some))
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

/// Whether an expert is one of a router's. Such experts have no common order with others, and stay as they are.
fn is_routed(expert: Expert) -> bool {
    matches!(expert, Expert::Routed(_))
}

/// Whether experts can be chosen in a block: not in one that a router serves.
fn is_chosen_in(layout: &dyn Layout, block: usize) -> bool {
    let experts = layout.block_experts(BlockId::only(block));
    !experts.into_iter().any(is_routed)
}

/// Every expert that blocks on the same side of the fusion start own, so that a block that lacks
/// one is noticed. Blocks that a router serves have none to choose from.
fn present_experts(layout: &dyn Layout) -> impl Fn(usize) -> Vec<Expert> + use<> {
    let dimensions = layout.dimensions();
    let n_blocks = dimensions.n_blocks();
    let start = dimensions.fusion_start.unwrap_or(n_blocks);
    let union = |blocks: std::ops::Range<usize>| -> Vec<Expert> {
        let all: BTreeSet<Expert> = blocks
            .filter(|block| is_chosen_in(layout, *block))
            .flat_map(|block| layout.block_experts(BlockId::only(block)))
            .collect();
        all.into_iter().collect()
    };
    let (shallow, deep) = (union(0..start), union(start..n_blocks));
    let of_routers: BTreeSet<usize> = (0..n_blocks)
        .filter(|block| !is_chosen_in(layout, *block))
        .collect();
    move |block| {
        if of_routers.contains(&block) {
            Vec::new()
        } else if block < start {
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
        let layer = self.layer_of(slot);
        let values = self.values_of(slot, layer, &members)?;
        let paired = self.paired_of(&keys, &values, &shape)?;
        let draws = DrawKey {
            seed: self.recipe.seed,
            name: slot.key.clone(),
            tape: None,
        };
        let group = GroupShape {
            slot,
            depth: layer.map(Layer::depth),
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
        let operands = Operands {
            members,
            paired,
            grams,
            step: match (self.recipe.as_published, dtype) {
                (true, DType::BF16) => StepRounding::Bf16,
                (true, DType::F16) => StepRounding::F16,
                _ => StepRounding::None,
            },
            is_double: self.recipe.dtype == OutputDType::F64,
        };
        let base = || self.base_of(slot, keys[0], &shape);
        let action = operands.action(operation, self.method.name(), base)?;
        let is_whole = matches!(action, Action::Whole { .. });
        let out_dtype = match self.recipe.out_dtype {
            OutputDType::Keep if is_whole && self.recipe.as_published => DType::F64,
            _ => self.recipe.stored_dtype().apply(dtype),
        };
        let info = TensorInfo {
            dtype: out_dtype,
            shape,
        };
        self.insert(slot.key.clone(), info, action, why, keys[0])
    }

    /// The tensors beside the experts that the method asks for: in a file with the names of the checkpoint, those of the
    /// experts' own names.
    fn paired_of(
        &mut self,
        keys: &[&String],
        values: &Values,
        shape: &[usize],
    ) -> Result<Vec<TensorRef>> {
        let Some(parameter) = self.method.needs().paired else {
            return Ok(Vec::new());
        };
        let mut refs = Vec::with_capacity(keys.len());
        for (key, values) in keys.iter().zip(&values.members) {
            let Some((Setting::Text(path), _)) = values.get(parameter) else {
                continue;
            };
            let (source, file) = match self.paired.get(path) {
                Some((source, file)) => (*source, Arc::clone(file)),
                None => {
                    let file = opener::open(&ModelRef::new(path))?;
                    let source = self.plan.side_source(Arc::clone(&file));
                    let model = (INPUT, self.input.as_ref());
                    self.plan.paired((source, &file), model, self.recipe)?;
                    self.paired
                        .insert(path.clone(), (source, Arc::clone(&file)));
                    (source, file)
                }
            };
            let info = file.require(key)?;
            if info.shape != shape {
                return Err(MergeFault::Shapes {
                    key: (*key).clone(),
                    model: path.clone(),
                    found: info.shape.clone(),
                    first: self.input.path().display().to_string(),
                    expected: shape.to_vec(),
                    place: Place::default(),
                }
                .into());
            }
            refs.push(TensorRef {
                source,
                key: (*key).clone(),
            });
        }
        Ok(refs)
    }

    /// Whether the method reads its parameters once for the whole merge.
    fn reads_itself(&self) -> bool {
        self.method.is_for_experts() || self.method.needs().grams
    }

    /// Where the block of a slot stands in its stack.
    fn layer_of(&self, slot: &Slot) -> Option<Layer> {
        let block = slot.block?;
        let stack = (self.layout.dimensions().stacks).get(usize::from(block.stack))?;
        Some(Layer {
            layer: block.index,
            n_layers: stack.n_blocks,
        })
    }

    /// The values of the method's parameters for one slot.
    fn values_of(
        &mut self,
        slot: &Slot,
        layer: Option<Layer>,
        members: &[Member],
    ) -> Result<Values> {
        if self.reads_itself() {
            return Ok(Values::default());
        }
        let own = vec![(&NOTHING, Place::default()); members.len()];
        let shared = [&self.recipe.parameters];
        self.settings
            .resolve(&slot.key, layer, members, &own, &shared)
    }

    /// The experts that take part in the slot, each of which must have a copy.
    fn experts_of(&self, slot: &Slot, copies: &BTreeMap<Expert, String>) -> Result<Vec<Expert>> {
        let choice = self.recipe.experts.as_ref();
        let chosen = slot.block.and_then(|block| choice?.of_block(block.index));
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

    fn common_shape(&self, slot: &Slot, keys: &[&String]) -> Result<Vec<usize>> {
        let expected = &self.input.require(keys[0])?.shape;
        for key in keys {
            let found = &self.input.require(key)?.shape;
            if found != expected {
                return Err(Error::ShapeMismatch {
                    slot: slot.key.clone(),
                    key: (*key).clone(),
                    found: found.clone(),
                    expected: expected.clone(),
                });
            }
        }
        Ok(expected.clone())
    }

    /// What a tensor of the merged checkpoint is kept in.
    fn stored(&self, key: &str) -> Result<DType> {
        let info = self.input.require(key)?;
        Ok(self.input.stored_dtype(key).unwrap_or(info.dtype))
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
            common = common_dtype(common, dtype);
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
        (self.plan.grams).of_group(&slot.key, shape, &due, on_missing, skips)
    }

    /// The slot's tensor in the base, of the members' shape.
    fn base_of(&self, slot: &Slot, member: &str, shape: &[usize]) -> Result<Option<TensorRef>> {
        let Some((slots, base)) = &self.base else {
            return Ok(None);
        };
        let key = match slots.get(&slot.key) {
            Some(key) => key,
            // Names the nearest key of the base.
            None => {
                return Err(base.require(&slot.key).err().unwrap_or_else(|| {
                    Error::AmbiguousSlot {
                        slot: slot.key.clone(),
                        key: member.to_owned(),
                    }
                }));
            }
        };
        let found = base.require(key)?;
        if found.shape != shape {
            return Err(Error::ShapeMismatch {
                slot: slot.key.clone(),
                key: key.clone(),
                found: found.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        Ok(Some(TensorRef {
            source: BASE,
            key: key.clone(),
        }))
    }
}
