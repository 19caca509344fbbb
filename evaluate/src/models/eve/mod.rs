//! EVE: one transformer for images, for texts and for both together. Attention is the same for all tokens; lower blocks
//! have a feed-forward network for each modality, the last ones a router that sends each token to two of many experts.

mod block;
mod blueprint;
mod capabilities;
mod config;
pub mod gate;
mod heads;
mod mixture;
pub mod named;
mod pairs;
mod signals;

pub use blueprint::{FAMILY, GROUPING};
pub use config::Config;
pub use mixture::{Ask, Mixture, Modality};

use candle_core::Tensor;

use self::block::{Block, Sequence};
use self::heads::Heads;
use crate::batch::{Images, Texts};
use crate::nn::{
    Bias, Capacity, Embedding, LayerNorm, Mask, Noise, Pairs, Pass, PatchEmbed, RelativePosition,
    Routing,
};
use crate::weights::Init;
use crate::{Error, ModelFault, Result, Weights};

/// The number that LayerNorm of the backbone adds to the variance.
const EPSILON: f64 = 1e-6;

/// An EVE.
#[derive(Clone, Debug)]
pub struct Eve {
    config: Config,
    patch_embed: PatchEmbed,
    class: Tensor,
    /// Positions of image tokens and of texts; `None` where positions are relative.
    positions: Option<[Tensor; 2]>,
    /// The vectors that mark tokens as those of images or of texts.
    types: [Tensor; 2],
    words: Embedding,
    text_norm: LayerNorm,
    input_norm: LayerNorm,
    norm: LayerNorm,
    mask_token: Option<Tensor>,
    relative: Option<RelativePosition>,
    blocks: Vec<Block>,
    heads: Heads,
}

/// A sequence before the first block.
struct Embedded {
    x: Tensor,
    modality: Modality,
    mask: Option<Mask>,
}

impl Eve {
    /// Loads a model.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, config: Config) -> Result<Self> {
        let d = config.width;
        let vector =
            |name: &str| weights.get(&format!("backbone.{name}"), &[d], Init::Normal(0.02));
        let norm = |name: &str| LayerNorm::load(weights, &format!("backbone.{name}"), d, EPSILON);
        let table = |name: &str, rows: usize| {
            weights.get(&format!("backbone.{name}"), &[rows, d], Init::Normal(0.02))
        };
        let n_image = config.n_patches() + 1;
        let words = Embedding::load(weights, "backbone.word_embedding", config.vocabulary, d)?;
        let relative = config
            .relative
            .map(|window| RelativePosition::load(weights, window, config.n_blocks, config.n_heads));
        Ok(Self {
            patch_embed: PatchEmbed::load(weights, "backbone.patch_embed", d, config.patch_size)?,
            class: vector("class_embedding_vision")?,
            positions: match config.relative {
                Some(_) => None,
                None => Some([
                    table("pos_embed_vision", n_image)?,
                    table("pos_embed_text", config.text_positions)?,
                ]),
            },
            types: [vector("type_embed_vision")?, vector("type_embed_text")?],
            text_norm: norm("layer_norm_text")?,
            input_norm: norm("pre_layrnorm")?,
            norm: norm("norm")?,
            mask_token: match weights.has("backbone.mask_embed_vision") {
                true => Some(vector("mask_embed_vision")?),
                false => None,
            },
            relative: relative.transpose()?,
            blocks: (0..config.n_blocks)
                .map(|index| Block::load(weights, index, &config))
                .collect::<Result<_>>()?,
            heads: Heads::load(weights, &config, words.table())?,
            words,
            config,
        })
    }

    /// Its sizes and ways.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The number of blocks with a router.
    #[must_use]
    pub fn n_routers(&self) -> usize {
        self.blocks
            .iter()
            .filter(|block| block.has_router())
            .count()
    }

    /// Image tokens before the norm of the input, class token first: `(b, 3, s, s) -> (b, n, d)`. Patches where
    /// `masked: (b, p)` is 1 are replaced by the mask token.
    ///
    /// # Errors
    /// When the image is of another size, there is no mask token, or the device fails.
    pub fn embed_image(&self, pixels: &Tensor, masked: Option<&Tensor>) -> Result<Tensor> {
        let mut x = self.patch_embed.forward(pixels)?; // (b, p, d)
        let (b, patches, d) = x.dims3()?;
        if patches != self.config.n_patches() {
            return Err(Error::ImageSize {
                found: pixels.dims().to_vec(),
                expected: self.config.image_size,
            });
        }
        if let Some(masked) = masked {
            let Some(token) = &self.mask_token else {
                return Err(Error::Model(ModelFault::Incapable {
                    family: blueprint::NAME,
                    what: "hide patches without `backbone.mask_embed_vision`",
                }));
            };
            let masked = masked.to_dtype(x.dtype())?.unsqueeze(2)?; // (b, p, 1)
            x = (x.broadcast_mul(&(1.0 - &masked)?)? + masked.broadcast_mul(token)?)?;
        }
        let class = self.class.reshape((1, 1, d))?.expand((b, 1, d))?;
        let x = Tensor::cat(&[&class, &x], 1)?; // (b, n, d)
        let x = match &self.positions {
            Some([positions, _]) => x.broadcast_add(positions)?,
            None => x,
        };
        Ok(x.broadcast_add(&self.types[0])?)
    }

    /// Text tokens before the norm of the input: `(b, t) -> (b, t, d)`.
    ///
    /// # Errors
    /// For an id outside the vocabulary, a text longer than there are positions, or when the device fails.
    pub fn embed_text(&self, ids: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let t = ids.dim(1)?;
        let room = self.config.text_positions;
        if t > room {
            return Err(Error::Model(ModelFault::TextPositions { found: t, room }));
        }
        let x = self.text_norm.forward(&self.words.forward_on(ids, pass)?)?;
        let x = pass.drop("text.embed", &x)?;
        let x = match &self.positions {
            Some([_, positions]) => x.broadcast_add(&positions.narrow(0, 0, t)?)?,
            None => x,
        };
        Ok(x.broadcast_add(&self.types[1])?)
    }

    /// Image tokens of some patches alone, `kept: (b, k)`, class token first: `(b, 1 + k, d)`. As in the published
    /// program, kept patches have no positions.
    fn embed_kept(&self, pixels: &Tensor, kept: &Tensor) -> Result<Tensor> {
        let x = self.patch_embed.forward(pixels)?; // (b, p, d)
        let (b, _, d) = x.dims3()?;
        let k = kept.dim(1)?;
        let kept = kept.unsqueeze(2)?.expand((b, k, d))?.contiguous()?;
        let x = x.gather(&kept, 1)?;
        let class = self.class.reshape((1, 1, d))?;
        let class = match &self.positions {
            Some([positions, _]) => class.broadcast_add(&positions.narrow(0, 0, 1)?)?,
            None => class,
        };
        let x = Tensor::cat(&[&class.expand((b, 1, d))?, &x], 1)?;
        Ok(x.broadcast_add(&self.types[0])?)
    }

    fn image_alone(&self, images: &Images, masked: Option<&Tensor>) -> Result<Embedded> {
        Ok(Embedded {
            x: self.embed_image(&images.pixels, masked)?,
            modality: Modality::Image,
            mask: None,
        })
    }

    fn text_alone(&self, texts: &Texts, pass: &Pass<'_>) -> Result<Embedded> {
        Ok(Embedded {
            x: self.embed_text(&texts.ids, pass)?,
            modality: Modality::Text,
            mask: Some(texts.mask.clone()),
        })
    }

    /// Image tokens, then text tokens.
    fn together(
        &self,
        texts: &Texts,
        images: &Images,
        masked: Option<&Tensor>,
        pass: &Pass<'_>,
    ) -> Result<Embedded> {
        self.check_pair_len(texts)?;
        let image = self.embed_image(&images.pixels, masked)?;
        let n = image.dim(1)?;
        self.joined(image, texts, Modality::Both(n), pass)
    }

    /// A text of another length would send its first tokens, or the last ones of the image, to the wrong networks.
    fn check_pair_len(&self, texts: &Texts) -> Result<()> {
        let (found, expected) = (texts.ids.dim(1)?, self.config.pair_len);
        match found == expected || self.config.as_published {
            true => Ok(()),
            false => Err(Error::Model(ModelFault::TextLength { found, expected })),
        }
    }

    fn joined(
        &self,
        image: Tensor,
        texts: &Texts,
        modality: Modality,
        pass: &Pass<'_>,
    ) -> Result<Embedded> {
        let text = self.embed_text(&texts.ids, pass)?;
        let (b, n, _) = image.dims3()?;
        let of_image = Mask::new(&Tensor::ones(
            (b, n),
            candle_core::DType::U8,
            image.device(),
        )?)?;
        Ok(Embedded {
            x: Tensor::cat(&[&image, &text], 1)?,
            modality,
            mask: Some(of_image.followed_by(&texts.mask)?),
        })
    }

    /// All blocks, then the last norm if it `is_normed`: `(b, n, d)`.
    fn run(&self, of: &Embedded, is_normed: bool, pass: &Pass<'_>) -> Result<Tensor> {
        pass.show_output(format_args!("embed"), || Ok(of.x.clone()))?;
        let mut x = self.input_norm.forward(&of.x)?;
        pass.show_output(format_args!("embed_ln"), || Ok(x.clone()))?;
        let n = x.dim(1)?;
        let pairs = self.pairs(of.modality, n)?;
        let routing = self.routing(pass);
        let division = match of.modality {
            Modality::Both(_) if self.config.as_published => n.saturating_sub(self.config.pair_len),
            Modality::Both(n_image) => n_image,
            Modality::Image | Modality::Text => n,
        };
        for (index, block) in self.blocks.iter().enumerate() {
            let bias = pairs.as_ref().map(|pairs| pairs.bias(index, pass));
            let bias = bias.transpose()?;
            let sequence = Sequence {
                modality: of.modality,
                division,
                n_image: self.config.n_patches() + 1,
                attended: Bias {
                    pairs: bias.as_ref(),
                    mask: of.mask.as_ref(),
                },
                routing: &routing,
            };
            x = block.forward(&x, &sequence, pass)?;
            pass.show_block(index, std::slice::from_ref(&x))?;
        }
        match is_normed {
            true => self.normed(&x),
            false => Ok(x),
        }
    }

    /// The last norm.
    ///
    /// # Errors
    /// When the device fails.
    pub fn normed(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.norm.forward(x)?)
    }

    fn pairs(&self, modality: Modality, n: usize) -> Result<Option<Pairs>> {
        let Some(relative) = &self.relative else {
            return Ok(None);
        };
        Ok(Some(match modality {
            Modality::Image => relative.image()?,
            Modality::Text => relative.text(n)?,
            Modality::Both(n_image) => relative.image_first(n.saturating_sub(n_image))?,
        }))
    }

    /// The choice of routers: that of the pass, if it has one; in training with noise and room for as many tokens as
    /// come where choices are even, as published; else the model's own.
    fn routing(&self, pass: &Pass<'_>) -> Routing {
        match (pass.routing(), pass.omission()) {
            (Some(routing), _) => routing.clone(),
            (None, Some(omission)) => Routing {
                noise: Noise::Drawn {
                    seed: omission.seed,
                    name: omission.name.clone(),
                    first: omission.first,
                },
                capacity: Capacity::PUBLISHED,
            },
            (None, None) => self.config.usual_routing(),
        }
    }
}
