//! BERT as a text tower.
//!
//! Devlin et al. 2018, "BERT", <https://arxiv.org/abs/1810.04805>, section 3; as a sentence encoder
//! Reimers and Gurevych 2019, "Sentence-BERT", <https://arxiv.org/abs/1908.10084>, section 3.
//! References: <https://github.com/google-research/bert> and, whose names these are,
//! <https://github.com/huggingface/transformers>.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use merge::Checkpoint;
use merge::layouts::Generic;

use super::bert_embeddings::Embeddings;
use super::bert_layer::{Layer, LayerSizes, LooksAt, Shown, Sight};
use super::bert_packed::PackedSight;
use super::{Shapes, first, sizes};
use crate::nn::{Buffers, Mask, PackedPairs, Packing, Pass, unit_length};
use crate::{Result, Weights};

/// The forms of BERT: they differ in numbers that weights do not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// Google's.
    #[default]
    Bert,
    /// RoBERTa: Liu et al. 2019, <https://arxiv.org/abs/1907.11692>. Positions begin after that of padding,
    /// whose rows are never learned.
    Roberta,
}

impl Form {
    /// The number that every LayerNorm adds to the variance.
    #[must_use]
    pub fn epsilon(self) -> f64 {
        match self {
            Self::Bert => 1e-12,
            Self::Roberta => 1e-5,
        }
    }

    /// The id of padding, where it has a part in counting positions.
    #[must_use]
    pub fn padding(self) -> Option<u32> {
        match self {
            Self::Bert => None,
            Self::Roberta => Some(1),
        }
    }

    /// The row of the position table that a text begins with.
    #[must_use]
    pub fn first_position(self) -> usize {
        self.padding().map_or(0, |padding| padding as usize + 1)
    }
}

/// Sizes of a BERT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The form.
    pub form: Form,
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
        Self::read_form(shapes, prefix, n_heads, Form::Bert)
    }

    /// As [`Config::read`], of any form.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn read_form(
        shapes: &dyn Shapes,
        prefix: &str,
        n_heads: Option<usize>,
        form: Form,
    ) -> Result<Self> {
        let table = |what, part: &str| {
            let name = format!("{prefix}embeddings.{part}.weight");
            match sizes::known(shapes, what, shapes.shape(&name))? {
                &[rows, width] => Ok((rows, width)),
                _ => Err(sizes::bad(shapes, &format!("`{name}` is not a table"))),
            }
        };
        let (vocabulary, width) = table("the size of the vocabulary", "word_embeddings")?;
        let (positions, _) = table("the text length", "position_embeddings")?;
        let Some(text_len) = positions.checked_sub(form.first_position()) else {
            let fault = format!("{positions} positions leave none for a text");
            return Err(sizes::bad(shapes, &fault));
        };
        let (n_token_types, _) = table("the number of token types", "token_type_embeddings")?;
        let inner = format!("{prefix}encoder.layer.0.intermediate.dense.bias");
        let last = |block| format!("{prefix}encoder.layer.{block}.output.LayerNorm.weight");
        Ok(Self {
            form,
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

impl Config {
    /// Those of its layers.
    pub(in crate::models) fn layer_sizes(&self) -> LayerSizes {
        LayerSizes {
            width: self.width,
            n_heads: self.n_heads,
            ffn_width: self.ffn_width,
            epsilon: self.form.epsilon(),
        }
    }
}

/// Every token sees the real ones.
fn padded(mask: &Mask) -> Sight<'_> {
    Sight {
        own: Some(mask),
        real: Some(mask),
        other: None,
    }
}

/// A BERT without heads.
#[derive(Clone, Debug)]
pub struct Bert {
    config: Config,
    embeddings: Embeddings,
    layers: Vec<Layer>,
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
        let sizes = config.layer_sizes();
        let layer = |i| {
            let name = format!("{prefix}encoder.layer.{i}");
            let shown = Shown {
                layer: format!("layer{i}"),
                attn: format!("attn{i}"),
                other: "",
            };
            Layer::load(weights, &name, LooksAt::Own, &sizes, shown)
        };
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

    fn run(&self, mut x: Tensor, layers: &[Layer], mask: &Mask, pass: &Pass<'_>) -> Result<Tensor> {
        for layer in layers {
            x = layer.forward(&x, padded(mask), pass)?;
        }
        Ok(x)
    }

    /// The rows that are computed, if padding is left out.
    fn packing(&self, ids: &Tensor, mask: &Mask, pass: &Pass<'_>) -> Result<Option<Packing>> {
        let is_graph = pass.tape().is_none() && self.embeddings.is_trained();
        let is_fitting = matches!(mask, Mask::Padding(kept) if kept.dims() == ids.dims());
        let packs = |layer: &Layer| layer.packs(pass);
        if is_graph || !is_fitting || !pass.may_pack() || !self.layers.iter().all(packs) {
            return Ok(None);
        }
        let packing = Packing::of_tokens(mask)?;
        Ok(packing.leaves_out().then_some(packing))
    }

    /// Packed texts after some layers: `ids: (b, t) -> (1, r, d)`.
    fn run_packed(
        &self,
        ids: &Tensor,
        layers: &[Layer],
        (packing, mask): (&Packing, &Mask),
        pass: &Pass<'_>,
        buffers: &Buffers,
    ) -> Result<Tensor> {
        let mut x = self.embeddings.forward_packed(ids, packing, pass)?;
        let own = PackedPairs::own(packing, packing, mask)?;
        let sight = PackedSight {
            own: Some(&own),
            other: None,
        };
        for layer in layers {
            x = layer.forward_packed(&x, sight, pass, buffers)?;
        }
        Ok(x)
    }

    /// Tokens after the last layer: `ids: (b, t) -> (b, t, d)`. Zeros stand for padding, which is not
    /// computed unless [the pass](Pass::with_padding) asks for it or somebody looks on.
    ///
    /// # Errors
    /// For an id outside the vocabulary, a text that is too long, or when the device fails.
    pub fn tokens(&self, ids: &Tensor, mask: &Mask, pass: &Pass<'_>) -> Result<Tensor> {
        if let Some(packing) = self.packing(ids, mask, pass)? {
            let (texts, buffers) = ((&packing, mask), Buffers::default());
            let x = self.run_packed(ids, &self.layers, texts, pass, &buffers)?;
            return Ok(packing.pad(&x)?);
        }
        self.run(
            self.embeddings.forward(ids, pass)?,
            &self.layers,
            mask,
            pass,
        )
    }

    /// The first token after the last layer: `ids: (b, t) -> (b, d)`. Without a tap and without
    /// gradients, the last layer computes that token alone.
    ///
    /// # Errors
    /// As [`Bert::tokens`].
    pub fn class(&self, ids: &Tensor, mask: &Mask, pass: &Pass<'_>) -> Result<Tensor> {
        let Some((last, others)) = self.layers.split_last() else {
            return Ok(first(&self.embeddings.forward(ids, pass)?)?);
        };
        if let Some(packing) = self.packing(ids, mask, pass)? {
            let (texts, buffers) = ((&packing, mask), Buffers::default());
            let x = match pass.tape().is_some() || last.is_thinned(pass) {
                true => {
                    let x = self.run_packed(ids, &self.layers, texts, pass, &buffers)?;
                    packing.firsts(&x)?
                }
                false => {
                    let x = self.run_packed(ids, others, texts, pass, &buffers)?;
                    last.forward_packed_first(&x, &packing, mask, &buffers)?
                }
            };
            return Ok(x.squeeze(0)?);
        }
        let x = self.run(self.embeddings.forward(ids, pass)?, others, mask, pass)?;
        let is_trained = x.track_op() || last.is_trained();
        let is_plain = !is_trained && !last.is_thinned(pass);
        let x = match pass.is_tapped() || !is_plain || pass.tape().is_some() {
            true => self.run(x, std::slice::from_ref(last), mask, pass)?,
            false => last.forward_first(&x, padded(mask))?, // (b, 1, d)
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
        // exp(0) = 1 for a token, exp(−∞) = 0 for padding. A vector that is scaled to length one afterwards
        // need not be divided by the number of tokens.
        let added = mask.for_scores(1, tokens.dim(1)?, tokens.device())?; // (b, 1, 1, t)
        let kept = added.flatten_from(1)?.exp()?.to_dtype(tokens.dtype())?;
        let sum = tokens.broadcast_mul(&kept.unsqueeze(2)?)?.sum(1)?; // (b, d)
        Ok(unit_length(&sum)?)
    }
}
