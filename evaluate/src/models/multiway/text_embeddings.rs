//! Words to vectors, for the multiway transformer.

use candle_core::Tensor;

use super::Config;
use super::config::Positions;
use crate::nn::{Embedding, LayerNorm, Linear, Pass};
use crate::{Result, Weights};

/// LayerNorm of the text embedding, as in BERT.
const EPSILON: f64 = 1e-12;

/// Words to vectors: BERT's embedding without absolute positions, unless the family has them.
#[derive(Clone, Debug)]
pub(super) struct TextEmbeddings {
    word_embeddings: Embedding,
    position_embeddings: Option<Tensor>,
    token_type_embeddings: Embedding,
    norm: LayerNorm,
}

impl TextEmbeddings {
    pub(super) fn load(weights: &Weights, config: &Config) -> Result<Self> {
        let name = |part: &str| format!("text_embeddings.{part}");
        let d = config.width;
        let positions = || {
            let shape = [config.text_len, d];
            weights.get(&name("position_embeddings.weight"), &shape, Linear::INIT)
        };
        let is_absolute = config.positions == Positions::Absolute;
        Ok(Self {
            word_embeddings: Embedding::load(
                weights,
                &name("word_embeddings"),
                config.vocabulary,
                d,
            )?,
            position_embeddings: is_absolute.then(positions).transpose()?,
            token_type_embeddings: Embedding::load(weights, &name("token_type_embeddings"), 2, d)?,
            norm: LayerNorm::load(weights, &name("LayerNorm"), d, EPSILON)?,
        })
    }

    /// `ids: (b, t) -> (b, t, d)`.
    pub(super) fn forward(&self, ids: &Tensor, pass: &Pass<'_>) -> candle_core::Result<Tensor> {
        let words = self.word_embeddings.forward_on(ids, pass)?; // (b, t, d)
        let mut x = words.broadcast_add(&self.token_type_embeddings.row(0)?)?;
        if let Some(positions) = &self.position_embeddings {
            x = x.broadcast_add(&positions.narrow(0, 0, ids.dim(1)?)?)?;
        }
        self.norm.forward(&x)
    }
}
