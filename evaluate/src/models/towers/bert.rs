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

use super::{Shapes, bert_fused, first, first_tokens, sizes};
use crate::nn::{
    Activation, Bias, Dropping, Embedding, LayerNorm, Linear, Mask, Pass, Residual, Tape,
    attend_packed, attention_shares, fits_slices, is_on_host, mix, side_by_side, unit_length,
    unpack,
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
    /// The sizes of a tower under `prefix`. Heads are 64 wide unless `n_heads` says otherwise:
    /// weights do not tell.
    ///
    /// # Errors
    /// [`ModelFault::UnknownSize`](crate::ModelFault::UnknownSize) and
    /// [`ModelFault::BadSize`](crate::ModelFault::BadSize).
    pub fn read(shapes: &dyn Shapes, prefix: &str, n_heads: Option<usize>) -> Result<Self> {
        let table = |what, part: &str| {
            let name = format!("{prefix}embeddings.{part}.weight");
            match sizes::known(shapes, what, shapes.shape(&name))? {
                &[rows, width] => Ok((rows, width)),
                _ => Err(sizes::bad(shapes, &format!("`{name}` is not a table"))),
            }
        };
        let (vocabulary, width) = table("the size of the vocabulary", "word_embeddings")?;
        let (text_len, _) = table("the text length", "position_embeddings")?;
        let (n_token_types, _) = table("the number of token types", "token_type_embeddings")?;
        let inner = format!("{prefix}encoder.layer.0.intermediate.dense.bias");
        let last = |block| format!("{prefix}encoder.layer.{block}.output.LayerNorm.weight");
        Ok(Self {
            n_blocks: sizes::count(shapes, last),
            width,
            n_heads: sizes::heads(shapes, width, n_heads)?,
            ffn_width: sizes::length(shapes, "the width of the FFN", &inner)?,
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
pub(super) struct Attention {
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) output: Linear,
    pub(super) norm: LayerNorm,
    pub(super) n_heads: usize,
    name: String,
}

/// Attention, then the FFN with a norm after its residual branch.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub(super) attention: Attention,
    pub(super) intermediate: Linear,
    pub(super) output: Linear,
    pub(super) norm: LayerNorm,
    name: String,
    index: usize,
}

/// The dropout sites of a layer, as published.
#[derive(Clone, Debug)]
pub(super) struct Dropped {
    /// Of attention's shares, `(b, h, n, n)`.
    pub(super) shares: Dropping,
    /// Of attention's output, `(b, n, d)`.
    pub(super) attention: Dropping,
    /// Of the FFN's output, `(b, n, d)`.
    pub(super) ffn: Dropping,
}

/// A BERT without heads.
#[derive(Clone, Debug)]
pub struct Bert {
    config: Config,
    embeddings: Embeddings,
    layers: Vec<Layer>,
}

impl Embeddings {
    fn load(weights: &Weights, prefix: &str, config: &Config) -> Result<Self> {
        let d = config.width;
        let table = |part: &str, rows| {
            let name = format!("{prefix}embeddings.{part}");
            Embedding::load(weights, &name, rows, d)
        };
        let norm = format!("{prefix}embeddings.LayerNorm");
        Ok(Self {
            word_embeddings: table("word_embeddings", config.vocabulary)?,
            position_embeddings: table("position_embeddings", config.text_len)?,
            token_type_embeddings: table("token_type_embeddings", config.n_token_types)?,
            norm: LayerNorm::load(weights, &norm, d, EPSILON)?,
        })
    }

    /// `ids: (b, t) -> (b, t, d)`, all of the first token type.
    fn forward(&self, ids: &Tensor, pass: &Pass<'_>) -> candle_core::Result<Tensor> {
        let (_, t) = ids.dims2()?;
        let rows = self.position_embeddings.rows();
        if t > rows {
            candle_core::bail!("a text of {t} tokens, but the model has {rows} positions");
        }
        let positions = Tensor::arange(0, t as u32, ids.device())?.unsqueeze(0)?;
        let words = self.word_embeddings.forward_on(ids, pass)?; // (b, t, d)
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

    /// Of the first `queries` tokens: `(b, t, d) -> (b, queries, d)`.
    fn forward(
        &self,
        x: &Tensor,
        queries: usize,
        mask: &Mask,
        dropped: &Dropped,
        index: usize,
        pass: &Pass<'_>,
    ) -> candle_core::Result<Tensor> {
        for part in ["query", "key", "value"] {
            pass.show(|| format!("{}.self.{part}", self.name), x, Some(mask))?;
        }
        let bias = Bias {
            pairs: None,
            mask: Some(mask),
        };
        let qkv = self.project(x)?; // (b, t, 3 d)
        let [q, k, v] = unpack(&qkv)?;
        let shares = || attention_shares(&q, &k, bias, self.n_heads);
        pass.show_output(format_args!("attn{index}"), shares)?;
        let mixed = match dropped.shares.is_active() {
            true => mix(&dropped.shares.apply(&shares()?)?, &v)?,
            false => attend_packed(&qkv, self.n_heads, queries, bias)?,
        };
        pass.show(|| format!("{}.output.dense", self.name), &mixed, Some(mask))?;
        let asking = first_tokens(x, queries)?;
        let sum = residual(&self.output, &mixed, &asking, &dropped.attention)?;
        self.norm.forward(&sum)
    }

    /// `(b, t, d) -> (b, t, 3 d)`.
    fn project(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let linear = [&self.query, &self.key, &self.value];
        let mut weights = linear.into_iter().flat_map(Linear::weights);
        let in_graph = x.track_op() || weights.any(Tensor::track_op);
        if is_on_host(x) && !in_graph {
            return side_by_side(x, linear);
        }
        let [q, k, v] = linear.map(|linear| linear.forward(x));
        Tensor::cat(&[q?, k?, v?], D::Minus1)
    }
}

/// `x + drop(linear(y))`.
fn residual(
    linear: &Linear,
    y: &Tensor,
    x: &Tensor,
    dropping: &Dropping,
) -> candle_core::Result<Tensor> {
    match dropping.is_active() {
        true => x + dropping.apply(&linear.forward(y)?)?,
        false => linear.forward_add(y, Residual::plain(x)),
    }
}

impl Layer {
    fn load(weights: &Weights, name: &str, index: usize, config: &Config) -> Result<Self> {
        let (d, f) = (config.width, config.ffn_width);
        let part = |part: &str| format!("{name}.{part}");
        Ok(Self {
            attention: Attention::load(weights, &part("attention"), config)?,
            intermediate: Linear::load(weights, &part("intermediate.dense"), d, f)?,
            output: Linear::load(weights, &part("output.dense"), f, d)?,
            norm: LayerNorm::load(weights, &part("output.LayerNorm"), d, EPSILON)?,
            name: name.to_owned(),
            index,
        })
    }

    /// `(b, t, d) -> (b, t, d)`.
    fn forward(&self, x: &Tensor, mask: &Mask, pass: &Pass<'_>) -> candle_core::Result<Tensor> {
        let dropped = self.dropped(pass);
        match pass.tape() {
            Some(tape) if self.is_fusible(x, mask, tape) => {
                bert_fused::record(tape, self, x, mask, dropped)
            }
            Some(tape) => {
                let (layer, mask) = (self.clone(), mask.clone());
                tape.segment(vec![x.clone()], move |inputs| {
                    layer.compute(&inputs[0], usize::MAX, &mask, &dropped, &Pass::new())
                })
            }
            None => self.compute(x, usize::MAX, mask, &dropped, pass),
        }
    }

    /// The layer itself, for the first `queries` tokens: `(b, t, d) -> (b, queries, d)`.
    fn compute(
        &self,
        x: &Tensor,
        queries: usize,
        mask: &Mask,
        dropped: &Dropped,
        pass: &Pass<'_>,
    ) -> candle_core::Result<Tensor> {
        let attention = &self.attention;
        let x = attention.forward(x, queries, mask, dropped, self.index, pass)?;
        let inner = || format!("{}.intermediate.dense", self.name);
        pass.show(inner, &x, Some(mask))?;
        let inner = self.intermediate.forward_active(&x, Activation::Gelu)?; // (b, queries, f)
        pass.show(|| format!("{}.output.dense", self.name), &inner, Some(mask))?;
        self.norm
            .forward(&residual(&self.output, &inner, &x, &dropped.ffn)?)
    }

    fn dropped(&self, pass: &Pass<'_>) -> Dropped {
        let site = |part: &str| pass.dropping(&format!("layer{}.{part}", self.index));
        Dropped {
            shares: site("attention_probs"),
            attention: site("attention_output"),
            ffn: site("ffn_output"),
        }
    }

    /// Whether the halves can run on slices, which know no mask but padding.
    fn is_fusible(&self, x: &Tensor, mask: &Mask, tape: &Tape) -> bool {
        let attention = &self.attention;
        let linear = [
            &attention.query,
            &attention.key,
            &attention.value,
            &attention.output,
            &self.intermediate,
            &self.output,
        ];
        let norms = [&attention.norm, &self.norm];
        let weights = (linear.into_iter().flat_map(Linear::weights))
            .chain(norms.into_iter().flat_map(LayerNorm::weights));
        let is_padding = matches!(mask, Mask::Padding(added) if is_on_host(added));
        is_padding && fits_slices(tape, x, weights)
    }
}

impl Bert {
    /// The tensors of a checkpoint under the names in the file.
    ///
    /// # Errors
    /// As [`Weights::new`].
    pub fn weights(checkpoint: Arc<Checkpoint>, device: &Device, dtype: DType) -> Result<Weights> {
        let layout = Generic::read(&checkpoint);
        Weights::new(checkpoint, &layout, str::to_owned, device, dtype)
    }

    /// The prefix of a BERT that is a checkpoint of its own: `bert.` where it came with heads.
    #[must_use]
    pub fn prefix(weights: &Weights) -> &'static str {
        match weights.has("bert.embeddings.") {
            true => "bert.",
            false => "",
        }
    }

    /// Loads every part of the tower under `prefix`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, prefix: &str, config: Config) -> Result<Self> {
        let name = |i| format!("{prefix}encoder.layer.{i}");
        let layer = |i| Layer::load(weights, &name(i), i, &config);
        Ok(Self {
            embeddings: Embeddings::load(weights, prefix, &config)?,
            layers: (0..config.n_blocks).map(layer).collect::<Result<_>>()?,
            config,
        })
    }

    /// Its sizes.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Tokens before the first layer: `ids: (b, t) -> (b, t, d)`.
    fn embed(&self, ids: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let x = self.embeddings.forward(ids, pass)?;
        pass.show_output(format_args!("embed"), || Ok(x.clone()))?;
        Ok(pass.drop("embeddings", &x)?)
    }

    fn run(&self, mut x: Tensor, layers: &[Layer], mask: &Mask, pass: &Pass<'_>) -> Result<Tensor> {
        for layer in layers {
            x = layer.forward(&x, mask, pass)?;
            let name = format!("layer{}", layer.index);
            pass.show_named_block(&name, std::slice::from_ref(&x))?;
        }
        Ok(x)
    }

    /// Tokens after the last layer: `ids: (b, t) -> (b, t, d)`.
    ///
    /// # Errors
    /// For an id outside the vocabulary, a text that is too long, or when the device fails.
    pub fn tokens(&self, ids: &Tensor, mask: &Mask, pass: &Pass<'_>) -> Result<Tensor> {
        self.run(self.embed(ids, pass)?, &self.layers, mask, pass)
    }

    /// The first token after the last layer: `ids: (b, t) -> (b, d)`. Where nobody looks on and no
    /// gradient is asked for, the last layer computes that token alone.
    ///
    /// # Errors
    /// As [`Bert::tokens`].
    pub fn class(&self, ids: &Tensor, mask: &Mask, pass: &Pass<'_>) -> Result<Tensor> {
        let x = self.embed(ids, pass)?;
        let Some((last, others)) = self.layers.split_last() else {
            return Ok(first(&x)?);
        };
        let x = self.run(x, others, mask, pass)?;
        let dropped = last.dropped(pass);
        let is_trained = x.track_op() || last.attention.query.weight().track_op();
        let is_plain = !is_trained && !dropped.shares.is_active();
        let x = match pass.is_tapped() || !is_plain || pass.tape().is_some() {
            true => self.run(x, std::slice::from_ref(last), mask, pass)?,
            false => last.compute(&x, 1, mask, &dropped, pass)?, // (b, 1, d)
        };
        Ok(first(&x)?)
    }

    /// The mean of the real tokens, scaled to length one: `(b, t) -> (b, d)`. A text has at least
    /// one real token; padding is hidden by −∞.
    ///
    /// # Errors
    /// As [`Bert::tokens`].
    pub fn embedding(&self, ids: &Tensor, mask: &Mask, pass: &Pass<'_>) -> Result<Tensor> {
        let tokens = self.tokens(ids, mask, pass)?; // (b, t, d)
        // exp(0) = 1 for a token, exp(−∞) = 0 for padding. What is scaled to length one afterwards
        // need not be divided by the number of tokens.
        let added = mask.for_scores(1, tokens.dim(1)?, tokens.device())?; // (b, 1, 1, t)
        let kept = added.flatten_from(1)?.exp()?.to_dtype(tokens.dtype())?;
        let sum = tokens.broadcast_mul(&kept.unsqueeze(2)?)?.sum(1)?; // (b, d)
        Ok(unit_length(&sum)?)
    }
}
