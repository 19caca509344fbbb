//! Examples that are computed together.

use candle_core::Tensor;

pub use evaluate::batch::{Images, Texts};
use evaluate::streams::Span;

use crate::objectives::Negatives;

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

impl MaskedWords {
    /// From a label for each token of `ids`, row after row: −100 where nothing is to be guessed.
    #[must_use]
    pub fn of_labels(ids: Tensor, labels: &[i64]) -> Self {
        let masked = labels.iter().enumerate().filter(|(_, label)| **label >= 0);
        let (places, labels) = masked.map(|(at, label)| (at as u32, *label as u32)).unzip();
        Self {
            ids,
            places,
            labels,
        }
    }
}

/// Patches to be guessed.
#[derive(Clone, Debug)]
pub struct MaskedPatches {
    /// 1 for a masked patch, `(b, p)`, u8.
    pub masked: Tensor,
    /// The pictures as their tokenizer wants them, `(b, 3, s, s)`.
    pub target_image: Tensor,
}

/// Signals to be guessed: patches that are hidden and words that are masked, of the same pairs.
#[derive(Clone, Debug)]
pub struct MaskedSignals {
    /// 1 for a hidden patch, `(b, p)`, u8; as many of each image.
    pub patches: Tensor,
    /// The words.
    pub words: MaskedWords,
}

/// Examples of one rank that are computed together. Inputs that no objective needs are absent.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The number of the first example in the whole batch of a step.
    pub first: usize,
    /// The number of examples.
    pub n: usize,
    /// The pictures.
    pub image: Option<Images>,
    /// The second image of a pair.
    pub second_image: Option<Images>,
    /// Captions, questions, statements.
    pub text: Option<Texts>,
    /// The same with words masked.
    pub masked_words: Option<MaskedWords>,
    /// The masked patches of the pictures, and the tokens behind them.
    pub masked_patches: Option<MaskedPatches>,
    /// Patches and words to be guessed together.
    pub masked_signals: Option<MaskedSignals>,
    /// The first inputs of the query stream of free language modeling, `(b, t)`.
    pub queries: Option<Tensor>,
    /// A span to hide from each query beside its own token, in place of those that would be drawn.
    pub spans: Option<Vec<Span>>,
    /// An image drawn at random for each example.
    pub other_image: Option<Images>,
    /// Texts drawn at random: the n-th of each example together.
    pub other_texts: Vec<Texts>,
    /// Soft scores of answers, `(b, answers)`.
    pub answers: Option<Tensor>,
    /// The class of each: 1 for a true statement, or the class of an image.
    pub classes: Option<Vec<u32>>,
    /// The number of each example's image: the same for texts of one image.
    pub image_numbers: Option<Vec<u32>>,
    /// Negatives in place of those that would be drawn, by rows of the whole batch.
    pub negatives: Option<Negatives>,
}
