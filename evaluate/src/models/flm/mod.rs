//! FLM: CLIP's ViT for images and RoBERTa for texts, which meet in cross-attention. A text is read left to
//! right, right to left, and by queries that see of either direction what does not contain their token.
//!
//! Wang et al. 2023, "Accelerating Vision-Language Pretraining with Free Language Modeling",
//! <https://arxiv.org/abs/2303.14038>. Reference, whose names these are:
//! <https://github.com/TencentARC/FLM>.

mod blueprint;
mod capabilities;
mod captions;
mod config;
mod heads;
mod masks;
pub mod named;
mod packed;
mod passes;
mod ranking;

pub use blueprint::{FAMILY, GROUPING};
pub use config::Config;

use config::{IMAGE, TEXT};
use heads::Heads;

use super::towers::Vit;
use super::towers::bert_embeddings::Embeddings;
use super::towers::bert_layer::{Layer, LayerSizes, LooksAt, Shown};
use crate::nn::{Embedding, Linear};
use crate::{Result, Weights};

/// LayerNorm of every layer after the encoders.
const EPSILON: f64 = 1e-12;

/// An image encoder, a text encoder, layers in which texts look at images, and the reconstructor.
#[derive(Clone, Debug)]
pub struct Flm {
    config: Config,
    image: Vit,
    embeddings: Embeddings,
    text: Vec<Layer>,
    text_transform: Linear,
    image_transform: Linear,
    token_types: Embedding,
    /// Of the reverse stream and of queries.
    stream_types: Option<Embedding>,
    cross: Vec<Layer>,
    fusion_bottom: Vec<Layer>,
    fusion_top: Vec<Layer>,
    heads: Heads,
}

impl Flm {
    /// Loads every part.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, config: Config) -> Result<Self> {
        let d = config.width;
        let sizes = LayerSizes {
            width: d,
            n_heads: config.n_heads,
            ffn_width: config.ffn_width,
            epsilon: EPSILON,
        };
        let text_layer = |i: usize| {
            let name = format!("{TEXT}encoder.layer.{i}");
            let (sizes, shown) = (config.text.layer_sizes(), shown("text", i, ""));
            Layer::load(weights, &name, LooksAt::Own, &sizes, shown)
        };
        let cross_layer = |i: usize| {
            let name = format!("cross_modal_text_layers.{i}");
            let shown = shown("cross", i, "image");
            Layer::load(weights, &name, LooksAt::Both, &sizes, shown)
        };
        // A layer of the reconstructor is shown by the layer that it stands beside.
        let fusion = |half: &str, beside: &str, n: usize, n_beside: usize| -> Result<Vec<Layer>> {
            let layer = |i: usize| {
                let name = format!("fusion_layers_{half}.{i}");
                let shown = shown(beside, n_beside - n + i, "streams");
                Layer::load(weights, &name, LooksAt::Other, &sizes, shown)
            };
            (0..n).map(layer).collect()
        };
        let stream_types = (config.has_reconstructor())
            .then(|| Embedding::load(weights, "token_type_embeddings_flm", 2, d));
        let (n_text, n_cross) = (config.text.n_blocks, config.n_cross);
        Ok(Self {
            image: Vit::load(weights, IMAGE, config.image.clone())?,
            embeddings: Embeddings::load(weights, TEXT, &config.text)?,
            text: (0..n_text).map(text_layer).collect::<Result<_>>()?,
            text_transform: Linear::load(weights, TEXT_TRANSFORM, config.text.width, d)?,
            image_transform: Linear::load(weights, IMAGE_TRANSFORM, config.image.width, d)?,
            token_types: Embedding::load(
                weights,
                "token_type_embeddings",
                config.n_token_types,
                d,
            )?,
            stream_types: stream_types.transpose()?,
            cross: (0..n_cross).map(cross_layer).collect::<Result<_>>()?,
            fusion_bottom: fusion("bottom", "text", config.n_fusion_bottom, n_text)?,
            fusion_top: fusion("top", "cross", config.n_fusion_top, n_cross)?,
            heads: Heads::load(weights, &config)?,
            config,
        })
    }

    /// Its sizes.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }
}

/// The layer between a text's own layers and those that look at images.
const TEXT_TRANSFORM: &str = "cross_modal_text_transform";

/// The layer that images pass before texts look at them.
const IMAGE_TRANSFORM: &str = "cross_modal_image_transform";

fn shown(stack: &str, index: usize, other: &'static str) -> Shown {
    Shown {
        layer: format!("{stack}{index}"),
        attn: format!("{stack}{index}.attn"),
        other,
    }
}
