//! Sizes of a tower of blocks, and their limits.

use crate::{Error, Result};

/// Sizes of a tower's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TowerSizes {
    /// Number of blocks.
    pub n_blocks: usize,
    /// Hidden size.
    pub width: usize,
    /// Attention heads of each block.
    pub n_heads: usize,
    /// Inner size of the feed-forward network.
    pub ffn_width: usize,
}

impl TowerSizes {
    /// The published base size: 12 blocks of width 768.
    pub const BASE: Self = Self {
        n_blocks: 12,
        width: 768,
        n_heads: 12,
        ffn_width: 3072,
    };

    /// Checks towers, the side of the image and of a patch, and other sizes with the most that each may be.
    ///
    /// # Errors
    /// [`Error::UnfitSizes`] for a size of zero, for one beyond any model (so that no number of elements
    /// overflows), and for sizes that contradict each other.
    pub(super) fn check(
        towers: &[Self],
        image_size: usize,
        patch_size: usize,
        others: &[(usize, usize)],
    ) -> Result<()> {
        let of_towers = towers.iter().flat_map(|tower| {
            [
                (tower.n_blocks, 1 << 12),
                (tower.width, 1 << 18),
                (tower.n_heads, 1 << 18),
                (tower.ffn_width, 1 << 20),
            ]
        });
        let of_image = [(patch_size, 1 << 14), (image_size, 1 << 14)];
        let mut sizes = of_towers.chain(of_image).chain(others.iter().copied());
        let fits = |(size, most): (usize, usize)| (1..=most).contains(&size);
        let reason = if !sizes.all(fits) {
            "a size is zero or beyond any model"
        } else if (towers.iter()).any(|tower| !tower.width.is_multiple_of(tower.n_heads)) {
            "the width of a tower is not a multiple of its number of heads"
        } else if !image_size.is_multiple_of(patch_size) {
            "the side of the image is not a multiple of that of a patch"
        } else {
            return Ok(());
        };
        Err(Error::UnfitSizes { reason })
    }
}
