//! The text tower: a transformer whose tokens see those before them (CLIP) or all (SigLIP), with one row that stands for
//! the text.

use candle_core::{Device, Tensor};
use merge::layouts::PooledText;

use super::block::Block;
use super::config::Config;
use crate::batch::Texts;
use crate::crossing;
use crate::models::towers::first;
use crate::nn::{Buffers, Embedding, LayerNorm, Linear, Mask, Pass, Picked};
use crate::{Error, ModelFault, Result, Weights};

/// The first part of its keys.
pub(super) const PREFIX: &str = "text_model.";

/// A text tower.
#[derive(Clone, Debug)]
pub(super) struct TextTower {
    tokens: Embedding,
    /// `(t, d)`.
    positions: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
    is_causal: bool,
    pooled: PooledText,
}

/// The row of each text that stands for it: `ids` of `len` tokens each, text after text.
#[must_use]
pub fn pooled_rows(ids: &[u32], len: usize, rule: PooledText) -> Vec<usize> {
    let texts = ids.chunks_exact(len.max(1));
    let row = |text: &[u32]| match rule {
        PooledText::Largest => {
            // The first of several.
            let largest = text.iter().max();
            text.iter().position(|id| Some(id) == largest).unwrap_or(0)
        }
        PooledText::Token(token) => text.iter().position(|id| *id == token).unwrap_or(0),
        PooledText::Last => len.saturating_sub(1),
        PooledText::First => 0,
    };
    texts.map(row).collect()
}

/// The mask of `len` tokens: each sees itself and those before it, of which `kept` leaves some out.
fn causal(kept: Option<&[u8]>, b: usize, len: usize, device: &Device) -> Result<Mask> {
    let sees = |text: usize, query: usize, key: usize| {
        key <= query && kept.is_none_or(|kept| kept[text * len + key] != 0)
    };
    let seen = (0..b * len * len).map(|at| {
        let (text, pair) = (at / (len * len), at % (len * len));
        u8::from(sees(text, pair / len, pair % len))
    });
    let seen = crossing::to_device(seen.collect::<Vec<u8>>(), (b, len, len), device)?;
    // A text that begins with padding has tokens that see nothing but themselves.
    Ok(Mask::pairs(&seen, f32::MIN)?)
}

impl TextTower {
    /// Loads every part.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, config: &Config) -> Result<Self> {
        let (of, d) = (&config.text, config.text.width);
        let name = |part: &str| format!("{PREFIX}{part}");
        let (tokens, positions) = (
            name("embeddings.token_embedding"),
            name("embeddings.position_embedding.weight"),
        );
        let vocabulary = config.input.text.vocabulary;
        let blocks = (0..of.n_blocks).map(|index| {
            let name = name(&format!("encoder.layers.{index}"));
            Block::load(weights, &name, index, of)
        });
        Ok(Self {
            tokens: Embedding::load(weights, &tokens, vocabulary, d)?,
            positions: weights.get(&positions, &[config.text_len, d], Linear::INIT)?,
            blocks: blocks.collect::<Result<_>>()?,
            norm: LayerNorm::load(weights, &name("final_layer_norm"), d, of.epsilon)?,
            is_causal: config.is_causal,
            pooled: config.pooled,
        })
    }

    /// The mask of the tokens. Published models leave padding in, which `hides_padding` takes out.
    fn seen(&self, texts: &Texts, hides_padding: bool) -> Result<Option<Mask>> {
        let (b, len) = texts.ids.dims2()?;
        let kept: Option<Vec<u8>> = match hides_padding {
            true => Some(crossing::to_memory(&texts.kept)?),
            false => None,
        };
        match (self.is_causal, hides_padding) {
            (true, _) => causal(kept.as_deref(), b, len, texts.ids.device()).map(Some),
            (false, true) => Ok(Some(Mask::padding(&texts.kept, f32::MIN)?)),
            (false, false) => Ok(None),
        }
    }

    /// Tokens before the first block: `(b, t, d)`.
    fn embed(&self, texts: &Texts, pass: &Pass<'_>) -> Result<Tensor> {
        let (_, len) = texts.ids.dims2()?;
        let room = self.positions.dim(0)?;
        if len > room {
            let found = len;
            return Err(Error::Model(ModelFault::TextPositions { found, room }));
        }
        let positions = self.positions.narrow(0, 0, len)?;
        let tokens = self.tokens.forward_on(&texts.ids, pass)?;
        let x = tokens.broadcast_add(&positions)?; // (b, t, d)
        pass.show_output(format_args!("embed"), || Ok(x.clone()))?;
        Ok(x)
    }

    /// All tokens after the last norm: `(b, t, d)`.
    ///
    /// # Errors
    /// [`ModelFault::TextPositions`], or when the device fails.
    pub fn tokens(&self, texts: &Texts, hides_padding: bool, pass: &Pass<'_>) -> Result<Tensor> {
        let mut x = self.embed(texts, pass)?;
        let seen = self.seen(texts, hides_padding)?;
        // Where padding takes part, its rows are inputs like others.
        let real = (self.is_causal || hides_padding).then_some(&texts.mask);
        let buffers = Buffers::default();
        for block in &self.blocks {
            x = block.forward(&x, seen.as_ref(), real, pass, &buffers)?;
        }
        let x = self.norm.forward(&x)?;
        pass.show_output(format_args!("last"), || Ok(x.clone()))?;
        Ok(x)
    }

    /// The row that stands for each text, before it is projected: `(b, d)`. Without a tap the last block computes that
    /// row alone.
    ///
    /// # Errors
    /// As [`TextTower::tokens`].
    pub fn pooled(&self, texts: &Texts, hides_padding: bool, pass: &Pass<'_>) -> Result<Tensor> {
        let ids: Vec<u32> = crossing::to_memory(&texts.ids)?;
        let picked = Picked::new(pooled_rows(&ids, texts.ids.dim(1)?, self.pooled));
        let Some((last, others)) = self.blocks.split_last().filter(|_| !pass.is_tapped()) else {
            let x = self.tokens(texts, hides_padding, pass)?;
            let [x] = picked.of([&x])?;
            return Ok(first(&x)?);
        };
        let mut x = self.embed(texts, pass)?;
        let seen = self.seen(texts, hides_padding)?;
        let buffers = Buffers::default();
        for block in others {
            x = block.forward(&x, seen.as_ref(), None, pass, &buffers)?;
        }
        let x = last.forward_picked(&x, &picked, seen.as_ref(), pass, &buffers)?; // (b, 1, d)
        Ok(first(&self.norm.forward(&x)?)?)
    }
}
