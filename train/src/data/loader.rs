//! Examples, loaded ahead on worker threads and put together to batches.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use evaluate::datasets::{Prefetch, prefetch};
use evaluate::images::Rgb;
use evaluate::models::ModelInput;
use evaluate::text::{TextInput, Tokenizer};
use merge::random::{Draws, Sequence};
use rayon::prelude::*;

use super::others::Others;
use super::signals::{SignalMasking, Signals};
use super::view::View;
use super::{Example, Examples, Order, Place};
use crate::augment::{PatchMasking, TokenKinds, WordMasking, corrupted};
use crate::batch::{Batch, Images, MaskedPatches, MaskedWords, Texts};
use crate::objectives::Needs;
use crate::recipe::{Augmentation, Masking};
use crate::{Error, Result};

/// Batches that are loaded ahead.
const BATCHES_AHEAD: usize = 4;

/// How examples are turned into the input of a model.
pub struct Loader {
    /// The examples.
    pub examples: Arc<dyn Examples>,
    /// Words to ids, where texts are learned from.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// Pixels and tokens that the model takes.
    pub input: ModelInput,
    /// What is wanted of an example.
    pub needs: Needs,
    /// What draws are keyed by.
    pub seed: u64,
    /// Answers that the model tells apart.
    n_answers: Option<usize>,
    view: View,
    corruption: Option<Corruption>,
    masking: Option<(WordMasking, TokenKinds)>,
    patches: Option<Patches>,
    signals: Option<SignalMasking>,
    /// Texts that are drawn for an example, where an objective ranks.
    pub(super) n_other_texts: usize,
    /// Time that workers have spent, in microseconds.
    busy: AtomicU64,
    /// Examples that they have loaded in it.
    n_loaded: AtomicU64,
}

/// What changes captions.
struct Corruption {
    /// Takes `[MASK]` for a text like others.
    tokenizer: Tokenizer,
    entries: Vec<String>,
}

impl Corruption {
    fn apply(&self, text: &str, draws: &mut Sequence) -> evaluate::Result<String> {
        let pieces = self.tokenizer.pieces(text)?;
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        let draws = RefCell::new(draws);
        Ok(corrupted(
            &pieces,
            || draws.borrow_mut().uniform(),
            || self.entries[draws.borrow_mut().below(self.entries.len())].as_str(),
        ))
    }
}

/// Patches that are masked, and the view of the tokenizer of images.
#[derive(Clone, Copy, Debug)]
pub struct Patches {
    /// Which ones.
    pub masking: PatchMasking,
    /// Side of the tokenizer's view in pixels.
    pub target_side: usize,
}

/// A batch of one rank in memory.
#[derive(Debug)]
pub struct Loaded {
    /// Where the whole batch stands.
    pub place: Place,
    /// The number of the first example in the whole batch.
    pub first: usize,
    /// The examples of the whole batch, by number.
    pub whole: Arc<[usize]>,
    n: usize,
    side: usize,
    /// What the model takes of a text.
    text_input: TextInput,
    /// One vector for each picture of an example.
    images: Vec<Vec<f32>>,
    ids: Vec<u32>,
    n_tokens: Vec<usize>,
    masked_ids: Vec<u32>,
    places: Vec<u32>,
    labels: Vec<u32>,
    answers: Option<(Vec<f32>, usize)>,
    classes: Option<Vec<u32>>,
    /// The number of each example's image.
    image_numbers: Vec<u32>,
    /// One for a masked patch.
    masked_patches: Vec<u8>,
    target_side: usize,
    target_images: Vec<f32>,
    signals: Signals,
    others: Others,
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

    /// With so many texts drawn for each example, where an objective ranks.
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

    /// With pictures changed, and words masked where an objective wants that.
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

    /// With captions changed, as ZeroVL does ([`corrupted`]).
    ///
    /// # Errors
    /// When the tokenizer's file cannot be read again.
    pub fn corrupting(self, corrupts: bool) -> Result<Self> {
        let open = || -> Result<Corruption> {
            let path = self.tokenizer()?.path().display().to_string();
            let tokenizer = Tokenizer::open(&path)?.with_special_as_text();
            let entries = tokenizer.entries();
            Ok(Corruption { tokenizer, entries })
        };
        let corruption = corrupts.then(open).transpose()?;
        Ok(Self { corruption, ..self })
    }

    /// Seconds that worker threads have spent so far, all together.
    #[must_use]
    pub fn busy_seconds(&self) -> f64 {
        self.busy.load(Ordering::Relaxed) as f64 * 1e-6
    }

    /// Examples that `n_workers` threads would load in a second, as they have done so far.
    #[must_use]
    pub fn examples_per_second(&self, n_workers: usize) -> f64 {
        let n = self.n_loaded.load(Ordering::Relaxed);
        // Time is counted in microseconds.
        n as f64 * n_workers as f64 / self.busy_seconds().max(1e-6)
    }

    /// Bytes of parts of `n_examples` that wait in memory, with the one that is learned from, where
    /// `n_workers` threads load them ahead ([`batches`]).
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
        // What belongs to other objectives is not of these rows.
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

    /// Adds what is `wanted` of an example, its place in the batch and its number given; its draws are keyed by
    /// `name`.
    fn add(
        &self,
        loaded: &mut Loaded,
        (at, number): (usize, usize),
        example: &Example,
        wanted: Needs,
        name: &str,
    ) -> evaluate::Result<()> {
        let draws = &mut Draws::new(self.seed, name).sequence();
        let view = self.view.of_texts(example);
        for (index, picture) in example.pictures.iter().enumerate() {
            if loaded.images.len() <= index {
                loaded.images.push(Vec::new());
            }
            match &self.patches {
                Some(patches) if index == 0 => {
                    self.add_two_views(&view, picture, patches.target_side, loaded, draws);
                }
                _ => self.add_view(&view, picture, &mut loaded.images[index], name, draws),
            }
        }
        if wanted.text {
            let text = match &self.corruption {
                None => self.encoded(example)?,
                Some(corruption) => {
                    let draws = Draws::new(self.seed, &format!("caption of {name}"));
                    let text = corruption.apply(&example.text, &mut draws.sequence())?;
                    corruption.tokenizer.encode(&text, self.input.text.len)?
                }
            };
            if let Some((masking, pieces)) = self.masking.as_ref().filter(|_| wanted.masked_words) {
                let masked = masking.apply(pieces, &text.ids, draws);
                let first = (at * self.input.text.len) as u32;
                let places = masked.places.iter().map(|place| first + place);
                loaded.places.extend(places);
                loaded.labels.extend(masked.labels);
                loaded.masked_ids.extend(masked.ids);
            }
            if let Some(signals) = self.signals.as_ref().filter(|_| wanted.masked_signals) {
                let draws = Draws::new(self.seed, &format!("signals of {name}"));
                (loaded.signals).add(signals, &text.ids, &mut draws.sequence());
            }
            (loaded.others).add(self, Some(&text), wanted, number, name)?;
            loaded.ids.extend(text.ids);
            loaded.n_tokens.push(text.n_tokens);
        } else {
            loaded.others.add(self, None, wanted, number, name)?;
        }
        if let Some((scores, n)) = &mut loaded.answers {
            for &(label, score) in &example.answers {
                if let Some(place) = scores.get_mut(at * *n + label) {
                    *place = score;
                }
            }
        }
        if let Some(class) = example.class {
            loaded.classes.get_or_insert_default().push(class);
        }
        if let Some(patches) = self.patches.filter(|_| wanted.masked_patches) {
            let mut draws = Draws::new(self.seed, &format!("patches of {name}")).sequence();
            (loaded.masked_patches).extend(patches.masking.draw(&mut draws));
        }
        Ok(())
    }

    /// The model's view of an example's first picture, and the tokenizer's.
    fn add_two_views(
        &self,
        view: &View,
        picture: &Rgb,
        target_side: usize,
        loaded: &mut Loaded,
        draws: &mut Sequence,
    ) {
        let targets = &mut loaded.target_images;
        let from = targets.len();
        targets.resize(from + 3 * target_side * target_side, 0.0);
        let values = &mut loaded.images[0];
        let at = values.len();
        values.resize(at + view.len(), 0.0);
        let target = (&mut targets[from..], target_side);
        view.write_two(picture, &mut values[at..], target, draws);
    }

    /// The model's view of a picture of an example, whose draws are keyed by `name`.
    pub(super) fn add_picture(
        &self,
        example: &Example,
        picture: &Rgb,
        values: &mut Vec<f32>,
        name: &str,
        draws: &mut Sequence,
    ) {
        let view = self.view.of_texts(example);
        self.add_view(&view, picture, values, name, draws);
    }

    fn add_view(
        &self,
        view: &View,
        picture: &Rgb,
        values: &mut Vec<f32>,
        name: &str,
        draws: &mut Sequence,
    ) {
        let from = values.len();
        values.resize(from + view.len(), 0.0);
        let noise = Draws::new(self.seed, &format!("erased of {name}"));
        view.write(picture, &mut values[from..], draws, &noise);
    }
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

    /// The same on a device, pictures in `dtype`, texts as long as the longest where padding does not count.
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
                ids: Tensor::from_vec(self.masked_ids, shape, device)?,
                places: self.places,
                labels: self.labels,
            }),
        };
        let masked_patches = match self.masked_patches.is_empty() {
            true => None,
            false => {
                let (side, n_patches) = (self.target_side, self.masked_patches.len() / n.max(1));
                Some(MaskedPatches {
                    masked: Tensor::from_vec(self.masked_patches, (n, n_patches), device)?,
                    target_image: Tensor::from_vec(self.target_images, (n, 3, side, side), device)?,
                })
            }
        };
        let answers = self.answers.map(|(scores, n_answers)| {
            Tensor::from_vec(scores, (n, n_answers), device).map_err(Error::from)
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

/// A rank's parts of the batches from `place` on, loaded ahead, without end: each whole batch comes
/// as `n_parts` parts in a row, `n_passes` times.
pub fn batches(
    loader: &Arc<Loader>,
    order: Order,
    place: Place,
    (rank, n_ranks): (usize, usize),
    (n_parts, n_passes): (usize, usize),
    n_workers: usize,
) -> Prefetch<Loaded> {
    let per_rank = order.batch_size() / n_ranks;
    let per_part = (per_rank / n_parts).max(1);
    let jobs = order.from(place).flat_map(move |(place, examples)| {
        let examples: Arc<[usize]> = examples.into();
        (0..n_parts * n_passes).map(move |job| {
            let first = rank * per_rank + job % n_parts * per_part;
            (place, first, per_part, Arc::clone(&examples))
        })
    });
    let loader = Arc::clone(loader);
    prefetch(jobs, n_workers, BATCHES_AHEAD, move |job| {
        let (place, first, n, examples): (Place, usize, usize, Arc<[usize]>) = job;
        let loaded = loader.load(place, first, &examples[first..first + n])?;
        Ok(Loaded {
            whole: examples,
            ..loaded
        })
    })
}
