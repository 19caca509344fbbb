//! vl-merging: one multiway transformer in five forms, from one set of weights for everybody to a
//! copy of each part for vision, language and both.
//!
//! Sung et al. 2023, "An Empirical Study of Multimodal Model Merging",
//! <https://arxiv.org/abs/2304.14933>; keys as in <https://github.com/ylsung/vl-merging>.

use std::collections::{BTreeMap, BTreeSet};

use crate::{BlockId, Checkpoint, Error, Expert, ParamKind, Result, Role, Slot};

use super::grammar::{self, BlockKey};
use super::survey::{Findings, Survey, in_order, quoted};
use crate::layouts::{Description, Layout, LayoutFamily, Part, PositionTable, Task};
use crate::layouts::{boxed, without_module};

/// The row of this family in the table of layouts.
pub(in crate::layouts) const FAMILY: LayoutFamily = LayoutFamily {
    name: "vl_merging",
    deciding: "no `transformer.blocks.<i>.attn.q_bias` and no block key with an expert, such as \
               `transformer.blocks.<i>.attn.v.qkv.weight`",
    read: |checkpoint| Ok(boxed(VlMerging::read(checkpoint)?)),
    ties: crate::layouts::NO_TIES,
};

const AGNOSTIC: &str = "vl_merging/agnostic";

/// A checkpoint in vl-merging spelling.
#[derive(Clone, Debug)]
pub struct VlMerging {
    description: Description,
    experts: BTreeMap<usize, BTreeSet<Expert>>,
    positions: Vec<PositionTable>,
}

impl VlMerging {
    /// Reads names and shapes; `None` if the checkpoint is none of this family.
    ///
    /// # Errors
    /// [`Error::BrokenLayout`] when two keys claim one place.
    pub fn read(checkpoint: &Checkpoint) -> Result<Option<Self>> {
        let belongs = checkpoint.tensors().any(|(key, _)| {
            BlockKey::parse(without_module(key)).is_some_and(|parsed| {
                parsed.expert.is_some() || matches!(parsed.parameter.rest, "q_bias" | "v_bias")
            })
        });
        if !belongs {
            return Ok(None);
        }
        let survey = Survey::read(checkpoint, str::to_owned)?;
        let name = form(&survey);
        let Findings {
            mut dimensions,
            evidence: mut sizes,
        } = survey.measure()?;
        if name == AGNOSTIC
            && dimensions.fusion_start.is_none()
            && let Some(block) = usual_fusion_start(dimensions.n_blocks())
        {
            dimensions.fusion_start = Some(block);
            sizes.push(format!(
                "fusion start not recorded; block {block} is usual for {} blocks",
                dimensions.n_blocks()
            ));
        }
        let decision = if name == AGNOSTIC {
            "blocks own `attn.q_bias` and no key of an expert".to_owned()
        } else {
            format!("blocks own {}", quoted(survey.specific_keys()))
        };
        let mut layout = Self {
            description: Description {
                name,
                evidence: std::iter::once(decision).chain(sizes).collect(),
                dimensions,
            },
            experts: survey.into_experts(),
            positions: Vec::new(),
        };
        layout.positions = super::position_tables(checkpoint, &layout);
        Ok(Some(layout))
    }
}

/// First fusion block of the published models of this depth. Agnostic weights do not tell.
#[must_use]
pub fn usual_fusion_start(n_blocks: usize) -> Option<usize> {
    match n_blocks {
        12 => Some(10),
        24 => Some(21),
        _ => None,
    }
}

/// The block, and the part of it that experts may own (`attn`, `mlp`, `norm1`, `norm2`), that a key
/// (without `module.`) of the agnostic form belongs to.
#[must_use]
pub fn owned_part(key: &str) -> Option<(usize, &'static str)> {
    let parsed = BlockKey::parse(key).filter(|parsed| parsed.expert.is_none())?;
    let stem = parsed.parameter.stem;
    grammar::is_owned(stem).then_some((parsed.block, stem))
}

/// The segment of a key that names an expert: `v`, `l`, `vl`; `None` for experts of a router.
#[must_use]
pub fn segment(expert: Expert) -> Option<&'static str> {
    grammar::segment(expert)
}

/// The key of an expert's copy of a key (without `module.`) of the agnostic form; `None` where
/// experts own none.
#[must_use]
pub fn expert_key(key: &str, expert: Expert) -> Option<String> {
    owned_part(key)?;
    grammar::segment(expert)?;
    let parsed = BlockKey::parse(key)?;
    Some(grammar::block_key(
        parsed.block,
        parsed.parameter,
        Some(expert),
    ))
}

/// Form by what experts own: attention and FFN decide, norms only where both are shared.
fn form(survey: &Survey<'_>) -> &'static str {
    let owned = |stem| survey.is_specific(stem);
    match (
        owned("attn"),
        owned("mlp"),
        owned("norm1") || owned("norm2"),
    ) {
        (true, true, _) => "vl_merging/all_specific",
        (true, false, _) => "vl_merging/attn_specific",
        (false, true, _) => "vl_merging/ffn_specific",
        (false, false, true) => "vl_merging/ln_specific",
        (false, false, false) => AGNOSTIC,
    }
}

impl Layout for VlMerging {
    fn description(&self) -> &Description {
        &self.description
    }

    fn part(&self, slot: &Slot) -> Part {
        super::part(slot)
    }

    fn position_tables(&self) -> &[PositionTable] {
        &self.positions
    }

    fn role(&self, key: &str) -> Result<Role> {
        role_of(without_module(key)).ok_or_else(|| Error::UnknownKey {
            layout: self.name(),
            key: key.to_owned(),
            nearest: grammar::nearest(without_module(key)),
        })
    }

    fn gram_key(&self, slot: &Slot, expert: Option<Expert>) -> Option<String> {
        gram_key(slot, expert)
    }

    fn block_experts(&self, block: BlockId) -> Vec<Expert> {
        in_order(self.experts.get(&block.index))
    }

    fn used_experts(&self, task: Task, block: BlockId) -> Vec<Expert> {
        used_experts(self.dimensions().fusion_start, task, block)
    }
}

/// The role of a key in vl-merging's spelling; `None` if the grammar does not know it.
#[must_use]
pub fn role_of(key: &str) -> Option<Role> {
    if grammar::is_buffer(key) {
        return Some(Role::Derived);
    }
    if let Some(parsed) = BlockKey::parse(key) {
        let slot = parsed.slot();
        return Some(match parsed.expert {
            Some(expert) => Role::Expert { expert, slot },
            None => Role::Shared(slot),
        });
    }
    let kind = match grammar::outer_parameter(key) {
        Some(row) => row.kind,
        None if grammar::is_image_tokenizer(key) => ParamKind::Other,
        None => return None,
    };
    Some(Role::Shared(grammar::outer_slot(key, kind)))
}

/// Published gram names: the module that the inputs go into, with the expert that owns it after its stem.
/// The attention module itself stands for its `qkv`. Only the inputs of blocks are recorded.
pub(super) fn gram_key(slot: &Slot, expert: Option<Expert>) -> Option<String> {
    let block = super::index_of(slot).filter(|_| slot.kind == ParamKind::LinearWeight)?;
    let (stem, layer) = slot.module.split_once('.')?;
    let mut module = format!("{}{block}.{stem}", grammar::BLOCKS);
    if let Some(expert) = expert {
        module = format!("{module}.{}", grammar::segment(expert)?);
    }
    Some(match layer {
        "qkv" => module,
        _ => format!("{module}.{layer}"),
    })
}

/// The published choice of experts by task.
pub(super) fn used_experts(fusion_start: Option<usize>, task: Task, block: BlockId) -> Vec<Expert> {
    let is_deep = fusion_start.is_some_and(|start| block.index >= start);
    match (is_deep, task) {
        (false, _) | (true, Task::Retrieval) => vec![Expert::Vision, Expert::Language],
        (true, Task::Vqa | Task::Nlvr2) => vec![Expert::VisionLanguage],
    }
}
