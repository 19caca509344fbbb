//! VLMo: the multiway transformer as first released, with shared attention and an FFN for each
//! modality. It is vl-merging's ffn-specific form in another spelling.
//!
//! Bao et al. 2022, <https://arxiv.org/abs/2111.02358>; keys as in
//! <https://github.com/microsoft/unilm/tree/master/vlmo>.

use std::collections::{BTreeMap, BTreeSet};

use crate::{BlockId, Checkpoint, Error, Expert, Result, Role, Slot};

use super::survey::{Findings, Survey, in_order, quoted};
use super::{grammar, vl_merging};
use crate::convert::Resize;
use crate::layouts::{Description, Dimensions, Layout, LayoutFamily, Part, PositionTable, Task};
use crate::layouts::{boxed, without_module};

/// The row of this family in the table of layouts.
pub(in crate::layouts) const FAMILY: LayoutFamily = LayoutFamily {
    name: "vlmo",
    deciding: "no `transformer.blocks.<i>.mlp_text`, `mlp_imag` or `mlp_vl` key",
    read: |checkpoint| Ok(boxed(Vlmo::read(checkpoint)?)),
    ties: crate::layouts::NO_TIES,
};

/// Stems of blocks: VLMo's, and the same in vl-merging.
const STEMS: [(&str, &str); 6] = [
    ("mlp_imag", "mlp.v"),
    ("mlp_text", "mlp.l"),
    ("mlp_vl", "mlp.vl"),
    ("norm2_imag", "norm2.v"),
    ("norm2_text", "norm2.l"),
    ("norm2_vl", "norm2.vl"),
];

/// Prefixes of contrastive heads: VLMo's, and the same in vl-merging.
const HEADS: (&str, &str) = ("itc_", "ifm_");

/// A checkpoint in the spelling of the VLMo release.
#[derive(Clone, Debug)]
pub struct Vlmo {
    description: Description,
    experts: BTreeMap<usize, BTreeSet<Expert>>,
    positions: Vec<PositionTable>,
}

impl Vlmo {
    /// Reads names and shapes; `None` if the checkpoint is none of this family.
    ///
    /// # Errors
    /// [`Error::BrokenLayout`] when two keys claim one place.
    pub fn read(checkpoint: &Checkpoint) -> Result<Option<Self>> {
        let belongs = checkpoint
            .tensors()
            .any(|(key, _)| is_spelled(without_module(key)));
        if !belongs {
            return Ok(None);
        }
        let survey = Survey::read(checkpoint, to_vl_merging)?;
        let Findings {
            dimensions,
            evidence: sizes,
        } = survey.measure()?;
        let decision = format!("blocks own {}", quoted(survey.specific_keys()));
        let is_absolute = survey.shape("transformer.pos_embed").is_some();
        let positions = if is_absolute {
            "absolute image positions (`transformer.pos_embed`)"
        } else {
            "no absolute image positions"
        };
        let evidence = [decision, positions.to_owned()].into_iter().chain(sizes);
        let mut layout = Self {
            description: Description {
                name: size(&dimensions, is_absolute),
                evidence: evidence.collect(),
                dimensions,
            },
            experts: survey.into_experts(),
            positions: Vec::new(),
        };
        layout.positions = super::position_tables(checkpoint, &layout);
        Ok(Some(layout))
    }
}

/// Name of the released size with these dimensions.
fn size(dimensions: &Dimensions, is_absolute: bool) -> &'static str {
    match (dimensions.n_blocks(), dimensions.width(), is_absolute) {
        (12, 768, false) => "vlmo/base",
        (24, 544, true) => "vlmo/base_plus",
        (24, 1024, false) => "vlmo/large",
        _ => "vlmo/custom",
    }
}

/// Whether a key's block stem is one of VLMo's own.
fn is_spelled(key: &str) -> bool {
    key.strip_prefix(grammar::BLOCKS)
        .and_then(grammar::split_block)
        .and_then(|(_, rest)| rest.split_once('.'))
        .is_some_and(|(stem, _)| STEMS.iter().any(|(ours, _)| *ours == stem))
}

/// A key of VLMo (without `module.`) in vl-merging spelling. Keys that both spell alike, and keys
/// of neither, stay as they are.
#[must_use]
pub fn to_vl_merging(key: &str) -> String {
    let respelled = key
        .strip_prefix(grammar::BLOCKS)
        .and_then(grammar::split_block)
        .and_then(|(block, rest)| {
            let (stem, rest) = rest.split_once('.')?;
            let (_, stem) = STEMS.iter().find(|(ours, _)| *ours == stem)?;
            Some(format!("{}{block}.{stem}.{rest}", grammar::BLOCKS))
        });
    let head = || Some(format!("{}{}", HEADS.1, key.strip_prefix(HEADS.0)?));
    respelled.or_else(head).unwrap_or_else(|| key.to_owned())
}

/// A key of vl-merging's ffn-specific form (without `module.`) in VLMo spelling, the inverse of
/// [`to_vl_merging`].
#[must_use]
pub fn from_vl_merging(key: &str) -> String {
    let respelled = key
        .strip_prefix(grammar::BLOCKS)
        .and_then(grammar::split_block)
        .and_then(|(block, rest)| {
            let (ours, rest) = STEMS.iter().find_map(|(ours, theirs)| {
                let rest = rest.strip_prefix(theirs)?.strip_prefix('.')?;
                Some((ours, rest))
            })?;
            Some(format!("{}{block}.{ours}.{rest}", grammar::BLOCKS))
        });
    let head = || Some(format!("{}{}", HEADS.0, key.strip_prefix(HEADS.1)?));
    respelled.or_else(head).unwrap_or_else(|| key.to_owned())
}

impl Layout for Vlmo {
    fn description(&self) -> &Description {
        &self.description
    }

    fn part(&self, slot: &Slot) -> Part {
        super::part(slot)
    }

    fn position_tables(&self) -> &[PositionTable] {
        &self.positions
    }

    fn default_resize(&self) -> Resize {
        Resize::Geometric
    }

    fn role(&self, key: &str) -> Result<Role> {
        let translated = to_vl_merging(without_module(key));
        vl_merging::role_of(&translated).ok_or_else(|| Error::UnknownKey {
            layout: self.name(),
            key: key.to_owned(),
            nearest: grammar::nearest(&translated).map(|nearest| from_vl_merging(&nearest)),
        })
    }

    fn gram_key(&self, slot: &Slot, expert: Option<Expert>) -> Option<String> {
        vl_merging::gram_key(slot, expert)
    }

    fn block_experts(&self, block: BlockId) -> Vec<Expert> {
        in_order(self.experts.get(&block.index))
    }

    fn used_experts(&self, task: Task, block: BlockId) -> Vec<Expert> {
        vl_merging::used_experts(self.dimensions().fusion_start, task, block)
    }
}
