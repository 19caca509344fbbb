//! Examples, loaded ahead on worker threads and put together to batches.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use evaluate::datasets::{Prefetch, prefetch};
use evaluate::images::{Rgb, Transform};
use evaluate::text::Tokenizer;
use merge::random::{Draws, Sequence};

use super::{Example, Examples, Order, Place};
use crate::augment::{RandomCrop, WordMasking};
use crate::batch::{Batch, MaskedWords, Words};
use crate::objectives::Needs;
use crate::recipe::{Augmentation, Masking};
use crate::{Error, Result};

/// Batches that are loaded ahead.
const BATCHES_AHEAD: usize = 4;

/// How examples are turned into the input of a model.
pub struct Loader {
    /// The examples.
    pub examples: Arc<dyn Examples>,
    /// Words to ids.
    pub tokenizer: Arc<Tokenizer>,
    /// Text positions.
    pub text_len: usize,
    /// Side of the image in pixels.
    pub image_size: usize,
    /// What is wanted of an example.
    pub needs: Needs,
    /// What draws are keyed by.
    pub seed: u64,
    /// Answers that the model tells apart.
    n_answers: Option<usize>,
    crop: Option<RandomCrop>,
    masking: Option<WordMasking>,
    /// Time that workers have spent, in microseconds.
    busy: AtomicU64,
}

/// A batch of one rank in memory.
#[derive(Debug)]
pub struct Loaded {
    /// Where the whole batch stands.
    pub place: Place,
    /// The number of the first example in the whole batch.
    pub first: usize,
    n: usize,
    side: usize,
    /// One vector for each picture of an example.
    images: Vec<Vec<f32>>,
    ids: Vec<u32>,
    n_tokens: Vec<usize>,
    masked_ids: Vec<u32>,
    places: Vec<u32>,
    labels: Vec<u32>,
    answers: Option<(Vec<f32>, usize)>,
    classes: Option<Vec<u32>>,
}

impl Loader {
    /// Loads whole examples.
    #[must_use]
    pub fn new(
        examples: Arc<dyn Examples>,
        tokenizer: Arc<Tokenizer>,
        text_len: usize,
        image_size: usize,
        needs: Needs,
        seed: u64,
    ) -> Self {
        Self {
            examples,
            tokenizer,
            text_len,
            image_size,
            needs,
            seed,
            n_answers: None,
            crop: None,
            masking: None,
            busy: AtomicU64::new(0),
        }
    }

    /// For questions with so many classes of answers.
    #[must_use]
    pub fn answering(self, n_answers: Option<usize>) -> Self {
        Self { n_answers, ..self }
    }

    /// With pictures changed, and words masked where an objective wants that.
    ///
    /// # Errors
    /// When the vocabulary lacks a token that masking needs.
    pub fn augmented(self, augmentation: &Augmentation, masking: Masking) -> Result<Self> {
        let crop = match *augmentation {
            Augmentation::Square => None,
            Augmentation::Random { flip, least_area } => Some(RandomCrop { least_area, flip }),
        };
        let tokenizer = &self.tokenizer;
        let masking = match self.needs.masked_words {
            false => None,
            true => Some(WordMasking {
                probability: masking.probability,
                whole_word: masking.whole_word,
                counts_padding: masking.counts_padding,
                mask_id: tokenizer.id_of("[MASK]")?,
                separators: [tokenizer.id_of("[CLS]")?, tokenizer.id_of("[SEP]")?],
                continues: tokenizer.continuing(),
            }),
        };
        Ok(Self {
            crop,
            masking,
            ..self
        })
    }

    /// Seconds that worker threads have spent so far, all together.
    #[must_use]
    pub fn busy_seconds(&self) -> f64 {
        self.busy.load(Ordering::Relaxed) as f64 * 1e-6
    }

    /// Loads examples `indices`, which begin at example `first` of the whole batch.
    ///
    /// # Errors
    /// When one cannot be read, decoded or split into tokens.
    pub fn load(&self, place: Place, first: usize, indices: &[usize]) -> evaluate::Result<Loaded> {
        let started = Instant::now();
        let mut loaded = Loaded {
            place,
            first,
            n: indices.len(),
            side: self.image_size,
            images: Vec::new(),
            ids: Vec::new(),
            n_tokens: Vec::new(),
            masked_ids: Vec::new(),
            places: Vec::new(),
            labels: Vec::new(),
            answers: self.n_answers.map(|n| (vec![0.0; n * indices.len()], n)),
            classes: None,
        };
        for (at, &index) in indices.iter().enumerate() {
            let example = self.examples.example(index, self.needs.image)?;
            let name = format!("example {index} of epoch {}", place.epoch);
            let mut draws = Draws::new(self.seed, &name).sequence();
            self.add(&mut loaded, at, &example, &mut draws)?;
        }
        let micros = started.elapsed().as_micros() as u64;
        self.busy.fetch_add(micros, Ordering::Relaxed);
        Ok(loaded)
    }

    fn add(
        &self,
        loaded: &mut Loaded,
        at: usize,
        example: &Example,
        draws: &mut Sequence,
    ) -> evaluate::Result<()> {
        for (index, picture) in example.pictures.iter().enumerate() {
            if loaded.images.len() <= index {
                loaded.images.push(Vec::new());
            }
            self.add_picture(picture, &mut loaded.images[index], draws);
        }
        if self.needs.text {
            let text = self.tokenizer.encode(&example.text, self.text_len)?;
            if let Some(masking) = &self.masking {
                let masked = masking.apply(&text.ids, text.n_tokens, draws);
                let first = at * self.text_len;
                for (place, label) in masked.labels {
                    loaded.places.push((first + place) as u32);
                    loaded.labels.push(label);
                }
                loaded.masked_ids.extend(masked.ids);
            }
            loaded.ids.extend(text.ids);
            loaded.n_tokens.push(text.n_tokens);
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
        Ok(())
    }

    fn add_picture(&self, picture: &Rgb, values: &mut Vec<f32>, draws: &mut Sequence) {
        let transform = Transform::square(self.image_size);
        let from = values.len();
        values.resize(from + transform.len(), 0.0);
        match &self.crop {
            Some(crop) => transform.apply_into(&crop.apply(picture, draws), &mut values[from..]),
            None => transform.apply_into(picture, &mut values[from..]),
        }
    }
}

impl Loaded {
    /// The same on a device, pictures in `dtype`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn batch(self, device: &Device, dtype: DType) -> Result<Batch> {
        let (n, side) = (self.n, self.side);
        let mut images = Vec::new();
        for values in self.images {
            let image = Tensor::from_vec(values, (n, 3, side, side), &Device::Cpu)?;
            images.push(image.to_device(device)?.to_dtype(dtype)?);
        }
        let mut images = images.into_iter();
        let shape = (n, self.ids.len() / n.max(1));
        let text = match self.ids.is_empty() {
            true => None,
            false => Some(Words::new(self.ids, &self.n_tokens, device)?),
        };
        let masked_words = match self.masked_ids.is_empty() {
            true => None,
            false => Some(MaskedWords {
                ids: Tensor::from_vec(self.masked_ids, shape, device)?,
                places: self.places,
                labels: self.labels,
            }),
        };
        let answers = self.answers.map(|(scores, n_answers)| {
            Tensor::from_vec(scores, (n, n_answers), device).map_err(Error::from)
        });
        Ok(Batch {
            first: self.first,
            n,
            image: images.next(),
            second_image: images.next(),
            text,
            masked_words,
            answers: answers.transpose()?,
            classes: self.classes,
        })
    }
}

/// A rank's parts of the batches from `place` on, loaded ahead, without end: each whole batch comes
/// as `n_parts` parts in a row.
pub fn batches(
    loader: &Arc<Loader>,
    order: Order,
    place: Place,
    (rank, n_ranks): (usize, usize),
    n_parts: usize,
    n_workers: usize,
) -> Prefetch<Loaded> {
    let per_rank = order.batch_size() / n_ranks;
    let per_part = (per_rank / n_parts).max(1);
    let jobs = order.from(place).flat_map(move |(place, examples)| {
        (0..n_parts).map(move |part| {
            let first = rank * per_rank + part * per_part;
            (place, first, examples[first..first + per_part].to_vec())
        })
    });
    let loader = Arc::clone(loader);
    prefetch(jobs, n_workers, BATCHES_AHEAD, move |job| {
        let (place, first, examples): (Place, usize, Vec<usize>) = job;
        loader.load(place, first, &examples)
    })
}
