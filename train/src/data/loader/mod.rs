//! Loads examples as the inputs of a model: the settings, and whole parts of a batch.

mod example;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use evaluate::models::ModelInput;
use evaluate::text::Tokenizer;
use rayon::prelude::*;

use super::ahead::BATCHES_AHEAD;
use super::corruption::Corruption;
use super::others::Others;
use super::signals::{SignalMasking, Signals};
use super::view::View;
use super::{Examples, Loaded, Place};
use crate::Result;
use crate::augment::{PatchMasking, TokenKinds, WordMasking};
use crate::objectives::Needs;
use crate::recipe::{Augmentation, Masking};

/// Turns examples into the inputs of a model.
pub struct Loader {
    /// The examples.
    pub examples: Arc<dyn Examples>,
    /// Turns words into ids, if an objective reads texts.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// Pixels and tokens that the model takes.
    pub input: ModelInput,
    /// The parts of an example that objectives need.
    pub needs: Needs,
    /// The seed of all draws.
    pub seed: u64,
    /// Answers that the model tells apart.
    n_answers: Option<usize>,
    view: View,
    corruption: Option<Corruption>,
    masking: Option<(WordMasking, TokenKinds)>,
    patches: Option<Patches>,
    signals: Option<SignalMasking>,
    /// The number of texts drawn for each example, if an objective ranks.
    pub(super) n_other_texts: usize,
    /// Time that workers have spent, in microseconds.
    busy: AtomicU64,
    /// Examples that they have loaded in it.
    n_loaded: AtomicU64,
}

/// Patches that are masked, and the view of the tokenizer of images.
#[derive(Clone, Copy, Debug)]
pub struct Patches {
    /// The rule that chooses them.
    pub masking: PatchMasking,
    /// Side of the tokenizer's view in pixels.
    pub target_side: usize,
}

impl Loader {
    /// Loads whole examples.
    #[must_use]
    pub fn new(
        examples: Arc<dyn Examples>,
        tokenizer: Option<Arc<Tokenizer>>,
        input: ModelInput,
        needs: Needs,
        seed: u64,
    ) -> Self {
        Self {
            view: View::square(&input.image),
            examples,
            tokenizer,
            input,
            needs,
            seed,
            n_answers: None,
            corruption: None,
            masking: None,
            patches: None,
            signals: None,
            n_other_texts: 0,
            busy: AtomicU64::new(0),
            n_loaded: AtomicU64::new(0),
        }
    }

    /// With the number of classes that answers to questions have.
    #[must_use]
    pub fn answering(self, n_answers: Option<usize>) -> Self {
        Self { n_answers, ..self }
    }

    /// With `n_other_texts` texts drawn for each example, if an objective ranks.
    #[must_use]
    pub fn ranking(self, n_other_texts: usize) -> Self {
        Self {
            n_other_texts,
            ..self
        }
    }

    /// With patches masked.
    #[must_use]
    pub fn masking_patches(self, patches: Option<Patches>) -> Self {
        Self { patches, ..self }
    }

    /// With signals masked.
    #[must_use]
    pub fn masking_signals(self, signals: Option<SignalMasking>) -> Self {
        Self { signals, ..self }
    }

    /// With pictures changed, and words masked if an objective needs that.
    ///
    /// # Errors
    /// When the vocabulary lacks a token that masking needs.
    pub fn augmented(self, augmentation: &Augmentation, masking: Masking) -> Result<Self> {
        let view = View::of(augmentation, &self.input.image)?;
        let masking = match self.needs.masked_words {
            false => None,
            true => {
                let masking = WordMasking {
                    probability: masking.probability,
                    whole_word: masking.whole_word,
                    counts_padding: masking.counts_padding,
                    every_place: masking.every_place,
                };
                let needs_words = masking.whole_word && !masking.every_place;
                Some((masking, TokenKinds::read(self.tokenizer()?, needs_words)?))
            }
        };
        Ok(Self {
            view,
            masking,
            ..self
        })
    }

    pub(super) fn tokenizer(&self) -> evaluate::Result<&Tokenizer> {
        let tokenizer = self.tokenizer.as_deref();
        tokenizer.ok_or(evaluate::Error::NoTokenizer)
    }

    /// With captions changed, as ZeroVL does ([`corrupted`](crate::augment::corrupted)).
    ///
    /// # Errors
    /// When the tokenizer's file cannot be read again.
    pub fn corrupting(self, corrupts: bool) -> Result<Self> {
        let open = || -> Result<Corruption> {
            let path = self.tokenizer()?.path().display().to_string();
            Corruption::open(&path)
        };
        let corruption = corrupts.then(open).transpose()?;
        Ok(Self { corruption, ..self })
    }

    /// Seconds that worker threads have spent so far, all together.
    #[must_use]
    pub fn busy_seconds(&self) -> f64 {
        self.busy.load(Ordering::Relaxed) as f64 * 1e-6
    }

    /// Examples that `n_workers` threads would load in a second, at their pace so far.
    #[must_use]
    pub fn examples_per_second(&self, n_workers: usize) -> f64 {
        let n = self.n_loaded.load(Ordering::Relaxed);
        // Time is counted in microseconds.
        n as f64 * n_workers as f64 / self.busy_seconds().max(1e-6)
    }

    /// Bytes of parts of `n_examples` that wait in memory, with the one in the current step, if
    /// `n_workers` threads load them ahead ([`batches`](super::batches)).
    #[must_use]
    pub fn bytes_ahead(&self, n_examples: usize, n_workers: usize) -> u64 {
        let square = |side: usize| 3 * side * side;
        let n_pictures = usize::from(self.needs.image) + usize::from(self.needs.second_image);
        let of_target = self.patches.map_or(0, |p| square(p.target_side));
        let n_texts = usize::from(self.needs.text)
            + usize::from(self.needs.masked_words)
            + usize::from(self.needs.masked_signals);
        let numbers = n_pictures * square(self.input.image.side)
            + of_target
            + n_texts * self.input.text.len
            + self.n_answers.unwrap_or(0);
        let n_parts = 1 + BATCHES_AHEAD.max(n_workers);
        4 * (n_parts * n_examples * numbers) as u64
    }

    /// Loads examples `indices`, which begin at example `first` of the whole batch.
    ///
    /// # Errors
    /// When one cannot be read, decoded or split into tokens.
    pub fn load(&self, place: Place, first: usize, indices: &[usize]) -> evaluate::Result<Loaded> {
        self.load_part(place, first, indices, self.needs)
    }

    /// Loads `wanted` pictures or texts of a batch's examples again, on all threads, with the same draws.
    ///
    /// # Errors
    /// As [`Loader::load`].
    pub fn load_again(
        &self,
        place: Place,
        indices: &[usize],
        wanted: Needs,
    ) -> evaluate::Result<Loaded> {
        let at_once = indices.len().div_ceil(rayon::current_num_threads()).max(1);
        let parts: Vec<evaluate::Result<Loaded>> = indices
            .par_chunks(at_once)
            .map(|indices| self.load_part(place, 0, indices, wanted))
            .collect();
        let mut parts = parts.into_iter();
        let mut whole = match parts.next() {
            Some(first) => first?,
            None => self.load_part(place, 0, &[], wanted)?,
        };
        for part in parts {
            let part = part?;
            whole.n += part.n;
            whole.image_numbers.extend(part.image_numbers);
            for (images, more) in whole.images.iter_mut().zip(part.images) {
                images.extend(more);
            }
            whole.ids.extend(part.ids);
            whole.n_tokens.extend(part.n_tokens);
            whole.others.extend(part.others);
        }
        // Answers and classes belong to other rows.
        whole.answers = None;
        whole.classes = None;
        Ok(whole)
    }

    fn load_part(
        &self,
        place: Place,
        first: usize,
        indices: &[usize],
        wanted: Needs,
    ) -> evaluate::Result<Loaded> {
        let started = Instant::now();
        let mut loaded = Loaded {
            place,
            first,
            whole: Arc::from([]),
            n: indices.len(),
            side: self.input.image.side,
            text_input: self.input.text,
            images: Vec::new(),
            ids: Vec::new(),
            n_tokens: Vec::new(),
            masked_ids: Vec::new(),
            places: Vec::new(),
            labels: Vec::new(),
            answers: self.n_answers.map(|n| (vec![0.0; n * indices.len()], n)),
            classes: None,
            image_numbers: Vec::new(),
            masked_patches: Vec::new(),
            target_side: self.patches.map_or(0, |patches| patches.target_side),
            target_images: Vec::new(),
            signals: Signals::default(),
            others: Others::default(),
        };
        for (at, &index) in indices.iter().enumerate() {
            let example = self.examples.example(index, wanted.image)?;
            loaded.image_numbers.push(self.examples.image(index) as u32);
            let name = format!("example {index} of epoch {}", place.epoch);
            self.add(&mut loaded, (at, index), &example, wanted, &name)?;
        }
        let micros = started.elapsed().as_micros() as u64;
        self.busy.fetch_add(micros, Ordering::Relaxed);
        (self.n_loaded).fetch_add(indices.len() as u64, Ordering::Relaxed);
        Ok(loaded)
    }
}
