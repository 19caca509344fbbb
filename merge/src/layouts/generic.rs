//! Any other checkpoint: every tensor is its own place, and its kind is guessed from its name
//! and rank.

use std::collections::BTreeMap;

use crate::io::Aliases;
use crate::{Checkpoint, Expert, ParamKind, Result, Role, Slot};

use super::{BlockId, Description, Dimensions, Layout, LayoutFamily, Part, Stack};
use super::{NO_TIES, boxed, layer_of};

/// The row of this family in the table of layouts.
pub(super) const FAMILY: LayoutFamily = LayoutFamily {
    name: "generic",
    deciding: "",
    read: |checkpoint| Ok(boxed(Some(Generic::read(checkpoint)))),
    ties: NO_TIES,
};

/// A checkpoint of no known family.
#[derive(Clone, Debug)]
pub struct Generic {
    description: Description,
    kinds: BTreeMap<String, ParamKind>,
    aliases: Aliases,
}

impl Generic {
    /// Reads names and shapes.
    #[must_use]
    pub fn read(checkpoint: &Checkpoint) -> Self {
        let kinds: BTreeMap<String, ParamKind> = checkpoint
            .tensors()
            .map(|(key, info)| (key.to_owned(), guess(key, info.shape.len())))
            .collect();
        let n_blocks = kinds
            .keys()
            .filter_map(|key| block_of(key))
            .max()
            .map_or(0, |last| last + 1);
        let blocks = match n_blocks {
            0 => "no name has a block index".to_owned(),
            n => format!("names have block indices up to {}", n - 1),
        };
        Self {
            description: Description {
                name: "generic",
                evidence: vec!["no key of a known family".to_owned(), blocks],
                dimensions: Dimensions::of_one_stack(Stack {
                    name: "blocks",
                    n_blocks,
                    width: 0,
                    n_heads: None,
                    ffn_width: None,
                }),
            },
            kinds,
            aliases: checkpoint.aliases().clone(),
        }
    }
}

/// Index of the block: the first segment that is a number below 65,536.
fn block_of(key: &str) -> Option<usize> {
    key.split('.')
        .filter(|segment| segment.bytes().all(|byte| byte.is_ascii_digit()))
        .find_map(|segment| segment.parse::<u16>().ok())
        .map(usize::from)
}

/// The kind of a tensor, by its name and the number of its axes.
fn guess(key: &str, rank: usize) -> ParamKind {
    let key = key.to_ascii_lowercase();
    let (module, parameter) = key.rsplit_once('.').unwrap_or(("", &key));
    let layer = module.rsplit('.').next().unwrap_or(module);
    let is_norm = layer.contains("norm") || layer.starts_with("ln") || layer.ends_with("_ln");
    if key.contains("relative_position_bias") || key.contains("rel_pos_bias") {
        ParamKind::PositionBias
    } else if key.contains("embed") && !is_norm {
        ParamKind::Embedding
    } else if is_norm {
        ParamKind::Norm
    } else if parameter.ends_with("bias") {
        ParamKind::Bias
    } else if rank == 2 && is_linear(parameter) {
        ParamKind::LinearWeight
    } else if parameter.contains("scale") || parameter.contains("gamma") {
        ParamKind::Scale
    } else {
        ParamKind::Other
    }
}

/// Whether a matrix of this name is that of a linear layer; some projections are parameters of their own.
fn is_linear(parameter: &str) -> bool {
    parameter == "weight"
        || parameter == "in_proj_weight"
        || parameter == "proj"
        || parameter.ends_with("_projection")
}

impl Layout for Generic {
    fn description(&self) -> &Description {
        &self.description
    }

    fn part(&self, slot: &Slot) -> Part {
        match slot.kind {
            _ if slot.block.is_some() => Part::Blocks,
            ParamKind::Embedding => Part::Embeddings,
            ParamKind::PositionBias => Part::PositionTables,
            _ => Part::Other,
        }
    }

    /// The layer's own name: the key without `.weight`.
    fn gram_key(&self, slot: &Slot, _: Option<Expert>) -> Option<String> {
        layer_of(slot)
    }

    /// Never an error: a name that the checkpoint lacks is judged without its rank.
    fn role(&self, key: &str) -> Result<Role> {
        if let Some(of) = self.aliases.get(key) {
            return Ok(Role::Alias { of: of.clone() });
        }
        let kind = self.kinds.get(key).copied();
        Ok(Role::Shared(Slot {
            key: key.to_owned(),
            block: block_of(key).map(BlockId::only),
            module: module_of(key),
            kind: kind.unwrap_or_else(|| guess(key, 0)),
        }))
    }
}

/// Inside a block the segments between its index and the last one, else all but the last.
fn module_of(key: &str) -> String {
    let segments: Vec<&str> = key.split('.').collect();
    let first = segments
        .iter()
        .position(|segment| block_of(segment).is_some())
        .map_or(0, |index| index + 1);
    let last = segments.len().saturating_sub(1).max(first);
    match segments.get(first..last) {
        Some(module) if !module.is_empty() => module.join("."),
        _ => segments[first.min(segments.len() - 1)..].join("."),
    }
}
