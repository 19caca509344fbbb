//! Which words of a text are to be guessed.

use evaluate::Result;
use evaluate::text::Tokenizer;
use merge::random::Sequence;

/// The most tokens that are masked in a text, by whole words.
const MAX_MASKED: usize = 512;

/// What a tokenizer's ids are, as far as masking needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WordPieces {
    /// By id, whether the token goes on with the word of the token before it (`##`).
    pub continues: Vec<bool>,
    /// The token in place of a masked one.
    pub mask: u32,
    /// The token that fills short texts up.
    pub padding: u32,
    /// The tokens at the beginning and at the end of a text.
    pub borders: [u32; 2],
    /// The token in place of what is not in the vocabulary.
    pub unknown: u32,
}

impl WordPieces {
    /// Of a tokenizer with BERT's special tokens.
    ///
    /// # Errors
    /// [`evaluate::Error::SpecialToken`] when it lacks one of them.
    pub fn read(tokenizer: &Tokenizer) -> Result<Self> {
        Ok(Self {
            continues: tokenizer.continuing(),
            mask: tokenizer.id_of("[MASK]")?,
            padding: tokenizer.padding_id(),
            borders: [tokenizer.id_of("[CLS]")?, tokenizer.id_of("[SEP]")?],
            unknown: tokenizer.id_of("[UNK]")?,
        })
    }

    /// Whether a token is never to be guessed.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        let [first, last] = self.borders;
        [self.mask, self.padding, first, last, self.unknown].contains(&id)
    }

    fn continues(&self, id: u32) -> bool {
        self.continues.get(id as usize).copied().unwrap_or(false)
    }
}

/// A text with words masked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MaskedText {
    /// The ids, masked.
    pub ids: Vec<u32>,
    /// Where a token is to be guessed, in order.
    pub places: Vec<u32>,
    /// The ids that were there.
    pub labels: Vec<u32>,
}

/// Masks words: of the chosen tokens 80 % become the mask, 10 % a random token, 10 % stay.
///
/// Devlin et al. 2018, "BERT", <https://arxiv.org/abs/1810.04805>, section 3.1 and appendix A.1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WordMasking {
    /// How likely a token is chosen, or the share of tokens that are chosen by whole words.
    pub probability: f64,
    /// Chooses all pieces of a word or none.
    pub whole_word: bool,
    /// Padding takes part when whole words are chosen, as in the published program: the number of
    /// tokens is taken of the padded length, and what falls on padding is lost. Else padding is
    /// neither counted nor chosen.
    pub counts_padding: bool,
}

impl Default for WordMasking {
    /// 15 % by whole words, padding counted.
    fn default() -> Self {
        Self {
            probability: 0.15,
            whole_word: true,
            counts_padding: true,
        }
    }
}

impl WordMasking {
    /// Masks a text that is filled up to its length.
    #[must_use]
    pub fn apply(&self, pieces: &WordPieces, ids: &[u32], draws: &mut Sequence) -> MaskedText {
        let mut chosen = match self.whole_word {
            true => self.whole_words(pieces, ids, draws),
            false => (0..ids.len())
                .filter(|_| draws.chance(self.probability))
                .collect(),
        };
        chosen.retain(|&place| !pieces.is_special(ids[place]));
        chosen.sort_unstable();
        let mut masked = MaskedText {
            ids: ids.to_vec(),
            ..MaskedText::default()
        };
        for place in chosen {
            masked.places.push(place as u32);
            masked.labels.push(ids[place]);
            let draw = draws.uniform();
            if draw < 0.8 {
                masked.ids[place] = pieces.mask;
            } else if draw < 0.9 {
                masked.ids[place] = draws.below(pieces.continues.len()) as u32;
            }
        }
        masked
    }

    /// Tokens of words in random order, as many as fit into the budget. A word that does not fit is
    /// passed over, and shorter ones behind it may still fit.
    fn whole_words(&self, pieces: &WordPieces, ids: &[u32], draws: &mut Sequence) -> Vec<usize> {
        let (mut words, n_counted) = self.words(pieces, ids);
        draws.shuffle(&mut words);
        let share = (n_counted as f64 * self.probability).round_ties_even();
        let budget = (share as usize).clamp(1, MAX_MASKED);
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

    /// The words that may be chosen, each as the range of its tokens, and how many tokens the
    /// budget is a share of.
    fn words(&self, pieces: &WordPieces, ids: &[u32]) -> (Vec<std::ops::Range<usize>>, usize) {
        let mut words: Vec<std::ops::Range<usize>> = Vec::new();
        let mut n_counted = 0;
        for (place, &id) in ids.iter().enumerate() {
            if id == pieces.padding && !self.counts_padding {
                continue;
            }
            n_counted += 1;
            if pieces.borders.contains(&id) {
                continue;
            }
            match words.last_mut() {
                Some(word) if word.end == place && pieces.continues(id) => word.end += 1,
                _ => words.push(place..place + 1),
            }
        }
        (words, n_counted)
    }
}
