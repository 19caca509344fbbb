//! Examples that are computed together.

use candle_core::{DType, Device, Tensor};
use evaluate::nn::Mask;

use crate::Result;

/// Texts as tensors.
#[derive(Clone, Debug)]
pub struct Words {
    /// `(b, t)`.
    pub ids: Tensor,
    /// 1 for tokens, 0 for padding: `(b, t)`, u8.
    pub kept: Tensor,
    /// The same, for attention.
    pub mask: Mask,
}

impl Words {
    /// From ids, `b` texts of the same length, and how many tokens of each are no padding.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(ids: Vec<u32>, n_tokens: &[usize], device: &Device) -> Result<Self> {
        let b = n_tokens.len();
        let t = ids.len() / b.max(1);
        let kept = n_tokens
            .iter()
            .flat_map(|&n| (0..t).map(move |at| u8::from(at < n)));
        Self::of_tensors(
            Tensor::from_vec(ids, (b, t), device)?,
            Tensor::from_vec(kept.collect::<Vec<_>>(), (b, t), device)?,
        )
    }

    /// From tensors of ids and of kept tokens.
    ///
    /// # Errors
    /// When the device fails.
    pub fn of_tensors(ids: Tensor, kept: Tensor) -> Result<Self> {
        let mask = Mask::new(&kept)?;
        Ok(Self {
            ids,
            kept: kept.to_dtype(DType::U8)?,
            mask,
        })
    }

    /// The texts of these numbers.
    ///
    /// # Errors
    /// When the device fails.
    pub fn select(&self, indices: &Tensor) -> Result<Self> {
        Self::of_tensors(
            self.ids.index_select(indices, 0)?,
            self.kept.index_select(indices, 0)?,
        )
    }
}

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
    /// `(b, 3, s, s)`.
    pub image: Option<Tensor>,
    /// The second image of a pair.
    pub second_image: Option<Tensor>,
    /// Captions, questions, statements.
    pub text: Option<Words>,
    /// The same with words masked.
    pub masked_words: Option<MaskedWords>,
    /// Which patches of the pictures are masked, and what is behind them.
    pub masked_patches: Option<MaskedPatches>,
    /// Soft scores of answers, `(b, answers)`.
    pub answers: Option<Tensor>,
    /// The class of each: 1 for a true statement, or the class of an image.
    pub classes: Option<Vec<u32>>,
}
