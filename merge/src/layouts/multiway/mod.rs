//! The multiway family: one transformer whose blocks own experts by modality. vl-merging, VLMo and BEiT
//! spell it in three ways.

pub mod beit;
mod catalog;
mod fresh;
mod grammar;
mod relative_position;
mod sizes;
mod survey;
pub mod vl_merging;
pub mod vlmo;

pub use beit::Beit;
pub use catalog::{CatalogSpec, Form, Heads, catalog};
pub use relative_position::{Buffer, Window};
pub use sizes::{GivenSizes, Sizes};
pub use vl_merging::VlMerging;
pub use vlmo::Vlmo;

use crate::layouts::{BlockId, Part, PositionTable, TableForm};
use crate::{Checkpoint, Layout, ParamKind, Role, Slot};

/// The part under which the parameters of a slot are counted.
fn part(slot: &Slot) -> Part {
    if slot.block.is_some() {
        return Part::Blocks;
    }
    match grammar::outer_parameter(&slot.key) {
        Some(row) => row.part,
        None if grammar::is_image_tokenizer(&slot.key) => Part::Heads,
        None => Part::Other,
    }
}

/// The tables of positions among the keys of a checkpoint.
fn position_tables(checkpoint: &Checkpoint, layout: &dyn Layout) -> Vec<PositionTable> {
    let table = |key: &str| {
        let Ok(Role::Shared(slot)) = layout.role(key) else {
            return None;
        };
        let form = match (slot.kind, slot.key.as_str()) {
            (_, "transformer.pos_embed") => TableForm::Absolute,
            (ParamKind::PositionBias, key) if !key.starts_with("temporal") => TableForm::Relative,
            _ => return None,
        };
        let key = key.to_owned();
        Some(PositionTable { key, form })
    };
    checkpoint
        .tensors()
        .filter_map(|(key, _)| table(key))
        .collect()
}

/// The index of a block of the only stack.
fn index_of(slot: &Slot) -> Option<usize> {
    slot.block.map(|BlockId { index, .. }| index)
}
