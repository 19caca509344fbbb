//! Words to be guessed.

use merge::random::Sequence;

/// A token in five of the chosen ones is not masked: half of these are replaced by chance, half stay.
const MASKED: f64 = 0.8;
const REPLACED: f64 = 0.1;

/// The most tokens that are chosen in a text, as published.
const MOST: usize = 512;

/// Which tokens of a text are chosen, and what becomes of them.
///
/// Devlin et al. 2019, "BERT", <https://arxiv.org/abs/1810.04805>, section 3.1; whole words as in
/// its later release.
#[derive(Clone, Debug)]
pub struct WordMasking {
    /// Share of the tokens.
    pub probability: f64,
    /// Choose whole words: a token with the pieces that go on from it.
    pub whole_word: bool,
    /// Count padding among the words that may be chosen, and its length towards the share, as the
    /// published program does: what falls on padding is lost.
    pub counts_padding: bool,
    /// The id that hides a token.
    pub mask_id: u32,
    /// The ids of the separators at the beginning and the end, which are never chosen.
    pub separators: [u32; 2],
    /// For each id whether it goes on a word (`##`).
    pub continues: Vec<bool>,
}

/// A text with words masked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Masked {
    /// The ids that the model sees.
    pub ids: Vec<u32>,
    /// Places to be guessed, in order, and the ids that were there.
    pub labels: Vec<(usize, u32)>,
}

impl WordMasking {
    /// Masks a padded text of which the first `n_tokens` are no padding.
    #[must_use]
    pub fn apply(&self, ids: &[u32], n_tokens: usize, draws: &mut Sequence) -> Masked {
        let n_tokens = n_tokens.min(ids.len());
        let mut chosen = match self.whole_word {
            true => self.words(ids, n_tokens, draws),
            false => (0..n_tokens)
                .filter(|_| draws.chance(self.probability))
                .collect(),
        };
        chosen.retain(|&at| at < n_tokens && !self.separators.contains(&ids[at]));
        chosen.sort_unstable();
        let mut masked = Masked {
            ids: ids.to_vec(),
            labels: Vec::with_capacity(chosen.len()),
        };
        for at in chosen {
            masked.labels.push((at, ids[at]));
            let draw = draws.uniform();
            if draw < MASKED {
                masked.ids[at] = self.mask_id;
            } else if draw < MASKED + REPLACED {
                masked.ids[at] = draws.below(self.continues.len()) as u32;
            }
        }
        masked
    }

    /// Whole words in random order, as long as they fit into the share.
    fn words(&self, ids: &[u32], n_tokens: usize, draws: &mut Sequence) -> Vec<usize> {
        let len = match self.counts_padding {
            true => ids.len(),
            false => n_tokens,
        };
        let mut words: Vec<Vec<usize>> = Vec::new();
        for (at, &id) in ids.iter().enumerate().take(len) {
            if self.separators.contains(&id) {
                continue;
            }
            let goes_on = self.continues.get(id as usize).copied().unwrap_or_default();
            match words.last_mut() {
                Some(word) if goes_on => word.push(at),
                _ => words.push(vec![at]),
            }
        }
        draws.shuffle(&mut words);
        let budget = (len as f64 * self.probability).round_ties_even() as usize;
        let budget = budget.clamp(1, MOST);
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
}

#[cfg(test)]
mod tests {
    use merge::random::Draws;

    use super::*;

    /// Ids: 0 padding, 1 and 2 separators, 3 mask; from 10 on words, odd ones going on.
    fn masking(whole_word: bool, probability: f64, counts_padding: bool) -> WordMasking {
        WordMasking {
            probability,
            whole_word,
            counts_padding,
            mask_id: 3,
            separators: [1, 2],
            continues: (0..100).map(|id| id > 10 && id % 2 == 1).collect(),
        }
    }

    const TEXT: [u32; 12] = [1, 10, 11, 12, 14, 15, 17, 16, 2, 0, 0, 0];
    const N_TOKENS: usize = 9;

    #[test]
    fn whole_words_are_chosen_within_the_share() {
        let masking = masking(true, 0.4, false);
        let mut draws = Draws::new(1, "words").sequence();
        for _ in 0..500 {
            let masked = masking.apply(&TEXT, N_TOKENS, &mut draws);
            let at: Vec<usize> = masked.labels.iter().map(|(at, _)| *at).collect();
            // round(9 · 0.4) = 4 tokens.
            assert!((1..=4).contains(&at.len()), "{at:?}");
            for word in [&[1, 2][..], &[3], &[4, 5, 6], &[7]] {
                let n = word.iter().filter(|place| at.contains(place)).count();
                assert!(n == 0 || n == word.len(), "{at:?}");
            }
            assert!(masked.labels.iter().all(|&(at, id)| TEXT[at] == id));
        }
    }

    #[test]
    fn separators_and_padding_are_never_guessed() {
        for (whole_word, counts_padding) in [(true, true), (true, false), (false, true)] {
            let masking = masking(whole_word, 0.5, counts_padding);
            let mut draws = Draws::new(2, "words").sequence();
            for _ in 0..300 {
                let masked = masking.apply(&TEXT, N_TOKENS, &mut draws);
                assert!(masked.labels.iter().all(|(at, _)| (1..8).contains(at)));
                assert_eq!(masked.ids[8..], TEXT[8..]);
            }
        }
    }

    #[test]
    fn eight_in_ten_are_hidden_and_one_in_ten_is_replaced() {
        let masking = masking(false, 0.5, true);
        let mut draws = Draws::new(3, "words").sequence();
        let (mut n, mut hidden, mut same) = (0.0, 0.0, 0.0);
        for _ in 0..4000 {
            let masked = masking.apply(&TEXT, N_TOKENS, &mut draws);
            for (at, id) in masked.labels {
                n += 1.0;
                hidden += f64::from(u8::from(masked.ids[at] == 3));
                same += f64::from(u8::from(masked.ids[at] == id));
            }
        }
        // 7 tokens may be chosen, half of them are; five standard errors. A replacement is the
        // mask or the same token once in a hundred.
        assert!((n - 14_000.0_f64).abs() < 420.0, "{n}");
        assert!((hidden / n - 0.801_f64).abs() < 0.017, "{}", hidden / n);
        assert!((same / n - 0.101_f64).abs() < 0.013, "{}", same / n);
    }
}
