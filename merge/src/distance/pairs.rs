//! The pairs of tensors that a distance compares.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Serialize, Serializer};

use super::Operands;
use crate::{Checkpoint, Error, Expert, Layout, Result, Role, Slot, TensorInfo};

/// The two sides of a comparison. Pairs of one comparison are pooled, others never are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Comparison {
    /// Two experts of one checkpoint.
    Experts(Expert, Expert),
    /// The same weights of two checkpoints: an expert's, or those all modalities share (`None`).
    Checkpoints(Option<Expert>),
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Experts(left, right) => write!(f, "{left} vs {right}"),
            Self::Checkpoints(Some(expert)) => write!(f, "{expert}"),
            Self::Checkpoints(None) => f.write_str("shared"),
        }
    }
}

impl Serialize for Comparison {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A tensor of an open checkpoint.
#[derive(Clone)]
pub(super) struct Operand<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) key: String,
    pub(super) info: &'a TensorInfo,
}

impl<'a> Operand<'a> {
    fn new(checkpoint: &'a Checkpoint, key: &str, info: &'a TensorInfo) -> Self {
        Self {
            checkpoint,
            key: key.to_owned(),
            info,
        }
    }
}

/// Two tensors of one shape, and what both are measured from.
pub struct Pair<'a> {
    /// The compared sides.
    pub comparison: Comparison,
    /// The place in the model.
    pub slot: Slot,
    /// The stack of the slot's block, where the model has several.
    pub(super) stack: Option<&'static str>,
    pub(super) left: Operand<'a>,
    pub(super) right: Operand<'a>,
    pub(super) base: Option<Operand<'a>>,
}

impl Pair<'_> {
    /// Elements of either tensor.
    #[must_use]
    pub fn n_elements(&self) -> usize {
        self.left.info.n_elements()
    }

    /// Bytes that are read to compare `n_elements` of them once.
    pub(super) fn n_bytes(&self, n_elements: usize) -> u64 {
        [&self.left, &self.right]
            .into_iter()
            .chain(&self.base)
            .map(|operand| operand.info.dtype.bytes_of(n_elements) as u64)
            .sum()
    }
}

/// A tensor that is not compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// Its name.
    pub key: String,
    /// The reason.
    pub why: &'static str,
}

/// All pairs of a comparison.
pub struct PairSet<'a> {
    /// The kind of the compared vectors.
    pub operands: Operands,
    /// The pairs: by comparison, block and name.
    pub pairs: Vec<Pair<'a>>,
    /// Tensors of the inputs that are in no pair.
    pub skipped: Vec<Skipped>,
    /// Names of the stacks of a model that has several.
    stacks: Vec<&'static str>,
}

/// Pairs up the experts of one checkpoint: in each slot every expert with every other. With a
/// `seed`, which must hold every slot, both are measured from it.
///
/// # Errors
/// [`Error::NothingToCompare`] when no slot has two experts, [`Error::CompareShapes`],
/// [`Error::MissingKey`] for a slot that the seed lacks, and what [`Layout::role`] returns.
pub fn expert_pairs<'a>(
    checkpoint: &'a Checkpoint,
    layout: &dyn Layout,
    seed: Option<&'a Checkpoint>,
) -> Result<PairSet<'a>> {
    checkpoint.require_unique_names()?;
    let mut slots: BTreeMap<Slot, BTreeMap<Expert, Operand<'a>>> = BTreeMap::new();
    for (key, info) in checkpoint.tensors() {
        if let Role::Expert { expert, slot } = layout.role(key)? {
            let copies = slots.entry(slot).or_default();
            copies.insert(expert, Operand::new(checkpoint, key, info));
        }
    }
    let mut set = PairSet::new(seed, layout);
    for (slot, copies) in slots {
        let copies: Vec<_> = copies.into_iter().collect();
        for (position, (left_expert, left)) in copies.iter().enumerate() {
            for (right_expert, right) in &copies[position + 1..] {
                let comparison = Comparison::Experts(*left_expert, *right_expert);
                let operands = [left.clone(), right.clone()];
                set.push(comparison, &slot, operands, seed)?;
            }
        }
    }
    set.finish(checkpoint, "no slot has two experts")
}

/// Pairs up the floating point tensors of two checkpoints by name. Tensors that loaders rebuild, tensors of one
/// side only and, with a `seed`, tensors that it lacks are listed as skipped. `layout` is that of `left`.
///
/// # Errors
/// [`Error::NothingToCompare`] when no name is in both, [`Error::CompareShapes`], and what [`Layout::role`] returns.
pub fn checkpoint_pairs<'a>(
    left: &'a Checkpoint,
    right: &'a Checkpoint,
    layout: &dyn Layout,
    seed: Option<&'a Checkpoint>,
) -> Result<PairSet<'a>> {
    left.require_unique_names()?;
    right.require_unique_names()?;
    let mut set = PairSet::new(seed, layout);
    for (key, info) in left.tensors() {
        let (expert, slot) = match layout.role(key)? {
            Role::Shared(slot) | Role::Routing(slot) => (None, slot),
            Role::Expert { expert, slot } => (Some(expert), slot),
            Role::Alias { .. } => {
                set.skip(key, "the same tensor as another");
                continue;
            }
            Role::Derived => {
                set.skip(key, "rebuilt by loaders");
                continue;
            }
        };
        let Some(other) = right.get(key) else {
            set.skip(key, "not in the second checkpoint");
            continue;
        };
        if seed.is_some_and(|seed| seed.get(&slot.key).is_none()) {
            set.skip(key, "not in the seed");
            continue;
        }
        let operands = [
            Operand::new(left, key, info),
            Operand::new(right, key, other),
        ];
        set.push(Comparison::Checkpoints(expert), &slot, operands, seed)?;
    }
    for (key, _) in right.tensors() {
        if left.aliases().contains_key(key) {
            set.skip(key, "another name of a tensor in the first checkpoint");
        } else if left.get(key).is_none() {
            set.skip(key, "not in the first checkpoint");
        }
    }
    set.finish(left, "no tensor is in both checkpoints")
}

impl<'a> PairSet<'a> {
    fn new(seed: Option<&Checkpoint>, layout: &dyn Layout) -> Self {
        let operands = match seed {
            Some(_) => Operands::ModalityVectors,
            None => Operands::RawWeights,
        };
        Self {
            operands,
            pairs: Vec::new(),
            skipped: Vec::new(),
            stacks: match layout.dimensions().stacks.as_slice() {
                [_] => Vec::new(),
                several => several.iter().map(|stack| stack.name).collect(),
            },
        }
    }

    fn skip(&mut self, key: &str, why: &'static str) {
        self.skipped.push(Skipped {
            key: key.to_owned(),
            why,
        });
    }

    fn push(
        &mut self,
        comparison: Comparison,
        slot: &Slot,
        [left, right]: [Operand<'a>; 2],
        seed: Option<&'a Checkpoint>,
    ) -> Result<()> {
        if !left.info.dtype.is_float() || !right.info.dtype.is_float() {
            self.skip(&left.key, "not a floating point tensor");
            return Ok(());
        }
        let base = match seed {
            Some(seed) => {
                let info = seed.require(&slot.key)?;
                Some(Operand::new(seed, &slot.key, info))
            }
            None => None,
        };
        for operand in [&right].into_iter().chain(&base) {
            if operand.info.shape != left.info.shape {
                return Err(Error::CompareShapes {
                    path: operand.checkpoint.path().into(),
                    key: operand.key.clone(),
                    found: operand.info.shape.clone(),
                    expected: left.info.shape.clone(),
                });
            }
        }
        self.pairs.push(Pair {
            comparison,
            slot: slot.clone(),
            stack: (slot.block)
                .and_then(|block| self.stacks.get(usize::from(block.stack)).copied()),
            left,
            right,
            base,
        });
        Ok(())
    }

    fn finish(mut self, checkpoint: &Checkpoint, why: &'static str) -> Result<Self> {
        if self.pairs.is_empty() {
            return Err(Error::NothingToCompare {
                path: checkpoint.path().into(),
                why,
            });
        }
        self.pairs.sort_by(|a, b| {
            let order = |pair: &Pair<'_>| (pair.comparison, pair.slot.block);
            order(a)
                .cmp(&order(b))
                .then_with(|| a.slot.key.cmp(&b.slot.key))
        });
        Ok(self)
    }
}
