//! The patches and words that masked signal modeling hides.

use candle_core::Device;
use evaluate::crossing;
use merge::random::Sequence;

use super::loaded::first_of_rows;
use crate::Result;
use crate::augment::{MaskedText, PatchMasking, Replacement, TokenKinds, replace};
use crate::batch::{MaskedSignals, MaskedWords};
use crate::objectives::{PatchMode, SignalSettings, WordMode};

/// The least area of a block, in patches, as the published generator has it.
const LEAST_BLOCK: usize = 4;

/// The patches and words to hide.
#[derive(Clone, Debug)]
pub struct SignalMasking {
    /// The settings.
    pub settings: SignalSettings,
    /// Patches in a row, and rows.
    pub side: usize,
    /// The kinds of ids.
    pub kinds: TokenKinds,
}

impl SignalMasking {
    /// Patches of an image that are hidden.
    #[must_use]
    pub fn n_hidden(&self) -> usize {
        (self.settings.image_ratio * (self.side * self.side) as f64).floor() as usize
    }

    /// The hidden patches, row by row: 1 for a hidden one, else 0. Each image has the same number.
    #[must_use]
    pub fn patches(&self, draws: &mut Sequence) -> Vec<u8> {
        let n_hidden = self.n_hidden();
        let mut hidden = match self.settings.patches {
            PatchMode::Random => vec![0; self.side * self.side],
            PatchMode::Blockwise => {
                let blocks = PatchMasking {
                    n_masked: n_hidden,
                    least: LEAST_BLOCK,
                    ..PatchMasking::new(self.side)
                };
                blocks.draw(draws)
            }
        };
        // Blocks may leave some.
        let shown = hidden
            .iter()
            .enumerate()
            .filter(|(_, hidden)| **hidden == 0);
        let mut shown: Vec<usize> = shown.map(|(at, _)| at).collect();
        draws.shuffle(&mut shown);
        let n_missing = n_hidden.saturating_sub(hidden.len() - shown.len());
        for at in shown.into_iter().take(n_missing) {
            hidden[at] = 1;
        }
        hidden
    }

    /// The text with words masked: a share of those that are neither special nor padding, rounded to the nearest, and at
    /// least one where there is any.
    #[must_use]
    pub fn words(&self, ids: &[u32], draws: &mut Sequence) -> MaskedText {
        let kinds = &self.kinds;
        let words = ids.iter().enumerate();
        let words = words.filter(|(_, id)| !kinds.is_special(**id) && **id != kinds.padding);
        let mut words: Vec<usize> = words.map(|(at, _)| at).collect();
        draws.shuffle(&mut words);
        let share = self.settings.text_ratio * words.len() as f64;
        words.truncate((share.round_ties_even() as usize).max(1));
        replace(kinds, ids, words, |_| match self.settings.words {
            WordMode::MaskOnly => Replacement::Mask,
            WordMode::Bert => Replacement::of_bert(kinds, draws),
        })
    }
}

/// The hidden patches and words of the examples of a batch.
#[derive(Debug, Default)]
pub(super) struct Signals {
    patches: Vec<u8>,
    ids: Vec<u32>,
    places: Vec<u32>,
    labels: Vec<u32>,
}

impl Signals {
    /// Adds an example, whose text has these ids, filled up to its length.
    pub(super) fn add(&mut self, masking: &SignalMasking, ids: &[u32], draws: &mut Sequence) {
        let first = self.ids.len() as u32;
        self.patches.extend(masking.patches(draws));
        let masked = masking.words(ids, draws);
        self.places
            .extend(masked.places.iter().map(|place| first + place));
        self.labels.extend(masked.labels);
        self.ids.extend(masked.ids);
    }

    /// Leaves the first `to` of each `from` tokens, the others being padding.
    pub(super) fn shorten(&mut self, from: usize, to: usize) {
        self.ids = first_of_rows(&self.ids, from, to);
        let (from, to) = (from as u32, to as u32);
        for place in &mut self.places {
            *place = *place / from * to + *place % from;
        }
    }

    /// The same of `n` examples on a device, if there is any.
    pub(super) fn on(self, n: usize, device: &Device) -> Result<Option<MaskedSignals>> {
        if self.patches.is_empty() {
            return Ok(None);
        }
        let rows = |len: usize| (n, len / n.max(1));
        let shapes = [rows(self.patches.len()), rows(self.ids.len())];
        Ok(Some(MaskedSignals {
            patches: crossing::to_device(self.patches, shapes[0], device)?,
            words: MaskedWords {
                ids: crossing::to_device(self.ids, shapes[1], device)?,
                places: self.places,
                labels: self.labels,
            },
        }))
    }
}

impl Replacement {
    /// The mask for 80 %, a random token for 10 %, the token itself for 10 %.
    fn of_bert(kinds: &TokenKinds, draws: &mut Sequence) -> Self {
        let draw = draws.uniform();
        match () {
            () if draw < 0.8 => Self::Mask,
            () if draw < 0.9 => Self::Token(draws.below(kinds.n_ids) as u32),
            () => Self::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use merge::random::Draws;

    use super::*;

    fn masking(settings: SignalSettings, side: usize) -> SignalMasking {
        SignalMasking {
            settings,
            side,
            kinds: TokenKinds {
                words: None,
                n_ids: 50,
                mask: 4,
                padding: 0,
                borders: [1, 2],
                special: vec![0, 1, 2, 3, 4],
            },
        }
    }

    fn draws(key: usize) -> Sequence {
        Draws::new(7, &format!("{key}")).sequence()
    }

    #[test]
    fn exactly_147_of_196_patches_are_hidden_however_they_are_chosen() {
        for patches in [PatchMode::Random, PatchMode::Blockwise] {
            let settings = SignalSettings {
                patches,
                ..SignalSettings::default()
            };
            let masking = masking(settings, 14);
            let mut counts = vec![0; 196];
            for key in 0..200 {
                let hidden = masking.patches(&mut draws(key));
                assert_eq!(hidden.len(), 196);
                assert_eq!(hidden.iter().filter(|hidden| **hidden == 1).count(), 147);
                for (count, hidden) in counts.iter_mut().zip(hidden) {
                    *count += usize::from(hidden);
                }
            }
            // No patch is always hidden, and none never. Rectangles reach a corner seldom, and the middle nearly always.
            let (least, most) = match patches {
                PatchMode::Random => (100, 190),
                PatchMode::Blockwise => (5, 201),
            };
            assert!(
                counts.iter().all(|&count| least < count && count < most),
                "{patches:?}: {counts:?}"
            );
        }
        let neighbors = |patches: PatchMode| -> usize {
            let settings = SignalSettings {
                patches,
                image_ratio: 0.3,
                ..SignalSettings::default()
            };
            let masking = masking(settings, 14);
            let pairs = (0..50).map(|key| {
                let hidden = masking.patches(&mut draws(key));
                let rows = hidden.chunks(14);
                let pairs = rows.flat_map(|row| row.windows(2));
                pairs.filter(|pair| pair == &[1, 1]).count()
            });
            pairs.sum()
        };
        assert!(neighbors(PatchMode::Blockwise) > 3 * neighbors(PatchMode::Random) / 2);
    }

    #[test]
    fn half_of_the_words_are_masked_and_no_special_one() {
        let ids = [1, 10, 11, 12, 13, 14, 15, 16, 2, 0, 0, 0];
        for words in [WordMode::Bert, WordMode::MaskOnly] {
            let settings = SignalSettings {
                words,
                ..SignalSettings::default()
            };
            let masking = masking(settings, 2);
            let mut kinds = [0; 3];
            for key in 0..1000 {
                let masked = masking.words(&ids, &mut draws(key));
                // Seven words: 3.5 is rounded to the even number.
                assert_eq!(masked.places.len(), 4);
                for (&place, &label) in masked.places.iter().zip(&masked.labels) {
                    assert!((1..8).contains(&place));
                    assert_eq!(ids[place as usize], label);
                    let id = masked.ids[place as usize];
                    let kind = if id == 4 {
                        0
                    } else {
                        1 + usize::from(id == label)
                    };
                    kinds[kind] += 1;
                }
                for (at, id) in masked.ids.iter().enumerate() {
                    let is_masked = masked.places.contains(&(at as u32));
                    assert!(is_masked || *id == ids[at]);
                }
            }
            let [mask, random, same] = kinds;
            match words {
                WordMode::MaskOnly => assert_eq!([mask, random, same], [4000, 0, 0]),
                // Five standard errors of sqrt(4000 · 0.8 · 0.2); a random word is now and then the mask or the word.
                WordMode::Bert => {
                    assert!((mask as f64 - 3208.0).abs() < 127.0, "{kinds:?}");
                    assert!((same as f64 - 408.0).abs() < 95.0, "{kinds:?}");
                    assert!(random > 250, "{kinds:?}");
                }
            }
        }
    }

    #[test]
    fn one_word_is_masked_of_few_and_none_of_none() {
        let masking = masking(SignalSettings::default(), 2);
        let masked = masking.words(&[1, 30, 2, 0], &mut draws(1));
        assert_eq!(masked.places, [1]);
        let masked = masking.words(&[1, 2, 0, 0], &mut draws(1));
        assert!(masked.places.is_empty());
        assert_eq!(masked.ids, [1, 2, 0, 0]);
    }
}
