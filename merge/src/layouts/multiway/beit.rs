//! BEiT: the vision transformer that seeds the multiway models. A source only: it is converted,
//! never written.
//!
//! Bao et al. 2022, <https://arxiv.org/abs/2106.08254>; keys as in
//! <https://github.com/microsoft/unilm/tree/master/beit>, with or without the `transformer.`
//! that vl-merging and VLMo put before them.

use crate::{BlockId, Checkpoint, Error, Expert, ParamKind, Result, Role, Slot};

use super::grammar::{self, BEIT_BLOCK_TABLE};
use super::survey::{Findings, Survey};
use super::vl_merging;
use crate::layouts::{Description, Layout, LayoutFamily, Part, PositionTable};
use crate::layouts::{boxed, without_module};

/// The row of this family in the table of layouts.
pub(in crate::layouts) const FAMILY: LayoutFamily = LayoutFamily {
    name: "beit",
    deciding: "no `rel_pos_bias.relative_position_bias_table`, no \
               `blocks.<i>.attn.relative_position_bias_table`, and no `blocks.<i>.attn.q_bias` without \
               `transformer.`",
    read: |checkpoint| Ok(boxed(Beit::read(checkpoint)?)),
    ties: crate::layouts::NO_TIES,
};

const PREFIX: &str = "transformer.";
const SHARED_TABLE: &str = "transformer.rel_pos_bias.relative_position_bias_table";

/// A BEiT checkpoint, in either spelling.
#[derive(Clone, Debug)]
pub struct Beit {
    description: Description,
    positions: Vec<PositionTable>,
}

impl Beit {
    /// Reads names and shapes; `None` if the checkpoint is none of this family.
    ///
    /// # Errors
    /// [`Error::BrokenLayout`] when two keys claim one place.
    pub fn read(checkpoint: &Checkpoint) -> Result<Option<Self>> {
        let find = |wanted: &dyn Fn(&str) -> bool| {
            checkpoint
                .tensors()
                .map(|(key, _)| key)
                .find(|key| wanted(without_module(key)))
        };
        let shared = find(&|key| prefixed(key) == SHARED_TABLE);
        let per_block = find(&|key| block_table(&prefixed(key)).is_some());
        let original = find(&|key| {
            key.strip_prefix("blocks.")
                .and_then(grammar::split_block)
                .is_some_and(|(_, rest)| rest == "attn.q_bias")
        });
        let (name, decision) = match (shared, per_block, original) {
            (Some(key), _, _) => ("beit/shared_table", format!("`{key}` serves all blocks")),
            (None, Some(key), _) => (
                "beit/per_block_tables",
                format!("blocks own tables such as `{key}`"),
            ),
            (None, None, Some(key)) => (
                "beit/shared_table",
                format!("`{key}` in original spelling; no bias table is there"),
            ),
            (None, None, None) => return Ok(None),
        };
        let spelling = if original.is_some() {
            "original spelling, without `transformer.`"
        } else {
            "keys start with `transformer.`"
        };
        let survey = Survey::read(checkpoint, prefixed)?;
        let Findings {
            dimensions,
            evidence: sizes,
        } = survey.measure()?;
        let evidence = [decision, spelling.to_owned()].into_iter().chain(sizes);
        let mut layout = Self {
            description: Description {
                name,
                evidence: evidence.collect(),
                dimensions,
            },
            positions: Vec::new(),
        };
        layout.positions = super::position_tables(checkpoint, &layout);
        Ok(Some(layout))
    }
}

/// A key (without `module.`) of either spelling with `transformer.` before it.
#[must_use]
pub fn prefixed(key: &str) -> String {
    if key.starts_with(PREFIX) {
        key.to_owned()
    } else {
        format!("{PREFIX}{key}")
    }
}

/// Index of the block whose bias table a prefixed key is.
fn block_table(key: &str) -> Option<usize> {
    let (block, rest) = grammar::split_block(key.strip_prefix(grammar::BLOCKS)?)?;
    let (stem, rest) = rest.split_once('.')?;
    (stem == BEIT_BLOCK_TABLE.stem && rest == BEIT_BLOCK_TABLE.rest).then_some(block)
}

impl Layout for Beit {
    fn description(&self) -> &Description {
        &self.description
    }

    fn part(&self, slot: &Slot) -> Part {
        super::part(slot)
    }

    fn position_tables(&self) -> &[PositionTable] {
        &self.positions
    }

    fn gram_key(&self, slot: &Slot, expert: Option<Expert>) -> Option<String> {
        vl_merging::gram_key(slot, expert)
    }

    fn role(&self, key: &str) -> Result<Role> {
        let key = prefixed(without_module(key));
        if let Some(block) = block_table(&key) {
            return Ok(Role::Shared(Slot {
                key,
                block: Some(BlockId::only(block)),
                module: BEIT_BLOCK_TABLE.stem.to_owned(),
                kind: ParamKind::PositionBias,
            }));
        }
        match vl_merging::role_of(&key) {
            Some(role @ (Role::Shared(_) | Role::Derived)) => Ok(role),
            _ => Err(Error::UnknownKey {
                layout: self.name(),
                nearest: grammar::nearest(&key),
                key,
            }),
        }
    }
}
