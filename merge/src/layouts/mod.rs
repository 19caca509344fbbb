//! Model families: which key is what.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{Checkpoint, Expert, Result, Role, Slot};

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

/// A family's key grammar, for one checkpoint.
pub trait Layout: Send + Sync {
    /// The family and form, e.g. `vl_merging/all_specific`, `vlmo/base`, `beit/shared_table`.
    fn name(&self) -> &'static str;

    /// Why the checkpoint was taken for this family: the deciding keys, in words.
    fn evidence(&self) -> &[String];

    /// The model's sizes.
    fn dimensions(&self) -> &Dimensions;

    /// What a key is.
    ///
    /// # Errors
    /// [`crate::Error::UnknownKey`] for a key outside the family's grammar.
    fn role(&self, key: &str) -> Result<Role>;

    /// The name under which published code stores the gram matrix of the inputs of `slot`, a
    /// linear weight, for one expert; `None` where the family has no such name.
    fn gram_key(&self, slot: &Slot, expert: Expert) -> Option<String> {
        let _ = (slot, expert);
        None
    }

    /// Experts that a task uses in a block, as the published program chooses them; `None` where
    /// the family publishes no choice. Methods differ: see `docs/parity.md`.
    fn published_experts(&self, task: Task, block: usize) -> Option<Vec<Expert>> {
        let _ = (task, block);
        None
    }
}

/// A downstream task with a published choice of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Image-text retrieval: COCO, Flickr30K.
    Irtr,
    /// Visual question answering.
    Vqa,
    /// Reasoning over two images.
    Nlvr2,
}

/// All slots of a checkpoint with the keys that fill them.
pub type SlotMap = BTreeMap<Slot, Vec<(Option<Expert>, String)>>;

/// Finds the family of a checkpoint by its keys and shapes; the generic layout if none fits.
///
/// # Errors
/// [`crate::Error::BrokenLayout`] when the keys are a family's but contradict each other.
pub fn detect(checkpoint: &Checkpoint) -> Result<Box<dyn Layout>> {
    let _ = checkpoint;
    unreachable!("written by the layouts part")
}
