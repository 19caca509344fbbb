//! Sizes of an FLM that differ from the published ones.

use crate::layouts::GivenTower;

use super::fresh::FlmSizes;

/// Sizes of an FLM that are given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GivenFlmSizes {
    /// The image tower.
    pub image: GivenTower,
    /// The text tower, whose width, heads and FFN are those of the cross-modal layers, too.
    pub text: GivenTower,
    /// Number of cross-modal layers.
    pub n_cross: Option<usize>,
    /// Layers of the reconstructor beside those of the text: as many, unless given.
    pub n_bottom: Option<usize>,
    /// Layers of the reconstructor beside the cross-modal ones: as many, unless given.
    pub n_top: Option<usize>,
    /// Side of a patch in pixels.
    pub patch_size: Option<usize>,
    /// Side of the image in pixels.
    pub image_size: Option<usize>,
    /// Tokens.
    pub vocabulary: Option<usize>,
    /// Tokens of a text.
    pub text_len: Option<usize>,
    /// Answers of the VQA classifier.
    pub n_answers: Option<usize>,
}

impl FlmSizes {
    /// These sizes with those that are given.
    #[must_use]
    pub fn with(self, given: &GivenFlmSizes) -> Self {
        let text = self.text.with(&given.text);
        let cross = self.cross.with(&GivenTower {
            n_blocks: given.n_cross,
            ..given.text
        });
        Self {
            image: self.image.with(&given.image),
            n_bottom: given.n_bottom.unwrap_or(text.n_blocks),
            n_top: given.n_top.unwrap_or(cross.n_blocks),
            text,
            cross,
            patch_size: given.patch_size.unwrap_or(self.patch_size),
            image_size: given.image_size.unwrap_or(self.image_size),
            vocabulary: given.vocabulary.unwrap_or(self.vocabulary),
            // The table's first two rows are of no position.
            text_positions: (given.text_len)
                .map_or(self.text_positions, |text_len| text_len.saturating_add(2)),
            n_answers: given.n_answers.unwrap_or(self.n_answers),
            ..self
        }
    }
}
