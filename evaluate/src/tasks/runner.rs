//! A model with all that passes over a data set need.

use std::borrow::Cow;
use std::rc::Rc;

use candle_core::{DType, Device, Tensor};
use merge::Progress;

use bytemuck::Pod;

use super::FeatureCache;
use crate::batch::{Images, Texts};
use crate::datasets::{Prefetch, prefetch};
use crate::images::{Rgb, Transform};
use crate::models::Model;
use crate::nn::Pass;
use crate::ranks::{self, Alone, Collective};
use crate::text::{Encoded, TextKind, Tokenizer};
use crate::{Error, Result};

/// Batches that are decoded ahead.
const BATCHES_AHEAD: usize = 4;

/// A model with all that passes over a data set need.
pub struct Runner<'a> {
    model: &'a dyn Model,
    tokenizer: Option<Cow<'a, Tokenizer>>,
    device: &'a Device,
    dtype: DType,
    batch_size: usize,
    progress: &'a dyn Progress,
    cache: Option<FeatureCache>,
    ranks: &'a dyn Collective,
    experts: Option<&'a Rc<dyn Collective>>,
    answers: Option<Vec<String>>,
    classes: Option<Vec<String>>,
}

impl<'a> Runner<'a> {
    /// Checks that model and tokenizer belong together. Tasks without texts need no tokenizer.
    ///
    /// # Errors
    /// [`Error::OtherVocabulary`].
    pub fn new(
        model: &'a dyn Model,
        tokenizer: impl Into<Option<&'a Tokenizer>>,
        device: &'a Device,
        dtype: DType,
        batch_size: usize,
        progress: &'a dyn Progress,
    ) -> Result<Self> {
        let input = &model.input().text;
        let tokenizer = (tokenizer.into()).map(|tokenizer| tokenizer.for_input(input));
        Ok(Self {
            tokenizer: tokenizer.transpose()?,
            model,
            device,
            dtype,
            batch_size: batch_size.max(1),
            progress,
            cache: None,
            ranks: &Alone,
            experts: None,
            answers: None,
            classes: None,
        })
    }

    /// With the answers that the classes of the model's VQA head stand for.
    #[must_use]
    pub fn with_answers(mut self, answers: Option<Vec<String>>) -> Self {
        self.answers = answers;
        self
    }

    /// The answers that the classes of the model's VQA head stand for, where the model keeps them.
    #[must_use]
    pub fn answers(&self) -> Option<&[String]> {
        self.answers.as_deref()
    }

    /// With the names of the classes of the model's head for images.
    #[must_use]
    pub fn with_classes(mut self, classes: Option<Vec<String>>) -> Self {
        self.classes = classes;
        self
    }

    /// The names of the classes of the model's head for images, where the model keeps them.
    #[must_use]
    pub fn classes(&self) -> Option<&[String]> {
        self.classes.as_deref()
    }

    /// Keeps features on disk, and takes those that are there.
    #[must_use]
    pub fn with_cache(mut self, cache: FeatureCache) -> Self {
        self.cache = Some(cache);
        self
    }

    /// Shares the passes with other processes.
    #[must_use]
    pub fn shared(self, ranks: &'a dyn Collective) -> Self {
        Self { ranks, ..self }
    }

    /// For a model of whose experts each of `ranks` holds its own: all ranks run every pass together, so all measure the
    /// same.
    #[must_use]
    pub fn sharing_experts(self, ranks: &'a Rc<dyn Collective>) -> Self {
        Self {
            experts: Some(ranks),
            ..self
        }
    }

    /// A pass of the model.
    #[must_use]
    pub fn pass(&self) -> Pass<'a> {
        match self.experts {
            Some(ranks) => Pass::new().sharing_experts(ranks),
            None => Pass::new(),
        }
    }

    /// The processes that share the passes.
    #[must_use]
    pub fn ranks(&self) -> &'a dyn Collective {
        self.ranks
    }

    /// The batches that this process computes.
    #[must_use]
    pub fn own<T>(&self, batches: Vec<T>) -> Vec<T> {
        ranks::own(self.ranks, batches)
    }

    /// Results of all batches from those of one's own: a batch has `n_examples` of them.
    ///
    /// # Errors
    /// When a process is gone or does something else.
    pub fn gathered<T: Pod>(&self, own: Vec<T>, n_examples: &[usize]) -> Result<Vec<Vec<T>>> {
        ranks::gathered(self.ranks, own, n_examples)
    }

    /// Features of `n` items from the cache, if there is one, or else from `compute`. Of several
    /// processes the first one keeps them.
    ///
    /// # Errors
    /// As [`FeatureCache::get`].
    pub fn cached(
        &self,
        of: &str,
        n: usize,
        compute: impl FnOnce() -> Result<Vec<f32>>,
    ) -> Result<Vec<f32>> {
        let Some(cache) = &self.cache else {
            return compute();
        };
        let is_first = self.ranks.is_first();
        let is_kept = ranks::seen_by_first(self.ranks, is_first && cache.has(of))?;
        match is_kept || is_first {
            true => cache.get(of, n, compute),
            false => compute(),
        }
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &'a dyn Model {
        self.model
    }

    /// Examples in a batch.
    #[must_use]
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// Receives the progress.
    #[must_use]
    pub fn progress(&self) -> &'a dyn Progress {
        self.progress
    }

    /// Tells that `n` more examples are done.
    ///
    /// # Errors
    /// [`merge::Error::Cancelled`] when the user asked to stop.
    pub fn advance(&self, n: usize) -> Result<()> {
        self.progress.advance(n as u64);
        match self.progress.is_cancelled() {
            true => Err(merge::Error::Cancelled.into()),
            false => Ok(()),
        }
    }

    /// Splits texts into the model's tokens, as the family reads texts of this kind.
    ///
    /// # Errors
    /// [`Error::NoTokenizer`], and when the tokenizer fails.
    pub fn encode<'t>(
        &self,
        kind: TextKind,
        texts: impl IntoIterator<Item = &'t str>,
    ) -> Result<Vec<Encoded>> {
        let (tokenizer, input) = (self.tokenizer()?, &self.model.input().text);
        let encoded = texts.into_iter().map(|text| {
            let text = tokenizer.read(input.rule, kind, text)?;
            tokenizer.encode(&text, input.len)
        });
        encoded.collect()
    }

    /// Splits captions into the model's tokens, as the family reads captions.
    ///
    /// # Errors
    /// As [`encode`](Self::encode)'s.
    pub fn encode_captions<'t>(
        &self,
        captions: impl IntoIterator<Item = &'t str>,
    ) -> Result<Vec<Encoded>> {
        self.encode(TextKind::Caption, captions)
    }

    /// The tokenizer, with the tokens that the model adds.
    ///
    /// # Errors
    /// [`Error::NoTokenizer`].
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_deref().ok_or(Error::NoTokenizer)
    }

    /// The token in place of a masked one.
    ///
    /// # Errors
    /// [`Error::NoTokenizer`], and [`Error::SpecialToken`] when there is none.
    pub fn mask_token(&self) -> Result<u32> {
        let tokenizer = self.tokenizer()?;
        tokenizer.special().mask.ok_or_else(|| Error::SpecialToken {
            path: tokenizer.path().into(),
            token: "[MASK] or <mask>".into(),
        })
    }

    /// Texts as tensors, padded as the model's input says.
    ///
    /// # Errors
    /// When the device fails.
    pub fn texts(&self, texts: &[&Encoded]) -> Result<Texts> {
        let n_tokens = texts.iter().map(|text| text.n_tokens);
        self.padded_texts(texts, self.model.input().text.padded_len(n_tokens))
    }

    /// Texts padded to `len` tokens.
    ///
    /// # Errors
    /// When the device fails.
    pub fn padded_texts(&self, texts: &[&Encoded], len: usize) -> Result<Texts> {
        Texts::of_encoded(texts, len, self.device)
    }

    /// Pixels of `n` pictures, one after the other.
    ///
    /// # Errors
    /// When the device fails.
    pub fn pixels(&self, values: Vec<f32>, n: usize) -> Result<Images> {
        let side = self.model.input().image.side;
        Images::of_values(values, n, side, self.device, self.dtype)
    }

    /// Decodes and resizes pictures ahead, batch by batch: each job is a batch of pictures.
    pub fn pictures<J: Send + 'static>(
        &self,
        batches: Vec<Vec<J>>,
        picture: impl Fn(&J) -> Result<Rgb> + Send + Sync + 'static,
    ) -> Prefetch<Vec<f32>> {
        let transform = Transform::new(&self.model.input().image);
        let load = move |batch: Vec<J>| {
            let mut values = vec![0.0; batch.len() * transform.len()];
            for (job, values) in batch.iter().zip(values.chunks_exact_mut(transform.len())) {
                transform.apply_into(&picture(job)?, values);
            }
            Ok(values)
        };
        prefetch(batches, rayon::current_num_threads(), BATCHES_AHEAD, load)
    }

    /// One batch of pictures, decoded on all cores.
    ///
    /// # Errors
    /// When a picture cannot be read or decoded, or the device fails.
    pub fn picture_batch<J: Sync>(
        &self,
        jobs: &[J],
        picture: impl Fn(&J) -> Result<Rgb> + Sync,
    ) -> Result<Images> {
        use rayon::prelude::*;
        let transform = Transform::new(&self.model.input().image);
        let mut values = vec![0.0; jobs.len() * transform.len()];
        let pairs = jobs
            .par_iter()
            .zip(values.par_chunks_exact_mut(transform.len().max(1)));
        pairs.try_for_each(|(job, values)| {
            transform.apply_into(&picture(job)?, values);
            Ok::<(), Error>(())
        })?;
        self.pixels(values, jobs.len())
    }

    /// Rows of a tensor `(b, d)` in f32.
    ///
    /// # Errors
    /// When the device fails.
    pub fn rows(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }
}

/// Indices of texts in batches of similar length, longest first, so that little padding is
/// computed and memory peaks at once if at all.
pub fn by_length(texts: &[Encoded], size: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_by_key(|&index| (std::cmp::Reverse(texts[index].n_tokens), index));
    order.chunks(size).map(<[usize]>::to_vec).collect()
}
