//! Draws the words of a text that a model has to guess.

use std::ops::Range;

use evaluate::text::{Tokenizer, WordBoundaries};
use evaluate::{Error, Result};
use merge::random::Sequence;

/// The most tokens that are masked in a text, by whole words.
const MAX_MASKED: usize = 512;

/// The kinds of a tokenizer's ids, as far as masking needs them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenKinds {
    /// The tokens of each word; none where only single tokens are masked.
    pub words: Option<WordBoundaries>,
    /// Ids, counted to the largest: random ones are drawn of them.
    pub n_ids: usize,
    /// The token in place of a masked one.
    pub mask: u32,
    /// The token that fills short texts up.
    pub padding: u32,
    /// The tokens at the beginning and at the end of a text.
    pub borders: [u32; 2],
    /// The tokens that are never to be guessed.
    pub special: Vec<u32>,
}

impl TokenKinds {
    /// Of a tokenizer; `whole_words` where words are masked as a whole.
    ///
    /// # Errors
    /// [`Error::SpecialToken`] when it lacks the mask, and as [`Tokenizer::word_boundaries`].
    pub fn read(tokenizer: &Tokenizer, whole_words: bool) -> Result<Self> {
        let special = tokenizer.special();
        let mask = special.mask.ok_or_else(|| Error::SpecialToken {
            path: tokenizer.path().into(),
            token: "[MASK] or <mask>".into(),
        })?;
        Ok(Self {
            words: whole_words
                .then(|| tokenizer.word_boundaries())
                .transpose()?,
            n_ids: tokenizer.vocabulary_size(),
            mask,
            padding: special.padding,
            borders: special.borders,
            special: special.all(),
        })
    }

    /// Whether a token is never to be guessed.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    fn joins(&self, before: u32, id: u32) -> bool {
        let words = self.words.as_ref();
        words.is_some_and(|words| words.joins(before, id))
    }
}

/// A text with words masked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MaskedText {
    /// The ids, masked.
    pub ids: Vec<u32>,
    /// The places of the tokens to guess, in order.
    pub places: Vec<u32>,
    /// The ids that were there.
    pub labels: Vec<u32>,
}

/// The replacement of a chosen token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replacement {
    /// The mask stands in its place.
    Mask,
    /// Another token does.
    Token(u32),
    /// It stays.
    None,
}

/// Masks words: of the chosen tokens 80 % become the mask, 10 % a random token, 10 % stay.
///
/// Devlin et al. 2018, "BERT", <https://arxiv.org/abs/1810.04805>, section 3.1 and appendix A.1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WordMasking {
    /// The probability that a token is chosen, or the share of tokens that are chosen by whole words.
    pub probability: f64,
    /// Chooses all pieces of a word or none.
    pub whole_word: bool,
    /// Padding takes part when whole words are chosen, as in the published program: the number of
    /// tokens is taken of the padded length, and what falls on padding is lost. Else padding is
    /// neither counted nor chosen.
    pub counts_padding: bool,
    /// Every place of the padded text is a word of its own, special tokens and padding among them, as
    /// FLM's published program chooses; what falls on them is lost.
    pub every_place: bool,
}

impl Default for WordMasking {
    /// 15 % by whole words, padding counted.
    fn default() -> Self {
        Self {
            probability: 0.15,
            whole_word: true,
            counts_padding: true,
            every_place: false,
        }
    }
}

impl WordMasking {
    /// Masks a text that is filled up to its length.
    #[must_use]
    pub fn apply(&self, kinds: &TokenKinds, ids: &[u32], draws: &mut Sequence) -> MaskedText {
        let chosen = match self.whole_word || self.every_place {
            true => {
                let (mut words, budget) = self.words(kinds, ids);
                draws.shuffle(&mut words);
                fill(words, budget)
            }
            false => (0..ids.len())
                .filter(|_| draws.chance(self.probability))
                .collect(),
        };
        replace(kinds, ids, chosen, |_| {
            let draw = draws.uniform();
            match () {
                () if draw < 0.8 => Replacement::Mask,
                () if draw < 0.9 => Replacement::Token(draws.below(kinds.n_ids) as u32),
                () => Replacement::None,
            }
        })
    }

    /// The words that may be chosen, each as the range of its tokens, and how many tokens are to be.
    #[must_use]
    pub fn words(&self, kinds: &TokenKinds, ids: &[u32]) -> (Vec<Range<usize>>, usize) {
        let mut words: Vec<Range<usize>> = Vec::new();
        let mut n_counted = 0;
        for (place, &id) in ids.iter().enumerate() {
            if self.every_place {
                n_counted += 1;
                words.push(place..place + 1);
                continue;
            }
            if id == kinds.padding && !self.counts_padding {
                continue;
            }
            n_counted += 1;
            if kinds.borders.contains(&id) {
                continue;
            }
            match words.last_mut() {
                Some(word) if word.end == place && kinds.joins(ids[place - 1], id) => word.end += 1,
                _ => words.push(place..place + 1),
            }
        }
        let share = (f64::from(n_counted) * self.probability).round_ties_even();
        (words, (share as usize).clamp(1, MAX_MASKED))
    }
}

/// The places of words, as many as fit into the budget. A word that does not fit is passed over, and
/// shorter ones behind it may still fit.
#[must_use]
pub fn fill(words: Vec<Range<usize>>, budget: usize) -> Vec<usize> {
    let mut chosen = Vec::with_capacity(budget);
    for word in words {
        if chosen.len() >= budget {
            break;
        }
        if chosen.len() + word.len() <= budget {
            chosen.extend(word);
        }
    }
    chosen
}

/// The text with chosen places replaced in order, those with special tokens left out.
#[must_use]
pub fn replace(
    kinds: &TokenKinds,
    ids: &[u32],
    mut chosen: Vec<usize>,
    mut replacement: impl FnMut(usize) -> Replacement,
) -> MaskedText {
    chosen.retain(|&place| !kinds.is_special(ids[place]));
    chosen.sort_unstable();
    let mut masked = MaskedText {
        ids: ids.to_vec(),
        ..MaskedText::default()
    };
    for place in chosen {
        masked.places.push(place as u32);
        masked.labels.push(ids[place]);
        match replacement(place) {
            Replacement::Mask => masked.ids[place] = kinds.mask,
            Replacement::Token(id) => masked.ids[place] = id,
            Replacement::None => {}
        }
    }
    masked
}
