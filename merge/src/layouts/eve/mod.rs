//! EVE: one transformer for images and texts, whose lower blocks have a feed-forward network for each modality and
//! whose last blocks have a mixture of experts.
//!
//! Chen et al. 2024, "EVE: Efficient Vision-Language Pre-training with Masked Prediction and Modality-Aware MoE",
//! <https://arxiv.org/abs/2308.11971>; keys as in <https://github.com/ssyze/EVE>, with or without the `backbone.` that
//! files of tasks have before those of the transformer, and the `module.` of data-parallel wrappers.

mod fresh;
mod place;
mod sizes;
mod survey;
mod table;

pub use fresh::{EveSizes, EveSpec, EveTask};

use std::collections::{BTreeMap, BTreeSet};

use crate::convert::Resize;
use crate::{Checkpoint, DType, Error, Expert, Result, Role, Slot, TensorInfo};

use super::{BlockId, Buffer, Description, Layout, LayoutFamily, Part, PositionTable, TableForm};
use super::{ModelRecord, NO_TIES, boxed, without_module};
use place::{Place, Stem, Whose, nearest};
use survey::relative_side;
use table::IMAGE_POSITION_IDS;

/// The row of this family in the table of layouts.
pub(super) const FAMILY: LayoutFamily = LayoutFamily {
    name: NAME,
    deciding: "no `encoder.layers.<i>.mlp_imag`, `mlp_text` or `mlp_moe.moe` key, with or without `backbone.`",
    read: |checkpoint| Ok(boxed(Eve::read(checkpoint)?)),
    ties: NO_TIES,
};

const NAME: &str = "eve";

/// An EVE checkpoint.
#[derive(Clone, Debug)]
pub struct Eve {
    description: Description,
    positions: Vec<PositionTable>,
    /// Networks of modalities in each block that has some.
    networks: BTreeMap<usize, BTreeSet<Whose>>,
    /// Routed experts in each block with a mixture.
    routed: BTreeMap<usize, u16>,
    /// The first part of the backbone's keys.
    prefix: &'static str,
    pair_len: Option<usize>,
    /// Whether the file tells the heads, and they are no guess by the width.
    tells_heads: bool,
}

impl Eve {
    /// Reads names and shapes; `None` if the checkpoint is none of this family.
    ///
    /// # Errors
    /// [`Error::BrokenLayout`] when two keys claim one place, [`Error::RouterMisfit`] for a router that has other
    /// experts than there are, [`Error::BadModelRecord`] and [`Error::RecordContradicted`].
    pub fn read(checkpoint: &Checkpoint) -> Result<Option<Self>> {
        let is_telling = |key: &str| {
            let place = Place::of(without_module(key));
            place.is_some_and(|place| place.block.is_some() && !matches!(place.stem, Stem::Shared))
        };
        match checkpoint.tensors().find(|(key, _)| is_telling(key)) {
            Some((example, _)) => survey::read(checkpoint, example).map(Some),
            None => Ok(None),
        }
    }

    /// The number of routed experts of a block; `None` of a block without a mixture.
    #[must_use]
    pub fn n_routed(&self, block: usize) -> Option<u16> {
        self.routed.get(&block).copied()
    }

    /// Tokens of a text that is read together with an image, where the file says it.
    #[must_use]
    pub fn pair_len(&self) -> Option<usize> {
        self.pair_len
    }

    /// A record of this model without guesses by the published width, which are no facts about it.
    pub(crate) fn told(&self, record: ModelRecord) -> ModelRecord {
        ModelRecord {
            heads: record.heads.filter(|_| self.tells_heads),
            pair_len: record.pair_len.filter(|_| self.pair_len.is_some()),
            ..record
        }
    }

    /// Patches a side by the table of relative positions of a model with `text_positions` text positions.
    #[must_use]
    pub fn relative_side(&self, checkpoint: &Checkpoint, text_positions: usize) -> Option<usize> {
        let mut tables = self.positions.iter();
        let table = tables.find(|table| table.form == TableForm::Relative)?;
        let rows = *checkpoint.get(&table.key)?.shape.first()?;
        relative_side(rows, text_positions)
    }

    /// Whether a network or norm of this block is one of several for the same place.
    fn is_one_of_several(&self, block: usize, whose: Whose) -> bool {
        let networks = self.networks.get(&block);
        networks.is_some_and(|networks| networks.len() > 1 && networks.contains(&whose))
    }

    /// The expert that the tensor is a copy of, if it is one of several.
    fn expert(&self, place: Place) -> Option<Expert> {
        match place.stem {
            Stem::Routed(index) => Some(Expert::Routed(index)),
            Stem::Ffn(whose) | Stem::Norm(whose) => {
                let is_expert = self.is_one_of_several(place.block?, whose);
                is_expert.then_some(match whose {
                    Whose::Image => Expert::Vision,
                    Whose::Text => Expert::Language,
                    Whose::Joint => Expert::VisionLanguage,
                })
            }
            _ => None,
        }
    }
}

impl Layout for Eve {
    fn description(&self) -> &Description {
        &self.description
    }

    fn role(&self, key: &str) -> Result<Role> {
        let name = without_module(key);
        let place = Place::of(name).ok_or_else(|| Error::UnknownKey {
            layout: self.name(),
            key: key.to_owned(),
            nearest: nearest(name),
        })?;
        let expert = self.expert(place);
        let slot = place.slot(self.prefix, expert.is_some());
        Ok(match expert {
            _ if place.is_buffer() => Role::Derived,
            _ if place.is_router() => Role::Routing(slot),
            Some(expert) => Role::Expert { expert, slot },
            None => Role::Shared(slot),
        })
    }

    /// The layer's own name with `backbone.`, for every linear layer of the blocks, experts and routers included;
    /// the attention module itself stands for its `qkv`. Heads have none: which of them a pass runs depends on the task.
    fn gram_key(&self, slot: &Slot, expert: Option<Expert>) -> Option<String> {
        let mut place = match expert {
            Some(Expert::Routed(index)) => {
                let with_index = format!("{}{index}.", table::ROUTED);
                Place::of(&slot.key.replacen(table::ROUTED, &with_index, 1))?
            }
            _ => Place::of(&slot.key)?,
        };
        let whose = match expert {
            Some(Expert::Vision) => Some(Whose::Image),
            Some(Expert::Language) => Some(Whose::Text),
            Some(Expert::VisionLanguage) => Some(Whose::Joint),
            _ => None,
        };
        place.stem = match (place.stem, whose) {
            (Stem::Ffn(_), Some(whose)) => Stem::Ffn(whose),
            (stem, _) => stem,
        };
        place.layer()
    }

    /// `routing` in place of `gate.wg`.
    fn routing_key(&self, slot: &Slot) -> Option<String> {
        let layer = self.gram_key(slot, None)?;
        let mixture = layer.strip_suffix(".gate.wg")?;
        Some(format!("{mixture}.routing"))
    }

    fn part(&self, slot: &Slot) -> Part {
        let Some(place) = Place::of(&slot.key) else {
            return match slot.block {
                Some(_) => Part::Blocks,
                None => Part::Other,
            };
        };
        let key = place.parameter.key;
        match place.stem {
            Stem::Outer if place.is_buffer() => Part::Buffers,
            Stem::Outer => match key {
                table::POSITIONS | table::RELATIVE_TABLE => Part::PositionTables,
                key if key.starts_with("norm.") => Part::FinalNorm,
                _ => Part::Embeddings,
            },
            Stem::Head if key.ends_with("_temp") => Part::Temperature,
            Stem::Head if key.contains("_proj_head") => Part::Projections,
            Stem::Head | Stem::Decoder(_) => Part::Heads,
            _ => Part::Blocks,
        }
    }

    fn position_tables(&self) -> &[PositionTable] {
        &self.positions
    }

    /// Of the table of relative positions, where there is one.
    fn default_resize(&self) -> Resize {
        Resize::Geometric
    }

    fn buffer_for(&self, key: &str, side: usize) -> Option<Buffer> {
        let place = Place::of(without_module(key))?;
        (place.parameter.key == IMAGE_POSITION_IDS).then(|| image_position_ids(side))
    }

    fn block_experts(&self, block: BlockId) -> Vec<Expert> {
        let networks = self.networks.get(&block.index).into_iter().flatten();
        let of_modalities = networks.filter_map(|&whose| {
            self.expert(Place {
                block: Some(block.index),
                stem: Stem::Norm(whose),
                parameter: &table::NORM[0],
            })
        });
        let routed = (0..self.n_routed(block.index).unwrap_or(0)).map(Expert::Routed);
        let mut experts: Vec<Expert> = of_modalities.chain(routed).collect();
        experts.sort_unstable();
        experts
    }
}

/// A key of EVE (without `module.`) with `backbone.`; `None` for a key of no EVE.
#[must_use]
pub fn eve_key(key: &str) -> Option<String> {
    Place::of(key).map(Place::key)
}

/// Tokens of a text that is read together with an image, by the settings that the published program keeps in its files.
pub(super) fn stored_pair_len(checkpoint: &Checkpoint) -> Option<usize> {
    super::record::stored_at(checkpoint, "config.pairs.max_tokens")
}

/// The buffer of image positions for `side` patches a side.
fn image_position_ids(side: usize) -> Buffer {
    let n = side * side + 1;
    Buffer {
        info: TensorInfo {
            dtype: DType::I64,
            shape: vec![1, n],
        },
        values: (0..n as i64).collect(),
    }
}
