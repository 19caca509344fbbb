//! Steps of all objectives that guess words from those before and after them.

use candle_core::Tensor;
use evaluate::batch::Texts;
use evaluate::crossing;
use evaluate::models::{FreeLanguage, Stream};
use evaluate::nn::Pass;
use serde::{Deserialize, Serialize};

use super::masked_language::{Guesses, guess};
use super::{Loss, Step};
use crate::Result;

/// Settings of guessing words.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LanguageSettings {
    /// Factor of the words guessed left to right, beside 1 for those that queries guess: `flm`.
    pub forward_weight: f64,
    /// Factor of the words guessed right to left: `flm`.
    pub reverse_weight: f64,
    /// The share of tokens that a query misses, at least its own: `flm`.
    pub span_corruption: f64,
    /// The share of a text that is guessed, behind the prefix that all its tokens see: `prefix_lm`.
    pub suffix: f64,
    /// `ar` and `captioning` as the published program computes them with `causal_flm`: from queries, which
    /// see the word that they guess.
    pub as_published: bool,
}

impl Default for LanguageSettings {
    fn default() -> Self {
        Self::PUBLISHED
    }
}

impl LanguageSettings {
    /// As the published recipes have them, and half of a text as a prefix.
    pub const PUBLISHED: Self = Self {
        forward_weight: 1.0,
        reverse_weight: 1.0,
        span_corruption: 0.0,
        suffix: 0.5,
        as_published: false,
    };

    /// The fault of the settings, as a key and a reason.
    ///
    /// # Errors
    /// A factor that is negative or no number, a share outside of 0 to 1.
    pub fn check(&self) -> std::result::Result<(), (&'static str, String)> {
        for (key, weight) in [
            ("forward_weight", self.forward_weight),
            ("reverse_weight", self.reverse_weight),
        ] {
            if !(weight >= 0.0 && weight.is_finite()) {
                return Err((key, format!("{weight} is no factor; give 0 or more")));
            }
        }
        for (key, share) in [
            ("span_corruption", self.span_corruption),
            ("suffix", self.suffix),
        ] {
            if !(0.0..=1.0).contains(&share) {
                return Err((key, format!("{share} is no share; give 0 to 1")));
            }
        }
        Ok(())
    }
}

/// The tokens to guess, each with the state of a text that guesses it.
pub(super) struct Shifted<'a> {
    /// Ids, text after text.
    pub ids: &'a [u32],
    /// 1 for tokens, 0 for padding, likewise.
    pub kept: &'a [u8],
    /// Tokens of a text, padding included.
    pub t: usize,
}

/// Places and their labels, text after text.
#[derive(Default)]
pub(super) struct Targets {
    places: Vec<u32>,
    labels: Vec<u32>,
}

impl Shifted<'_> {
    /// Of every text the token `source + shift` from the state at `source`, for sources that `from` gives by
    /// the number of the text; padding is never guessed.
    pub fn targets(&self, shift: isize, from: impl Fn(usize) -> std::ops::Range<usize>) -> Targets {
        let mut targets = Targets::default();
        for text in 0..self.ids.len() / self.t.max(1) {
            for source in from(text) {
                let Some(target) = source.checked_add_signed(shift) else {
                    continue;
                };
                let at = text * self.t + target;
                if target < self.t && self.kept[at] != 0 {
                    targets.places.push((text * self.t + source) as u32);
                    targets.labels.push(self.ids[at]);
                }
            }
        }
        targets
    }
}

/// Ids and kept tokens of texts, on the host.
pub(super) struct HostTexts {
    ids: Vec<u32>,
    kept: Vec<u8>,
    t: usize,
}

impl HostTexts {
    pub fn of(texts: &Texts) -> Result<Self> {
        Ok(Self {
            ids: crossing::to_memory(&texts.ids.to_dtype(candle_core::DType::U32)?)?,
            kept: crossing::to_memory(&texts.kept)?,
            t: texts.ids.dim(1)?,
        })
    }

    pub fn shifted(&self) -> Shifted<'_> {
        Shifted {
            ids: &self.ids,
            kept: &self.kept,
            t: self.t,
        }
    }

    /// Tokens of a text, padding included.
    pub fn t(&self) -> usize {
        self.t
    }

    /// The number of tokens of each text.
    pub fn lengths(&self) -> Vec<usize> {
        let texts = self.kept.chunks(self.t.max(1));
        texts
            .map(|kept| kept.iter().filter(|&&kept| kept != 0).count())
            .collect()
    }
}

/// The mean cross entropy of words guessed from `states: (b, t, d)`, by the head of a stream.
pub(super) fn guess_shifted(
    states: &Tensor,
    targets: &Targets,
    stream: Stream,
    measure: &'static str,
    (model, pass): (&dyn FreeLanguage, &Pass<'_>),
    step: &Step<'_>,
) -> Result<Loss> {
    let guesses = Guesses {
        hidden: states.flatten_to(1)?, // (b t, d)
        places: &targets.places,
        labels: &targets.labels,
        measure,
    };
    guess(guesses, step, |rows, labels| {
        Ok(model.guess(stream, rows, labels, pass)?)
    })
}
