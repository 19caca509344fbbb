//! FLM: CLIP's image tower, the lower half of RoBERTa, cross-modal layers, and a reconstructor that predicts every
//! token from both directions.
//!
//! Wang et al. 2023, "Accelerating Vision-Language Pretraining with Free Language Modeling",
//! <https://arxiv.org/abs/2303.14038>; keys as in <https://github.com/TencentARC/FLM>. One class of the published
//! program holds the models of all tasks; its modules have up to three names each.

mod fresh;
mod given;
mod place;
mod sizes;
mod survey;
mod table;
mod ties;

pub use fresh::{FlmSizes, FlmSpec, FlmTask};
pub use given::GivenFlmSizes;
pub(crate) use table::POSITIONS;

use crate::{Checkpoint, Error, Expert, Result, Role, Slot};

use super::{Description, Layout, LayoutFamily, Part, PositionTable, TableForm, boxed};
use place::{Place, nearest};
use table::{BOTTOM, CROSS, HEAD, IMAGE, TEXT, TOP};

/// The row of this family in the table of layouts.
pub(super) const FAMILY: LayoutFamily = LayoutFamily {
    name: NAME,
    deciding: "no key that only FLM has, such as `token_type_embeddings_flm.weight` or \
               `cross_modal_layers.<i>.crossattention.self.query.weight`",
    read: |checkpoint| Ok(boxed(Flm::read(checkpoint)?)),
    ties: ties::read,
};

const NAME: &str = "flm";

/// Beginnings of keys that only this family has.
const TELLING: [&str; 12] = [
    "token_type_embeddings_flm.",
    "fusion_layers_top.",
    "fusion_layers_bottom.",
    "fusion_token_embedding.",
    "cross_modal_layers.",
    "cross_modal_text_layers_r.",
    "cross_modal_text_transform_r.",
    "cross_modal_text_transform_f.",
    "cross_modal_text_pooler_f.",
    "text_transformer2.",
    "lm_score_r.",
    "lm_score_f.",
];

/// A key that only FLM has.
fn telling(checkpoint: &Checkpoint) -> Option<&str> {
    let tensors = checkpoint.tensors().map(|(key, _)| key);
    let mut keys = tensors.chain(checkpoint.aliases().keys().map(String::as_str));
    keys.find(|key| TELLING.iter().any(|start| key.starts_with(start)) && Place::of(key).is_some())
}

/// An FLM checkpoint.
#[derive(Clone, Debug)]
pub struct Flm {
    description: Description,
    positions: Vec<PositionTable>,
    /// Whether the three language heads are tensors of their own.
    has_own_heads: bool,
    is_three_stream: bool,
}

impl Flm {
    /// Reads names and shapes; `None` if the checkpoint is none of this family.
    ///
    /// # Errors
    /// [`Error::BadModelRecord`] and [`Error::RecordContradicted`].
    pub fn read(checkpoint: &Checkpoint) -> Result<Option<Self>> {
        let Some(example) = telling(checkpoint) else {
            return Ok(None);
        };
        let description = survey::describe(checkpoint, example)?;
        let has = |key: &str| checkpoint.tensors().any(|(name, _)| name == key);
        let positions = has(POSITIONS).then(|| PositionTable {
            key: POSITIONS.to_owned(),
            form: TableForm::AbsoluteRows,
        });
        Ok(Some(Self {
            description,
            positions: positions.into_iter().collect(),
            has_own_heads: ties::has_own_heads(checkpoint),
            is_three_stream: survey::is_three_stream(checkpoint),
        }))
    }
}

impl Layout for Flm {
    fn description(&self) -> &Description {
        &self.description
    }

    fn role(&self, key: &str) -> Result<Role> {
        let place = Place::of(key).ok_or_else(|| Error::UnknownKey {
            layout: NAME,
            key: key.to_owned(),
            nearest: nearest(key),
        })?;
        let is_own = self.has_own_heads && place.group.alias_of == Some(HEAD);
        match place.canonical().filter(|_| !is_own) {
            Some(of) => Ok(Role::Alias { of }),
            None if place.is_buffer() => Ok(Role::Derived),
            None => Ok(Role::Shared(place.slot())),
        }
    }

    /// The layer's own name, for the layers of all stacks and the two transforms. `attn.in_proj` of the image tower
    /// is one layer. Poolers and heads have none: which of them a pass runs depends on the task.
    fn gram_key(&self, slot: &Slot, _: Option<Expert>) -> Option<String> {
        let is_transform = slot.key.starts_with("cross_modal_text_transform")
            || slot.key.starts_with("cross_modal_image_transform");
        place::linear_layer(slot).filter(|_| slot.block.is_some() || is_transform)
    }

    fn part(&self, slot: &Slot) -> Part {
        let starts = |starts: &[&str]| starts.iter().any(|start| slot.key.starts_with(start));
        match slot.block.map(|block| block.stack) {
            Some(IMAGE) => Part::ImageEncoder,
            Some(TEXT) => Part::TextEncoder,
            Some(CROSS) => Part::CrossModal,
            Some(BOTTOM | TOP) => Part::Reconstructor,
            _ if starts(&["vit_model."]) => Part::ImageEncoder,
            _ if starts(&["text_transformer."]) => Part::TextEncoder,
            _ if slot.key.contains("_pooler") => Part::Pooler,
            _ if starts(&["cross_modal_"]) => Part::CrossModal,
            _ if starts(&["token_type_embeddings", "lm_type_embeddings"]) => Part::Embeddings,
            _ => Part::Heads,
        }
    }

    fn position_tables(&self) -> &[PositionTable] {
        &self.positions
    }
}
