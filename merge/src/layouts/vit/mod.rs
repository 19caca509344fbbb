//! timm's vision transformers that classify pictures.
//!
//! Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words", <https://arxiv.org/abs/2010.11929>; with registers: Darcet et
//! al. 2023, <https://arxiv.org/abs/2309.16588>. Keys as in <https://github.com/huggingface/pytorch-image-models>.
//!
//! Files pack queries, keys and values in one tensor. [`apart`] is the view of a checkpoint that merges read, in which
//! each is a matrix of its own; [`packed`] is the way back.

mod facts;
mod survey;
mod table;
mod view;

pub(super) use facts::of_timm_beside;
pub use facts::{VitConfig, VitFacts, VitPool};
pub use view::VitSpelling;
pub(super) use view::{apart, packed};

use crate::{Checkpoint, Error, Expert, ParamKind, Result, Role, Slot};

use super::{BlockId, Description, Layout, LayoutFamily, Part, PositionTable};
use super::{NO_TIES, WRAPPER, boxed, split_block, without_module};
use crate::convert::Resize;
use table::{BLOCK, BLOCKS, OUTER, POSITIONS, Parameter};

/// The row of this family in the table of layouts.
pub(super) const FAMILY: LayoutFamily = LayoutFamily {
    name: NAME,
    deciding: "no first block of a classifier of timm: `patch_embed.proj.weight`, `blocks.0.attn.qkv.weight` and \
               `blocks.0.mlp.fc1.weight`",
    read: |checkpoint| Ok(boxed(Vit::read(checkpoint)?)),
    ties: NO_TIES,
};

const NAME: &str = "vit";

/// The first block, by the weights that both forms have.
const TELLING: [&str; 2] = ["patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"];

/// The first block's attention, as files have it and as merges see it.
const ATTENTION: [&str; 2] = ["blocks.0.attn.qkv.weight", "blocks.0.attn.q_proj.weight"];

/// A checkpoint of a classifier of timm.
#[derive(Clone, Debug)]
pub struct Vit {
    description: Description,
    positions: Vec<PositionTable>,
}

impl Vit {
    /// Reads names and shapes, and the configuration beside the file; `None` if the checkpoint is none of this family.
    ///
    /// # Errors
    /// [`Error::BadModelRecord`], [`Error::RecordContradicted`], and when a configuration cannot be read.
    pub fn read(checkpoint: &Checkpoint) -> Result<Option<Self>> {
        let Some(wrapper) = wrapper_of(checkpoint, &ATTENTION) else {
            return Ok(None);
        };
        let (description, positions) = survey::describe(checkpoint, wrapper)?;
        Ok(Some(Self {
            description,
            positions: positions.into_iter().collect(),
        }))
    }

    /// The facts in the configuration beside a checkpoint.
    ///
    /// # Errors
    /// When a file cannot be read or is no JSON.
    pub fn config(checkpoint: &Checkpoint) -> Result<VitConfig> {
        VitConfig::beside(checkpoint)
    }

    /// The spelling of a checkpoint's keys, in which queries, keys and values are packed.
    fn spelling_of(checkpoint: &Checkpoint) -> Option<VitSpelling> {
        let wrapper = wrapper_of(checkpoint, &ATTENTION[..1])?;
        Some(VitSpelling {
            is_wrapped: !wrapper.is_empty(),
        })
    }
}

/// The prefix of the keys of a checkpoint of this family.
fn wrapper_of(checkpoint: &Checkpoint, attention: &[&str]) -> Option<&'static str> {
    ["", WRAPPER].into_iter().find(|wrapper| {
        let has = |key: &&str| checkpoint.get(&format!("{wrapper}{key}")).is_some();
        TELLING.iter().all(&has) && attention.iter().any(has)
    })
}

/// The configuration beside a classifier, as a record; `None` for other families.
pub(super) fn record(checkpoint: &Checkpoint) -> Result<Option<super::ModelRecord>> {
    if wrapper_of(checkpoint, &ATTENTION).is_none() {
        return Ok(None);
    }
    let config = VitConfig::beside(checkpoint)?;
    Ok((config != VitConfig::default()).then(|| config.record()))
}

/// The parameter of a key without `module.`, and its block.
fn place(key: &str) -> Option<(Option<usize>, &'static Parameter)> {
    match key.strip_prefix(BLOCKS).and_then(split_block) {
        Some((block, rest)) => {
            let parameter = BLOCK.iter().find(|row| row.key == rest)?;
            Some((Some(block), parameter))
        }
        None => Some((None, OUTER.iter().find(|row| row.key == key)?)),
    }
}

/// The key of the family that is most like `key`.
fn nearest(key: &str) -> Option<String> {
    let block = key.strip_prefix(BLOCKS).and_then(split_block);
    let block = block.map_or(0, |(block, _)| block);
    let in_block = (BLOCK.iter()).map(|row| format!("{BLOCKS}{block}.{}", row.key));
    let outer = OUTER.iter().map(|row| row.key.to_owned());
    super::nearest(in_block.chain(outer), key)
}

impl Layout for Vit {
    fn description(&self) -> &Description {
        &self.description
    }

    fn role(&self, key: &str) -> Result<Role> {
        let name = without_module(key);
        let (block, parameter) = place(name).ok_or_else(|| Error::UnknownKey {
            layout: NAME,
            key: key.to_owned(),
            nearest: nearest(name),
        })?;
        let module = parameter.key.rsplit_once('.');
        Ok(Role::Shared(Slot {
            key: name.to_owned(),
            block: block.map(BlockId::only),
            module: module
                .map_or(parameter.key, |(module, _)| module)
                .to_owned(),
            kind: parameter.kind,
        }))
    }

    /// The layer's own name; queries, keys and values share the matrix of `attn.qkv`, packed or not.
    fn gram_key(&self, slot: &Slot, _: Option<Expert>) -> Option<String> {
        if slot.kind != ParamKind::LinearWeight {
            return None;
        }
        let layer = slot.key.strip_suffix(".weight")?;
        let shared = [".q_proj", ".k_proj", ".v_proj"];
        let attention = shared.iter().find_map(|end| layer.strip_suffix(end));
        Some(match attention {
            Some(attention) => format!("{attention}.qkv"),
            None => layer.to_owned(),
        })
    }

    fn part(&self, slot: &Slot) -> Part {
        match slot.kind {
            _ if slot.block.is_some() => Part::Blocks,
            _ if slot.key == POSITIONS => Part::PositionTables,
            ParamKind::Norm => Part::FinalNorm,
            _ if slot.key.starts_with("head.") => Part::Heads,
            _ => Part::Embeddings,
        }
    }

    fn position_tables(&self) -> &[PositionTable] {
        &self.positions
    }

    /// As timm resizes when it loads a model.
    fn default_resize(&self) -> Resize {
        Resize::BicubicAntialiased
    }
}
