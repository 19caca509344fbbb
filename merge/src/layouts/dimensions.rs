//! Sizes of a model, and its stacks of blocks.

use std::collections::BTreeSet;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

/// Channels of one head in every published model of a known family.
pub(super) const HEAD_WIDTH: usize = 64;

/// The heads of blocks of this width if they are as wide as published ones, and a sentence that says so;
/// `None` for a width that such heads do not divide.
pub(super) fn published_heads(width: usize) -> Option<(usize, String)> {
    let heads = width / HEAD_WIDTH;
    (heads > 0 && width.is_multiple_of(HEAD_WIDTH)).then(|| {
        let said = format!("{heads} heads if they have {HEAD_WIDTH} channels each, as published");
        (heads, said)
    })
}

/// The number of blocks of a stack, by the indices of those that are there, and a sentence on them:
/// `text: 12 blocks of width 512, of which 2 are missing`.
pub(super) fn counted_blocks(
    name: &str,
    blocks: &BTreeSet<usize>,
    width: Option<usize>,
) -> (usize, String) {
    let n_blocks = blocks.last().map_or(0, |last| last + 1);
    let n_missing = n_blocks - blocks.len();
    let mut sentence = format!("{name}: {n_blocks} blocks");
    if let Some(width) = width {
        sentence += &format!(" of width {width}");
    }
    if n_missing > 0 {
        sentence += &format!(", of which {n_missing} are missing");
    }
    (n_blocks, sentence)
}

/// The side of the image in patches, by its number of positions: those of a class token and of a square of
/// patches. Another number is noted in `evidence`.
pub(super) fn patches_across(
    positions: Option<usize>,
    evidence: &mut Vec<String>,
) -> Option<usize> {
    let positions = positions?;
    let patches = positions.saturating_sub(1);
    let side = patches.isqrt();
    if side > 0 && side * side == patches {
        return Some(side);
    }
    evidence.push(format!(
        "image size unknown: {positions} image positions are no square and a class token"
    ));
    None
}

/// One of a model's stacks of blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stack {
    /// Its name in the family: `image`, `text`; `blocks` where there is one.
    pub name: &'static str,
    /// Number of blocks, L.
    pub n_blocks: usize,
    /// Hidden size, D; 0 if unknown.
    pub width: usize,
    /// Attention heads of each block.
    pub n_heads: Option<usize>,
    /// Inner size of the feed-forward network.
    pub ffn_width: Option<usize>,
}

/// Sizes of a model, read off its tensors (and its stored configuration where there is one).
/// Symbols are those of the papers; a size that cannot be known is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dimensions {
    /// The stacks of blocks, in the order of [`super::BlockId::stack`].
    pub stacks: Vec<Stack>,
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
    /// Width of the space in which a dual encoder compares image and text.
    pub joint_width: Option<usize>,
}

impl Dimensions {
    /// Of a model with one stack.
    #[must_use]
    pub fn of_one_stack(stack: Stack) -> Self {
        Self {
            stacks: vec![stack],
            ..Self::default()
        }
    }

    /// The stack of a name.
    #[must_use]
    pub fn stack(&self, name: &str) -> Option<&Stack> {
        self.stacks.iter().find(|stack| stack.name == name)
    }

    /// The stack of a model that has one; `None` if it has several or none.
    #[must_use]
    pub fn only_stack(&self) -> Option<&Stack> {
        match self.stacks.as_slice() {
            [stack] => Some(stack),
            _ => None,
        }
    }

    /// Blocks of the only stack; 0 if there is not exactly one.
    #[must_use]
    pub fn n_blocks(&self) -> usize {
        self.only_stack().map_or(0, |stack| stack.n_blocks)
    }

    /// Width of the only stack; 0 if unknown.
    #[must_use]
    pub fn width(&self) -> usize {
        self.only_stack().map_or(0, |stack| stack.width)
    }

    /// Heads of the only stack.
    #[must_use]
    pub fn n_heads(&self) -> Option<usize> {
        self.only_stack()?.n_heads
    }

    /// Inner size of the FFN of the only stack.
    #[must_use]
    pub fn ffn_width(&self) -> Option<usize> {
        self.only_stack()?.ffn_width
    }
}

impl Serialize for Dimensions {
    /// A model of one stack has the stack's sizes beside its own; others have them by stack.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self.only_stack() {
            Some(stack) => {
                map.serialize_entry("n_blocks", &stack.n_blocks)?;
                map.serialize_entry("width", &stack.width)?;
                map.serialize_entry("n_heads", &stack.n_heads)?;
                map.serialize_entry("ffn_width", &stack.ffn_width)?;
            }
            None => map.serialize_entry("stacks", &self.stacks)?,
        }
        let others = [
            ("fusion_start", self.fusion_start),
            ("patch_size", self.patch_size),
            ("image_size", self.image_size),
            ("text_len", self.text_len),
            ("text_table_len", self.text_table_len),
            ("vocabulary", self.vocabulary),
            ("n_token_types", self.n_token_types),
        ];
        for (name, size) in others {
            map.serialize_entry(name, &size)?;
        }
        if let Some(width) = self.joint_width {
            map.serialize_entry("joint_width", &width)?;
        }
        map.end()
    }
}
