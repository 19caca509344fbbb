//! Counts the parameters of each part of a checkpoint.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{Checkpoint, Expert, Role};

use super::{Layout, Part};

/// Tensors and their elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Number of tensors.
    pub n_tensors: usize,
    /// Number of elements.
    pub n_elements: u64,
}

impl Count {
    fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    fn add(&mut self, n_elements: u64) {
        self.n_tensors += 1;
        self.n_elements = self.n_elements.saturating_add(n_elements);
    }
}

impl std::iter::Sum for Count {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |sum, count| Self {
            n_tensors: sum.n_tensors + count.n_tensors,
            n_elements: sum.n_elements.saturating_add(count.n_elements),
        })
    }
}

/// Parameters by part, and those of experts again by expert.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PartCounts {
    /// Every tensor, under exactly one part.
    pub by_part: BTreeMap<Part, Count>,
    /// The tensors of blocks that experts own, under their expert.
    pub by_expert: BTreeMap<Expert, Count>,
    /// The routers of mixtures of experts.
    #[serde(skip_serializing_if = "Count::is_zero")]
    pub routers: Count,
}

impl PartCounts {
    /// One part; zero if there is none of it.
    #[must_use]
    pub fn part(&self, part: Part) -> Count {
        self.by_part.get(&part).copied().unwrap_or_default()
    }

    /// All parameters, without buffers.
    #[must_use]
    pub fn parameters(&self) -> Count {
        self.all_but(&[Part::Buffers])
    }

    /// Parameters of blocks that all modalities share, routers left out.
    #[must_use]
    pub fn shared_in_blocks(&self) -> Count {
        let owned = self.by_expert.values().chain([&self.routers]);
        let owned: Count = owned.copied().sum();
        let blocks = self.part(Part::Blocks);
        Count {
            n_tensors: blocks.n_tensors.saturating_sub(owned.n_tensors),
            n_elements: blocks.n_elements.saturating_sub(owned.n_elements),
        }
    }

    /// The parameters that VLMo counts: without heads, projections, pooler and temperatures.
    #[must_use]
    pub fn without_heads(&self) -> Count {
        self.all_but(&[
            Part::Buffers,
            Part::Heads,
            Part::Projections,
            Part::Pooler,
            Part::LogitScales,
            Part::Temperature,
        ])
    }

    fn all_but(&self, left_out: &[Part]) -> Count {
        self.by_part
            .iter()
            .filter(|(part, _)| !left_out.contains(part))
            .map(|(_, count)| *count)
            .sum()
    }
}

/// Counts the tensors of the checkpoint's chosen root by part. Keys that the layout does not know
/// are counted under [`Part::Other`].
#[must_use]
pub fn count(checkpoint: &Checkpoint, layout: &dyn Layout) -> PartCounts {
    let mut counts = PartCounts::default();
    for (key, info) in checkpoint.tensors() {
        let n_elements = info.n_elements() as u64;
        let part = match layout.role(key) {
            Ok(Role::Derived) => Part::Buffers,
            Ok(Role::Shared(slot)) => layout.part(&slot),
            Ok(Role::Expert { expert, slot }) => {
                counts.by_expert.entry(expert).or_default().add(n_elements);
                layout.part(&slot)
            }
            Ok(Role::Routing(slot)) => {
                counts.routers.add(n_elements);
                layout.part(&slot)
            }
            // Counted under the key that it stands for.
            Ok(Role::Alias { .. }) => continue,
            Err(_) => Part::Other,
        };
        counts.by_part.entry(part).or_default().add(n_elements);
    }
    counts
}
