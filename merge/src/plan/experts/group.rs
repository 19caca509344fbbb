//! One slot: the experts' copies of it become one tensor.

use std::collections::BTreeMap;

use super::{Builder, INPUT};
use crate::methods::{DrawKey, GroupShape, Member, Operation, StepRounding, Values};
use crate::plan::builder::{Operands, common_dtype};
use crate::plan::checkpoints::NOTHING;
use crate::plan::settings::Layer;
use crate::plan::{Action, TensorRef};
use crate::recipe::{OutputDType, Place};
use crate::{DType, Error, Expert, MergeFault, Result, Slot, TensorInfo};

impl Builder<'_> {
    /// Places the copies of one slot.
    pub(super) fn merge_group(
        &mut self,
        slot: &Slot,
        copies: &BTreeMap<Expert, String>,
    ) -> Result<()> {
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

    /// The position of a slot's block in its stack.
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
}
