//! ZeroVL: a ViT for images and a BERT for texts, each with a projection into a joint space.
//!
//! Cui et al. 2022, "Contrastive Vision-Language Pre-training with Limited Resources",
//! <https://arxiv.org/abs/2112.09331>; keys as in <https://github.com/zerovl/ZeroVL>, with or without the
//! `module.` of data-parallel wrappers.

mod fresh;
mod given;
mod survey;
mod table;

pub use fresh::{ZerovlSizes, ZerovlSpec};
pub use given::{GivenTower, GivenTwoTowers};

use crate::{Checkpoint, Error, Expert, Result, Role, Slot};

use super::{BlockId, Description, Layout, LayoutFamily, Part, PositionTable, TableForm};
use super::{NO_TIES, boxed, layer_of, split_block, without_module};
use table::{IMAGE, OUTER, POSITION_IDS, POSITIONS, PROBE, Parameter, STACKS, TEMPERATURE, TEXT};

/// The row of this family in the table of layouts.
pub(super) const FAMILY: LayoutFamily = LayoutFamily {
    name: NAME,
    deciding: "no key of its towers, such as `image_encoder.model.model.blocks.<i>.attn.qkv.weight` or \
               `text_encoder.model.model.encoder.layer.<i>.attention.self.query.weight`",
    read: |checkpoint| Ok(boxed(Zerovl::read(checkpoint)?)),
    ties: NO_TIES,
};

const NAME: &str = "zerovl";

/// A ZeroVL checkpoint.
#[derive(Clone, Debug)]
pub struct Zerovl {
    description: Description,
    positions: Vec<PositionTable>,
}

/// The place of a key (without `module.`) in the model.
#[derive(Clone, Copy)]
struct Place {
    block: Option<BlockId>,
    parameter: &'static Parameter,
}

impl Place {
    fn of(key: &str) -> Option<Self> {
        for (stack, blocks) in STACKS.iter().enumerate() {
            let Some((index, rest)) = key.strip_prefix(blocks.prefix).and_then(split_block) else {
                continue;
            };
            let parameter = blocks.parameters.iter().find(|row| row.key == rest)?;
            let block = BlockId {
                stack: stack as u8,
                index,
            };
            return Some(Self {
                block: Some(block),
                parameter,
            });
        }
        let parameter = OUTER.iter().find(|row| row.key == key)?;
        Some(Self {
            block: None,
            parameter,
        })
    }

    /// The key, without `module.`.
    fn key(self) -> String {
        match self.block {
            Some(BlockId { stack, index }) => {
                let prefix = STACKS[usize::from(stack)].prefix;
                format!("{prefix}{index}.{}", self.parameter.key)
            }
            None => self.parameter.key.to_owned(),
        }
    }

    fn slot(self) -> Slot {
        let module = match self.parameter.key.rsplit_once('.') {
            Some((module, _)) => module.to_owned(),
            None => self.parameter.key.to_owned(),
        };
        Slot {
            key: self.key(),
            block: self.block,
            module,
            kind: self.parameter.kind,
        }
    }
}

/// The key of the family that is most like `key`.
fn nearest(key: &str) -> Option<String> {
    let in_blocks = STACKS.iter().enumerate().flat_map(|(stack, blocks)| {
        let index = key.strip_prefix(blocks.prefix).and_then(split_block);
        let block = BlockId {
            stack: stack as u8,
            index: index.map_or(0, |(index, _)| index),
        };
        (blocks.parameters.iter()).map(move |parameter| Place {
            block: Some(block),
            parameter,
        })
    });
    let outer = OUTER.iter().map(|parameter| Place {
        block: None,
        parameter,
    });
    let names = in_blocks.chain(outer).map(Place::key);
    super::nearest(names, key)
}

impl Zerovl {
    /// Reads names and shapes; `None` if the checkpoint is none of this family.
    ///
    /// # Errors
    /// [`Error::BrokenLayout`] when two keys claim one place, as with and without `module.`;
    /// [`Error::BadModelRecord`] and [`Error::RecordContradicted`].
    pub fn read(checkpoint: &Checkpoint) -> Result<Option<Self>> {
        let is_tower = |key: &str| {
            let key = without_module(key);
            (key.starts_with(IMAGE) || key.starts_with(TEXT)) && Place::of(key).is_some()
        };
        let Some((example, _)) = checkpoint.tensors().find(|(key, _)| is_tower(key)) else {
            return Ok(None);
        };
        let (description, positions) = survey::describe(checkpoint, example)?;
        Ok(Some(Self {
            description,
            positions,
        }))
    }
}

impl Layout for Zerovl {
    fn description(&self) -> &Description {
        &self.description
    }

    fn role(&self, key: &str) -> Result<Role> {
        let name = without_module(key);
        if name == POSITION_IDS {
            return Ok(Role::Derived);
        }
        let place = Place::of(name).ok_or_else(|| Error::UnknownKey {
            layout: NAME,
            key: key.to_owned(),
            nearest: nearest(name),
        })?;
        Ok(Role::Shared(place.slot()))
    }

    /// The layer's own name: every linear layer of the towers and projections has its inputs recorded.
    fn gram_key(&self, slot: &Slot, _: Option<Expert>) -> Option<String> {
        let is_recorded = !slot.key.contains(".pooler.") && !slot.key.starts_with(PROBE);
        layer_of(slot).filter(|_| is_recorded)
    }

    fn part(&self, slot: &Slot) -> Part {
        match slot.key.as_str() {
            TEMPERATURE => Part::Temperature,
            key if key.starts_with(IMAGE) => Part::ImageEncoder,
            key if key.starts_with(TEXT) => Part::TextEncoder,
            key if key.starts_with(PROBE) => Part::Heads,
            _ => Part::Projections,
        }
    }

    fn position_tables(&self) -> &[PositionTable] {
        &self.positions
    }
}

/// The table of image positions, as the file spells it.
fn position_table(key: &str) -> Option<PositionTable> {
    (without_module(key) == POSITIONS).then(|| PositionTable {
        key: key.to_owned(),
        form: TableForm::Absolute,
    })
}
