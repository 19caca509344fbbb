//! Words, positions and token types to vectors.

use candle_core::{Result, Tensor};

use super::bert::{Config, Form};
use crate::Weights;
use crate::crossing;
use crate::nn::{Embedding, LayerNorm, Packing, Pass};

/// BERT's embeddings of tokens.
#[derive(Clone, Debug)]
pub(in crate::models) struct Embeddings {
    word_embeddings: Embedding,
    position_embeddings: Embedding,
    token_type_embeddings: Embedding,
    norm: LayerNorm,
    form: Form,
}

impl Embeddings {
    /// Loads `{prefix}embeddings.*`.
    pub fn load(weights: &Weights, prefix: &str, config: &Config) -> crate::Result<Self> {
        let d = config.width;
        let table = |part: &str, rows| {
            let name = format!("{prefix}embeddings.{part}");
            Embedding::load(weights, &name, rows, d)
        };
        let learned = |table: Embedding| match config.form.padding() {
            Some(padding) => table.with_padding(padding),
            None => table,
        };
        let positions = config.text_len + config.form.first_position();
        let norm = format!("{prefix}embeddings.LayerNorm");
        Ok(Self {
            word_embeddings: learned(table("word_embeddings", config.vocabulary)?),
            position_embeddings: learned(table("position_embeddings", positions)?),
            token_type_embeddings: table("token_type_embeddings", config.n_token_types)?,
            norm: LayerNorm::load(weights, &norm, d, config.form.epsilon())?,
            form: config.form,
        })
    }

    /// `ids: (b, t) -> (b, t, d)`, all of the first token type.
    ///
    /// # Errors
    /// For an id outside the vocabulary, a text that is too long, or when the device fails.
    pub fn forward(&self, ids: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let positions = self.positions(ids)?;
        let words = self.word_embeddings.forward_on(ids, pass)?; // (b, t, d)
        let positions = self.position_embeddings.forward_on(&positions, pass)?;
        let x = self.normed(&words.broadcast_add(&positions)?)?;
        pass.show_output(format_args!("embed"), || Ok(x.clone()))?;
        pass.drop("embeddings", &x)
    }

    /// The same of packed texts alone: `ids: (b, t) -> (1, r, d)`.
    ///
    /// # Errors
    /// As [`Embeddings::forward`].
    pub fn forward_packed(
        &self,
        ids: &Tensor,
        packing: &Packing,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        let positions = self.positions(ids)?.broadcast_as(ids.shape())?;
        let [ids, positions] = [ids, &positions].map(|ids| packing.pack(ids));
        let words = self.word_embeddings.forward_on(&ids?, pass)?; // (1, r, d)
        let positions = self.position_embeddings.forward_on(&positions?, pass)?;
        let x = self.normed(&(words + positions)?)?;
        packing.drop(&pass.dropping("embeddings"), &x)
    }

    /// Whether the tables are variables.
    pub fn is_trained(&self) -> bool {
        self.word_embeddings.is_trained()
    }

    /// One token of each text, at place `place`: `ids: (b) -> (b, 1, d)`. No id is padding.
    ///
    /// # Errors
    /// As [`Embeddings::forward`].
    pub fn one(&self, ids: &Tensor, place: usize) -> Result<Tensor> {
        self.check_len(place + 1)?;
        let words = self.word_embeddings.forward(&ids.unsqueeze(1)?)?; // (b, 1, d)
        let position = self.form.first_position() + place;
        let position = self.position_embeddings.row(position)?;
        self.normed(&words.broadcast_add(&position)?)
    }

    fn normed(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.broadcast_add(&self.token_type_embeddings.row(0)?)?;
        self.norm.forward(&x)
    }

    /// Rows of the position table, `(1, t)` or `(b, t)`.
    fn positions(&self, ids: &Tensor) -> Result<Tensor> {
        let (b, t) = ids.dims2()?;
        self.check_len(t)?;
        let Some(padding) = self.form.padding() else {
            return crossing::to_device((0..t as u32).collect::<Vec<_>>(), (1, t), ids.device());
        };
        // Padding has its own row; the others count those before them that are none.
        let mut positions = Vec::with_capacity(b * t);
        let values: Vec<u32> = crossing::to_memory(&ids.to_dtype(candle_core::DType::U32)?)?;
        for ids in values.chunks_exact(t.max(1)) {
            let mut n_before = 0;
            positions.extend(ids.iter().map(|&id| {
                if id == padding {
                    return padding;
                }
                n_before += 1;
                padding + n_before
            }));
        }
        crossing::to_device(positions, (b, t), ids.device())
    }

    fn check_len(&self, t: usize) -> Result<()> {
        let rows = self.position_embeddings.rows() - self.form.first_position();
        match t > rows {
            true => {
                candle_core::bail!("a text of {t} tokens, but the model has {rows} positions")
            }
            false => Ok(()),
        }
    }
}
