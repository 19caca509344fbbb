//! Sizes of a ZeroVL that differ from the published ones.

use crate::layouts::TowerSizes;
use crate::layouts::dimensions::HEAD_WIDTH;

use super::fresh::ZerovlSizes;

/// Sizes of a tower that are given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GivenTower {
    /// Number of blocks.
    pub n_blocks: Option<usize>,
    /// Hidden size.
    pub width: Option<usize>,
    /// Attention heads of each block.
    pub n_heads: Option<usize>,
    /// Inner size of the feed-forward network.
    pub ffn_width: Option<usize>,
}

/// Sizes of a ZeroVL that are given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GivenTwoTowers {
    /// The image tower.
    pub image: GivenTower,
    /// The text tower, which is as the image tower where nothing is given.
    pub text: GivenTower,
    /// Side of a patch in pixels.
    pub patch_size: Option<usize>,
    /// Side of the image in pixels.
    pub image_size: Option<usize>,
    /// Size of the word-piece vocabulary.
    pub vocabulary: Option<usize>,
    /// Text positions.
    pub text_len: Option<usize>,
    /// Width of the joint space.
    pub joint_width: Option<usize>,
}

impl TowerSizes {
    /// These sizes with those that are given. With a width of its own a tower has heads of 64 channels,
    /// as far as they divide it, and an FFN of four times the width, unless they are given too.
    #[must_use]
    pub fn with(self, given: &GivenTower) -> Self {
        let by_width = |of: fn(usize) -> usize, like: usize| given.width.map_or(like, of);
        Self {
            n_blocks: given.n_blocks.unwrap_or(self.n_blocks),
            width: given.width.unwrap_or(self.width),
            n_heads: given
                .n_heads
                .unwrap_or_else(|| by_width(|width| (width / HEAD_WIDTH).max(1), self.n_heads)),
            ffn_width: given
                .ffn_width
                .unwrap_or_else(|| by_width(|width| width.saturating_mul(4), self.ffn_width)),
        }
    }
}

impl ZerovlSizes {
    /// These sizes with those that are given.
    #[must_use]
    pub fn with(self, given: &GivenTwoTowers) -> Self {
        let image = self.image.with(&given.image);
        Self {
            image,
            text: image.with(&given.text),
            patch_size: given.patch_size.unwrap_or(self.patch_size),
            image_size: given.image_size.unwrap_or(self.image_size),
            vocabulary: given.vocabulary.unwrap_or(self.vocabulary),
            text_len: given.text_len.unwrap_or(self.text_len),
            n_token_types: self.n_token_types,
            joint_width: given.joint_width.unwrap_or(self.joint_width),
        }
    }
}
