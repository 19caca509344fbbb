//! Model families: which key is what.

mod count;
mod generic;
mod gram_names;
mod multiway;

pub use count::{Count, PartCounts, count};
pub use generic::Generic;
pub use gram_names::GramNames;
pub use multiway::{Beit, VlMerging, Vlmo, beit, vl_merging, vlmo};
pub use multiway::{Buffer, CatalogSpec, Form, GivenSizes, Heads, ModelRecord};
pub use multiway::{ShallowAttention, Sizes, Window, catalog};

use serde::Serialize;

use crate::{Checkpoint, Error, Expert, ParamKind, Result, Role, Slot};

/// Sizes of a model, read off its tensors (and its stored configuration where there is one).
/// Symbols are those of the papers; what cannot be known is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Dimensions {
    /// Number of blocks, L.
    pub n_blocks: usize,
    /// Hidden size, D.
    pub width: usize,
    /// Attention heads of each block.
    pub n_heads: Option<usize>,
    /// Inner size of the feed-forward network.
    pub ffn_width: Option<usize>,
    /// First block with a vision-language expert.
    pub fusion_start: Option<usize>,
    /// Side of a patch in pixels.
    pub patch_size: Option<usize>,
    /// Side of the image in pixels.
    pub image_size: Option<usize>,
    /// Text positions, T.
    pub text_len: Option<usize>,
    /// Text positions that the relative position bias table has room for.
    pub text_table_len: Option<usize>,
    /// Size of the word-piece vocabulary.
    pub vocabulary: Option<usize>,
    /// Rows of the outer token type table: 2, or 3 for NLVR2.
    pub n_token_types: Option<usize>,
}

/// What a checkpoint was found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The family and form, e.g. `vl_merging/all_specific`, `vlmo/base`, `beit/shared_table`.
    pub name: &'static str,
    /// Why the checkpoint was taken for this family, and how its sizes were found, in sentences.
    pub evidence: Vec<String>,
    /// The model's sizes.
    pub dimensions: Dimensions,
}

/// A family's key grammar, for one checkpoint.
pub trait Layout: Send + Sync {
    /// What the checkpoint was found to be.
    fn description(&self) -> &Description;

    /// The family and form, as [`Description::name`].
    fn name(&self) -> &'static str {
        self.description().name
    }

    /// Why, as [`Description::evidence`].
    fn evidence(&self) -> &[String] {
        &self.description().evidence
    }

    /// The model's sizes.
    fn dimensions(&self) -> &Dimensions {
        &self.description().dimensions
    }

    /// What a key is.
    ///
    /// # Errors
    /// [`Error::UnknownKey`] for a key outside the family's grammar.
    fn role(&self, key: &str) -> Result<Role>;

    /// The name of the gram matrix of the inputs of `slot`, for one expert's copy or for the one that all
    /// share: passes record it, gram files keep it and merges look for it under this name alone. `None`
    /// for what is no linear weight, and for linear weights whose inputs the family does not record.
    fn gram_key(&self, slot: &Slot, expert: Option<Expert>) -> Option<String>;

    /// Experts that own something in a block, in the order of [`Expert`]; empty where all is shared.
    fn block_experts(&self, block: usize) -> Vec<Expert> {
        let _ = block;
        Vec::new()
    }

    /// Experts that a task runs in a block, in the order of [`Expert`], as the published
    /// interpolation and arithmetic choose them on request: `vision` and `language` in shallow
    /// blocks; from the fusion start on the same for retrieval, `vision_language` for the rest.
    /// Empty where the family publishes no choice. The published RegMean chooses by a rule of its
    /// own.
    fn used_experts(&self, task: Task, block: usize) -> Vec<Expert> {
        let _ = (task, block);
        Vec::new()
    }
}

/// A downstream task with a published choice of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Image-text retrieval: COCO, Flickr30K. Published programs write `irtr`.
    #[serde(rename = "retrieval", alias = "irtr")]
    Irtr,
    /// Visual question answering.
    Vqa,
    /// Reasoning over two images.
    Nlvr2,
}

/// What a part of a model is counted under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Part {
    /// The transformer's blocks.
    Blocks,
    /// Tokens, types, patches, class and mask token, text positions.
    Embeddings,
    /// Relative position bias tables and image position embeddings.
    PositionTables,
    /// The norm after the last block.
    FinalNorm,
    /// The pooler.
    Pooler,
    /// Task heads and projections, the frozen image tokenizer included.
    Heads,
    /// Temperatures of contrastive losses.
    LogitScales,
    /// Buffers that a loader rebuilds.
    Buffers,
    /// Keys that the layout does not know, or knows nothing about.
    Other,
}

/// Names that [`by_name`] takes.
pub const NAMES: [&str; 4] = ["vl_merging", "vlmo", "beit", "generic"];

/// Finds the family of a checkpoint by its keys and shapes; the generic layout if none fits.
///
/// # Errors
/// [`Error::BrokenLayout`] when the keys are a family's but two of them claim one place.
pub fn detect(checkpoint: &Checkpoint) -> Result<Box<dyn Layout>> {
    if let Some(layout) = boxed(Vlmo::read(checkpoint)?) {
        return Ok(layout);
    }
    if let Some(layout) = boxed(Beit::read(checkpoint)?) {
        return Ok(layout);
    }
    if let Some(layout) = boxed(VlMerging::read(checkpoint)?) {
        return Ok(layout);
    }
    Ok(Box::new(Generic::read(checkpoint)))
}

/// The layout of the family called `name` for a checkpoint: one of [`NAMES`], or with its form, as
/// [`Layout::name`] gives it.
///
/// # Errors
/// [`Error::UnknownLayout`], [`Error::LayoutMismatch`] when the checkpoint holds none of the
/// family's deciding keys or is of another form, and [`Error::BrokenLayout`].
pub fn by_name(name: &str, checkpoint: &Checkpoint) -> Result<Box<dyn Layout>> {
    let family = name.split('/').next().unwrap_or(name);
    let (found, missing) = match family {
        "vl_merging" => (boxed(VlMerging::read(checkpoint)?), vl_merging::DECIDING),
        "vlmo" => (boxed(Vlmo::read(checkpoint)?), vlmo::DECIDING),
        "beit" => (boxed(Beit::read(checkpoint)?), beit::DECIDING),
        "generic" => (boxed(Some(Generic::read(checkpoint))), ""),
        _ => {
            return Err(Error::UnknownLayout {
                name: name.to_owned(),
                nearest: NAMES
                    .iter()
                    .max_by(|a, b| strsim::jaro(a, name).total_cmp(&strsim::jaro(b, name)))
                    .map(|nearest| (*nearest).to_owned()),
            });
        }
    };
    let mismatch = |reason| Error::LayoutMismatch {
        path: checkpoint.path().into(),
        layout: name.to_owned(),
        reason,
    };
    let layout = found.ok_or_else(|| mismatch(missing.to_owned()))?;
    if name != family && name != layout.name() {
        return Err(mismatch(format!("it is {}", layout.name())));
    }
    Ok(layout)
}

/// The linear layer that a slot is the weight of, as its key names it; `None` for any other slot.
pub(crate) fn layer_of(slot: &Slot) -> Option<String> {
    let is_linear = slot.kind == ParamKind::LinearWeight;
    let layer = slot.key.strip_suffix(".weight").filter(|_| is_linear)?;
    Some(layer.to_owned())
}

fn boxed<L: Layout + 'static>(layout: Option<L>) -> Option<Box<dyn Layout>> {
    layout.map(|layout| Box::new(layout) as Box<dyn Layout>)
}
