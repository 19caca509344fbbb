//! A place in the merged model, what each key of a checkpoint is to it, and whose copy of it is merged.

use std::fmt;

use serde::Serialize;

use crate::Expert;

/// The kind of a parameter in its layer; merge methods treat linear weights apart from the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ParamKind {
    /// Matrix of a linear layer, shape `(out, in)`.
    LinearWeight,
    /// Additive vector of a linear or convolution layer, query and value biases included.
    Bias,
    /// Scale or shift of a normalization layer.
    Norm,
    /// Token, position, type or class embedding, and the patch projection.
    Embedding,
    /// LayerScale factors and logit scales.
    Scale,
    /// Relative position bias tables.
    PositionBias,
    /// Anything else, such as task heads of other families.
    Other,
}

/// One block of one of a model's stacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct BlockId {
    /// Index of the stack in [`crate::layouts::Dimensions::stacks`].
    pub stack: u8,
    /// Index of the block in its stack, counted from 0.
    pub index: usize,
}

impl BlockId {
    /// A block of the only stack.
    #[must_use]
    pub const fn only(index: usize) -> Self {
        Self { stack: 0, index }
    }
}

/// A place in the merged model.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Slot {
    /// The key in the merged checkpoint, e.g. `transformer.blocks.3.attn.qkv.weight`.
    pub key: String,
    /// The block; `None` outside the blocks.
    pub block: Option<BlockId>,
    /// The part of a block a slot belongs to, e.g. `attn.qkv`, `mlp.fc1`, `norm2`; outside the
    /// blocks the key without its last segment.
    pub module: String,
    /// The kind of the parameter.
    pub kind: ParamKind,
}

/// The role of one key of a checkpoint in a merge.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// One tensor serves all modalities.
    Shared(Slot),
    /// One of several copies for a slot.
    Expert {
        /// The expert that this copy belongs to.
        expert: Expert,
        /// The slot that the copies are merged into.
        slot: Slot,
    },
    /// The same tensor as another key's, which it is merged, compared and counted under. The output has this key
    /// as another name of that tensor.
    Alias {
        /// The other key.
        of: String,
    },
    /// A router's own weights: rows of scores for the experts of its block. It stays with them, and loses its
    /// meaning where they are merged into one.
    Routing(Slot),
    /// A buffer that a loader rebuilds from the configuration, such as an index table.
    Derived,
}

/// The origin of a group's member: an expert of the one checkpoint, or one of several checkpoints.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Member {
    /// An expert.
    Expert(Expert),
    /// A checkpoint, as the recipe names it.
    Model(String),
}

impl Member {
    /// Its name in formulas of the printed plan.
    #[must_use]
    pub fn label(&self) -> String {
        match self {
            Self::Expert(expert) => expert.to_string(),
            Self::Model(name) => name.clone(),
        }
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expert(expert) => write!(f, "the {expert} expert"),
            Self::Model(name) => f.write_str(name),
        }
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expert(expert) => fmt::Debug::fmt(expert, f),
            Self::Model(name) => f.write_str(name),
        }
    }
}
