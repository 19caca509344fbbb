//! Scores pairs of text and image one by one, and reads each text once.

use candle_core::Tensor;

use super::Flm;
use super::masks::{self, Masks};
use super::packed::{Stream, Streams, Ways};
use super::passes::Looked;
use crate::Result;
use crate::batch::Texts;
use crate::models::{Head, Model, ReadText};
use crate::nn::{Buffers, Pass};

impl Flm {
    /// The states of each text before it looks at an image: in three streams forward, reverse and the first
    /// query's. Nothing where padding is computed.
    pub(super) fn read_alone(&self, texts: &Texts) -> Result<Vec<ReadText>> {
        let (pass, buffers) = (Pass::new(), Buffers::default());
        if !self.packs(None, &pass) {
            return Ok(vec![ReadText::default(); texts.ids.dim(0)?]);
        }
        let (states, rows) = match self.config.one_stream() {
            Some(reading) => {
                let mask = masks::of_reading(texts, reading)?;
                let stream = Stream::of_one(texts, &mask, pass.within("x"), &buffers)?;
                (vec![self.one_alone(texts, &stream)?], vec![stream.rows])
            }
            None => {
                let (masks, kinds) = (Masks::of_first(texts)?, self.kinds()?);
                let streams = Streams::new(texts, 1, &masks, ways(&kinds), &buffers)?;
                let query = texts.ids.narrow(1, 0, 1)?.contiguous()?;
                let states = self.three_alone(texts, &query, &streams)?;
                let states = self.three_transformed(states.each_ref(), texts, &streams)?;
                let rows = vec![streams.forward.rows, streams.reverse.rows, streams.queries];
                (states.to_vec(), rows)
            }
        };
        let mut read = vec![ReadText::default(); texts.ids.dim(0)?];
        for (states, rows) in states.iter().zip(rows) {
            for (text, states) in rows.split(states)?.into_iter().enumerate() {
                read[text].states.push(states);
            }
        }
        Ok(read)
    }

    /// Scores of texts that have been read, with one image: `(b, 1)`.
    pub(super) fn rank_read_alone(
        &self,
        texts: &Texts,
        read: &[&ReadText],
        looked: &Looked,
    ) -> Result<Tensor> {
        let buffers = Buffers::default();
        let of = |stream: usize| -> Result<Tensor> {
            let states = read.iter().map(|text| text.states.get(stream));
            let Some(states) = states.collect::<Option<Vec<&Tensor>>>() else {
                return Err(self.cannot("rank texts that it has not read"));
            };
            Ok(Tensor::cat(&states, 1)?)
        };
        let first = match self.config.one_stream() {
            Some(reading) => {
                let mask = masks::of_reading(texts, reading)?;
                let stream = Stream::of_one(texts, &mask, Pass::new(), &buffers)?;
                let x = self.one_looking(of(0)?, looked, &stream)?;
                stream.rows.firsts(&x)?
            }
            None => {
                let (masks, kinds) = (Masks::of_first(texts)?, self.kinds()?);
                let streams = Streams::new(texts, 1, &masks, ways(&kinds), &buffers)?;
                let states = [of(0)?, of(1)?, of(2)?];
                let [_, _, f] = self.three_looking(states, looked, &streams)?;
                f
            }
        };
        let first = first.squeeze(0)?.unsqueeze(1)?; // (b, 1, d)
        let pooled = self.pool(self.config.streams, &first)?;
        self.score(Head::Ranking, &pooled)
    }
}

/// Plain passes of the three streams.
fn ways(kinds: &[Tensor; 2]) -> Ways<'_> {
    let passes = ["x", "xr", "f"].map(|stream| Pass::new().within(stream));
    Ways { passes, kinds }
}
