//! An FLM behind the traits that all families share.

use candle_core::Tensor;

use super::Flm;
use super::blueprint::NAME;
use super::masks::Masks;
use super::passes::Looked;
use crate::Result;
use crate::batch::{Images, Pair, Texts};
use crate::forward::NamedPasses;
use crate::models::towers::first;
use crate::models::{
    Captioner, Completed, FreeLanguage, Fused, FusionEncoder, Head, LookedAt, Model, ModelInput,
    Queries, ReadText, Reading, Stream, Streams,
};
use crate::nn::{Guessed, Pass};

impl Model for Flm {
    fn family(&self) -> &'static str {
        NAME
    }

    fn input(&self) -> &ModelInput {
        &self.config.input
    }

    fn score(&self, head: Head, x: &Tensor) -> Result<Tensor> {
        self.heads.score(head, x)
    }

    fn n_classes(&self, head: Head) -> Result<usize> {
        self.heads.n_classes(head)
    }

    fn fusion(&self) -> Result<&dyn FusionEncoder> {
        Ok(self)
    }

    fn captioner(&self) -> Result<&dyn Captioner> {
        Ok(self)
    }

    fn free_language(&self) -> Result<&dyn FreeLanguage> {
        Ok(self)
    }

    fn named_passes(&self) -> Result<&dyn NamedPasses> {
        Ok(self)
    }
}

impl Flm {
    fn look_at_pair(&self, pair: &Pair<'_>, pass: &Pass<'_>) -> Result<Looked> {
        if pair.masked.is_some() {
            return Err(self.cannot("hide patches"));
        }
        self.look(pair.images, pair.nth_image, pass)
    }

    /// The state that classifiers read, before its pooler: `(b, 1, d)`. Of three streams the first query is
    /// enough, and what it asks is the first token.
    pub(super) fn first_state(
        &self,
        texts: &Texts,
        looked: &Looked,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        let reading = match self.config.one_stream() {
            None => {
                let query = texts.ids.narrow(1, 0, 1)?.contiguous()?;
                let masks = Masks::of_first(texts)?;
                let three = self.three(texts, &query, looked, &masks, pass)?;
                let [_, _, queries] = three.top;
                return Ok(queries.first()?);
            }
            Some(reading) => reading,
        };
        let states = self.one(texts, looked, reading, pass)?;
        Ok(states.first()?)
    }

    /// The input of a classifier, made of the first token's state: `(b, t, d) -> (b, d)`.
    pub(super) fn pool(&self, streams: Streams, states: &Tensor) -> Result<Tensor> {
        self.heads.pool(streams, &first(states)?)
    }
}

/// Whether texts have been read before.
fn is_read(texts: &[&ReadText]) -> bool {
    texts.iter().all(|text| !text.states.is_empty())
}

impl FusionEncoder for Flm {
    /// The state of the first token, of three streams that of its query: nothing else is pooled.
    fn fuse(&self, pair: &Pair<'_>, pass: &Pass<'_>) -> Result<Fused> {
        let looked = self.look_at_pair(pair, pass)?;
        Ok(Fused {
            text: self.first_state(pair.texts, &looked, pass)?,
            image: looked.states,
        })
    }

    fn pooled(&self, fused: &Fused) -> Result<Tensor> {
        self.pool(self.config.streams, &fused.text)
    }

    fn rank(&self, texts: &[&Texts], images: &Images, passes: &[Pass<'_>]) -> Result<Tensor> {
        let Some(first) = passes.first() else {
            return Err(self.cannot("rank no texts"));
        };
        let looked = self.look(images, 0, first)?;
        let scores = texts.iter().zip(passes).map(|(texts, pass)| {
            let state = self.first_state(texts, &looked, pass)?;
            let pooled = self.pool(self.config.streams, &state)?;
            self.score(Head::Ranking, &pooled)
        });
        Ok(Tensor::cat(&scores.collect::<Result<Vec<_>>>()?, 1)?)
    }

    /// Each text's states before its cross-modal layers.
    fn read_text(&self, texts: &Texts) -> Result<Vec<ReadText>> {
        self.read_alone(texts)
    }

    /// The image encoder's states, and the keys and values of each cross-modal layer.
    fn look_at(&self, images: &Images) -> Result<LookedAt> {
        let Looked {
            encoded,
            states,
            kv,
        } = self.look(images, 0, &Pass::new())?;
        Ok(LookedAt {
            images: images.clone(),
            states: [encoded, states].into_iter().chain(kv).collect(),
        })
    }

    fn rank_read(&self, texts: &Texts, read: &[&ReadText], image: &LookedAt) -> Result<Tensor> {
        let ([encoded, states, kv @ ..], true) = (&image.states[..], is_read(read)) else {
            return self.rank(&[texts], &image.images, &[Pass::new()]);
        };
        let looked = Looked {
            encoded: encoded.clone(),
            states: states.clone(),
            kv: kv.to_vec(),
        };
        self.rank_read_alone(texts, read, &looked)
    }

    /// In one stream in which every token sees all others, whatever the model's way.
    fn guessed_from(&self, pair: &Pair<'_>, pass: &Pass<'_>) -> Result<Tensor> {
        self.read(pair, Reading::Bidirectional, pass)
    }

    /// As [`FusionEncoder::guessed_from`] reads it. The published program gives its matching head a vector
    /// twice as long as that takes.
    fn matched(&self, pair: &Pair<'_>, pass: &Pass<'_>) -> Result<Tensor> {
        let states = self.read(pair, Reading::Bidirectional, pass)?;
        self.pool(Streams::Bidirectional, &states)
    }
}

impl FreeLanguage for Flm {
    fn streams(&self) -> Streams {
        self.config.streams
    }

    fn read(&self, pair: &Pair<'_>, reading: Reading<'_>, pass: &Pass<'_>) -> Result<Tensor> {
        let looked = self.look_at_pair(pair, pass)?;
        Ok(self.one(pair.texts, &looked, reading, pass)?.padded()?)
    }

    fn complete(
        &self,
        pair: &Pair<'_>,
        queries: Queries<'_>,
        pass: &Pass<'_>,
    ) -> Result<Completed> {
        let looked = self.look_at_pair(pair, pass)?;
        let masks = Masks::of_all(pair.texts, queries.spans)?;
        let three = self.three(pair.texts, queries.ids, &looked, &masks, pass)?;
        Ok(three.completed()?)
    }

    fn words(&self, stream: Stream, states: &Tensor) -> Result<Tensor> {
        Ok(self.heads.words(stream)?.forward(states)?)
    }

    fn guess(
        &self,
        stream: Stream,
        rows: &Tensor,
        labels: &[u32],
        pass: &Pass<'_>,
    ) -> Result<Guessed> {
        Ok(self.heads.words(stream)?.guess_on(rows, labels, pass)?)
    }
}
