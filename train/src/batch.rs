//! Examples that are computed together.

use candle_core::Tensor;

pub use evaluate::batch::{Images, Texts};

/// Texts with words to be guessed.
#[derive(Clone, Debug)]
pub struct MaskedWords {
    /// The ids with words masked, `(b, t)`.
    pub ids: Tensor,
    /// Places to be guessed, as `row t + column`.
    pub places: Vec<u32>,
    /// The ids that were there.
    pub labels: Vec<u32>,
}

/// Patches to be guessed.
#[derive(Clone, Debug)]
pub struct MaskedPatches {
    /// 1 for a masked patch, `(b, p)`, u8.
    pub masked: Tensor,
    /// The pictures as their tokenizer wants them, `(b, 3, s, s)`.
    pub target_image: Tensor,
}

/// Examples of one rank that are computed together. What an objective does not need is not there.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The number of the first example in the whole batch of a step.
    pub first: usize,
    /// How many examples there are.
    pub n: usize,
    /// The pictures.
    pub image: Option<Images>,
    /// The second image of a pair.
    pub second_image: Option<Images>,
    /// Captions, questions, statements.
    pub text: Option<Texts>,
    /// The same with words masked.
    pub masked_words: Option<MaskedWords>,
    /// Which patches of the pictures are masked, and what is behind them.
    pub masked_patches: Option<MaskedPatches>,
    /// Soft scores of answers, `(b, answers)`.
    pub answers: Option<Tensor>,
    /// The class of each: 1 for a true statement, or the class of an image.
    pub classes: Option<Vec<u32>>,
}
