//! Whose copy of a tensor a member of a group is.

use std::fmt;

use crate::Expert;

/// An expert of the one checkpoint, or one of several checkpoints.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Member {
    /// An expert.
    Expert(Expert),
    /// A checkpoint, as the recipe names it.
    Model(String),
}

impl Member {
    /// What it is called in formulas of the printed plan.
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
