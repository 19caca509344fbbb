//! Captions, written word by word: greedy as published, or by beam search.
//!
//! A model keeps what it has seen of an image and what it has written, so each word costs one row of one
//! step ([`Captioner`]). With one beam the word with the largest logit is taken each time, the first of
//! several.

mod beams;

use candle_core::Tensor;

use crate::batch::Images;
use crate::models::Captioner;
use crate::nn::Pass;
use crate::text::{CAPTION_BORDERS, Tokenizer};
use crate::{Result, TextFault};

use beams::Beams;

/// The settings of writing captions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Writing {
    /// Texts that are pursued at once for an image; one is greedy. An image is done when as many texts
    /// have ended.
    pub beams: usize,
    /// Of finished texts the one with the largest `Σ log p / n^penalty` is taken, where `n` counts its
    /// tokens and the one that ended it. At 0 the likeliest one, at 1 the one with the likeliest tokens.
    pub length_penalty: f64,
    /// Tokens after which a text ends, whatever it says.
    pub max_tokens: usize,
}

impl Default for Writing {
    /// As published: greedy, at most 30 tokens.
    fn default() -> Self {
        Self {
            beams: 1,
            length_penalty: 0.0,
            max_tokens: 30,
        }
    }
}

/// The tokens at which texts begin and end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The first token that a model gets.
    pub first: u32,
    /// Tokens that end a text.
    pub stops: Vec<u32>,
    /// Tokens that are never written: padding has no place of its own, so words after it would be read
    /// at the places of others.
    pub never: Vec<u32>,
}

impl Ends {
    /// Those of a tokenizer that has [`CAPTION_BORDERS`].
    ///
    /// # Errors
    /// [`TextFault::NoCaptionBorders`] when it lacks one of them.
    pub fn of(tokenizer: &Tokenizer) -> Result<Self> {
        let [Ok(first), Ok(last)] = CAPTION_BORDERS.map(|token| tokenizer.id_of(token)) else {
            return Err(TextFault::NoCaptionBorders {
                path: tokenizer.path().into(),
                n_tokens: tokenizer.vocabulary_size(),
            }
            .into());
        };
        let special = tokenizer.special();
        Ok(Self {
            first,
            stops: vec![special.borders[1], last],
            never: vec![special.padding],
        })
    }
}

/// A text as a model wrote it.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// Its tokens, without the one that ended it.
    pub ids: Vec<u32>,
    /// The token that ended it; none where it was cut.
    pub stop: Option<u32>,
    /// The sum of the logarithms of its tokens' probabilities, the ending one left out.
    pub log_prob: f64,
    /// The same with it.
    pub log_prob_with_stop: f64,
}

/// Writes a text for each image.
///
/// # Errors
/// As [`Captioner::see`] and [`Captioner::next`], and
/// [`Error::LogitNotANumber`](crate::Error::LogitNotANumber).
pub fn write(
    model: &dyn Captioner,
    images: &Images,
    ends: &Ends,
    writing: &Writing,
    pass: &Pass<'_>,
) -> Result<Vec<Written>> {
    let device = images.pixels.device().clone();
    let mut seen = model.see(images, pass)?;
    let n_images = images.pixels.dim(0)?;
    let mut beams = Beams::new(n_images, ends, writing);
    let mut ids = vec![ends.first; n_images];
    for _ in 0..writing.max_tokens {
        let logits = model.next(&mut seen, &Tensor::from_vec(ids, beams.n_rows(), &device)?)?;
        let n_ids = logits.dim(1)?;
        let logits = logits.to_dtype(candle_core::DType::F32)?.flatten_all()?;
        let step = beams.advance(&logits.to_vec1()?, n_ids)?;
        if step.ids.is_empty() {
            break;
        }
        if let Some(rows) = &step.rows {
            seen = seen.select(&Tensor::from_vec(rows.clone(), rows.len(), &device)?)?;
        }
        ids = step.ids;
    }
    Ok(beams.finish())
}
