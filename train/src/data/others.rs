//! Queries, pictures and texts that free language modeling and ranking read beside an example itself.

use candle_core::{DType, Device};
use evaluate::crossing;
use evaluate::streams::query_ids;
use evaluate::text::Encoded;
use merge::random::{Draws, Sequence};

use super::loaded::first_of_rows;
use super::{Example, Loader};
use crate::Result;
use crate::batch::{Batch, Images, Texts};
use crate::objectives::Needs;

/// Queries, pictures and texts of the examples of a batch.
#[derive(Debug, Default)]
pub(super) struct Others {
    queries: Vec<u32>,
    /// Pixels of a picture drawn at random for each example.
    images: Vec<f32>,
    /// The n-th text drawn at random for each example, together.
    texts: Vec<Rows>,
}

/// Texts filled up to one length.
#[derive(Debug, Default)]
struct Rows {
    ids: Vec<u32>,
    n_tokens: Vec<usize>,
}

impl Others {
    /// Adds the `wanted` inputs beside example `index`, whose own text is `text`. Its draws are keyed by `name`, so
    /// they do not depend on what else is loaded.
    pub(super) fn add(
        &mut self,
        loader: &Loader,
        text: Option<&Encoded>,
        wanted: Needs,
        index: usize,
        name: &str,
    ) -> evaluate::Result<()> {
        if let (true, Some(text)) = (wanted.queries, text) {
            let mask = loader.mask()?;
            self.queries
                .extend(query_ids(&text.ids, text.n_tokens, mask));
        }
        let n = loader.examples.len();
        if wanted.other_image {
            let draws = &mut Draws::new(loader.seed, &format!("other image of {name}")).sequence();
            let other = loader
                .examples
                .example(loader.other_image(index, draws)?, true)?;
            if let Some(picture) = other.pictures.first() {
                loader.add_picture(&other, picture, &mut self.images, name, draws);
            }
        }
        if wanted.other_texts {
            self.texts.resize_with(loader.n_other_texts, Rows::default);
            let draws = &mut Draws::new(loader.seed, &format!("other texts of {name}")).sequence();
            for rows in &mut self.texts {
                let other = loader.examples.example(draws.below(n), false)?;
                let text = loader.encoded(&other)?;
                rows.ids.extend(text.ids);
                rows.n_tokens.push(text.n_tokens);
            }
        }
        Ok(())
    }

    /// Leaves the first `to` of each `from` queries, as the texts that they ask of have no more tokens.
    pub(super) fn shorten(&mut self, from: usize, to: usize) {
        self.queries = first_of_rows(&self.queries, from, to);
    }

    /// The rows of another part, behind these.
    pub(super) fn extend(&mut self, more: Self) {
        self.queries.extend(more.queries);
        self.images.extend(more.images);
        self.texts
            .resize_with(self.texts.len().max(more.texts.len()), Rows::default);
        for (rows, more) in self.texts.iter_mut().zip(more.texts) {
            rows.ids.extend(more.ids);
            rows.n_tokens.extend(more.n_tokens);
        }
    }

    /// The same on a device, in a batch of `n` examples with pictures of `side` pixels.
    pub(super) fn fill(
        self,
        batch: &mut Batch,
        side: usize,
        device: &Device,
        dtype: DType,
    ) -> Result<()> {
        let n = batch.n;
        if !self.queries.is_empty() {
            let shape = (n, self.queries.len() / n.max(1));
            batch.queries = Some(crossing::to_device(self.queries, shape, device)?);
        }
        if !self.images.is_empty() {
            batch.other_image = Some(Images::of_values(self.images, n, side, device, dtype)?);
        }
        for rows in self.texts {
            batch
                .other_texts
                .push(Texts::new(rows.ids, &rows.n_tokens, device)?);
        }
        Ok(())
    }
}

/// Draws until the image is another one, before they are looked through in order.
const N_TRIES: usize = 64;

impl Loader {
    /// An example of another image than that of `index`, drawn from all of them.
    fn other_image(&self, index: usize, draws: &mut Sequence) -> evaluate::Result<usize> {
        let n = self.examples.len();
        let own = self.examples.image(index);
        let is_other = |other: &usize| self.examples.image(*other) != own;
        let mut last = 0;
        for _ in 0..N_TRIES {
            last = draws.below(n);
            if is_other(&last) {
                return Ok(last);
            }
        }
        let mut others = (last..n).chain(0..last);
        others
            .find(is_other)
            .ok_or(evaluate::Error::Data(evaluate::DataFault::OneImage {
                n_examples: n,
            }))
    }

    /// The token in place of a masked one.
    fn mask(&self) -> evaluate::Result<u32> {
        let tokenizer = self.tokenizer()?;
        let mask = tokenizer.special().mask;
        mask.ok_or_else(|| evaluate::Error::SpecialToken {
            path: tokenizer.path().into(),
            token: "[MASK] or <mask>".into(),
        })
    }

    /// The tokens of an example's text, as the family reads it.
    pub(super) fn encoded(&self, example: &Example) -> evaluate::Result<Encoded> {
        let tokenizer = self.tokenizer()?;
        let text = tokenizer.read(self.input.text.rule, example.kind, &example.text)?;
        tokenizer.encode(&text, self.input.text.len)
    }
}
