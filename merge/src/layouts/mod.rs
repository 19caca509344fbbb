//! Model families: which key is what. One file or folder a family, and one row of [`LAYOUTS`].

pub mod clip;
mod count;
mod dimensions;
mod eve;
mod flm;
mod generic;
mod gram_names;
mod keys;
mod multiway;
mod packing;
mod pictures;
mod record;
mod resnet;
mod runs;
mod table;
mod ties;
mod towers;
mod vit;
mod zerovl;

pub use clip::{
    Clip, ClipActivation, ClipConfig, ClipFacts, ClipLibrary, ClipNames, ClipResize, ClipSizes,
    ClipSpec, ClipSpelling, PooledText,
};
pub use count::{Count, PartCounts, count};
pub use dimensions::{Dimensions, Stack};
pub use eve::{Eve, EveSizes, EveSpec, EveTask, eve_key};
pub(crate) use flm::POSITIONS as FLM_POSITIONS;
pub use flm::{Flm, FlmSizes, FlmSpec, FlmTask, GivenFlmSizes};
pub use generic::Generic;
pub use gram_names::GramNames;
pub use keys::{WRAPPER, without_module};
pub use multiway::{Beit, VlMerging, Vlmo, beit, vl_merging, vlmo};
pub use multiway::{Buffer, CatalogSpec, Form, GivenSizes, Heads, Sizes, Window, catalog};
pub use packing::{Packing, apart};
pub use pictures::{PictureCrop, PictureFacts, PictureFilter};
pub use record::{ModelRecord, OneStream, RecordFamily, ShallowAttention};
pub use resnet::{Resnet, ResnetConfig};
pub use table::{LAYOUTS, LayoutFamily, NAMES, by_name, detect};
pub(crate) use ties::tied;
pub use ties::{ReadTies, Ties};
pub use towers::TowerSizes;
pub use vit::{Vit, VitConfig, VitFacts, VitPool, VitSpelling};
pub use zerovl::{GivenTower, GivenTwoTowers, Zerovl, ZerovlSizes, ZerovlSpec};

use keys::{nearest, split_block};
use table::boxed;
use ties::NO_TIES;

use serde::Serialize;

use crate::convert::Resize;
pub use crate::group::BlockId;
use crate::{Expert, ParamKind, Result, Role, Slot};

/// The description of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The family and form, e.g. `vl_merging/all_specific`, `vlmo/base`, `zerovl`.
    pub name: &'static str,
    /// The reasons for this family, and the sources of the sizes, in sentences.
    pub evidence: Vec<String>,
    /// The model's sizes.
    pub dimensions: Dimensions,
}

/// A family's key grammar, for one checkpoint.
pub trait Layout: Send + Sync {
    /// The description of the checkpoint.
    fn description(&self) -> &Description;

    /// The family and form, as [`Description::name`].
    fn name(&self) -> &'static str {
        self.description().name
    }

    /// The reasons, as [`Description::evidence`].
    fn evidence(&self) -> &[String] {
        &self.description().evidence
    }

    /// The model's sizes.
    fn dimensions(&self) -> &Dimensions {
        &self.description().dimensions
    }

    /// The role of a key.
    ///
    /// # Errors
    /// [`crate::Error::UnknownKey`] for a key outside the family's grammar.
    fn role(&self, key: &str) -> Result<Role>;

    /// The part under which the parameters of a slot are counted.
    fn part(&self, slot: &Slot) -> Part;

    /// The name of the gram matrix of the inputs of `slot`, for one expert's copy or for the one that all
    /// share: passes record it, gram files keep it and merges look for it under this name alone. `None`
    /// for other tensors than linear weights, and for linear weights whose inputs the family does not record.
    fn gram_key(&self, slot: &Slot, expert: Option<Expert>) -> Option<String>;

    /// The name under which passes record how a router, whose weight `slot` is, sends tokens to its experts
    /// ([`crate::mixtures::Routing`]); `None` where the family does not record it.
    fn routing_key(&self, slot: &Slot) -> Option<String> {
        let _ = slot;
        None
    }

    /// The tables that another image size changes, as the file spells them.
    fn position_tables(&self) -> &[PositionTable] {
        &[]
    }

    /// The table of text positions, as the file spells it, of a family whose program resamples it for texts of another
    /// length; others are cut.
    fn text_position_table(&self) -> Option<&str> {
        None
    }

    /// The buffer `key` of a model with `side` patches a side, where it follows from that alone. Other buffers
    /// that depend on the image are those of [`Window`].
    fn buffer_for(&self, key: &str, side: usize) -> Option<Buffer> {
        let _ = (key, side);
        None
    }

    /// The family's own way of resizing them.
    fn default_resize(&self) -> Resize {
        Resize::Bicubic
    }

    /// Experts that own something in a block, in the order of [`Expert`]; empty where all is shared.
    fn block_experts(&self, block: BlockId) -> Vec<Expert> {
        let _ = block;
        Vec::new()
    }

    /// Experts that a task runs in a block, in the order of [`Expert`], as the published
    /// interpolation and arithmetic choose them on request: `vision` and `language` in shallow
    /// blocks; from the fusion start on the same for retrieval, `vision_language` for the rest.
    /// Empty where the family publishes no choice. The published RegMean chooses by a rule of its
    /// own.
    fn used_experts(&self, task: Task, block: BlockId) -> Vec<Expert> {
        let _ = (task, block);
        Vec::new()
    }
}

/// A table of positions in the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PositionTable {
    /// Its key.
    pub key: String,
    /// The meaning of its rows.
    pub form: TableForm,
}

/// The meaning of the rows of a table of positions, in a window of `w × w` patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableForm {
    /// Shape `(1, 1 + w², d)`: the class token, then patches row by row.
    Absolute,
    /// The same without the first axis: shape `(1 + w², d)`.
    AbsoluteRows,
    /// Shape `(1, n + w², d)`: this number of other tokens, then patches.
    Behind(usize),
    /// Shape `(1, w², d)`: patches alone.
    Patches,
    /// Shape `(w², d)`: patches alone.
    PatchRows,
    /// Shape `((2w − 1)² + others, heads)`: pairs of patches by their offset, then rows that do not
    /// depend on the window.
    Relative,
}

/// A downstream task with a published choice of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Image-text retrieval: COCO, Flickr30K. Published programs write `irtr`.
    #[serde(alias = "irtr")]
    Retrieval,
    /// Visual question answering.
    Vqa,
    /// Reasoning over two images.
    Nlvr2,
}

impl Task {
    /// Every task, in the order of lists.
    pub const ALL: [Self; 3] = [Self::Retrieval, Self::Vqa, Self::Nlvr2];

    /// Its name in recipes, flags and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Retrieval => "retrieval",
            Self::Vqa => "vqa",
            Self::Nlvr2 => "nlvr2",
        }
    }

    /// Other names that mean the same.
    #[must_use]
    pub const fn aliases(self) -> &'static [&'static str] {
        match self {
            Self::Retrieval => &["irtr"],
            Self::Vqa | Self::Nlvr2 => &[],
        }
    }

    /// The task with this name, or with this one among its others.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|task| task.name() == name || task.aliases().contains(&name))
    }

    /// The task of a model, in a few words.
    #[must_use]
    pub const fn about(self) -> &'static str {
        match self {
            Self::Retrieval => "Texts for images and images for texts",
            Self::Vqa => "Questions about images",
            Self::Nlvr2 => "Statements about two images",
        }
    }
}

/// The part under which parameters are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Part {
    /// The transformer's blocks.
    Blocks,
    /// The image tower, all of it.
    ImageEncoder,
    /// The text tower, all of it.
    TextEncoder,
    /// Layers in which text and image meet, and the transforms before them.
    CrossModal,
    /// Layers that predict each token from both directions.
    Reconstructor,
    /// Tokens, types, patches, class and mask token, text positions.
    Embeddings,
    /// Relative position bias tables and image position embeddings.
    PositionTables,
    /// The norm after the last block.
    FinalNorm,
    /// The pooler.
    Pooler,
    /// Projections of a dual encoder into the joint space.
    Projections,
    /// Task heads and projections, the frozen image tokenizer included.
    Heads,
    /// Temperatures of contrastive losses, as logarithms of a factor.
    LogitScales,
    /// The temperature of a contrastive loss, as the divisor itself.
    Temperature,
    /// Buffers that a loader rebuilds.
    Buffers,
    /// Keys that the layout does not know, or knows nothing about.
    Other,
}

/// The linear layer that a slot is the weight of, as its key names it; `None` for any other slot.
pub(crate) fn layer_of(slot: &Slot) -> Option<String> {
    let is_linear = slot.kind == ParamKind::LinearWeight;
    let layer = slot.key.strip_suffix(".weight").filter(|_| is_linear)?;
    Some(layer.to_owned())
}
