//! BLEU: how many n-grams of a caption are in a reference, geometric mean over n, short captions
//! punished.
//!
//! Reference: <https://aclanthology.org/P02-1040>; constants and the choice of the reference's
//! length are those of the captioning challenge, <https://arxiv.org/abs/1504.00325>.

use std::iter::Sum;

use super::ngrams;

/// The longest n-grams.
pub const ORDERS: usize = 4;

/// Added above and below every fraction, so that no match gives almost nothing rather than nothing
/// at all: a number of the official program.
const TINY: f64 = 1e-15;
const SMALL: f64 = 1e-9;

/// The counts behind BLEU; those of several captions add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BleuCounts {
    /// Tokens of the caption.
    pub length: usize,
    /// Tokens of the reference whose length is nearest; of two, the shorter.
    pub reference_length: usize,
    /// For n from 1: n-grams that are in a reference, each at most as often as in one of them.
    pub matches: [usize; ORDERS],
    /// For n from 1: n-grams of the caption.
    pub ngrams: [usize; ORDERS],
}

impl BleuCounts {
    /// Counts for one tokenized caption. Without references everything is 0 but the caption's own.
    #[must_use]
    pub fn new(caption: &str, references: &[impl AsRef<str>]) -> Self {
        let n_tokens = |text: &str| text.split_whitespace().count();
        let length = n_tokens(caption);
        let lengths = references.iter().map(|text| n_tokens(text.as_ref()));
        let nearest = lengths.min_by_key(|&other| (other.abs_diff(length), other));
        let own = ngrams(caption);
        let others: Vec<_> = references.iter().map(|r| ngrams(r.as_ref())).collect();
        let matches = std::array::from_fn(|order| {
            let grams = own[order].iter();
            let clipped = grams.map(|(gram, &count)| {
                let most = others.iter().filter_map(|other| other[order].get(gram));
                most.max().map_or(0, |&most| most.min(count))
            });
            clipped.sum()
        });
        Self {
            length,
            reference_length: nearest.unwrap_or(0),
            matches,
            ngrams: std::array::from_fn(|order| length.saturating_sub(order)),
        }
    }

    /// BLEU of n-grams up to `n`.
    #[must_use]
    pub fn score(&self, n: usize) -> f64 {
        let pairs = self.matches.iter().zip(&self.ngrams).take(n);
        bleu(
            [self.length as f64, self.reference_length as f64],
            pairs.map(|(&matches, &all)| [matches as f64, all as f64]),
        )
    }
}

impl Sum for BleuCounts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |mut total, one| {
            total.length += one.length;
            total.reference_length += one.reference_length;
            for order in 0..ORDERS {
                total.matches[order] += one.matches[order];
                total.ngrams[order] += one.ngrams[order];
            }
            total
        })
    }
}

/// `(Π matchesₙ / ngramsₙ)^(1/N) · min(1, exp(1 − reference length / length))`, from the lengths of
/// captions and references and a pair of matches and n-grams for each n.
///
/// # Example
/// ```
/// // Three of four words and one of three pairs, one word too short.
/// let score = evaluate::metrics::captions::bleu([4.0, 5.0], [[3.0, 4.0], [1.0, 3.0]]);
/// assert!((score - (0.75_f64 / 3.0).sqrt() * (1.0 - 5.0_f64 / 4.0).exp()).abs() < 1e-8);
/// ```
#[must_use]
pub fn bleu(
    [length, reference_length]: [f64; 2],
    matches_and_ngrams: impl IntoIterator<Item = [f64; 2]>,
) -> f64 {
    let (mut product, mut n) = (1.0, 0);
    for [matches, all] in matches_and_ngrams {
        product *= (matches + TINY) / (all + SMALL);
        n += 1;
    }
    let mean = product.powf(1.0 / f64::from(n));
    let ratio = (length + TINY) / (reference_length + SMALL);
    if ratio < 1.0 {
        mean * (1.0 - 1.0 / ratio).exp()
    } else {
        mean
    }
}
