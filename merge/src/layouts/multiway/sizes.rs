//! Sizes of the multiway models, as published or as a user wants them.

use crate::{Error, Result};

use super::relative_position::Window;

/// Sizes of a model to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Number of blocks, L.
    pub n_blocks: usize,
    /// Hidden size, D.
    pub width: usize,
    /// Attention heads of each block.
    pub n_heads: usize,
    /// Inner size of the feed-forward network.
    pub ffn_width: usize,
    /// First block with a vision-language expert; the number of blocks for a model without.
    pub fusion_start: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Side of the image in pixels.
    pub image_size: usize,
    /// Text positions, T.
    pub text_len: usize,
    /// Text positions that the relative position bias table has room for.
    pub text_table_len: usize,
    /// Size of the word-piece vocabulary.
    pub vocabulary: usize,
    /// Answers of the question answering head.
    pub n_answers: usize,
    /// Classes of BEiT's own head: visual tokens or image classes.
    pub n_classes: usize,
}

/// Single sizes, each as in [`Sizes`]; sizes that are not given stay as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GivenSizes {
    /// Number of blocks.
    pub n_blocks: Option<usize>,
    /// Hidden size.
    pub width: Option<usize>,
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
    /// Text positions.
    pub text_len: Option<usize>,
    /// Text positions that the bias table has room for.
    pub text_table_len: Option<usize>,
    /// Size of the word-piece vocabulary.
    pub vocabulary: Option<usize>,
    /// Answers of the question answering head.
    pub n_answers: Option<usize>,
}

impl Sizes {
    /// The published base size: 12 blocks of width 768, images of 224 px.
    #[must_use]
    pub fn base() -> Self {
        Self {
            n_blocks: 12,
            width: 768,
            n_heads: 12,
            ffn_width: 3072,
            fusion_start: 10,
            patch_size: 16,
            image_size: 224,
            text_len: 40,
            text_table_len: 196,
            vocabulary: 30522,
            n_answers: 3129,
            n_classes: 8192,
        }
    }

    /// VLMo's base_plus: 24 blocks of width 544.
    #[must_use]
    pub fn base_plus() -> Self {
        Self {
            n_blocks: 24,
            width: 544,
            n_heads: 16,
            ffn_width: 2176,
            fusion_start: 21,
            ..Self::base()
        }
    }

    /// The published large size: 24 blocks of width 1024.
    #[must_use]
    pub fn large() -> Self {
        Self {
            n_blocks: 24,
            width: 1024,
            n_heads: 16,
            ffn_width: 4096,
            fusion_start: 21,
            ..Self::base()
        }
    }

    /// The published tiny size: 12 blocks of width 192.
    #[must_use]
    pub fn tiny() -> Self {
        Self {
            width: 192,
            n_heads: 3,
            ffn_width: 768,
            ..Self::base()
        }
    }

    /// With the sizes that are given in place of these; the FFN is four times as wide as a given
    /// width unless it is given too.
    #[must_use]
    pub fn with(mut self, given: &GivenSizes) -> Self {
        if let Some(width) = given.width {
            self.ffn_width = width.saturating_mul(4);
        }
        for (size, given) in [
            (&mut self.n_blocks, given.n_blocks),
            (&mut self.width, given.width),
            (&mut self.n_heads, given.n_heads),
            (&mut self.ffn_width, given.ffn_width),
            (&mut self.fusion_start, given.fusion_start),
            (&mut self.patch_size, given.patch_size),
            (&mut self.image_size, given.image_size),
            (&mut self.text_len, given.text_len),
            (&mut self.text_table_len, given.text_table_len),
            (&mut self.vocabulary, given.vocabulary),
            (&mut self.n_answers, given.n_answers),
        ] {
            if let Some(given) = given {
                *size = given;
            }
        }
        self
    }

    /// Checks what a user may have typed.
    ///
    /// # Errors
    /// [`Error::UnfitSizes`] for a size of zero, for one beyond any model (so that no number of
    /// elements overflows), and for sizes that contradict each other.
    pub fn check(&self) -> Result<()> {
        let limits = [
            (self.n_blocks, 1 << 12),
            (self.width, 1 << 18),
            (self.n_heads, 1 << 18),
            (self.ffn_width, 1 << 20),
            (self.patch_size, 1 << 14),
            (self.image_size, 1 << 14),
            (self.text_len, 1 << 20),
            (self.text_table_len, 1 << 20),
            (self.vocabulary, 1 << 24),
            (self.n_answers, 1 << 24),
            (self.n_classes, 1 << 24),
        ];
        let fits = |(size, most): &(usize, usize)| (1..=*most).contains(size);
        let reason = if !limits.iter().all(fits) {
            "a size is zero or beyond any model"
        } else if !self.width.is_multiple_of(self.n_heads) {
            "the width is not a multiple of the number of heads"
        } else if self.fusion_start > self.n_blocks {
            "the fusion starts behind the last block"
        } else if self.image_size < self.patch_size {
            "the image is smaller than a patch"
        } else if self.text_len > self.text_table_len {
            "the bias table has no room for the text"
        } else if self.text_table_len < 2 {
            "a bias table has room for at least 2 text positions"
        } else {
            return Ok(());
        };
        Err(Error::UnfitSizes { reason })
    }

    /// The window that the bias table and its indices belong to.
    #[must_use]
    pub fn window(&self) -> Window {
        Window {
            side: self.image_size / self.patch_size,
            text_len: self.text_len,
            fused_text_len: None,
            text_table_len: self.text_table_len,
        }
    }
}
