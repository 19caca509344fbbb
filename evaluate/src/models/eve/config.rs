//! Sizes and ways of an EVE, read off a checkpoint.

use merge::layouts::{self, ModelRecord, RecordFamily, Window};
use merge::{Checkpoint, Layout};

use crate::images::ImageInput;
use crate::models::settings::agreed;
use crate::models::towers::sizes;
use crate::models::{ModelInput, Overrides, RouterWay};
use crate::nn::{Capacity, Noise, Routing};
use crate::text::{Padding, TextInput, TextRule};
use crate::{Error, ModelFault, Result};

/// Tokens of a text that is read together with an image, in every published model.
const PAIR_LEN: usize = 40;

/// An EVE. No size is a constant.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Number of blocks.
    pub n_blocks: usize,
    /// Hidden size.
    pub width: usize,
    /// Attention heads of each block.
    pub n_heads: usize,
    /// Inner size of every feed-forward network.
    pub ffn_width: usize,
    /// Experts of each block's mixture; `None` for a block without one.
    pub experts: Vec<Option<usize>>,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Side of the image in pixels.
    pub image_size: usize,
    /// Text positions.
    pub text_positions: usize,
    /// Tokens of a text that is read together with an image.
    pub pair_len: usize,
    /// Tokens.
    pub vocabulary: usize,
    /// The table of relative positions in place of absolute ones, which no published model has.
    pub relative: Option<Window>,
    /// Whether the model does what the published program does where that is a slip: features for retrieval without the
    /// last norm, and texts of another length than `pair_len` whose last image tokens count as text.
    pub as_published: bool,
    /// Blocks between the encoder and the head of hidden patches.
    pub decoder_depth: usize,
    /// Whether the head of masked words has the word embedding for its last layer.
    pub ties_words: bool,
    /// The choice of routers outside of training.
    pub routing: RouterWay,
    /// Pixels and tokens.
    pub input: ModelInput,
}

impl Config {
    /// The sizes of a checkpoint.
    ///
    /// # Errors
    /// [`ModelFault::NotRunnable`], [`ModelFault::UnknownSize`] for a size that neither the checkpoint nor `overrides`
    /// tells, [`ModelFault::BadSize`] for sizes that do not fit, and for `overrides` that contradict the file's record.
    pub fn read(
        checkpoint: &Checkpoint,
        layout: &dyn Layout,
        overrides: &Overrides,
    ) -> Result<Self> {
        let path = checkpoint.path();
        let Some(found) = layouts::Eve::read(checkpoint)? else {
            return Err(Error::Model(ModelFault::NotRunnable {
                path: path.into(),
                layout: layout.name().to_owned(),
            }));
        };
        let record = ModelRecord::of(checkpoint)?;
        let dimensions = found.dimensions();
        let known = |what: &'static str, size: Option<usize>| match size {
            Some(0) => Err(sizes::bad(checkpoint, &format!("{what} is 0"))),
            Some(size) => Ok(size),
            None => Err(Error::Model(ModelFault::UnknownSize {
                path: path.into(),
                what,
            })),
        };
        let width = known("the width", Some(dimensions.width()))?;
        let n_blocks = known("the number of blocks", Some(dimensions.n_blocks()))?;
        let pair_len = agreed(checkpoint, "pair_len", overrides.pair_len, record.pair_len)?
            .or(found.pair_len())
            .unwrap_or(PAIR_LEN);
        let patch_size = known("the patch size", dimensions.patch_size)?;
        let is_relative = checkpoint
            .tensors()
            .any(|(key, _)| key.ends_with("encoder.relative_position_bias_table"));
        let text_positions = match is_relative {
            false => known("the number of text positions", dimensions.text_len)?,
            true => {
                let (given, recorded) = (overrides.text_table_len, record.text_table_len);
                let len = agreed(checkpoint, "text_table_len", given, recorded)?;
                known("the text length of the bias table", len)?
            }
        };
        let image_size = match is_relative {
            true => found
                .relative_side(checkpoint, text_positions)
                .map(|side| side * patch_size),
            false => dimensions.image_size,
        };
        let image_size = known("the image size", image_size)?;
        if pair_len > text_positions {
            let fault = format!(
                "texts read with an image have {pair_len} tokens, but there are {text_positions} positions"
            );
            return Err(sizes::bad(checkpoint, &fault));
        }
        let heads = agreed(checkpoint, "heads", overrides.n_heads, record.heads)?;
        let heads = heads.or(dimensions.n_heads());
        let vocabulary = known("the size of the vocabulary", dimensions.vocabulary)?;
        let as_published = overrides.as_published.unwrap_or(false);
        let has = |start: &str| {
            let mut keys = checkpoint.tensors().map(|(key, _)| without_module(key));
            keys.any(|key| key.starts_with(start))
        };
        let usual = match as_published {
            true => RouterWay::AsPublished,
            false => RouterWay::Unlimited,
        };
        Ok(Self {
            n_blocks,
            width,
            n_heads: sizes::heads(checkpoint, width, heads)?,
            ffn_width: known("the width of the FFN", dimensions.ffn_width())?,
            experts: (0..n_blocks)
                .map(|block| found.n_routed(block).map(usize::from))
                .collect(),
            patch_size,
            image_size,
            text_positions,
            pair_len,
            vocabulary,
            relative: is_relative.then(|| Window {
                side: image_size / patch_size,
                text_len: text_positions,
                fused_text_len: None,
                text_table_len: text_positions,
            }),
            as_published,
            // A part that the checkpoint lacks may be asked for, and starts fresh; a part that it has must be as it is asked for.
            decoder_depth: agreed(
                checkpoint,
                "decoder_depth",
                overrides.decoder_depth,
                Some(decoder_depth(checkpoint)).filter(|depth| *depth > 0),
            )?
            .unwrap_or(0),
            ties_words: agreed(
                checkpoint,
                "tied_words",
                overrides.tied_words,
                has("mlm_head.decoder.").then_some(false),
            )?
            .unwrap_or(true),
            routing: overrides.routing.unwrap_or(usual),
            input: ModelInput {
                image: ImageInput::square(image_size),
                text: TextInput {
                    len: pair_len,
                    padding: Padding::Full,
                    vocabulary,
                    rule: TextRule::Cleaned,
                    padding_id: None,
                    ends_at_largest: false,
                },
            },
        })
    }

    /// Numbers of a patch.
    #[must_use]
    pub fn patch_len(&self) -> usize {
        3 * self.patch_size.pow(2)
    }

    /// Patches of an image.
    #[must_use]
    pub fn n_patches(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }

    /// The choice of routers outside of training.
    pub(super) fn usual_routing(&self) -> Routing {
        match self.routing {
            RouterWay::Unlimited => Routing::default(),
            RouterWay::Capacity => Routing {
                capacity: Capacity::PUBLISHED,
                ..Routing::default()
            },
            RouterWay::AsPublished => Routing {
                noise: Noise::Drawn {
                    seed: 0,
                    name: "evaluation".to_owned(),
                    first: 0,
                },
                capacity: Capacity::PUBLISHED,
            },
        }
    }

    /// Facts about this model that the weights do not tell, for the file that they go to.
    #[must_use]
    pub fn record(&self) -> ModelRecord {
        ModelRecord {
            family: Some(RecordFamily::Eve),
            heads: Some(self.n_heads),
            pair_len: Some(self.pair_len),
            text_table_len: self.relative.map(|window| window.text_table_len),
            ..ModelRecord::default()
        }
    }
}

/// Blocks of the decoder that a checkpoint has.
fn decoder_depth(checkpoint: &Checkpoint) -> usize {
    let index = |key: &str| -> Option<usize> {
        let rest = without_module(key).strip_prefix("decoder.layers.")?;
        rest.split('.').next()?.parse().ok()
    };
    let last = checkpoint.tensors().filter_map(|(key, _)| index(key)).max();
    last.map_or(0, |last| last + 1)
}

fn without_module(key: &str) -> &str {
    key.strip_prefix("module.").unwrap_or(key)
}
