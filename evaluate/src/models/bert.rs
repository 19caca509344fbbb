//! BERT as a text tower.
//!
//! Devlin et al. 2018, "BERT", <https://arxiv.org/abs/1810.04805>, section 3; as a sentence encoder
//! Reimers and Gurevych 2019, "Sentence-BERT", <https://arxiv.org/abs/1908.10084>, section 3.
//! References: <https://github.com/google-research/bert> and, whose names these are,
//! <https://github.com/huggingface/transformers>.

use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};
use merge::Checkpoint;
use merge::layouts::Generic;

use super::tower;
use crate::nn::{
    Attended, Embedding, LayerNorm, Linear, Mask, Pass, Residual, attend, unit_length,
};
use crate::{Result, Weights};

/// Every LayerNorm adds this to the variance.
const EPSILON: f64 = 1e-12;

/// Sizes of a BERT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Number of blocks.
    pub n_blocks: usize,
    /// Hidden size.
    pub width: usize,
    /// Attention heads of each block.
    pub n_heads: usize,
    /// Inner size of the feed-forward network.
    pub ffn_width: usize,
    /// Size of the word-piece vocabulary.
    pub vocabulary: usize,
    /// Longest text.
    pub text_len: usize,
    /// Rows of the token type table.
    pub n_token_types: usize,
}

impl Config {
    /// The sizes of a checkpoint. Heads are 64 wide unless `n_heads` says otherwise: weights do not
    /// tell.
    ///
    /// # Errors
    /// [`Error::UnknownSize`](crate::Error::UnknownSize) and
    /// [`Error::BadSize`](crate::Error::BadSize).
    pub fn read(weights: &Weights, n_heads: Option<usize>) -> Result<Self> {
        let table = |what, part: &str| {
            let name = format!("embeddings.{part}.weight");
            match tower::known(weights, what, weights.shape(&name))? {
                &[rows, width] => Ok((rows, width)),
                _ => Err(tower::bad(weights, &format!("`{name}` is not a table"))),
            }
        };
        let (vocabulary, width) = table("the size of the vocabulary", "word_embeddings")?;
        let (text_len, _) = table("the text length", "position_embeddings")?;
        let (n_token_types, _) = table("the number of token types", "token_type_embeddings")?;
        let inner = "encoder.layer.0.intermediate.dense.bias";
        let last = |block| format!("encoder.layer.{block}.output.LayerNorm.weight");
        Ok(Self {
            n_blocks: tower::count(weights, last),
            width,
            n_heads: tower::heads(weights, width, n_heads)?,
            ffn_width: tower::length(weights, "the width of the FFN", inner)?,
            vocabulary,
            text_len,
            n_token_types,
        })
    }
}

/// Words, positions and token types to vectors.
#[derive(Clone, Debug)]
struct Embeddings {
    word_embeddings: Embedding,
    position_embeddings: Embedding,
    token_type_embeddings: Embedding,
    norm: LayerNorm,
}

/// Self-attention with a norm after its residual branch.
#[derive(Clone, Debug)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    norm: LayerNorm,
    n_heads: usize,
    name: String,
}

/// Attention, then the FFN with a norm after its residual branch.
#[derive(Clone, Debug)]
struct Layer {
    attention: Attention,
    intermediate: Linear,
    output: Linear,
    norm: LayerNorm,
    name: String,
}

/// A BERT without heads.
#[derive(Clone, Debug)]
pub struct Bert {
    config: Config,
    embeddings: Embeddings,
    layers: Vec<Layer>,
}

impl Embeddings {
    fn load(weights: &Weights, config: &Config) -> Result<Self> {
        let d = config.width;
        let table = |part: &str, rows| {
            let name = format!("embeddings.{part}");
            Embedding::load(weights, &name, rows, d)
        };
        Ok(Self {
            word_embeddings: table("word_embeddings", config.vocabulary)?,
            position_embeddings: table("position_embeddings", config.text_len)?,
            token_type_embeddings: table("token_type_embeddings", config.n_token_types)?,
            norm: LayerNorm::load(weights, "embeddings.LayerNorm", d, EPSILON)?,
        })
    }

    /// `ids: (b, t) -> (b, t, d)`, all of the first token type.
    fn forward(&self, ids: &Tensor) -> candle_core::Result<Tensor> {
        let (_, t) = ids.dims2()?;
        let rows = self.position_embeddings.rows();
        if t > rows {
            candle_core::bail!("a text of {t} tokens, but the model has {rows} positions");
        }
        let positions = Tensor::arange(0, t as u32, ids.device())?.unsqueeze(0)?;
        let words = self.word_embeddings.forward(ids)?; // (b, t, d)
        let x = words.broadcast_add(&self.position_embeddings.forward(&positions)?)?;
        let x = x.broadcast_add(&self.token_type_embeddings.row(0)?)?;
        self.norm.forward(&x)
    }
}

impl Attention {
    fn load(weights: &Weights, name: &str, config: &Config) -> Result<Self> {
        let d = config.width;
        let linear = |part: &str| Linear::load(weights, &format!("{name}.{part}"), d, d);
        Ok(Self {
            query: linear("self.query")?,
            key: linear("self.key")?,
            value: linear("self.value")?,
            output: linear("output.dense")?,
            norm: LayerNorm::load(weights, &format!("{name}.output.LayerNorm"), d, EPSILON)?,
            n_heads: config.n_heads,
            name: name.to_owned(),
        })
    }

    /// `(b, t, d) -> (b, t, d)`.
    fn forward(&self, x: &Tensor, mask: &Mask, pass: &Pass<'_>) -> candle_core::Result<Tensor> {
        pass.show(|| format!("{}.self", self.name), x, Some(mask))?;
        let (q, k) = (self.query.forward(x)?, self.key.forward(x)?);
        let qkv = Tensor::cat(&[q, k, self.value.forward(x)?], D::Minus1)?; // (b, t, 3 d)
        let attended = Attended {
            bias: None,
            mask: Some(mask),
        };
        let mixed = attend(&qkv, self.n_heads, usize::MAX, attended)?; // (b, t, d)
        pass.show(|| format!("{}.output.dense", self.name), &mixed, Some(mask))?;
        self.norm
            .forward(&self.output.forward_add(&mixed, Residual::plain(x))?)
    }
}

impl Layer {
    fn load(weights: &Weights, name: &str, config: &Config) -> Result<Self> {
        let (d, f) = (config.width, config.ffn_width);
        let part = |part: &str| format!("{name}.{part}");
        Ok(Self {
            attention: Attention::load(weights, &part("attention"), config)?,
            intermediate: Linear::load(weights, &part("intermediate.dense"), d, f)?,
            output: Linear::load(weights, &part("output.dense"), f, d)?,
            norm: LayerNorm::load(weights, &part("output.LayerNorm"), d, EPSILON)?,
            name: name.to_owned(),
        })
    }

    /// `(b, t, d) -> (b, t, d)`.
    fn forward(&self, x: &Tensor, mask: &Mask, pass: &Pass<'_>) -> candle_core::Result<Tensor> {
        let x = self.attention.forward(x, mask, pass)?; // (b, t, d)
        pass.show(
            || format!("{}.intermediate.dense", self.name),
            &x,
            Some(mask),
        )?;
        let inner = self.intermediate.forward_gelu(&x)?; // (b, t, f)
        pass.show(|| format!("{}.output.dense", self.name), &inner, Some(mask))?;
        self.norm
            .forward(&self.output.forward_add(&inner, Residual::plain(&x))?)
    }
}

impl Bert {
    /// The tensors of a checkpoint under the names of this model: those in the file, without the
    /// leading `bert.` that checkpoints with heads have.
    ///
    /// # Errors
    /// As [`Weights::new`].
    pub fn weights(checkpoint: Arc<Checkpoint>, device: &Device, dtype: DType) -> Result<Weights> {
        let layout = Generic::read(&checkpoint);
        let rename = |key: &str| key.strip_prefix("bert.").unwrap_or(key).to_owned();
        Weights::new(checkpoint, &layout, rename, device, dtype)
    }

    /// Loads every part.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, config: Config) -> Result<Self> {
        let layer = |i| Layer::load(weights, &format!("encoder.layer.{i}"), &config);
        Ok(Self {
            embeddings: Embeddings::load(weights, &config)?,
            layers: (0..config.n_blocks).map(layer).collect::<Result<_>>()?,
            config,
        })
    }

    /// Its sizes.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Tokens after the last block: `ids: (b, t) -> (b, t, d)`.
    ///
    /// # Errors
    /// For an id outside the vocabulary, a text that is too long, or when the device fails.
    pub fn tokens(&self, ids: &Tensor, mask: &Mask, pass: &Pass<'_>) -> Result<Tensor> {
        let mut x = self.embeddings.forward(ids)?; // (b, t, d)
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, mask, pass)?;
            pass.show_block(index, std::slice::from_ref(&x))?;
        }
        Ok(x)
    }

    /// The mean of the real tokens, scaled to length one: `(b, t) -> (b, d)`. A text has at least
    /// one real token.
    ///
    /// # Errors
    /// As [`Bert::tokens`].
    pub fn embedding(&self, ids: &Tensor, mask: &Mask, pass: &Pass<'_>) -> Result<Tensor> {
        let tokens = self.tokens(ids, mask, pass)?; // (b, t, d)
        // exp(0) = 1 for a token, exp(−∞) = 0 for padding. What is scaled to length one afterwards
        // need not be divided by the number of tokens.
        let kept = mask.added().exp()?.to_dtype(tokens.dtype())?;
        let sum = tokens.broadcast_mul(&kept.unsqueeze(2)?)?.sum(1)?; // (b, d)
        Ok(unit_length(&sum)?)
    }
}
