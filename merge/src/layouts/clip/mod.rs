//! CLIP and SigLIP: an image tower and a text tower that meet in one space, in the spellings of transformers and of
//! open_clip.
//!
//! Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
//! <https://arxiv.org/abs/2103.00020>; Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training",
//! <https://arxiv.org/abs/2303.15343>. Keys as in transformers and in <https://github.com/mlfoundations/open_clip>.
//!
//! Some spellings pack the projections to queries, keys and values in one tensor and hold projections transposed.
//! [`apart`] is the view of a checkpoint that merges read: each projection is a matrix of its own, so that a method gives
//! the same model whatever the spelling. [`respelled`] is the way back.

mod facts;
mod fresh;
mod spelling;
mod survey;
mod table;
mod view;

use std::sync::Arc;

pub(super) use facts::colors;
pub use facts::{ClipActivation, ClipConfig, ClipFacts, ClipLibrary, ClipResize, PooledText};
pub use fresh::{ClipSizes, ClipSpec};
pub use spelling::{ClipNames, ClipSpelling};

use crate::{Checkpoint, Error, Expert, ParamKind, Result, Role, Slot};

use super::{Description, Layout, LayoutFamily, Part, PositionTable, TableForm};
use super::{NO_TIES, boxed};
use crate::convert::Resize;
use table::{BUFFERS, CLASSIFIER, IMAGE_POSITIONS, OF_ARCHIVES, PROJECTIONS};
use table::{TEXT_POSITIONS, Tower};

/// The row of this family in the table of layouts.
pub(super) const FAMILY: LayoutFamily = LayoutFamily {
    name: "clip",
    deciding: "no first blocks of two towers, such as `vision_model.encoder.layers.0.self_attn.q_proj.weight` and \
               `text_model.encoder.layers.0.self_attn.q_proj.weight`, or \
               `visual.transformer.resblocks.0.attn.in_proj_weight` and `transformer.resblocks.0.attn.in_proj_weight`",
    read: |checkpoint| Ok(boxed(Clip::read(checkpoint)?)),
    ties: NO_TIES,
};

/// Names of the layouts of CLIPs and of SigLIPs.
const LAYOUTS: [&str; 2] = ["clip/clip", "clip/siglip"];

/// The attention by which a SigLIP pools its patches.
const POOL: &str = "vision_model.head.attention";

/// A CLIP or SigLIP checkpoint.
#[derive(Clone, Debug)]
pub struct Clip {
    description: Description,
    spelling: ClipSpelling,
    is_siglip: bool,
    positions: Vec<PositionTable>,
    text_positions: Option<String>,
}

impl Clip {
    /// Reads names and shapes, and the configuration beside the file; `None` if the checkpoint is none of this family.
    ///
    /// # Errors
    /// [`Error::BrokenLayout`], [`Error::BadModelRecord`], [`Error::RecordContradicted`], and when a configuration
    /// cannot be read.
    pub fn read(checkpoint: &Checkpoint) -> Result<Option<Self>> {
        let Some((spelling, example)) = ClipSpelling::of(checkpoint) else {
            return Ok(None);
        };
        let found = survey::describe(checkpoint, spelling, &example, LAYOUTS)?;
        let table = found.names.get(IMAGE_POSITIONS);
        let has_class = found.names.contains_key(table::CLASS);
        let form = match (spelling.names, has_class) {
            (ClipNames::OpenClipTimm, _) => TableForm::Patches,
            (_, true) => TableForm::AbsoluteRows,
            (_, false) => TableForm::PatchRows,
        };
        let positions = table.map(|key| PositionTable {
            key: key.clone(),
            form,
        });
        Ok(Some(Self {
            text_positions: found.names.get(TEXT_POSITIONS).cloned(),
            description: found.description,
            spelling,
            is_siglip: found.is_siglip,
            positions: positions.into_iter().collect(),
        }))
    }

    /// The spelling of its keys.
    #[must_use]
    pub fn spelling(&self) -> ClipSpelling {
        self.spelling
    }

    /// Whether it is a SigLIP.
    #[must_use]
    pub fn is_siglip(&self) -> bool {
        self.is_siglip
    }

    /// The facts by the checkpoint's form and by the configuration beside it.
    ///
    /// # Errors
    /// When a file cannot be read or is no JSON.
    pub fn config(&self, checkpoint: &Checkpoint) -> Result<ClipConfig> {
        ClipConfig::of(checkpoint, self.spelling)
    }
}

/// The configuration beside a CLIP, as a record; `None` for other families.
pub(super) fn record(checkpoint: &Checkpoint) -> Result<Option<super::ModelRecord>> {
    let Some(clip) = Clip::read(checkpoint)? else {
        return Ok(None);
    };
    let config = clip.config(checkpoint)?;
    if config == ClipConfig::default() {
        return Ok(None);
    }
    Ok(Some(config.record()))
}

/// A CLIP as merges read it: every projection is a tensor of its own under Hugging Face's names, and buffers are left
/// out. Also the spelling to give the result, if that differs. Other checkpoints are returned as they are.
///
/// # Errors
/// [`Error::BrokenLayout`] and [`crate::ConversionFault::Parts`].
pub fn apart(checkpoint: Arc<Checkpoint>) -> Result<(Arc<Checkpoint>, Option<ClipSpelling>)> {
    let Some((from, _)) = ClipSpelling::of(&checkpoint) else {
        return Ok((checkpoint, None));
    };
    let is_siglip = is_siglip(&checkpoint, from);
    let has_buffers = has_any(&checkpoint, from, &BUFFERS);
    let is_apart = matches!(from.names, ClipNames::Apart)
        || (from.names == ClipNames::HuggingFace && !is_siglip);
    if is_apart && !from.is_wrapped && !has_buffers {
        return Ok((checkpoint, None));
    }
    let view = view::respelled(checkpoint, from, ClipSpelling::APART, is_siglip)?;
    let back = (!is_apart || from.is_wrapped).then_some(from);
    Ok((view, back))
}

/// A CLIP under the keys of another spelling, without the buffers of OpenAI's archives; the same checkpoint if it has
/// them already or is of another family.
///
/// # Errors
/// [`crate::ConversionFault`] for what the other spelling cannot say, and [`Error::BrokenLayout`].
pub fn respelled(checkpoint: Arc<Checkpoint>, to: ClipSpelling) -> Result<Arc<Checkpoint>> {
    match ClipSpelling::of(&checkpoint) {
        // Of its own library an archive of OpenAI's has buffers that loaders refuse.
        Some((from, _)) if from != to || has_any(&checkpoint, from, &OF_ARCHIVES) => {
            let is_siglip = is_siglip(&checkpoint, from);
            view::respelled(checkpoint, from, to, is_siglip)
        }
        _ => Ok(checkpoint),
    }
}

fn has_any(checkpoint: &Checkpoint, spelling: ClipSpelling, buffers: &[&str]) -> bool {
    let mut keys = (buffers.iter()).map(|key| format!("{}{key}", spelling.wrapper()));
    keys.any(|key| checkpoint.get(&key).is_some())
}

fn is_siglip(checkpoint: &Checkpoint, spelling: ClipSpelling) -> bool {
    let probe = format!("{}vision_model.head.probe", spelling.wrapper());
    spelling.names == ClipNames::OpenClipTimm || checkpoint.get(&probe).is_some()
}

/// The gram matrix of the inputs of a weight, by the name that merges have for it.
fn gram_name(weight: &str) -> Option<String> {
    let layer = weight.strip_suffix(".weight")?;
    let shared = [".q_proj", ".k_proj", ".v_proj"];
    let own = shared.iter().find_map(|end| layer.strip_suffix(end));
    match own {
        Some(POOL) if layer.ends_with(".q_proj") => None,
        Some(POOL) => Some(format!("{POOL}.kv")),
        Some(attention) => Some(format!("{attention}.qkv")),
        None => Some(layer.to_owned()),
    }
}

impl Layout for Clip {
    fn description(&self) -> &Description {
        &self.description
    }

    fn role(&self, key: &str) -> Result<Role> {
        let bare = key.strip_prefix(self.spelling.wrapper()).unwrap_or(key);
        if BUFFERS.contains(&bare) {
            return Ok(Role::Derived);
        }
        let places = self.spelling.places(key);
        let place = places.first().ok_or_else(|| Error::UnknownKey {
            layout: self.description.name,
            key: key.to_owned(),
            nearest: super::nearest(self.spelling.all_keys(key).into_iter(), key),
        })?;
        let mut slot = place.slot(bare);
        // Merges never see packed projections.
        if places.len() > 1
            && let Some((module, _)) = slot.module.rsplit_once('.')
        {
            slot.module = module.to_owned();
        }
        Ok(Role::Shared(slot))
    }

    /// The layer's own name as merges have it; queries, keys and values read the same, so they share the matrix of
    /// `self_attn.qkv`. In the head of a SigLIP keys and values share that of `attention.kv`. Its queries have none: they
    /// read the probe alone, one row whatever the picture.
    fn gram_key(&self, slot: &Slot, _: Option<Expert>) -> Option<String> {
        if slot.kind != ParamKind::LinearWeight {
            return None;
        }
        let key = format!("{}{}", self.spelling.wrapper(), slot.key);
        let places = self.spelling.places(&key);
        places.iter().find_map(|place| gram_name(&place.name()))
    }

    fn part(&self, slot: &Slot) -> Part {
        let key = format!("{}{}", self.spelling.wrapper(), slot.key);
        let places = self.spelling.places(&key);
        let Some(place) = places.first() else {
            return Part::Other;
        };
        let name = place.name();
        match place.group.tower {
            _ if PROJECTIONS.contains(&name.as_str()) || name == "text_model.head.bias" => {
                Part::Projections
            }
            Tower::Image => Part::ImageEncoder,
            Tower::Text => Part::TextEncoder,
            Tower::Both if name == CLASSIFIER => Part::Heads,
            Tower::Both => Part::LogitScales,
        }
    }

    fn position_tables(&self) -> &[PositionTable] {
        &self.positions
    }

    fn text_position_table(&self) -> Option<&str> {
        self.text_positions.as_deref()
    }

    /// As open_clip resizes when it loads a model, and transformers when it runs one.
    fn default_resize(&self) -> Resize {
        match self.spelling.names {
            ClipNames::Apart | ClipNames::HuggingFace => Resize::Bicubic,
            ClipNames::OpenClip | ClipNames::OpenClipTimm => Resize::BicubicAntialiased,
        }
    }
}
