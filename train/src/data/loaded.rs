//! Examples in memory, which become a batch on a device.

use std::sync::Arc;

use candle_core::{DType, Device};
use evaluate::crossing;
use evaluate::text::TextInput;

use super::Place;
use super::others::Others;
use super::signals::Signals;
use crate::batch::{Batch, Images, MaskedPatches, MaskedWords, Texts};
use crate::{Error, Result};

/// A batch of one rank in memory.
#[derive(Debug)]
pub struct Loaded {
    /// The place of the whole batch.
    pub place: Place,
    /// The number of the first example in the whole batch.
    pub first: usize,
    /// The examples of the whole batch, by number.
    pub whole: Arc<[usize]>,
    pub(super) n: usize,
    pub(super) side: usize,
    /// The size and the padding of the model's texts.
    pub(super) text_input: TextInput,
    /// One vector for each picture of an example.
    pub(super) images: Vec<Vec<f32>>,
    pub(super) ids: Vec<u32>,
    pub(super) n_tokens: Vec<usize>,
    pub(super) masked_ids: Vec<u32>,
    pub(super) places: Vec<u32>,
    pub(super) labels: Vec<u32>,
    pub(super) answers: Option<(Vec<f32>, usize)>,
    pub(super) classes: Option<Vec<u32>>,
    /// The number of each example's image.
    pub(super) image_numbers: Vec<u32>,
    /// One for a masked patch.
    pub(super) masked_patches: Vec<u8>,
    pub(super) target_side: usize,
    pub(super) target_images: Vec<f32>,
    pub(super) signals: Signals,
    pub(super) others: Others,
}

impl Loaded {
    /// Leaves out the padding that no token sees: all behind the longest text, unless padding counts for
    /// the model.
    fn shortened(mut self) -> Self {
        let (from, to) = (
            self.text_input.len,
            self.text_input.padded_len(self.n_tokens.iter().copied()),
        );
        if to < from {
            self.ids = first_of_rows(&self.ids, from, to);
            self.masked_ids = first_of_rows(&self.masked_ids, from, to);
            self.others.shorten(from, to);
            self.signals.shorten(from, to);
            // Padding is never guessed, so every place is among the first of its row.
            let (from, to) = (from as u32, to as u32);
            for place in &mut self.places {
                *place = *place / from * to + *place % from;
            }
        }
        self
    }

    /// The batch on a device, with pictures in `dtype`. Texts are as long as the longest, unless padding counts for the model.
    ///
    /// # Errors
    /// When the device fails.
    pub fn batch(self, device: &Device, dtype: DType) -> Result<Batch> {
        self.shortened().on(device, dtype)
    }

    fn on(self, device: &Device, dtype: DType) -> Result<Batch> {
        let (n, side) = (self.n, self.side);
        let mut images = Vec::new();
        for values in self.images {
            images.push(Images::of_values(values, n, side, device, dtype)?);
        }
        let mut images = images.into_iter();
        let shape = (n, self.ids.len() / n.max(1));
        let text = match self.ids.is_empty() {
            true => None,
            false => Some(Texts::new(self.ids, &self.n_tokens, device)?),
        };
        let masked_words = match self.masked_ids.is_empty() {
            true => None,
            false => Some(MaskedWords {
                ids: crossing::to_device(self.masked_ids, shape, device)?,
                places: self.places,
                labels: self.labels,
            }),
        };
        let masked_patches = match self.masked_patches.is_empty() {
            true => None,
            false => {
                let (side, n_patches) = (self.target_side, self.masked_patches.len() / n.max(1));
                Some(MaskedPatches {
                    masked: crossing::to_device(self.masked_patches, (n, n_patches), device)?,
                    target_image: crossing::to_device(
                        self.target_images,
                        (n, 3, side, side),
                        device,
                    )?,
                })
            }
        };
        let answers = self.answers.map(|(scores, n_answers)| {
            crossing::to_device(scores, (n, n_answers), device).map_err(Error::from)
        });
        let mut batch = Batch {
            first: self.first,
            n,
            image: images.next(),
            second_image: images.next(),
            text,
            masked_words,
            masked_patches,
            masked_signals: self.signals.on(n, device)?,
            answers: answers.transpose()?,
            classes: self.classes,
            image_numbers: Some(self.image_numbers),
            ..Batch::default()
        };
        self.others.fill(&mut batch, side, device, dtype)?;
        Ok(batch)
    }
}

/// The first `to` of every `from` numbers.
pub(super) fn first_of_rows(numbers: &[u32], from: usize, to: usize) -> Vec<u32> {
    let rows = numbers.chunks_exact(from);
    rows.flat_map(|row| &row[..to]).copied().collect()
}
